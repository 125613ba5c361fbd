"""Plans of super neurons against brute force, and what the model of their costs says."""

from __future__ import annotations

import dataclasses
from itertools import permutations
from typing import Any

import pytest
import torch
from torch import nn

from edgeweave.core.errors import CaptureError, PlanError
from edgeweave.core.units import format_seconds
from edgeweave.plan import (
    Costs,
    Cut,
    DeviceCosts,
    Link,
    SliceModel,
    SlicePlan,
    UnitFacts,
    choose_slices,
    explain_slices,
    group_choices,
    layer_units,
    slice_search,
)
from edgeweave.program import Group, Program, capture, slice_program, unit_bytes, without_outputs

BATCH = 16
FAST = Link(1e9, 1e-5)


def network(n_layers: int = 3, width: int = 24) -> Program:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for _ in range(n_layers - 1):
        layers += [nn.Linear(width, width), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(width, 4))
    example = torch.randn(3, width), torch.randint(4, (3,))
    return without_outputs(capture(model, nn.functional.cross_entropy, *example).program)


def costs(
    program: Program,
    speeds: dict[str, float],
    links: dict[tuple[str, str], Link] | None = None,
    default: Link = FAST,
    limit: int | None = None,
) -> Costs:
    """A unit takes a millisecond a layer at full speed."""
    units = program.unit_numbers
    facts = unit_bytes(program, BATCH)
    table: dict[str, dict[str, Link]] = {}
    for (source, target), link in (links or {}).items():
        table.setdefault(source, {})[target] = link
    layers = set(layer_units(program))
    work = [1e-3 if unit in layers else 1e-5 for unit in units]
    return Costs(
        units=tuple(
            UnitFacts(str(u), f.parameters, f.trainable, f.buffers, f.activations)
            for u, f in facts.items()
        ),
        cuts=tuple(Cut(1000, 1000) for _ in units[1:]),
        devices=tuple(
            DeviceCosts(name, tuple(w / s for w in work), tuple(w / s for w in work), limit)
            for name, s in speeds.items()
        ),
        links=table,
        default_link=default,
        optimizer_bytes_per_trainable_byte=0.0,
    )


def best_of_all(program: Program, known: Costs, *, least: int, reliable: bool) -> float:
    """The progress of the best groups with the best order of devices."""
    units, layers = program.unit_numbers, layer_units(program)
    edges = (units[0], *layers[1:], units[-1] + 1)
    names = [each.device for each in known.devices]
    found = []
    for groups in group_choices(edges, len(names), least):
        model = SliceModel(slice_program(program, groups), known, BATCH)
        found += [model.costs(o, reliable=reliable).progress for o in permutations(names)]
    return max(found)


LOSSY = {
    ("a", "b"): Link(1e6, 1e-3, 0.3),
    ("b", "a"): Link(1e6, 1e-3, 0.1),
    ("a", "c"): Link(2e5, 5e-3, 0.0),
    ("c", "d"): Link(1e7, 1e-4, 0.4),
    ("d", "b"): Link(1e6, 2e-3, 0.2),
}


@pytest.mark.parametrize("reliable", [False, True])
@pytest.mark.parametrize("least", [1, 2])
@pytest.mark.parametrize(
    "speeds",
    [
        pytest.param({"a": 1.0, "b": 0.5, "c": 0.25, "d": 1.0}, marks=pytest.mark.slow),
        {"a": 1.0, "b": 0.2, "c": 0.6},
    ],
)
def test_a_plan_is_as_good_as_the_best_of_all(
    speeds: dict[str, float], least: int, reliable: bool
) -> None:
    program = network()
    known = costs(program, speeds, LOSSY, Link(5e6, 1e-3, 0.05))
    plan = choose_slices(program, known, BATCH, reliable=reliable, least_members=least)
    assert plan.predicted is not None
    expected = best_of_all(program, known, least=least, reliable=reliable)
    assert plan.predicted.progress == pytest.approx(expected)


