"""A transport behind emulated links, on a clock that the test moves."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable, Iterator

import pytest
import torch

from edgeweave.core.clock import SystemClock, VirtualClock
from edgeweave.core.errors import ConfigError, DeviceTimeout, FleetError, WireError
from edgeweave.core.loss import PACKET_BYTES
from edgeweave.core.timeouts import Timeouts
from edgeweave.net import (
    Frame,
    FrameHeader,
    Links,
    LinkShape,
    MemoryFabric,
    NetSettings,
    Priority,
    Reliability,
    ShapedTransport,
    Transport,
    ZenohTransport,
    control_key,
    control_pattern,
    frame_key,
)
from edgeweave.net._shaper import Shaper
from edgeweave.net._watch import Silences, Watch
from edgeweave.net.link_model import HEADER_BYTES
from edgeweave.net.link_queue import Message

from .conftest import DEADLINE_SECONDS, Inbox, News, make_frame

KEY = frame_key("default", "r1", 1, 0, "activation")
ALIVE = control_pattern("default", "alive")
DOWN = LinkShape(up=False)
TIMEOUTS = Timeouts(send=1.0)


class World:
    """Devices of one fleet behind the same links, on one clock that nobody else moves."""

    def __init__(self, fabric: MemoryFabric, links: Links) -> None:
        self.clock = VirtualClock()
        self.links = links
        self.fabric = fabric
        self.members: list[ShapedTransport] = []
        self.a, self.b = self.join("a"), self.join("b")
        self.inbox = Inbox()
        self.inbox.subscribe(self.b, KEY)

    def join(self, name: str) -> ShapedTransport:
        member = ShapedTransport(
            self.fabric.join(name),
            self.links,
            clock=self.clock,
            timeouts=TIMEOUTS,
            caller_driven=True,
        )
        self.members.append(member)
        return member

    def reshape(self, links: Links) -> None:
        for member in self.members:
            member.reshape(links)

    def wait(self, seconds: float) -> None:
        """Let time pass, in steps that no turn of a link is longer than."""
        end = self.clock.now() + seconds
        while self.clock.now() < end:
            self.clock.sleep(min(0.001, end - self.clock.now()))
            self.settle()

    def settle(self) -> None:
        """Deliver everything that has arrived by now."""
        while sum(member.deliver() for member in self.members) + self.fabric.deliver():
            continue

    def arrived(self) -> list[int]:
        """The steps of the frames that came since the last call."""
        self.settle()
        steps = []
        while not self.inbox.frames.empty():
            steps.append(self.inbox.frames.get().header.step)
        return steps

    def send(self, step: int, n_bytes: int, **options: object) -> None:
        frame = make_frame(step=step, x=torch.zeros(n_bytes, dtype=torch.uint8))
        self.a.send(KEY, frame, device="b", **options)  # type: ignore[arg-type]

    def ask_while_time_passes(
        self, ask: Callable[[], bytes], *, step_seconds: float = 0.01
    ) -> tuple[bytes | Exception, float]:
        """What a request ended with, and how much time passed on the clock."""
        ended: list[bytes | Exception] = []
        started = self.clock.now()

        def run() -> None:
            try:
                ended.append(ask())
            except FleetError as error:
                ended.append(error)

        asking = threading.Thread(target=run)
        asking.start()
        for _ in range(100_000):
            asking.join(0.002)
            if not asking.is_alive():
                break
            self.clock.sleep(step_seconds)
            self.settle()
        assert not asking.is_alive()
        return ended[0], self.clock.now() - started


@contextlib.contextmanager
def world_of(links: Links) -> Iterator[World]:
    with MemoryFabric(timeouts=TIMEOUTS, caller_driven=True) as fabric, contextlib.ExitStack() as s:
        world = World(fabric, links)
        for member in world.members:
            s.callback(member.close)
        yield world


# Frames


def test_a_frame_arrives_when_the_link_has_carried_it_and_not_before() -> None:
    with world_of(Links(LinkShape(1e6, 0.1))) as world:
        world.send(1, 100_000)
        world.wait(0.199)
        assert world.arrived() == []
        world.wait(0.012)
        assert world.arrived() == [1]


def test_frames_keep_their_order_and_share_the_rate() -> None:
    with world_of(Links(LinkShape(1e6, 0.05, jitter_seconds=0.02))) as world:
        for step in range(4):
            world.send(step, 50_000)
        world.wait(0.2)
        early = world.arrived()
        world.wait(0.3)
        assert early + world.arrived() == [0, 1, 2, 3]
        assert len(early) < 4


def test_a_plain_link_is_passed_by_without_a_thread() -> None:
    with world_of(Links.of({("b", "a"): LinkShape(1e3)})) as world:
        before = threading.active_count()
        world.send(1, 5_000_000)
        assert world.arrived() == [1]
        assert threading.active_count() == before


def test_a_frame_may_not_overtake_those_on_their_way_when_its_link_becomes_plain() -> None:
    with world_of(Links(LinkShape(delay_seconds=1.0))) as world:
        world.send(1, 10)
        world.reshape(Links())
        world.send(2, 10)
        assert world.arrived() == []
        world.wait(1.01)
        assert world.arrived() == [1, 2]
        world.send(3, 10)
        assert world.arrived() == [3]


def test_control_overtakes_waiting_data_after_at_most_one_turn() -> None:
    with world_of(Links(LinkShape(1e6))) as world:
        world.send(1, 1_000_000)
        world.send(2, 100, priority=Priority.CONTROL)
        turn_seconds = 44 * (PACKET_BYTES + HEADER_BYTES) / 1e6
        world.wait(turn_seconds + 0.01)
        assert world.arrived() == [2]
        world.wait(1.1)
        assert world.arrived() == [1]


def test_sending_waits_while_much_is_waiting_and_goes_on_as_the_link_takes_it() -> None:
    with world_of(Links(LinkShape(1e6))) as world:
        world.send(1, 1_000_000)
        sent = threading.Event()
        second = threading.Thread(target=lambda: (world.send(2, 1_000), sent.set()))
        second.start()
        world.wait(0.5)
        assert not sent.is_set()
        world.wait(0.6)
        second.join(DEADLINE_SECONDS)
        assert sent.is_set()
        world.wait(0.1)
        assert world.arrived() == [1, 2]


def test_sending_gives_up_when_the_link_took_nothing_for_a_while() -> None:
    with world_of(Links(DOWN)) as world:
        world.send(1, 300_000)
        failed: list[FleetError] = []

        def send() -> None:
            try:
                world.send(2, 10)
            except FleetError as error:
                failed.append(error)

        sender = threading.Thread(target=send)
        sender.start()
        for _ in range(10_000):
            sender.join(0.002)
            if not sender.is_alive():
                break
            world.clock.sleep(0.1)
            world.settle()
        sender.join(DEADLINE_SECONDS)
        assert str(failed[0]) == (
            f"the link to 'b' took nothing for 1 s (next: {KEY}). "
            "Look at the link, and into the log of its receiver, which may be stuck."
        )


def test_a_link_that_is_down_keeps_frames_until_it_is_up() -> None:
    with world_of(Links(DOWN)) as world:
        world.send(1, 1_000)
        world.wait(5.0)
        assert world.arrived() == []
        world.reshape(Links(LinkShape(1e6, 0.1)))
        world.wait(0.1)
        assert world.arrived() == []
        world.wait(0.01)
        assert world.arrived() == [1]


def test_what_is_on_its_way_keeps_its_time_when_the_link_goes_down() -> None:
    with world_of(Links(LinkShape(delay_seconds=1.0))) as world:
        world.send(1, 10)
        world.reshape(Links(DOWN))
        world.send(2, 10)
        world.wait(1.01)
        assert world.arrived() == [1]


def test_what_waits_goes_by_the_new_shape() -> None:
    with world_of(Links(LinkShape(1e6))) as world:
        world.send(1, 1_000_000)
        world.wait(0.1)
        world.reshape(Links(LinkShape(1e8)))
        world.wait(0.1)
        assert world.arrived() == [1]


def test_loss_tolerant_frames_are_lost_alike_for_the_same_seed() -> None:
    def arrived(n_reliable_bytes: int, seed: int = 5) -> list[int]:
        with world_of(Links(LinkShape(1e7, 0.01, loss=0.3), seed=seed)) as world:
            for step in range(60):
                world.send(step, 100, reliability=Reliability.LOSS_TOLERANT)
                if n_reliable_bytes:
                    world.send(1000, n_reliable_bytes)
                world.wait(0.003)
            world.wait(1.0)
            return [step for step in world.arrived() if step < 1000]

    alone = arrived(0)
    assert 20 < len(alone) < 55
    assert arrived(20_000) == alone
    assert arrived(0, seed=6) != alone


def test_a_loss_tolerant_frame_is_lost_where_the_link_is_down() -> None:
    with world_of(Links(DOWN)) as world:
        world.send(1, 100, reliability=Reliability.LOSS_TOLERANT)
        world.reshape(Links())
        world.wait(1.0)
        assert world.arrived() == []


def test_a_frame_whose_receiver_left_on_its_way_is_told_to_the_next_sender() -> None:
    with world_of(Links(LinkShape(delay_seconds=0.1))) as world:
        world.send(1, 10)
        world.fabric.kill("b")
        world.wait(0.2)
        with pytest.raises(FleetError, match="its receiver closed or vanished"):
            world.send(2, 10)


def test_a_frame_whose_receiver_left_is_not_told_to_who_sends_under_another_key() -> None:
    """Another run's frames go to the same device, where nothing is wrong with them."""
    other = frame_key("default", "r2", 1, 0, "activation")
    frame = make_frame(step=7)
    with world_of(Links(LinkShape(delay_seconds=0.1))) as world:
        leaving = Inbox().subscribe(world.b, f"{KEY}/gone")
        world.a.send(f"{KEY}/gone", frame, device="b")
        leaving.close()
        world.wait(0.2)
        elsewhere = Inbox()
        elsewhere.subscribe(world.b, other)
        world.a.send(other, frame, device="b")
        world.wait(0.2)
        assert elsewhere.frames.get_nowait().header.step == 7
        Inbox().subscribe(world.b, f"{KEY}/gone")  # somebody listens again, but a frame was lost
        with pytest.raises(FleetError, match="its receiver closed or vanished"):
            world.a.send(f"{KEY}/gone", frame, device="b")


