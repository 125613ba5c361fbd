"""No request is lost, and none answered twice, whatever happens to the devices that serve."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest
import torch

from edgeweave.core.errors import PlanError, RequestTimeout
from edgeweave.device import Serve
from edgeweave.device import Served as Answer
from edgeweave.device.serving.hosting import Hosting
from edgeweave.device.serving.stage import ServingStage
from edgeweave.plan import ServingPlan
from edgeweave.serving import old_terms
from edgeweave.serving.hands import Hands
from edgeweave.serving.keeper import Keeper
from edgeweave.serving.requests import Shipment
from edgeweave.serving.term import ServingTerm
from tests.fleet.worlds import wait_until
from tests.serving.trouble import Served, request, served
from tests.train.troubled import Act, cut_off, drop, kill, mend, stall, start

N = 60


def assert_all_answered(found: list[torch.Tensor], here: Served, n_requests: int = N) -> None:
    """Each once, in order, bit for bit."""
    assert len(found) == n_requests
    assert all(map(torch.equal, found, here.expected(n_requests)))
    statistics = here.endpoint.statistics()
    assert (statistics.answered, statistics.expired, statistics.open) == (n_requests, 0, 0)


@pytest.mark.parametrize(
    "lost",
    [pytest.param("a", marks=pytest.mark.slow), "b", pytest.param("c", marks=pytest.mark.slow)],
)
def test_a_device_that_is_killed_under_load_costs_no_request(lost: str) -> None:
    with served("a", "b", "c") as here:
        assert_all_answered(here.answers(N, {20: kill(lost)}), here)
        here.wait_devices(*sorted({"a", "b", "c"} - {lost}))
        assert f"{lost} was lost" in here.endpoint.changes[-1].why


@pytest.mark.slow
def test_one_device_after_another_is_lost_until_one_serves_alone() -> None:
    with served("a", "b", "c") as here:
        assert_all_answered(here.answers(N, {15: kill("b"), 35: kill("a")}), here)
        here.wait_devices("c")


@pytest.mark.slow
def test_two_devices_at_once() -> None:
    with served("a", "b", "c") as here:
        assert_all_answered(here.answers(N, {20: kill("a", "c")}), here)
        here.wait_devices("b")


@pytest.mark.parametrize(
    ("drains", "n_resent"), [pytest.param(1e9, 0, id="in time"), pytest.param(0.0, 3, id="late")]
)
def test_what_is_under_way_when_a_device_comes_is_answered_by_the_plan_of_before_or_sent_again(
    monkeypatch: pytest.MonkeyPatch, drains: float, n_resent: int
) -> None:
    begun, go_on = threading.Event(), threading.Event()
    futures: list[Future[torch.Tensor]] = []
    forward, deploy, look_after = ServingStage._forward, Hands.deploy, Keeper._look_after
    looked: list[Keeper] = []

    def held_up(stage: ServingStage, inputs: Any) -> Any:
        if stage._place.term == 0 and futures:
            begun.set()
            assert go_on.wait(20)
        return forward(stage, inputs)

    def deploy_amid_requests(hands: Hands, plan: ServingPlan, *rest: Any, **named: Any) -> Any:
        if len(plan.devices) == 3:
            futures.extend(here.endpoint.submit(request(number)) for number in range(3))
            assert begun.wait(20)
            wait_until(lambda: here.endpoint.statistics().waiting == 0, "all three are sent")
        return deploy(hands, plan, *rest, **named)

    def look(keeper: Keeper) -> None:
        look_after(keeper)
        looked.append(keeper)

    monkeypatch.setattr(ServingStage, "_forward", held_up)
    monkeypatch.setattr(Hands, "deploy", deploy_amid_requests)
    monkeypatch.setattr(Keeper, "_look_after", look)
    monkeypatch.setattr(old_terms, "_DRAINS", drains)
    with served("a", "b") as here:
        start("c")(here.troubled)
        here.wait_devices("a", "b", "c")
        assert [(each.why, each.n_resent) for each in here.endpoint.changes[1:]] == [
            ("c is there", 0)
        ]
        before = len(looked)
        if n_resent:
            wait_until(lambda: here.endpoint.statistics().resent == n_resent, "they are sent again")
        else:
            wait_until(lambda: len(looked) > before + 1, "it is looked after")
        go_on.set()
        found = [future.result(20) for future in futures]
        assert all(map(torch.equal, found, here.expected(3)))
        statistics = here.endpoint.statistics()
        assert (statistics.answered, statistics.resent, statistics.open) == (3, n_resent, 0)


@pytest.mark.slow
def test_a_device_that_comes_back_is_known() -> None:
    with served("a", "b", "c") as here:
        found = here.answers(N, {10: kill("b"), 30: start("b")})
        here.wait_devices("a", "b", "c")
        assert_all_answered(found, here)


def test_requests_wait_while_nobody_is_there() -> None:
    with served("a") as here:
        kill("a")(here.troubled)
        futures = [here.endpoint.submit(request(number)) for number in range(10)]
        start("b")(here.troubled)
        found = [future.result(timeout=30) for future in futures]
        assert_all_answered(found, here, 10)


def test_a_request_that_nobody_can_answer_fails_at_its_deadline() -> None:
    with served("a") as here:
        kill("a")(here.troubled)
        with pytest.raises(RequestTimeout, match=r"^no answer came in 0\.3 s \(request 0\)"):
            here.endpoint(request(0), timeout_seconds=0.3)
        start("a")(here.troubled)
        assert torch.equal(here.endpoint(request(1)), here.expected(2)[1])


@pytest.mark.parametrize("hurt", [stall, pytest.param(cut_off, marks=pytest.mark.slow)])
def test_a_device_that_says_nothing_is_left_out(hurt: Callable[[str], Act]) -> None:
    with served("a", "b", "c") as here:
        assert_all_answered(here.answers(N, {20: hurt("b")}), here)
        assert "b stands still" in [each.why for each in here.endpoint.changes]


def test_a_request_that_is_sent_while_its_term_ends_is_sent_in_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain, begun, go_on = ServingTerm.send, threading.Event(), threading.Event()

    def send(term: ServingTerm, shipment: Shipment) -> bool:
        if term.number == 0:
            begun.set()
            assert go_on.wait(20)
        return plain(term, shipment)

    monkeypatch.setattr(ServingTerm, "send", send)
    with served("a", "b") as here:
        future = here.endpoint.submit(request(0))
        assert begun.wait(20)
        kill("b")(here.troubled)
        here.wait_devices("a")
        go_on.set()
        assert_all_answered([future.result(20)], here, 1)


@pytest.mark.parametrize("refusing", ["b", "c"])
def test_a_device_that_refuses_its_stage_leaves_none_of_that_term_behind(
    monkeypatch: pytest.MonkeyPatch, refusing: str
) -> None:
    plain, refused = Hosting.deploy, []

    def deploy(hosting: Hosting, message: Serve) -> Answer:
        if message.place.n_stages == 3 and message.place.device == refusing:
            refused.append(message.place.term)
            raise PlanError(f"{refusing} has no room.")
        return plain(hosting, message)

    monkeypatch.setattr(Hosting, "deploy", deploy)
    with served("a", "b") as here:
        start("c")(here.troubled)
        wait_until(lambda: len(refused) > 1, f"{refusing} refuses, and is asked again")
        found = here.answers(10, {})
        assert all(map(torch.equal, found, here.expected(10)))
        hosting = here.troubled.world.agents["a"]._membership
        assert isinstance(hosting, Hosting)
        wait_until(lambda: len(hosting._held) == 1, "one stage is left")


@pytest.mark.slow
def test_a_device_that_could_not_be_told_its_release_is_told_at_the_end() -> None:
    with served("a", "b", "c") as here:
        hands = here.endpoint._keeper._hands
        here.answers(10, {5: cut_off("b")})
        wait_until(lambda: "b" in hands._untold, "b does not hear its release")
        mend("b")(here.troubled)


@pytest.mark.slow
def test_a_link_that_loses_all_is_not_used() -> None:
    with served("a", "b") as here:
        order = here.endpoint.plan
        assert order is not None
        first, second = order.devices
        assert_all_answered(here.answers(N, {20: drop(first, second)}), here)
        assert f"{second} stands still" in [each.why for each in here.endpoint.changes]


@pytest.mark.slow
def test_devices_come_and_go_many_times() -> None:
    script: dict[int, Act] = {}
    for turn in range(8):
        name = "abc"[turn % 3]
        script[20 + 40 * turn] = kill(name)
        script[40 + 40 * turn] = start(name)
    with served("a", "b", "c") as here:
        assert_all_answered(here.answers(400, script), here, 400)
