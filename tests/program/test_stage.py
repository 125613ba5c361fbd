"""One stage on one device: what it accepts, keeps, hands on and forgets."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
import torch

from edgeweave.core.errors import WireError
from edgeweave.program import Moment, StageProgram, cut
from edgeweave.program.graph import Size, StateSpec, Value
from edgeweave.program.stage import made_up, unit_seed
from tests.program.graphs import BATCH, node, program, state_of, two_layers, weight

X = torch.linspace(-1, 1, 12).reshape(3, 4)


def _stages(*boundaries: int) -> list[StageProgram]:
    whole = two_layers()
    return [StageProgram(stage, state_of(whole)) for stage in cut(whole, boundaries)]


def _refused(call: Any, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(WireError) as caught:
        call(*args, **kwargs)
    return str(caught.value)


def test_forward_hands_on_what_crosses_the_cut() -> None:
    first, last = _stages(1)
    outputs = first.forward({"input:0": X}, Moment(0, 0)).outputs
    assert outputs.keys() == {"r"}
    result = last.forward(outputs, Moment(0, 0))
    assert result.outputs.keys() == {"y"}
    assert result.loss is not None
    assert result.loss.shape == ()


def test_results_are_detached() -> None:
    result = _stages()[0].forward({"input:0": X}, Moment(0, 0))
    assert not result.outputs["y"].requires_grad
    assert result.loss is not None
    assert not result.loss.requires_grad


def test_backward_returns_the_gradients_of_the_inputs_that_want_one() -> None:
    first, last = _stages(1)
    outputs = first.forward({"input:0": X}, Moment(0, 0)).outputs
    last.forward(outputs, Moment(0, 0))
    gradients = last.backward(0, {})
    assert gradients.keys() == {"r"}
    assert gradients["r"].shape == (3, 3)
    assert first.backward(0, gradients) == {}


def test_the_weight_scales_the_loss() -> None:
    (stage,) = _stages()
    gradients = []
    for microbatch, loss_weight in enumerate((1.0, 0.25)):
        stage.forward({"input:0": X}, Moment(0, microbatch))
        stage.parameters["w"].grad = None
        stage.backward(microbatch, {}, loss_weight=loss_weight)
        gradients.append(stage.parameters["w"].grad)
    assert gradients[0] is not None
    assert torch.equal(0.25 * gradients[0], gradients[1])


def test_gradients_of_several_microbatches_add_up() -> None:
    (stage,) = _stages()
    for microbatch in range(2):
        stage.forward({"input:0": X}, Moment(0, microbatch))
    stage.backward(0, {})
    once = stage.parameters["w"].grad
    assert once is not None
    once = once.clone()
    stage.backward(1, {})
    assert torch.equal(stage.parameters["w"].grad, 2 * once)


def test_a_missing_gradient_counts_as_none() -> None:
    first, _ = _stages(1)
    first.forward({"input:0": X}, Moment(0, 0))
    assert first.backward(0, {}) == {}
    assert first.parameters["w"].grad is None


def test_microbatches_in_flight_are_counted() -> None:
    (stage,) = _stages()
    for microbatch in range(3):
        stage.forward({"input:0": X}, Moment(0, microbatch))
    assert stage.n_in_flight == 3
    stage.backward(1, {})
    assert stage.n_in_flight == 2


def test_evaluating_keeps_nothing_in_flight() -> None:
    (stage,) = _stages()
    result = stage.evaluate({"input:0": X})
    assert stage.n_in_flight == 0
    assert not result.outputs["y"].requires_grad


def test_a_backward_without_its_forward_is_refused() -> None:
    (stage,) = _stages()
    assert _refused(stage.backward, 5, {}) == (
        "a backward follows its forward (microbatch 5; in flight: none)."
    )
    stage.forward({"input:0": X}, Moment(0, 2))
    assert _refused(stage.backward, 5, {}) == (
        "a backward follows its forward (microbatch 5; in flight: [2])."
    )


@pytest.mark.parametrize("method", ["forward", "evaluate"])
def test_a_missing_input_is_refused_by_name(method: str) -> None:
    first, last = _stages(1)
    moment = (Moment(0, 0),) if method == "forward" else ()
    assert _refused(getattr(first, method), {}, *moment) == (
        "the stage's input input:0 did not arrive."
    )
    assert _refused(getattr(last, method), {"input:0": X}, *moment) == (
        "the stage's input r did not arrive."
    )


@pytest.mark.parametrize("method", ["forward", "evaluate"])
def test_an_input_of_another_shape_is_refused(method: str) -> None:
    moment = (Moment(0, 0),) if method == "forward" else ()
    assert _refused(getattr(_stages()[0], method), {"input:0": X[:, :3]}, *moment) == (
        "input input:0 is torch.float32 (3, 3), not float32 (3, 4) as the program says."
    )


def test_an_input_of_another_dtype_is_refused() -> None:
    assert _refused(_stages()[0].forward, {"input:0": X.double()}, Moment(0, 0)) == (
        "input input:0 is torch.float64 (3, 4), not float32 (3, 4) as the program says."
    )


def test_inputs_of_unequal_batches_are_refused() -> None:
    whole = program(
        node("add.Tensor", ("input:0", "input:1"), "y"),
        inputs=(Value("input:0", "float32", (BATCH, 4)), Value("input:1", "float32", (BATCH, 4))),
        outputs=("y",),
    )
    stage = StageProgram(whole, {})
    assert _refused(stage.forward, {"input:0": X, "input:1": X[:2]}, Moment(0, 0)) == (
        "input input:1 is torch.float32 (2, 4), not float32 (3, 4) as the program says."
    )


def test_a_size_that_no_batch_explains_is_refused() -> None:
    whole = program(
        node("neg.default", ("input:0",), "y"),
        inputs=(Value("input:0", "float32", (Size(4, 2),)),),
        outputs=("y",),
    )
    stage = StageProgram(whole, {})
    assert stage.forward({"input:0": torch.ones(10)}, Moment(0, 0)).outputs["y"].shape == (10,)
    assert "is torch.float32 (11,), not float32 (10,)" in _refused(
        stage.forward, {"input:0": torch.ones(11)}, Moment(0, 0)
    )


def test_a_gradient_of_another_shape_is_refused_and_the_microbatch_stays() -> None:
    first, _ = _stages(1)
    first.forward({"input:0": X}, Moment(0, 0))
    assert _refused(first.backward, 0, {"r": torch.ones(3, 2)}) == (
        "the gradient of r is torch.float32 (3, 2), not torch.float32 (3, 3)."
    )
    assert first.n_in_flight == 1


def test_a_gradient_for_an_unknown_value_is_refused() -> None:
    first, _ = _stages(1)
    first.forward({"input:0": X}, Moment(0, 0))
    assert _refused(first.backward, 0, {"x": torch.ones(3, 3)}) == (
        "a gradient came for x, which has none in this stage."
    )


def test_state_that_did_not_come_is_refused() -> None:
    assert _refused(StageProgram, two_layers(), {"w": torch.ones(3, 4)}) == (
        "the stage needs v, which did not come with it."
    )


def test_state_of_another_shape_is_refused() -> None:
    state = {"w": torch.ones(3, 4), "v": torch.ones(3, 2)}
    assert _refused(StageProgram, two_layers(), state) == (
        "v is torch.float32 (3, 2), not float32 (2, 3) as the program says."
    )


def test_the_stage_trains_copies_not_the_users_tensors() -> None:
    state = state_of(two_layers())
    stage = StageProgram(two_layers(), state)
    with torch.no_grad():
        stage.parameters["w"].zero_()
    assert state["w"].any()


def test_an_optimizer_that_steps_the_parameters_changes_the_next_forward() -> None:
    (stage,) = _stages()
    before = stage.forward({"input:0": X}, Moment(0, 0)).loss
    stage.backward(0, {})
    torch.optim.SGD(stage.parameters.values(), lr=0.1).step()
    assert not torch.equal(before, stage.evaluate({"input:0": X}).loss)


def _counting() -> StageProgram:
    whole = program(
        node("add.Tensor", ("seen", 1), "next"),
        node("mul.Tensor", ("input:0", "ruler"), "y"),
        state=(
            StateSpec("seen", "buffer", "int64", ()),
            StateSpec("ruler", "constant", "float32", (4,)),
        ),
        outputs=("y",),
        updates={"seen": "next"},
    )
    return StageProgram(whole, {"seen": torch.tensor(3), "ruler": torch.ones(4)})


def test_buffers_move_with_every_forward_and_not_with_evaluation() -> None:
    stage = _counting()
    stage.forward({"input:0": X}, Moment(0, 0))
    stage.forward({"input:0": X}, Moment(0, 1))
    stage.evaluate({"input:0": X})
    assert int(stage.state_dict()["seen"]) == 5


def test_constants_are_in_no_state_dict() -> None:
    assert _counting().state_dict().keys() == {"seen"}


def test_a_rehearsal_leaves_everything_as_it_was() -> None:
    stage = _counting()
    for call in stage.rehearse(3):
        call()
    assert int(stage.state_dict()["seen"]) == 3
    (trained,) = _stages()
    for call in trained.rehearse(2):
        call()
    assert trained.n_in_flight == 0
    assert trained.parameters["w"].grad is None


def test_made_up_inputs_have_the_declared_shape_and_dtype() -> None:
    floats = made_up(Value("x", "float16", (Size(2), 3)), 4)
    ints = made_up(Value("x", "int64", (Size(1),)), 4)
    assert (floats.shape, floats.dtype) == ((8, 3), torch.float16)
    assert torch.equal(ints, torch.zeros(4, dtype=torch.int64))


def test_stages_of_one_program_hold_different_parameters() -> None:
    names = [sorted(stage.parameters) for stage in _stages(1, 2)]
    assert names == [["w"], ["v"], []]


def test_a_frozen_parameter_is_held_but_not_trained() -> None:
    whole = msgspec.structs.replace(
        two_layers(), state=(weight("w", 3, 4, trainable=False), weight("v", 2, 3))
    )
    stage = StageProgram(whole, state_of(whole))
    assert [stage.parameters[name].requires_grad for name in ("w", "v")] == [False, True]


def test_a_seed_depends_on_run_step_microbatch_and_unit() -> None:
    seeds = {
        unit_seed(run, Moment(step, microbatch), unit)
        for run in range(2)
        for step in range(2)
        for microbatch in range(2)
        for unit in range(2)
    }
    assert len(seeds) == 16


def test_a_seed_is_the_same_on_every_machine() -> None:
    assert unit_seed(0, Moment(0, 0), 0) == 29838213140340294


def test_a_row_major_input_is_laid_out_as_it_lay_where_it_was_computed() -> None:
    whole = program(
        node("neg.default", ("input:0",), "y"),
        inputs=(Value("input:0", "float32", (BATCH, 4), order=(1, 0)),),
        outputs=("y",),
    )
    output = StageProgram(whole, {}).forward({"input:0": X}, Moment(0, 0)).outputs["y"]
    assert output.stride() == (1, 3)
    assert torch.equal(output, -X)
