"""One contract, two transports: over Zenoh on loopback, and inside the process."""

from __future__ import annotations

import logging
import queue
import threading

import pytest
import torch

from edgeweave.core.errors import (
    ConfigError,
    DeviceBusy,
    DeviceFailed,
    DeviceTimeout,
    FleetError,
    PlanError,
    WireError,
)
from edgeweave.net import (
    Frame,
    FrameHeader,
    Priority,
    Reliability,
    control_key,
    control_pattern,
    frame_key,
)

from .conftest import DEADLINE_SECONDS, Inbox, News, Pair, make_frame

KEY = frame_key("default", "r1", 1, 0, "activation")
ALIVE = control_pattern("default", "alive")


def key_of(device: str, verb: str) -> str:
    return control_key("default", device, verb)


# Frames


@pytest.mark.parametrize("n_elements", [0, 1, 1000, 16_000, 16_001, 300_000])
def test_a_frame_arrives_as_it_was_sent(pair: Pair, n_elements: int) -> None:
    inbox = Inbox()
    inbox.subscribe(pair.b, KEY)
    sent = make_frame(x=torch.randn(n_elements), mask=torch.rand(3, 5) > 0.5)
    pair.a.send(KEY, sent, device="b")
    received = inbox.next_frame()
    assert received.header == sent.header
    assert all(map(torch.equal, received.tensors, sent.tensors))


def test_a_frame_without_tensors_arrives(pair: Pair) -> None:
    inbox = Inbox()
    inbox.subscribe(pair.b, KEY)
    pair.a.send(KEY, Frame(FrameHeader("beat", "a", 0, 1, 7, 0, (), {"loss": 0.5})), device="b")
    assert inbox.next_frame().header.scalars == {"loss": 0.5}


def test_frames_of_one_sender_arrive_in_order(pair: Pair) -> None:
    inbox = Inbox()
    inbox.subscribe(pair.b, KEY)
    for step in range(20):
        pair.a.send(KEY, make_frame(step=step, x=torch.ones(1 + step * 3000)), device="b")
    assert [inbox.next_frame().header.step for _ in range(20)] == list(range(20))


