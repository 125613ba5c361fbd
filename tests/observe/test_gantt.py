"""The picture of a plan has a row for each device and a bar for each thing it does."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from xml.etree import ElementTree as Xml

import pytest

from edgeweave.observe import draw_plan
from edgeweave.plan import Costs, Cut, Feed, Link
from tests.plan.worlds import equal_costs, one_unit_each

SVG = "{http://www.w3.org/2000/svg}"


def world() -> Costs:
    """Two devices whose messages take a tenth of what they compute."""
    costs = equal_costs(2, 2, link=Link(10.0, 0.0), cut=Cut(1, 1))
    updating = (replace(each, update_seconds_per_byte=0.05) for each in costs.devices)
    return replace(costs, devices=tuple(updating), feeds=(Feed("input:0", 1, (0,)),))


def rows(costs: Costs, n_microbatches: int = 3) -> dict[str, Xml.Element]:
    plan = one_unit_each(costs, n_microbatches=n_microbatches)
    root = Xml.fromstring(draw_plan(plan, costs))
    return {group.get("id", ""): group for group in root.iter(f"{SVG}g")}


def bars(group: Xml.Element) -> list[Xml.Element]:
    """What one step does: the others are pale."""
    return [
        each
        for each in group.iter(f"{SVG}rect")
        if each.get("class") is not None and each.get("opacity") is None
    ]


def test_every_device_has_a_row_and_the_coordinator_that_feeds_them_too() -> None:
    assert list(rows(world())) == ["device:coordinator", "device:d0", "device:d1"]
    unfed = replace(world(), feeds=())
    assert list(rows(unfed)) == ["device:d0", "device:d1"]


def test_a_step_has_a_bar_for_every_piece_of_work_and_every_message() -> None:
    for name in ("device:d0", "device:d1"):
        kinds = Counter(bar.get("class") for bar in bars(rows(world())[name]))
        assert kinds == {"forward": 3, "backward": 3, "update": 1, "send": 3}


def test_bars_are_as_wide_as_work_takes_and_do_not_overlap() -> None:
    computing = [b for b in bars(rows(world())["device:d1"]) if b.get("class") != "send"]
    edges = [(float(b.get("x", 0)), float(b.get("width", 0))) for b in computing]
    widths = {b.get("class"): width for b, (_, width) in zip(computing, edges, strict=True)}
    assert widths["forward"] == pytest.approx(widths["backward"], abs=0.02)
    assert widths["update"] == pytest.approx(widths["forward"] / 2, abs=0.02)
    ends = [x + width for x, width in edges]
    assert all(after >= end - 0.02 for end, (after, _) in zip(ends, edges[1:], strict=False))


def test_pointing_at_a_bar_tells_what_it_is() -> None:
    group = rows(world())["device:d0"]
    titles = [bar.findtext(f"{SVG}title") for bar in bars(group)]
    assert titles[0] == "d0: forward 0, at 0 us for 1 s"
    assert any(title and title.startswith("d0: send 2 to d1, at ") for title in titles)


def test_idle_shares_stand_at_the_end_of_the_rows() -> None:
    texts = [each.text for each in rows(world())["device:d0"].iter(f"{SVG}text")]
    assert any(text and text.startswith("idle ") for text in texts)


def test_a_name_that_means_something_in_xml_is_shown_as_it_is() -> None:
    costs = equal_costs(1, 1)
    odd = replace(costs, devices=(replace(costs.devices[0], device="<pi & co>"),))
    assert list(rows(odd)) == ["device:<pi & co>"]


def test_a_plan_that_takes_no_time_is_drawn_too() -> None:
    costs = equal_costs(1, 1, forward_seconds=0.0, backward_seconds=0.0)
    assert bars(rows(costs)["device:d0"]) == []