def test_many_runs_that_ended_badly_leave_no_later_failure_untold() -> None:
    frame = make_frame(step=7)
    with world_of(Links(LinkShape(delay_seconds=0.1))) as world:
        for run in range(100):
            leaving = Inbox().subscribe(world.b, f"{KEY}/{run}")
            world.a.send(f"{KEY}/{run}", frame, device="b")
            leaving.close()
            world.wait(0.2)
        Inbox().subscribe(world.b, f"{KEY}/99")
        with pytest.raises(FleetError, match="its receiver closed or vanished"):
            world.a.send(f"{KEY}/99", frame, device="b")


def test_the_coordinator_goes_by_its_name_among_links() -> None:
    links = Links.of({("coordinator", "b"): LinkShape(delay_seconds=1.0)})
    with world_of(links) as world:
        coordinator = world.join("coordinator-77ab")
        coordinator.send(KEY, make_frame(step=1), device="b")
        assert world.arrived() == []
        world.wait(1.01)
        assert world.arrived() == [1]


# Requests


def echo_of(world: World) -> Callable[[], bytes]:
    key = control_key("default", "b", "echo")
    world.b.serve(key, lambda payload: payload)
    return lambda: world.a.request(key, bytes(50_000), device="b", timeout_seconds=30.0)


def test_a_request_pays_for_both_ways() -> None:
    links = Links.of({("a", "b"): LinkShape(1e6, 0.5), ("b", "a"): LinkShape(1e5, 1.0)})
    with world_of(links) as world:
        answer, seconds = world.ask_while_time_passes(echo_of(world))
        assert answer == bytes(50_000)
        assert seconds >= 0.05 + 0.5 + 0.5 + 1.0