def test_send_is_safe_from_several_threads(pair: Pair) -> None:
    inbox = Inbox()
    inbox.subscribe(pair.b, KEY)

    def send_some(first: int) -> None:
        for step in range(first, first + 10):
            pair.a.send(
                KEY, make_frame(step=step, x=torch.full((40_000,), float(step))), device="b"
            )

    threads = [threading.Thread(target=send_some, args=(10 * i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    frames = [inbox.next_frame() for _ in range(40)]
    for thread in threads:
        thread.join(DEADLINE_SECONDS)
    assert sorted(frame.header.step for frame in frames) == list(range(40))
    assert all(bool((frame.tensors[0] == frame.header.step).all()) for frame in frames)
    assert inbox.errors.empty()


def test_a_pattern_receives_every_kind_and_every_subscriber_its_copy(pair: Pair) -> None:
    first, second, news, c = Inbox(), Inbox(), News(), pair.join("c")
    pair.a.watch(ALIVE, news)
    first.subscribe(pair.b, "ew/default/run/r1/1/0/*")
    second.subscribe(c, KEY)
    for transport in (pair.b, c):
        transport.announce(key_of(transport.name, "alive"))
        news.wait_for(key_of(transport.name, "alive"), alive=True)
    pair.a.send(KEY, make_frame(x=torch.zeros(4)), device="b")
    one, two = first.next_frame(), second.next_frame()
    one.tensors[0].add_(1)
    assert torch.equal(two.tensors[0], torch.zeros(4))


def test_a_device_may_send_to_itself(pair: Pair) -> None:
    inbox = Inbox()
    inbox.subscribe(pair.a, KEY)
    pair.a.send(KEY, make_frame(x=torch.ones(3)), priority=Priority.CONTROL, device="b")
    assert torch.equal(inbox.next_frame().tensors[0], torch.ones(3))


@pytest.mark.parametrize("priority", list(Priority))
def test_every_priority_delivers(pair: Pair, priority: Priority) -> None:
    inbox = Inbox()
    inbox.subscribe(pair.b, KEY)
    pair.a.send(KEY, make_frame(x=torch.ones(50_000)), priority=priority, device="b")
    assert inbox.next_frame().tensors[0].sum() == 50_000


def test_a_frame_nobody_expects_goes_to_on_error_and_the_next_one_arrives(pair: Pair) -> None:
    def refuse_old(header: FrameHeader) -> None:
        if header.step == 0:
            raise WireError("term 0 is over")

    inbox = Inbox()
    inbox.subscribe(pair.b, KEY, expect=refuse_old)
    pair.a.send(KEY, make_frame(step=0, x=torch.ones(50_000)), device="b")
    pair.a.send(KEY, make_frame(step=1, x=torch.ones(50_000)), device="b")
    assert inbox.next_frame().header.step == 1
    assert str(inbox.next_error()) == "term 0 is over"
    assert inbox.errors.empty()
    assert pair.b.statistics().frames_refused == 1


def test_a_frame_above_the_limit_is_refused(pair: Pair) -> None:
    inbox = Inbox()
    inbox.subscribe(pair.b, KEY, limit_bytes=1000)
    pair.a.send(KEY, make_frame(x=torch.ones(251)), device="b")
    assert "frame 'activation' from 'a': a payload here is at most 1000 B" in str(
        inbox.next_error()
    )
    pair.a.send(KEY, make_frame(x=torch.ones(250)), device="b")
    assert inbox.next_frame().header.kind == "activation"


def test_an_error_in_a_callback_is_logged_and_the_next_frame_arrives(
    pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    taken: queue.SimpleQueue[int] = queue.SimpleQueue()

    def take(frame: Frame) -> None:
        if frame.header.step == 0:
            raise ZeroDivisionError("in the callback")
        taken.put(frame.header.step)

    with caplog.at_level(logging.ERROR):
        pair.b.subscribe(
            KEY, take, on_error=pytest.fail, expect=lambda header: None, limit_bytes=1000
        )
        pair.a.send(KEY, make_frame(step=0, x=torch.ones(2)), device="b")
        pair.a.send(KEY, make_frame(step=1, x=torch.ones(2)), device="b")
        assert taken.get(timeout=DEADLINE_SECONDS) == 1
    assert f"a callback of {KEY} failed" in caplog.text
    assert "ZeroDivisionError: in the callback" in caplog.text
    assert pair.b.statistics().callbacks_failed == 1


def test_a_frame_for_nobody_is_an_error_after_a_while(hasty_pair: Pair) -> None:
    with pytest.raises(FleetError, match=f"nobody listens to {KEY} \\(waited 1 s\\)"):
        hasty_pair.a.send(KEY, make_frame(x=torch.ones(1)), device="b")


def test_a_send_waits_for_a_subscriber_that_is_about_to_appear(pair: Pair) -> None:
    inbox = Inbox()
    timer = threading.Timer(0.2, lambda: inbox.subscribe(pair.b, KEY))
    timer.start()
    pair.a.send(KEY, make_frame(x=torch.ones(1)), device="b")
    assert inbox.next_frame().header.device == "a"
    timer.join(DEADLINE_SECONDS)


def test_a_frame_for_a_subscriber_that_left_is_an_error_at_once(pair: Pair) -> None:
    inbox, news = Inbox(), News()
    subscription = inbox.subscribe(pair.b, KEY)
    pair.a.send(KEY, make_frame(x=torch.ones(1)), device="b")
    inbox.next_frame()
    subscription.close()
    # The token goes the same way after the subscription: when it is gone, so is the other.
    pair.a.watch(ALIVE, news)
    token = pair.b.announce(key_of("b", "alive"))
    news.wait_for(key_of("b", "alive"), alive=True)
    token.close()
    news.wait_for(key_of("b", "alive"), alive=False)
    with pytest.raises(FleetError, match="its receiver closed or vanished"):  # and no wait
        pair.a.send(KEY, make_frame(x=torch.ones(1)), device="b")


def test_a_closed_subscription_hears_nothing_more_and_closes_twice(pair: Pair) -> None:
    first, second = Inbox(), Inbox()
    subscription = first.subscribe(pair.b, KEY)
    second.subscribe(pair.b, KEY)
    subscription.close()
    subscription.close()
    pair.a.send(KEY, make_frame(x=torch.ones(1)), device="b")
    second.next_frame()
    assert first.frames.empty()


def test_a_callback_may_close_its_own_subscription(pair: Pair) -> None:
    done = threading.Event()
    held: list = []

    def close_and_tell(frame: Frame) -> None:
        held[0].close()
        done.set()

    held.append(
        pair.b.subscribe(
            KEY, close_and_tell, on_error=pytest.fail, expect=lambda h: None, limit_bytes=100
        )
    )
    pair.a.send(KEY, make_frame(x=torch.ones(1)), device="b")
    assert done.wait(DEADLINE_SECONDS)  # less than closing would wait for itself


def test_statistics_count_frames_and_payload_bytes(pair: Pair) -> None:
    inbox = Inbox()
    inbox.subscribe(pair.b, KEY)
    for _ in range(3):
        pair.a.send(KEY, make_frame(x=torch.ones(100)), device="b")
        inbox.next_frame()
    sent, received = pair.a.statistics(), pair.b.statistics()
    assert (sent.frames_sent, sent.bytes_sent) == (3, 1200)
    assert (received.frames_received, received.bytes_received) == (3, 1200)
    assert (received.frames_refused, received.callbacks_failed) == (0, 0)


def test_a_loss_tolerant_frame_arrives_whole(pair: Pair) -> None:
    inbox = Inbox()
    inbox.subscribe(pair.b, KEY)
    sent = make_frame(step=3, x=torch.arange(250.0))
    pair.a.send(KEY, sent, device="b", reliability=Reliability.LOSS_TOLERANT)
    received = inbox.next_frame()
    assert received.header == sent.header
    assert torch.equal(received.tensors[0], sent.tensors[0])


def test_over_links_that_lose_nothing_bursts_arrive_whole_however_many_there_are(
    pair: Pair,
) -> None:
    """Zenoh drops best effort where its queue is full: runs stalled when that was the end of a
    message. The receiver is held up until much has been sent.
    """
    rows, n_bursts, held_until = 150, 100, 20
    numbers = torch.arange(rows, dtype=torch.int32)
    many_sent, inbox = threading.Event(), Inbox()

    def take(frame: Frame) -> None:
        assert many_sent.wait(DEADLINE_SECONDS)
        inbox.frames.put(frame)

    pair.b.subscribe(
        KEY, take, on_error=inbox.errors.put, expect=lambda header: None, limit_bytes=1 << 20
    )
    for step in range(n_bursts):
        sent = make_frame(step=step, row=numbers, x=torch.full((rows, 250), float(step)))
        pair.a.send(KEY, sent, device="b", reliability=Reliability.ROW_TOLERANT)
        if step == held_until:
            many_sent.set()
    for step in range(n_bursts):
        received = inbox.next_frame()
        assert received.header.step == step
        assert torch.equal(received.tensors[0], numbers)
        assert bool((received.tensors[1] == step).all())
    assert inbox.errors.empty()


def test_a_loss_tolerant_frame_of_more_than_a_datagram_is_refused(pair: Pair) -> None:
    inbox = Inbox()
    inbox.subscribe(pair.b, KEY)
    with pytest.raises(ConfigError, match="at most 1200 bytes, header included"):
        pair.a.send(
            KEY, make_frame(x=torch.ones(300)), device="b", reliability=Reliability.LOSS_TOLERANT
        )
    assert pair.a.statistics().frames_sent == 0


# Requests


def test_a_request_is_answered(pair: Pair) -> None:
    pair.a.serve(key_of("a", "reverse"), lambda payload: payload[::-1])
    assert pair.b.request(key_of("a", "reverse"), b"abc", device="a", timeout_seconds=5) == b"cba"
    assert pair.b.statistics().requests_sent == 1
    assert pair.a.statistics().requests_served == 1


@pytest.mark.parametrize("size", [0, 1, 64_000, 64_001, 5_000_000])
def test_a_request_and_its_answer_may_have_any_size(pair: Pair, size: int) -> None:
    payload = bytes(range(256)) * (size // 256) + bytes(size % 256)
    pair.a.serve(key_of("a", "echo"), lambda received: received, limit_bytes=len(payload))
    for buffer in (payload, bytearray(payload), memoryview(payload)):
        answer = pair.b.request(key_of("a", "echo"), buffer, device="a", timeout_seconds=20)
        assert type(answer) is bytes
        assert answer == payload


@pytest.mark.parametrize("limit_bytes", [100, 100_000])
def test_a_request_above_the_limit_of_its_key_is_refused_and_one_at_it_is_answered(
    pair: Pair, limit_bytes: int
) -> None:
    served: list[int] = []

    def take(payload: bytes) -> bytes:
        served.append(len(payload))
        return b"taken"

    key = key_of("a", "take")
    pair.a.serve(key, take, limit_bytes=limit_bytes)
    with pytest.raises(WireError, match=f"a request to {key} is at most"):
        pair.b.request(key, bytes(limit_bytes + 2000), device="a", timeout_seconds=20)
    assert pair.b.request(key, bytes(limit_bytes), device="a", timeout_seconds=20) == b"taken"
    assert served == [limit_bytes]


def test_two_requests_at_once_each_get_their_answer(pair: Pair) -> None:
    c = pair.join("c")
    pair.a.serve(key_of("a", "echo"), lambda received: received)
    answers: dict[str, bytes] = {}

    def ask(name: str, transport) -> None:
        payload = name.encode() * 300_000
        answers[name] = transport.request(
            key_of("a", "echo"), payload, device="a", timeout_seconds=20
        )

    threads = [
        threading.Thread(target=ask, args=pairing)
        for pairing in (("b", pair.b), ("c", c), ("d", c))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_SECONDS)
    assert {name: answer[:1] * 300_000 == answer for name, answer in answers.items()} == {
        "b": True,
        "c": True,
        "d": True,
    }


def test_a_request_waits_a_moment_for_a_server_that_is_about_to_appear(pair: Pair) -> None:
    timer = threading.Timer(0.2, lambda: pair.a.serve(key_of("a", "late"), bytes))
    timer.start()
    assert pair.b.request(key_of("a", "late"), b"x", device="a", timeout_seconds=5) == b"x"
    timer.join(DEADLINE_SECONDS)


def test_nobody_serving_is_another_error_than_a_deadline_that_passed(pair: Pair) -> None:
    with pytest.raises(
        FleetError,
        match=r"device 'pi-9' does not answer \(nobody serves ew/default/pi-9/x, or it vanished",
    ) as caught:
        pair.a.request(key_of("pi-9", "x"), b"", device="pi-9", timeout_seconds=10)
    assert type(caught.value) is FleetError
    assert pair.a.statistics().requests_failed == 1


def test_a_deadline_that_passes_while_the_device_lives_is_a_device_timeout(pair: Pair) -> None:
    release = threading.Event()

    def wait(payload: bytes) -> bytes:
        release.wait(DEADLINE_SECONDS)
        return b""

    pair.a.serve(key_of("a", "wait"), wait)
    try:
        with pytest.raises(
            DeviceTimeout, match=r"device 'a' did not answer .* within 300 ms"
        ) as caught:
            pair.b.request(key_of("a", "wait"), b"", device="a", timeout_seconds=0.3)
    finally:
        release.set()
    assert caught.value.device == "a"


@pytest.mark.parametrize(
    "error", [PlanError("no plan"), DeviceBusy("busy with r1", device="a", stage=2)]
)
def test_an_edgeweave_error_of_the_handler_is_raised_here(pair: Pair, error: Exception) -> None:
    def fail(payload: bytes) -> bytes:
        raise error

    pair.a.serve(key_of("a", "fail"), fail)
    with pytest.raises(type(error), match=str(error)) as caught:
        pair.b.request(key_of("a", "fail"), b"", device="a", timeout_seconds=5)
    assert vars(caught.value) == vars(error)


def test_any_other_error_of_the_handler_is_device_failed_with_its_traceback(pair: Pair) -> None:
    def fail_with_a_telling_name(payload: bytes) -> bytes:
        raise KeyError("stage")

    pair.a.serve(key_of("a", "fail"), fail_with_a_telling_name)
    with pytest.raises(DeviceFailed, match="device 'a' failed: KeyError: 'stage'") as caught:
        pair.b.request(key_of("a", "fail"), bytes(100_000), device="a", timeout_seconds=5)
    assert caught.value.device == "a"
    assert "fail_with_a_telling_name" in caught.value.remote_traceback


def test_a_slow_handler_blocks_no_other_handler_and_no_frames(pair: Pair) -> None:
    release, entered, inbox = threading.Event(), threading.Event(), Inbox()

    def wait(payload: bytes) -> bytes:
        entered.set()
        release.wait(DEADLINE_SECONDS)
        return b"late"

    answers: list[bytes] = []
    pair.a.serve(key_of("a", "wait"), wait)
    pair.a.serve(key_of("a", "echo"), lambda payload: payload)
    inbox.subscribe(pair.a, KEY)
    asking = threading.Thread(
        target=lambda: answers.append(
            pair.b.request(key_of("a", "wait"), b"", device="a", timeout_seconds=20)
        )
    )
    asking.start()
    try:
        assert entered.wait(DEADLINE_SECONDS)
        assert pair.b.request(key_of("a", "echo"), b"x", device="a", timeout_seconds=5) == b"x"
        pair.b.send(KEY, make_frame("b", x=torch.ones(100_000)), device="a")
        assert inbox.next_frame().header.device == "b"
    finally:
        release.set()
        asking.join(DEADLINE_SECONDS)
    assert answers == [b"late"]


def test_a_handler_may_ask_another_device(pair: Pair) -> None:
    pair.a.serve(key_of("a", "base"), lambda payload: payload + b"a")
    pair.b.serve(
        key_of("b", "via"),
        lambda payload: pair.b.request(
            key_of("a", "base"), payload + b"b", device="a", timeout_seconds=5
        ),
    )
    c = pair.join("c")
    assert c.request(key_of("b", "via"), b"c", device="b", timeout_seconds=5) == b"cba"


# Liveliness


def test_a_watcher_sees_tokens_that_are_there_come_and_go(pair: Pair) -> None:
    news = News()
    early = pair.b.announce(key_of("b", "alive"))
    pair.a.watch(ALIVE, news)
    news.wait_for(key_of("b", "alive"), alive=True)
    late = pair.join("c").announce(key_of("c", "alive"))
    news.wait_for(key_of("c", "alive"), alive=True)
    early.close()
    late.close()
    news.wait_for(key_of("b", "alive"), alive=False)
    news.wait_for(key_of("c", "alive"), alive=False)
    assert len(news.seen()) == 4


def test_closing_a_transport_takes_its_tokens_away(pair: Pair) -> None:
    news = News()
    pair.a.watch(ALIVE, news)
    pair.b.announce(key_of("b", "alive"))
    news.wait_for(key_of("b", "alive"), alive=True)
    pair.b.close()
    news.wait_for(key_of("b", "alive"), alive=False)


def test_alive_lists_tokens_sorted(pair: Pair) -> None:
    news = News()
    pair.a.watch(ALIVE, news)
    for transport in (pair.b, pair.a):
        transport.announce(key_of(transport.name, "alive"))
        news.wait_for(key_of(transport.name, "alive"), alive=True)
    assert pair.a.alive(ALIVE, timeout_seconds=5) == (key_of("a", "alive"), key_of("b", "alive"))
    assert pair.a.alive("ew/default/*/gone", timeout_seconds=5) == ()


def test_an_error_in_a_watcher_is_logged_and_the_next_change_arrives(
    pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    news = News()

    def fail_then_note(key: str, alive: bool) -> None:
        news(key, alive)
        raise ZeroDivisionError("in the watcher")

    pair.a.watch(ALIVE, fail_then_note)
    token = pair.b.announce(key_of("b", "alive"))
    news.wait_for(key_of("b", "alive"), alive=True)
    token.close()
    news.wait_for(key_of("b", "alive"), alive=False)
    assert "ZeroDivisionError: in the watcher" in caplog.text


# Rules


@pytest.mark.parametrize("key", ["ew/other/a/alive", "a/b", "ew/default//x"])
def test_keys_of_other_fleets_are_refused(pair: Pair, key: str) -> None:
    calls = [
        lambda: pair.a.send(key, make_frame(x=torch.ones(1)), device="b"),
        lambda: Inbox().subscribe(pair.a, key),
        lambda: pair.a.request(key, b"", device="b", timeout_seconds=1),
        lambda: pair.a.serve(key, bytes),
        lambda: pair.a.announce(key),
        lambda: pair.a.watch(key, print),
        lambda: pair.a.alive(key, timeout_seconds=1),
    ]
    for call in calls:
        with pytest.raises(ConfigError, match="keys of the fleet 'default' begin with ew/default/"):
            call()


def test_a_closed_transport_says_so(pair: Pair) -> None:
    pair.a.close()
    pair.a.close()
    calls = [
        lambda: pair.a.send(KEY, make_frame(x=torch.ones(1)), device="b"),
        lambda: Inbox().subscribe(pair.a, KEY),
        lambda: pair.a.request(key_of("b", "x"), b"", device="b", timeout_seconds=1),
        lambda: pair.a.serve(key_of("a", "x"), bytes),
        lambda: pair.a.announce(key_of("a", "x")),
        lambda: pair.a.watch(ALIVE, print),
        lambda: pair.a.alive(ALIVE, timeout_seconds=1),
    ]
    for call in calls:
        with pytest.raises(FleetError, match="the transport of 'a' is closed"):
            call()


def test_closing_leaves_no_thread_behind(pair: Pair) -> None:
    before = set(threading.enumerate())
    c = pair.join("c")
    Inbox().subscribe(c, KEY)
    c.serve(key_of("c", "echo"), bytes)
    c.watch(ALIVE, print)
    c.close()
    left = [thread for thread in set(threading.enumerate()) - before if not thread.daemon]
    for thread in left:
        thread.join(DEADLINE_SECONDS)
    assert not any(thread.is_alive() for thread in left)