def test_where_all_are_not_tried_the_plan_is_not_far_from_the_best(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    program = network()
    known = costs(program, {"a": 1.0, "b": 0.5, "c": 0.25, "d": 1.0}, LOSSY, Link(5e6, 1e-3, 0.05))
    expected = best_of_all(program, known, least=1, reliable=False)
    monkeypatch.setattr(slice_search, "_MOST_SLICED", 4)
    monkeypatch.setattr(slice_search, "_MOST_ORDERS", 1)
    plan = choose_slices(program, known, BATCH, least_members=1)
    assert plan.predicted is not None
    assert plan.predicted.progress > 0.8 * expected


def chosen(known: Costs, program: Program, **options: Any) -> SlicePlan:
    return choose_slices(program, known, BATCH, **{"least_members": 1, **options})


def test_where_exchanges_cost_nothing_all_layers_are_divided_over_all() -> None:
    """Nothing overlaps there, and nothing has to: all devices work on every layer."""
    program = network()
    known = costs(program, dict.fromkeys("abcd", 1.0), default=Link(1e12, 0.0))
    plan = chosen(known, program, reliable=True)
    assert plan.predicted is not None
    whole = SliceModel(slice_program(program, [Group(0, len(known.units), 4)]), known, BATCH)
    best = whole.costs(tuple("abcd"), reliable=True).step_seconds
    assert plan.predicted.step_seconds == pytest.approx(best, rel=0.35)


def test_where_exchanges_are_slow_layers_stay_whole() -> None:
    program = network()
    known = costs(program, dict.fromkeys("abc", 1.0), default=Link(1e6, 0.1))
    assert [group.n_members for group in chosen(known, program).groups] == [1, 1, 1]


@pytest.mark.slow
def test_where_every_link_loses_fewer_exchanges_are_better() -> None:
    """The same speed, so that losses alone decide."""
    program = network(n_layers=4)
    quick = costs(program, dict.fromkeys("abcd", 1.0), default=Link(1e12, 0.0, 0.0))
    lossy = costs(program, dict.fromkeys("abcd", 1.0), default=Link(1e12, 0.0, 0.5))
    kept = {}
    for name, known in (("quick", quick), ("lossy", lossy)):
        plan = chosen(known, program)
        model = SliceModel(slice_program(program, plan.groups), lossy, BATCH)
        kept[name] = model.costs(plan.devices, reliable=False).kept
    assert kept["lossy"] >= kept["quick"]


def test_losses_leave_what_the_formula_says() -> None:
    """Two whole layers on two devices: one message forward and one back, all of what is read."""
    program = network(n_layers=2)
    known = costs(program, {"a": 1.0, "b": 1.0}, default=Link(1e9, 0.0, 0.2))
    units = program.unit_numbers
    split = layer_units(program)[1]
    groups = [Group(0, split, 1), Group(split, units[-1] + 1, 1)]
    model = SliceModel(slice_program(program, groups), known, BATCH)
    found = model.costs(("a", "b"), reliable=False)
    assert found.kept == pytest.approx(1 / 1.25**2)
    assert model.costs(("a", "b"), reliable=True).kept == 1.0
    n_values = BATCH * 24
    assert found.transfer_bytes == 2 * 4 * n_values


def test_members_seconds_are_their_share_of_the_layers() -> None:
    program = network(n_layers=2)
    known = costs(program, {"a": 1.0, "b": 0.5}, default=Link(1e15, 0.0))
    model = SliceModel(slice_program(program, [Group(0, len(known.units), 2)]), known, BATCH)
    found = model.costs(("a", "b"), reliable=False)
    layer = 2 * 1e-3 / 0.5 / 2  # forward and backward of half a layer at half speed
    assert found.step_seconds == pytest.approx(2 * layer, rel=0.02)


def test_what_units_take_whatever_their_samples_no_slice_shares() -> None:
    program = network(n_layers=2)
    known = costs(program, {"a": 1.0, "b": 1.0}, default=Link(1e15, 0.0))
    fixed = {
        each.device: dataclasses.replace(
            each,
            forward_seconds=tuple(0.4 * s for s in each.forward_seconds),
            backward_seconds=tuple(0.4 * s for s in each.backward_seconds),
        )
        for each in known.devices
    }
    groups = [Group(0, len(known.units), 2)]
    model = SliceModel(slice_program(program, groups), known, BATCH, fixed)
    found = model.costs(("a", "b"), reliable=False).step_seconds
    assert found == pytest.approx(2 * 2 * 1e-3 * (0.4 + 0.6 / 2), rel=0.05)


def test_every_message_takes_its_time_of_both_of_its_ends() -> None:
    """Two whole layers on two devices: one message forward and one back."""
    program = network(n_layers=2)
    known = costs(program, {"a": 1.0, "b": 1.0}, default=Link(1e15, 0.0))
    slow = dataclasses.replace(
        known, devices=tuple(dataclasses.replace(d, message_seconds=0.5) for d in known.devices)
    )
    split, stop = layer_units(program)[1], program.unit_numbers[-1] + 1
    sliced = slice_program(program, [Group(0, split, 1), Group(split, stop, 1)])
    before, after = (
        SliceModel(sliced, each, BATCH).costs(("a", "b"), reliable=False) for each in (known, slow)
    )
    assert after.step_seconds - before.step_seconds == pytest.approx(2 * 0.5, rel=1e-3)


def test_a_plan_is_compared_with_one_device_alone() -> None:
    program = network()
    known = costs(program, {"a": 1.0, "b": 0.5}, default=Link(1e6, 0.1, 0.25))
    plan = choose_slices(program, known, BATCH)
    found = explain_slices(program, plan, known, BATCH)
    alone = 2 * sum(known.devices[0].forward_seconds)
    assert (found.best_single_device, found.best_single_seconds) == ("a", pytest.approx(alone))
    assert found.predicted == plan.predicted
    assert found.predicted.lost_share == pytest.approx(0.25)
    assert sum(each.weights_share for each in found.members) == pytest.approx(1.0)
    assert sum(each.n_layers for each in found.members) == 2 * 3
    first, sent, lost = found.lines()
    assert f" times as long as on a alone, {format_seconds(alone)}." in first
    assert sent.endswith("in a step.")
    assert lost.startswith("Of that 25.0% is expected to be lost, which leaves ")
    reliable = explain_slices(program, plan, known, BATCH, reliable=True)
    assert (reliable.predicted.lost_share, reliable.predicted.kept) == (0.0, 1.0)


def test_what_fits_nobody_is_refused_with_the_device_named() -> None:
    program = network()
    known = costs(program, {"a": 1.0, "b": 1.0}, limit=100)
    with pytest.raises(PlanError, match=r"^a slice of group 0 needs \d+ bytes on [ab] \(limit: "):
        choose_slices(program, known, BATCH)


def test_a_plan_names_a_device_for_every_member() -> None:
    with pytest.raises(PlanError, match=r"^every member has a device of its own \(2 members"):
        SlicePlan((Group(0, 3, 2),), ("a", "a"))


def test_a_plan_says_who_has_what_and_what_it_is_predicted_to_take() -> None:
    program = network()
    plan = choose_slices(program, costs(program, {"a": 1.0, "b": 1.0}), BATCH)
    first, last = plan.lines()
    assert first.startswith("group 0: units 0 to ")
    assert last.startswith("predicted: ")
    assert dataclasses.replace(plan, predicted=None).lines() == (first,)


def test_what_cannot_be_sliced_says_why() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(6, 5, batch_first=True)
            self.head = nn.Linear(5, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.lstm(x)[0][:, -1])

    example = torch.randn(3, 4, 6), torch.randint(2, (3,))
    captured = capture(Recurrent(), nn.functional.cross_entropy, *example)
    program = without_outputs(captured.program)
    with pytest.raises(CaptureError):
        choose_slices(program, costs(program, {"a": 1.0, "b": 1.0}), BATCH)
