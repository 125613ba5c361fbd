"""What the kernel is told about links, and what is refused before it is told anything."""

from __future__ import annotations

import os
import queue
import random
import shutil
import subprocess
import threading
from collections.abc import Mapping
from ipaddress import IPv4Network
from itertools import pairwise

import pytest

from edgeweave.core.clock import SystemClock
from edgeweave.core.errors import ConfigError, FleetError
from edgeweave.fleet._netlinks import check_kernel
from edgeweave.fleet._netroutes import free_subnet
from edgeweave.fleet._netshape import class_line, leaf_line, most_segments, tree_lines
from edgeweave.fleet._nettools import Kernel, look, run
from edgeweave.fleet._nettraces import TraceFollower, piece_of
from edgeweave.fleet.namespaces import NamespaceLayout
from edgeweave.net.link import GilbertElliott, Links, LinkShape, RateTrace

DEADLINE_SECONDS = 20.0
FAST_THEN_SLOW = RateTrace((0.0, 2.0), (1e6, 5e5), 3.0)


# Text for tc


def test_every_destination_has_a_class_and_a_filter_of_its_own() -> None:
    lines = tree_lines("ew0", [f"10.0.0.{number}" for number in range(1, 18)])
    assert lines[0] == "qdisc add dev ew0 root handle 1: htb"
    assert len(lines) == 1 + 2 * 17
    assert lines[-1].endswith("match ip dst 10.0.0.17/32 flowid 1:11"), "tc reads numbers as hex"


@pytest.mark.parametrize(
    ("bytes_per_second", "words"),
    [
        (125e3, "rate 1000000bit burst 3028 cburst 3028"),
        (62.5e6, "rate 500000000bit burst 250000 cburst 250000"),
        (0.0, "rate 64000bit burst 3028 cburst 3028"),
        (None, "rate 100000000000bit burst 1048576 cburst 1048576"),
    ],
)
def test_a_class_has_its_rate_and_a_burst_of_four_milliseconds(
    bytes_per_second: float | None, words: str
) -> None:
    line = class_line("ew0", 10, bytes_per_second)
    assert line == f"class replace dev ew0 parent 1: classid 1:a htb {words} quantum 3028"


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        (LinkShape(), "pfifo limit 1000"),
        (LinkShape(bytes_per_second=1e6), "pfifo limit 1000"),
        (LinkShape(up=False, delay_seconds=1.0), "blackhole"),
        (LinkShape(1514e3, delay_seconds=0.02), "netem limit 2020 delay 20000us"),
        (
            LinkShape(1514e3, delay_seconds=0.02, jitter_seconds=0.005),
            "netem limit 2040 delay 20000us 8660us",
        ),
        (LinkShape(1514e3, loss=0.01), "netem limit 2000 loss random 1%"),
        (
            LinkShape(1514e3, loss=GilbertElliott(0.001, 0.1, loss_good=0.0001, loss_bad=0.5)),
            "netem limit 2000 loss gemodel 0.1% 10% 50% 0.01%",
        ),
    ],
)
def test_a_leaf_is_what_the_link_is_like(shape: LinkShape, words: str) -> None:
    assert leaf_line("ew0", 1, shape) == f"qdisc replace dev ew0 parent 1:1 {words}"


@pytest.mark.parametrize(
    ("shapes", "most"),
    [
        ([], 43),
        ([LinkShape()], 43),
        ([LinkShape(), LinkShape(62.5e6)], 41),
        ([LinkShape(62.5e6), LinkShape(125e3)], 1),
        ([LinkShape(FAST_THEN_SLOW)], 1),
        ([LinkShape(loss=0.1)], 1),
    ],
)
def test_packets_are_as_small_as_the_slowest_link_asks(shapes: list[LinkShape], most: int) -> None:
    assert most_segments(shapes) == most


# Traces


@pytest.mark.parametrize(
    ("seconds", "piece"),
    [(0.0, (1e6, 2.0)), (1.5, (1e6, 0.5)), (2.0, (5e5, 1.0)), (3.0, (1e6, 2.0)), (8.5, (5e5, 0.5))],
)
def test_a_trace_begins_anew_when_it_ends(seconds: float, piece: tuple[float, float]) -> None:
    assert piece_of(FAST_THEN_SLOW, seconds) == piece


def test_a_follower_tells_each_rate_when_its_piece_begins_and_only_then() -> None:
    told: queue.SimpleQueue[Mapping[str, float]] = queue.SimpleQueue()
    traces = {
        "changing": RateTrace((0.0, 0.005), (1.0, 2.0), 0.01),
        "constant": RateTrace((0.0, 0.005), (3.0, 3.0), 0.01),
    }
    clock = SystemClock()
    with TraceFollower(traces, told.put, clock=clock, began_seconds=clock.now()):
        first = told.get(timeout=DEADLINE_SECONDS)
        later = [told.get(timeout=DEADLINE_SECONDS) for _ in range(4)]
    assert first["constant"] == 3.0
    rates = [first["changing"], *(each["changing"] for each in later)]
    assert all(one != other for one, other in pairwise(rates))
    assert all(set(each) == {"changing"} for each in later)