def test_an_order_to_the_emulator_passes_a_link_that_is_down_both_ways() -> None:
    with world_of(Links.of({("a", "b"): DOWN, ("b", "a"): DOWN})) as world:
        key = control_key("default", "b", "emulate")
        world.b.serve(key, lambda payload: payload[::-1])
        answer = world.a.request_beside(key, b"abc", device="b", timeout_seconds=30.0)
    assert answer == b"cba"


def test_an_error_of_a_handler_pays_for_its_way_back() -> None:
    def refuse(payload: bytes) -> bytes:
        raise WireError("not this")

    with world_of(Links.of({("b", "a"): LinkShape(delay_seconds=1.0)})) as world:
        key = control_key("default", "b", "refuse")
        world.b.serve(key, refuse)

        def ask() -> bytes:
            with pytest.raises(WireError, match="not this"):
                world.a.request(key, b"", device="b", timeout_seconds=30.0)
            return b"refused"

        answer, seconds = world.ask_while_time_passes(ask)
        assert answer == b"refused"
        assert seconds >= 1.0


def test_a_request_over_a_link_that_is_down_ends_at_its_deadline() -> None:
    with world_of(Links.of({("a", "b"): DOWN})) as world:
        error, seconds = world.ask_while_time_passes(echo_of(world), step_seconds=1.0)
        assert isinstance(error, DeviceTimeout)
        assert str(error).startswith("device 'b' did not answer ew/default/b/echo within 30 s.")
        assert seconds >= 30.0
        assert world.a.statistics().requests_failed == 1


