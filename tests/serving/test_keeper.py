"""How a served model is kept: what it begins from, who is asked when, and what makes room."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from typing import Any

import msgspec
import pytest
import torch

from edgeweave.core.errors import ConfigError, DeviceFailed, PlanError
from edgeweave.device import Place, Serve, Served
from edgeweave.device.serving.hosting import Hosting
from edgeweave.device.serving.stage import ServingStage
from edgeweave.fleet import Fleet
from edgeweave.serving import ServeOptions, serve
from edgeweave.serving.http import application
from edgeweave.serving.keeper import Keeper
from edgeweave.serving.measuring import Measuring
from tests.fleet.worlds import memory_fleet, wait_until
from tests.models import ZOO
from tests.serving.asgi import ask
from tests.serving.test_devices_come_and_go import assert_all_answered
from tests.serving.trouble import EVERYBODY, request, served
from tests.train.troubled import start


def test_an_endpoint_is_opened_once() -> None:
    with memory_fleet("a") as world:
        endpoint = serve(ZOO["mlp"].model(), world.fleet, request(0))
        with endpoint, pytest.raises(ConfigError, match=r"^an endpoint is opened once"), endpoint:
            pass
        with pytest.raises(ConfigError, match="Make another"), endpoint:
            pass


def test_costs_of_something_else_are_refused_and_no_device_stays_hired() -> None:
    model = ZOO["mlp"].model()
    with memory_fleet("a") as world, serve(model, world.fleet, request(0)) as endpoint:
        costs = endpoint.costs
    assert costs is not None
    with memory_fleet("x") as world:
        other = serve(model, world.fleet, request(0), costs=costs)
        with pytest.raises(ConfigError, match=r"\(they are of a; here are x\)"), other:
            pass
    with memory_fleet("a") as world:
        other = serve(torch.nn.Linear(12, 5), world.fleet, request(0), costs=costs)
        with pytest.raises(ConfigError, match=r"^costs are those of this model"), other:
            pass
        more = serve(model, world.fleet, torch.randn(3, 12), costs=costs)
        with pytest.raises(ConfigError, match=r"for requests of as many samples"), more:
            pass
        assert world.agents["a"].greeting().run is None


def test_devices_that_costs_do_not_know_are_measured() -> None:
    model = ZOO["mlp"].model()
    with memory_fleet("a", "b") as world:
        with serve(model, world.fleet, request(0)) as endpoint:
            assert endpoint.costs is not None
            costs = endpoint.costs.only(["a"])
        with serve(model, world.fleet, request(0), options=EVERYBODY, costs=costs) as endpoint:
            assert endpoint.costs is not None
            assert endpoint.costs.device("a") == costs.device("a")
            assert endpoint.plan is not None
            assert sorted(endpoint.plan.devices) == ["a", "b"]


def test_steady_news_do_not_keep_from_looking_after(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[float] = []
    monkeypatch.setattr(Keeper, "_look_after", lambda _keeper: looked.append(time.perf_counter()))
    with served("a") as here:
        keeper, ending = here.endpoint._keeper, threading.Event()

        def bring_news() -> None:
            while not ending.is_set():
                keeper._news.put(lambda: None)
                time.sleep(0.01)  # far more often than Timeouts.silence

        thread = threading.Thread(target=bring_news)
        thread.start()
        try:
            wait_until(lambda: len(looked) >= 2, "it is looked after")
        finally:
            ending.set()
            thread.join()


class Refusals:
    """Devices without room for two stages, and one that takes none of three."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, crowded: str, refusing: str) -> None:
        self.log: list[tuple[str, int, bool]] = []
        plain, has_room = Hosting.deploy, Hosting._has_room

        def deploy(hosting: Hosting, message: Serve) -> Served:
            place = message.place
            self.log.append((place.device, place.n_stages, message.makes_room))
            if place.n_stages == 3 and place.device == refusing:
                raise PlanError(f"{refusing} has no room.")
            return plain(hosting, message)

        def has_room_beside(hosting: Hosting, place: Place, *rest: Any) -> bool:
            fits = has_room(hosting, place, *rest)
            return fits and (place.device not in crowded or not hosting._held)

        monkeypatch.setattr(Hosting, "deploy", deploy)
        monkeypatch.setattr(Hosting, "_has_room", has_room_beside)