def test_a_rate_that_cannot_be_set_is_an_error_on_leaving() -> None:
    failing = threading.Event()

    def change(rates: Mapping[str, float]) -> None:
        if rates["link"] == 2.0:
            failing.set()
            raise FleetError("the interface is gone.")

    traces = {"link": RateTrace((0.0, 0.01), (1.0, 2.0), 0.02)}
    clock = SystemClock()
    with (
        pytest.raises(FleetError, match=r"^the interface is gone\.$"),
        TraceFollower(traces, change, clock=clock, began_seconds=clock.now()),
    ):
        assert failing.wait(DEADLINE_SECONDS)


# Addresses


def test_a_subnet_is_where_no_route_leads() -> None:
    taken = [IPv4Network("198.18.0.0/16"), IPv4Network("198.19.0.0/17")]
    for seed in range(50):
        subnet = free_subnet(taken, random.Random(seed))
        assert subnet.prefixlen == 24
        assert not any(subnet.overlaps(each) for each in taken)


def test_other_ranges_serve_where_the_first_is_taken() -> None:
    taken = [IPv4Network("198.18.0.0/15")]
    assert free_subnet(taken, random.Random(1)).subnet_of(IPv4Network("10.0.0.0/8"))
    everything = [*taken, IPv4Network("10.0.0.0/8"), IPv4Network("172.16.0.0/12")]
    with pytest.raises(FleetError, match=r"needs a free subnet .*Remove a route, or leave kernel"):
        free_subnet(everything, random.Random(1))


# What is missing


def test_who_is_not_root_is_told_so_and_of_emulated_links(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(
        ConfigError,
        match=r"^kernel mode needs root \(this process runs as user 1000\)\. "
        r"Run it as root, or leave kernel mode: emulated links need none of it\.$",
    ):
        look()


@pytest.mark.parametrize(("tool", "package"), [("ip", "iproute2"), ("nsenter", "util-linux")])
def test_a_missing_command_is_named_with_its_package(
    monkeypatch: pytest.MonkeyPatch, tool: str, package: str
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(shutil, "which", lambda name: None if name == tool else f"/sbin/{name}")
    with pytest.raises(
        ConfigError, match=rf"needs the command {tool} \(not found\)\. Install {package}, or"
    ):
        look()


@pytest.mark.parametrize(
    ("refuses", "message"),
    [
        ("true", r"the right to make network namespaces \(unshare --net true: no way\)\. Give"),
        ("tc", r"modules sch_htb and cls_u32 \(class add dev lo .* rate 1mbit: no way\)\. Load"),
    ],
)
def test_a_kernel_that_refuses_is_quoted(
    monkeypatch: pytest.MonkeyPatch, refuses: str, message: str
) -> None:
    def refuse(command: list[str], **_options: object) -> subprocess.CompletedProcess[str]:
        said = "no way\nCommand failed -:2\n" if "-batch" in command else "no way\n"
        code = 1 if refuses in command else 0
        return subprocess.CompletedProcess(command, code, "", said if code else "")

    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(shutil, "which", lambda name: f"/sbin/{name}")
    monkeypatch.setattr(subprocess, "run", refuse)
    with pytest.raises(ConfigError, match=message):
        look()


@pytest.mark.parametrize(
    "shape", [LinkShape(delay_seconds=0.1), LinkShape(jitter_seconds=0.1), LinkShape(loss=0.1)]
)
def test_a_kernel_without_netem_refuses_the_first_link_that_needs_it(shape: LinkShape) -> None:
    links = Links.of({("pi-1", "pi-2"): shape}, default=LinkShape(1e6))
    names = ("coordinator", "pi-1", "pi-2")
    check_kernel(Kernel(netem=""), links, names)
    with pytest.raises(
        ConfigError,
        match=r"need the kernel module sch_netem \(pi-1 -> pi-2 has some; unknown kind\)\. Load it",
    ):
        check_kernel(Kernel(netem="unknown kind"), links, names)


@pytest.mark.parametrize("devices", [[], ["a", "a"], ["coordinator"], ["a"] * 251])
def test_a_layout_needs_devices_of_different_names(devices: list[str]) -> None:
    with pytest.raises(ConfigError, match="kernel mode has 1 to 250 devices of different names"):
        NamespaceLayout(devices, Links())


def test_a_layout_that_is_not_open_says_so() -> None:
    layout = NamespaceLayout(["a"], Links())
    with pytest.raises(FleetError, match=r"nobody called 'a' stands in this layout .*not open"):
        layout.prefix("a")
    with pytest.raises(FleetError, match="the network layout is not open"):
        layout.reshape(Links())


def test_a_command_that_fails_is_quoted_in_one_line() -> None:
    with pytest.raises(FleetError, match=r"\(sh -c echo no >&2; exit 3: no\)\. See docs/how-to"):
        run(["sh", "-c", "echo no >&2; exit 3"])