def test_a_request_that_gave_up_is_not_carried_when_the_link_is_up_again() -> None:
    with world_of(Links.of({("a", "b"): DOWN})) as world:
        world.ask_while_time_passes(echo_of(world), step_seconds=5.0)
        world.reshape(Links(LinkShape(1e5)))
        world.send(1, 1_000)
        world.wait(0.1)
        assert world.arrived() == [1]


def test_a_request_without_a_signature_is_refused() -> None:
    key = control_key("default", "b", "echo")
    with (
        MemoryFabric(timeouts=TIMEOUTS) as fabric,
        ShapedTransport(fabric.join("b"), Links(), clock=SystemClock()) as b,
    ):
        b.serve(key, bytes)
        with pytest.raises(WireError, match="a request in a fleet with emulated links says who"):
            fabric.join("a").request(key, b"x", device="b", timeout_seconds=5)


# Liveliness


def watched(world: World) -> News:
    news = News()
    world.a.watch(ALIVE, news)
    world.b.announce(control_key("default", "b", "alive"))
    world.settle()
    assert news.seen() == [("ew/default/b/alive", True)]
    return news


@pytest.mark.parametrize("direction", [("a", "b"), ("b", "a")])
def test_a_token_goes_after_a_lease_without_a_link_and_comes_back_with_it(
    direction: tuple[str, str],
) -> None:
    key = "ew/default/b/alive"
    with world_of(Links()) as world:
        news = watched(world)
        world.reshape(Links.of({direction: DOWN}))
        world.wait(1.9)
        assert news.seen() == [(key, True)]
        assert world.a.alive(ALIVE, timeout_seconds=1) == (key,)
        world.wait(0.2)
        assert news.seen() == [(key, True), (key, False)]
        assert world.a.alive(ALIVE, timeout_seconds=1) == ()
        world.reshape(Links())
        world.settle()
        assert news.seen() == [(key, True), (key, False), (key, True)]
        assert world.a.alive(ALIVE, timeout_seconds=1) == (key,)


def test_a_link_that_is_back_within_the_lease_is_no_news() -> None:
    with world_of(Links()) as world:
        news = watched(world)
        world.reshape(Links(DOWN))
        world.wait(1.9)
        world.reshape(Links())
        world.wait(5.0)
        assert len(news.seen()) == 1


def test_a_device_that_dies_behind_a_link_that_is_down_is_seen_gone_once() -> None:
    key = "ew/default/b/alive"
    with world_of(Links()) as world:
        news = watched(world)
        world.reshape(Links(DOWN))
        world.fabric.kill("b")
        world.wait(1.9)
        assert len(news.seen()) == 1
        world.wait(0.2)
        world.reshape(Links())
        world.wait(3.0)
        assert news.seen() == [(key, True), (key, False)]


def test_a_token_behind_a_link_that_is_down_from_the_beginning_is_seen_when_it_is_up() -> None:
    key = "ew/default/b/alive"
    with world_of(Links(DOWN)) as world:
        news = News()
        world.a.watch(ALIVE, news)
        world.b.announce(key)
        world.wait(3.0)
        assert news.seen() == []
        world.reshape(Links())
        world.settle()
        assert news.seen() == [(key, True)]


# On the real clock


def test_whoever_waits_for_room_moves_an_idle_link_itself() -> None:
    with world_of(Links(LinkShape(1e6))) as world:
        world.send(1, 300_000)
        world.clock.sleep(1.0)  # all of it has left, and nobody looked
        sender = threading.Thread(target=world.send, args=(2, 100_000))
        sender.start()
        sender.join(DEADLINE_SECONDS)
        assert not sender.is_alive()
        world.wait(1.0)
        assert world.arrived() == [1, 2]


