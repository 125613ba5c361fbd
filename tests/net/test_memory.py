"""What tests can do to a memory fabric, and nobody can do to a real one."""

from __future__ import annotations

import threading

import pytest
import torch

from edgeweave.core.errors import ConfigError, DeviceTimeout, FleetError
from edgeweave.core.timeouts import Timeouts
from edgeweave.net import MemoryFabric, control_key, control_pattern, frame_key

from .conftest import DEADLINE_SECONDS, Inbox, News, make_frame

KEY = frame_key("default", "r1", 1, 0, "activation")
ALIVE = control_pattern("default", "alive")
FAST = Timeouts(send=0.1, stop=5.0)


def test_a_caller_driven_fabric_delivers_when_told() -> None:
    with MemoryFabric(caller_driven=True) as fabric:
        a, b = fabric.join("a"), fabric.join("b")
        inbox, news = Inbox(), News()
        inbox.subscribe(b, KEY)
        b.watch(ALIVE, news)
        a.send(KEY, make_frame(x=torch.ones(100_000)), device="b")
        a.announce(control_key("default", "a", "alive"))
        assert inbox.frames.empty()
        assert fabric.deliver() == 2
        assert inbox.next_frame().header.device == "a"
        assert news.seen() == [("ew/default/a/alive", True)]
        assert fabric.deliver() == 0


def test_a_killed_device_vanishes_at_once() -> None:
    with MemoryFabric(timeouts=FAST) as fabric:
        a, b = fabric.join("a"), fabric.join("b")
        inbox, news, entered, release = Inbox(), News(), threading.Event(), threading.Event()

        def wait(payload: bytes) -> bytes:
            entered.set()
            release.wait(DEADLINE_SECONDS)
            return b""

        inbox.subscribe(b, KEY)
        a.watch(ALIVE, news)
        b.announce(control_key("default", "b", "alive"))
        b.serve(control_key("default", "b", "wait"), wait)
        a.send(KEY, make_frame(x=torch.ones(1)), device="b")
        inbox.next_frame()
        killer = threading.Thread(target=lambda: (entered.wait(DEADLINE_SECONDS), fabric.kill("b")))
        killer.start()
        with pytest.raises(FleetError, match="device 'b' does not answer"):
            a.request("ew/default/b/wait", b"", device="b", timeout_seconds=DEADLINE_SECONDS)
        release.set()
        killer.join(DEADLINE_SECONDS)
        news.wait_for("ew/default/b/alive", alive=False)
        with pytest.raises(FleetError, match="its receiver closed or vanished"):
            a.send(KEY, make_frame(x=torch.ones(1)), device="b")
        with pytest.raises(FleetError, match="the transport of 'b' is closed"):
            b.send(KEY, make_frame(x=torch.ones(1)), device="a")
        assert fabric.join("b").name == "b"


def test_a_dropped_link_loses_one_direction_until_it_is_mended() -> None:
    with MemoryFabric(timeouts=FAST) as fabric:
        a, b = fabric.join("a"), fabric.join("b")
        inbox = Inbox()
        inbox.subscribe(b, KEY)
        inbox.subscribe(a, KEY)
        fabric.drop("a", "b")
        a.send(KEY, make_frame(step=1, x=torch.ones(1)), device="b")
        assert inbox.next_frame().header.step == 1
        b.send(KEY, make_frame("b", step=2, x=torch.ones(1)), device="a")
        assert [inbox.next_frame().header.step for _ in range(2)] == [2, 2]
        fabric.mend("a", "b")
        a.send(KEY, make_frame(step=3, x=torch.ones(1)), device="b")
        assert [inbox.next_frame().header.step for _ in range(2)] == [3, 3]
        assert inbox.frames.empty()


@pytest.mark.parametrize("link", [("a", "b"), ("b", "a")])
def test_a_request_over_a_dropped_link_times_out_either_way(link: tuple[str, str]) -> None:
    with MemoryFabric() as fabric:
        a, b = fabric.join("a"), fabric.join("b")
        b.serve("ew/default/b/echo", bytes)
        fabric.drop(*link)
        with pytest.raises(DeviceTimeout, match="device 'b' did not answer"):
            a.request("ew/default/b/echo", b"x", device="b", timeout_seconds=0.1)


def test_names_are_unique_and_known() -> None:
    with MemoryFabric() as fabric:
        fabric.join("a")
        with pytest.raises(FleetError, match="'a' is taken"):
            fabric.join("a")
        with pytest.raises(FleetError, match="no device 'z' is on the fabric"):
            fabric.kill("z")
        with pytest.raises(ConfigError, match="a device name holds no"):
            fabric.join("a/b")


def test_a_second_token_of_one_key_keeps_it_alive() -> None:
    with MemoryFabric(caller_driven=True) as fabric:
        a, news = fabric.join("a"), News()
        a.watch(ALIVE, news)
        first, second = (a.announce("ew/default/a/alive") for _ in range(2))
        first.close()
        assert a.alive(ALIVE, timeout_seconds=1) == ("ew/default/a/alive",)
        second.close()
        fabric.deliver()
        assert news.seen()[-1] == ("ew/default/a/alive", False)


def test_closing_the_fabric_ends_its_threads() -> None:
    before = threading.active_count()
    with MemoryFabric() as fabric:
        a, b = fabric.join("a"), fabric.join("b")
        b.serve("ew/default/b/echo", bytes)
        a.request("ew/default/b/echo", b"x", device="b", timeout_seconds=5)
    fabric.close()
    assert threading.active_count() == before
    with pytest.raises(FleetError, match="closed"):
        a.announce("ew/default/a/alive")
