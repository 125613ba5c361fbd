"""Cutting a program into stages, and what crosses."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import pairwise

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeweave.core.errors import PlanError
from edgeweave.program import (
    Captured,
    Program,
    Way,
    check,
    cut,
    shared_parameters,
    ways,
    without_outputs,
)
from edgeweave.program.graph import SHARED_UNIT
from edgeweave.program.units import is_external
from tests.models import ZOO
from tests.program.graphs import listed, node, program, two_layers, weight

Capture = Callable[[str], Captured]


def test_no_boundary_gives_one_stage_with_everything() -> None:
    whole = two_layers()
    assert cut(whole, ()) == (whole,)


def test_a_stage_holds_only_the_state_it_reads() -> None:
    names = [[spec.name for spec in stage.state] for stage in cut(two_layers(), (1, 2))]
    assert names == [["w"], ["v"], []]


def test_loss_outputs_and_metrics_leave_the_last_stage() -> None:
    first, last = cut(two_layers(), (1,))
    assert (first.loss, first.outputs) == (None, ("r",))
    assert (last.loss, last.outputs) == ("loss", ("y",))


def test_an_output_made_early_is_relayed_to_the_last_stage() -> None:
    stages = cut(msgspec.structs.replace(two_layers(), outputs=("h",)), (1, 2))
    assert [stage.outputs for stage in stages] == [("h", "r"), ("h", "y"), ("h",)]


def test_without_outputs_training_sends_no_logits() -> None:
    stages = cut(without_outputs(two_layers()), (2,))
    assert stages[0].outputs == ("y",)
    assert stages[1].outputs == ()


def test_nodes_nobody_needs_are_dropped() -> None:
    whole = program(
        node("relu.default", ("input:0",), "r"),
        node("tanh.default", ("r",), "unused"),
        node("mean.default", ("r",), "loss", unit=1),
        loss="loss",
    )
    assert [n.results[0].name for n in cut(whole, (1,))[0].nodes] == ["r"]


def test_what_depends_on_no_data_is_repeated_and_never_sent() -> None:
    whole = program(
        node("arange.default", (4,), "ruler", unit=SHARED_UNIT),
        node("mul.Tensor", ("input:0", "ruler"), "a"),
        node("mul.Tensor", ("a", "ruler"), "b", unit=1),
        outputs=("b",),
    )
    stages = cut(whole, (1,))
    assert [stage.nodes[0].op for stage in stages] == ["aten.arange.default"] * 2
    assert stages[0].outputs == ("a",)


def test_inputs_go_straight_to_the_stage_that_reads_them() -> None:
    whole = program(
        node("tanh.default", ("input:0",), "a"),
        node("tanh.default", ("a",), "b", unit=1),
        node("add.Tensor", ("b", "input:0"), "c", unit=2),
        outputs=("c",),
    )
    stages = cut(whole, (1, 2))
    assert [[v.name for v in stage.inputs] for stage in stages] == [
        ["input:0"],
        ["a"],
        ["input:0", "b"],
    ]


def _with_a_skip(*, users: tuple[int, ...]) -> Program:
    """Units 0 to 5 in a row; what unit 0 makes is added in other units too."""
    nodes = [node("tanh.default", ("input:0",), "v0")]
    for unit in range(1, 6):
        before = f"v{unit - 1}"
        if unit in users:
            nodes.append(node("add.Tensor", (before, "v0"), f"v{unit}", unit=unit))
        else:
            nodes.append(node("tanh.default", (before,), f"v{unit}", unit=unit))
    return program(*nodes, outputs=("v5",))


def test_a_direct_value_goes_past_the_stages_that_do_not_use_it() -> None:
    stages = cut(_with_a_skip(users=(3,)), (2, 3), direct=True)
    assert [stage.outputs for stage in stages] == [("v0", "v1"), ("v2",), ("v5",)]
    assert [[v.name for v in stage.inputs] for stage in stages[1:]] == [["v1"], ["v0", "v2"]]
    assert ways(stages) == (Way({}, {"v0": 2}), Way({}, {}), Way({"v0": 0}, {}))


def test_a_direct_value_goes_from_each_user_to_the_next() -> None:
    stages = cut(_with_a_skip(users=(3, 5)), (2, 3, 4, 5), direct=True)
    assert ways(stages) == (
        Way({}, {"v0": 2}),
        Way({}, {}),
        Way({"v0": 0}, {"v0": 4}),
        Way({}, {}),
        Way({"v0": 2}, {}),
    )
    assert stages[2].outputs == ("v0", "v3")


def test_an_output_made_early_goes_straight_to_the_last_stage() -> None:
    whole = msgspec.structs.replace(two_layers(), outputs=("h",))
    stages = cut(whole, (1, 2), direct=True)
    assert [stage.outputs for stage in stages] == [("h", "r"), ("y",), ("h",)]
    assert ways(stages)[2] == Way({"h": 0}, {})


def test_relays_go_to_the_next_stage_and_nowhere_else() -> None:
    assert ways(cut(_with_a_skip(users=(3,)), (2, 3))) == (Way({}, {}),) * 3


def test_a_stage_that_could_not_tell_the_number_of_samples_relays() -> None:
    whole = program(
        node("mean.dim", ("input:0", listed(0)), "mean"),
        node("tanh.default", ("input:0",), "rows"),
        node("tanh.default", ("mean",), "centre", unit=1),
        node("sub.Tensor", ("rows", "centre"), "out", unit=2),
        outputs=("out",),
    )
    assert cut(whole, (1, 2), direct=True) == cut(whole, (1, 2))


@pytest.mark.parametrize("boundaries", [(0,), (3,), (2, 1), (1, 1), (-1,), (1, 9)])
def test_cuts_that_leave_a_stage_empty_are_refused(boundaries: tuple[int, ...]) -> None:
    expected = f"cuts ascend and leave no stage empty (got {list(boundaries)} for units 0 to 2)."
    with pytest.raises(PlanError, match=re.escape(expected)):
        cut(two_layers(), boundaries)


def test_a_program_without_units_cannot_be_cut() -> None:
    with pytest.raises(PlanError, match="a program without units cannot be cut"):
        cut(Program(inputs=(), state=(), nodes=()), ())


def test_shared_parameters_name_the_stages_that_hold_them() -> None:
    whole = program(
        node("linear.default", ("input:0", "w"), "a"),
        node("linear.default", ("a", "frozen"), "b", unit=1),
        node("linear.default", ("b", "w"), "c", unit=2),
        node("linear.default", ("c", "frozen"), "d", unit=2),
        state=(weight("w", 4, 4), weight("frozen", 4, 4, trainable=False)),
        outputs=("d",),
    )
    assert shared_parameters(cut(whole, (1, 2))) == {"w": (0, 2)}


def test_tied_weights_of_gpt2_are_held_by_first_and_last_stage(captured: Capture) -> None:
    whole = captured("gpt2").program
    stages = cut(whole, (whole.unit_numbers[5], whole.unit_numbers[9]))
    assert shared_parameters(stages) == {"transformer.wte.weight": (0, 2)}
    assert whole.aliases == {"lm_head.weight": "transformer.wte.weight"}


@pytest.mark.parametrize("name", ZOO)
def test_every_stage_is_a_sound_program_and_can_be_cut_again(captured: Capture, name: str) -> None:
    whole = without_outputs(captured(name).program)
    units = whole.unit_numbers
    middle = len(units) // 2
    for stage in cut(whole, (units[middle],)):
        check(stage)
    finest = cut(whole, units[1:])
    first_half = cut(whole, (units[middle],))[0]
    assert cut(first_half, units[1:middle]) == finest[:middle]


@pytest.mark.parametrize("name", ["mlp", "unet", "bert", "lstm"])
@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_stages_hand_on_exactly_what_the_next_one_reads(
    captured: Capture, name: str, data: st.DataObject
) -> None:
    whole = without_outputs(captured(name).program)
    boundaries = tuple(sorted(data.draw(st.sets(st.sampled_from(whole.unit_numbers[1:])))))
    stages = cut(whole, boundaries)
    for stage, following in pairwise(stages):
        read = [v.name for v in following.inputs if not is_external(v.name)]
        assert list(stage.outputs) == read
    held = {spec.name for stage in stages for spec in stage.state}
    updated = [name for stage in stages for name in stage.updates]
    assert held == {spec.name for spec in cut(whole, ())[0].state}
    assert sorted(updated) == sorted(whole.updates)