def test_closing_beside_a_receiver_that_is_stuck_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    before, entered, release = set(threading.enumerate()), threading.Event(), threading.Event()

    def hold() -> None:
        entered.set()
        release.wait(DEADLINE_SECONDS)

    shaper = Shaper(
        "a",
        Links(LinkShape(1e6)),
        clock=SystemClock(),
        timeouts=Timeouts(stop=0.01),
        threaded=True,
        look=lambda now: math.inf,
    )
    shaper.post("b", KEY, Message(10, hold))
    assert entered.wait(DEADLINE_SECONDS)
    shaper.close()
    release.set()
    join_all(set(threading.enumerate()) - before)
    assert "a: the thread of its links still runs 10 ms after it was told to end" in caplog.text


def test_ending_a_watch_whose_callback_is_stuck_says_so(caplog: pytest.LogCaptureFixture) -> None:
    before, entered, release = set(threading.enumerate()), threading.Event(), threading.Event()

    def hold(key: str, alive: bool) -> None:
        entered.set()
        release.wait(DEADLINE_SECONDS)

    watch = Watch(hold, Silences("a", Links(), now=0.0, lease_seconds=1.0), threaded=True)
    watch.take("ew/default/b/alive", alive=True)
    watch.look(0.0)
    assert entered.wait(DEADLINE_SECONDS)
    watch.close(0.01)
    release.set()
    join_all(set(threading.enumerate()) - before)
    assert "a watcher's callback still runs 10 ms after its watch was closed" in caplog.text


def join_all(threads: set[threading.Thread]) -> None:
    for thread in threads:
        thread.join(DEADLINE_SECONDS)
        assert not thread.is_alive()


def test_the_lease_runs_on_a_thread_of_its_own() -> None:
    key = control_key("default", "b", "alive")
    with MemoryFabric() as fabric:
        a = ShapedTransport(fabric.join("a"), Links(), clock=SystemClock(), lease_seconds=0.05)
        with a:
            news = News()
            a.watch(ALIVE, news)
            fabric.join("b").announce(key)
            news.wait_for(key, alive=True)
            a.reshape(Links(DOWN))
            news.wait_for(key, alive=False)


def test_closing_ends_every_thread_and_tells_those_who_wait() -> None:
    before = set(threading.enumerate())
    with MemoryFabric(timeouts=TIMEOUTS) as fabric:
        a = ShapedTransport(fabric.join("a"), Links(DOWN), clock=SystemClock())
        Inbox().subscribe(fabric.join("b"), KEY)
        a.watch(ALIVE, News())
        failed: list[FleetError] = []

        def send() -> None:
            try:
                for step in range(3):
                    a.send(KEY, make_frame(step=step, x=torch.zeros(100_000)), device="b")
            except FleetError as error:
                failed.append(error)

        sender = threading.Thread(target=send)
        sender.start()
        a.close()
        a.close()
        sender.join(DEADLINE_SECONDS)
        assert [str(error) for error in failed] == ["the transport of 'a' is closed."]
    assert set(threading.enumerate()) <= before


@pytest.mark.wire
def test_over_real_sockets_a_megabyte_takes_at_least_what_the_link_says() -> None:
    links = Links(LinkShape(bytes_per_second=10e6, delay_seconds=0.02))
    clock, inbox = SystemClock(), Inbox()
    with contextlib.ExitStack() as stack:
        inner = stack.enter_context(ZenohTransport("a", NetSettings()))
        a = stack.enter_context(ShapedTransport(inner, links, clock=clock))
        other = ZenohTransport("b", NetSettings(connect=inner.endpoints()))
        b: Transport = stack.enter_context(ShapedTransport(other, links, clock=clock))
        inbox.subscribe(b, KEY)
        frame = Frame(FrameHeader("beat", "a", 0, 1, 0, 0))
        a.send(KEY, frame, device="b")
        inbox.next_frame()
        started = clock.now()
        a.send(KEY, make_frame(x=torch.zeros(1_000_000, dtype=torch.uint8)), device="b")
        inbox.next_frame()
        assert clock.now() - started >= 1_000_000 / 10e6 + 0.02


def test_a_loss_tolerant_frame_of_more_than_a_datagram_is_refused() -> None:
    with world_of(Links(LinkShape(1e6))) as world, pytest.raises(ConfigError) as refused:
        world.send(1, 1_200, reliability=Reliability.LOSS_TOLERANT)
    assert str(refused.value).startswith(
        "a loss-tolerant frame is one datagram of at most 1200 bytes, header included (got 12"
    )