def test_no_stage_ends_for_a_plan_that_not_all_accept(monkeypatch: pytest.MonkeyPatch) -> None:
    refusals = Refusals(monkeypatch, crowded="ab", refusing="c")
    with served("a", "b") as here:
        before = here.endpoint.plan
        start("c")(here.troubled)
        wait_until(lambda: ("c", 3, False) in refusals.log, "c refuses")
        assert_all_answered(here.answers(30, {}), here, 30)
        assert here.endpoint.plan is before
        assert here.endpoint.statistics().resent == 0
        assert not any(makes_room for _, n_stages, makes_room in refusals.log if n_stages == 3)


def test_without_room_for_two_stages_the_old_ones_end_once_all_others_are_ready(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    refusals = Refusals(monkeypatch, crowded="ab", refusing="nobody")
    with served("a", "b") as here:
        found = here.answers(30, {10: start("c")})
        here.wait_devices("a", "b", "c")
        assert_all_answered(found, here, 30)
        asked = [(device, room) for device, n_stages, room in refusals.log if n_stages == 3]
        assert sorted(asked[:3]) == [("a", False), ("b", False), ("c", False)]
        assert sorted(asked[3:]) == [("a", True), ("b", True)]


def out_of_memory(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    plain = ServingStage._forward

    def forward(stage: ServingStage, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if stage._place.device == device and any((x == 7).all() for x in inputs.values()):
            raise RuntimeError(
                "[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate "
                "memory: you tried to allocate 99 bytes. Error code 12 (Cannot allocate memory)"
            )
        return plain(stage, inputs)

    monkeypatch.setattr(ServingStage, "_forward", forward)


def test_a_device_without_memory_is_named_and_the_request_is_not_called_bad(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out_of_memory(monkeypatch, "a")
    with served("a") as here:
        with pytest.raises(
            DeviceFailed, match=r"^stage 0 on a ran out of memory on a request of 1 samples \(\["
        ) as raised:
            here.endpoint(torch.full((1, 12), 7.0))
        assert raised.value.device == "a"
        tensor = {"name": "input", "shape": [1, 12], "datatype": "FP32", "data": [7.0] * 12}
        body = msgspec.json.encode({"inputs": [tensor]})
        reply = ask(application(here.endpoint), "POST", "/v2/models/model/infer", body)
        assert (reply.status, "stage 0 on a ran out of memory" in reply.error) == (503, True)
        assert torch.equal(here.endpoint(request(0)), here.expected(1)[0])


def test_devices_are_asked_what_they_did_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, together = Fleet.ask, threading.Barrier(3)

    def asked(fleet: Fleet, device: str, verb: str, *rest: Any, **options: Any) -> bytes:
        if verb == "serving":
            together.wait(20)  # for ever, if they were asked in turn
        return plain(fleet, device, verb, *rest, **options)

    with served("a", "b", "c") as here:
        monkeypatch.setattr(Fleet, "ask", asked)
        assert len(here.endpoint.report().devices) == 3


def test_options_of_the_endpoint_still_hold_for_one_that_comes_later() -> None:
    options = replace(EVERYBODY, devices=("a", "c"))
    assert isinstance(options, ServeOptions)
    with served("a", "b", options=options) as here:
        start("c")(here.troubled)
        here.wait_devices("a", "c")


def test_leaving_waits_for_no_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on, measured = threading.Event(), threading.Event(), threading.Event()
    plain = Measuring.device

    def device(measuring: Measuring, *rest: Any) -> Any:
        begun.set()
        go_on.wait(10)
        measured.set()
        return plain(measuring, *rest)

    monkeypatch.setattr(Measuring, "device", device)
    with served("a") as here:
        start("b")(here.troubled)
        assert begun.wait(20)
        here.endpoint.__exit__(None, None, None)
        assert not measured.is_set()
        go_on.set()
