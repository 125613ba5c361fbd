"""What can be captured, what is refused and in which words, and what capture leaves alone."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edgeweave.core.errors import CaptureError
from edgeweave.program import Moment, capture, flatten_inputs
from tests.models import ZOO, accuracy, mlp
from tests.program.running import Pipeline, assert_same_training, microbatches, train_eagerly

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(3))
Y = torch.tensor([0, 1, 2, 1])


class Linear(nn.Module):
    """The smallest model; subclasses misbehave."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> Any:
        return self.linear(x)


class BranchesOnData(Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.sum() > 0:
            x = -x
        return self.linear(x)


class FixesTheBatch(Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x.view(4, 6))


class ChangesItsInput(Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x.mul_(2)
        return self.linear(x)


class PairsItsSamples(Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pairs = (x[:, None] - x[None]).flatten(0, 1)
        return self.linear(x) + self.linear(pairs).sum()


class DiffersInEvaluation(Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x) * (1.0 if self.training else 2.0)


class ReturnsNothingFromInputs(Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ones(4, 3)


def refusal(model: nn.Module, loss: Any = F.cross_entropy, x: Any = X, y: Any = Y) -> str:
    with pytest.raises(CaptureError) as caught:
        capture(model, loss, x, y)
    return str(caught.value)


def test_control_flow_on_data_is_refused_with_the_way_out_and_the_users_line() -> None:
    text = refusal(BranchesOnData())
    assert "use torch.where, or move the decision out of forward()" in text
    assert "if x.sum() > 0:" in text


def test_a_literal_batch_size_is_refused_with_the_way_out() -> None:
    text = refusal(FixesTheBatch())
    assert text.startswith("the model cannot be captured. The model fixes the batch size: replace")


def test_a_model_that_changes_its_input_is_refused() -> None:
    assert re.fullmatch(
        r"the model changes its input or a constant in place \(user_input_mutation of \w+\)\. "
        r"Clone it first\.",
        refusal(ChangesItsInput()),
    )


def test_a_size_that_grows_with_the_square_of_the_batch_is_refused_with_the_users_line() -> None:
    text = refusal(PairsItsSamples())
    assert text.startswith("a size is affine in the batch, a * batch + b (got ")
    assert "pairs = (x[:, None] - x[None]).flatten(0, 1)" in text
    assert text.endswith("Reshape so that samples stay whole.")


def test_an_example_of_one_sample_is_refused() -> None:
    assert refusal(Linear(), x=X[:1], y=Y[:1]) == (
        "the example batch has at least two samples (got 1), because torch.export treats a "
        "dimension of size one as fixed. Pass a larger example."
    )


def test_inputs_of_different_batch_sizes_are_refused_and_listed() -> None:
    assert refusal(Linear(), y=Y[:3]) == (
        "the first dimension of every input and target is the batch, of one size "
        "(got input:0: 4, target:0: 3). "
        "Give each sample its own row, or make the odd tensor a buffer of the model."
    )


def test_a_0_dim_input_is_refused() -> None:
    assert "(got input:0: 4, target:0: None)" in refusal(Linear(), y=torch.tensor(1.0))


def test_a_leaf_that_is_no_tensor_is_refused_by_name() -> None:
    assert refusal(Linear(), x={"x": X, "scale": 2.0}) == (
        "every leaf of a batch is a tensor (input:0 is float). Convert it in the data set."
    )


def test_an_empty_batch_is_refused() -> None:
    assert "the first dimension of every input and target is the batch" in refusal(
        Linear(), x=(), y=()
    )


def test_a_loss_per_sample_is_refused_with_its_shape() -> None:
    def per_sample(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(output, target, reduction="none")

    assert refusal(Linear(), per_sample) == (
        "the loss is a 0-dim tensor computed from the batch (got shape (B)). "
        "Reduce it with .mean()."
    )


def test_a_loss_that_is_a_number_is_refused() -> None:
    assert refusal(Linear(), lambda output, target: 1.0) == (
        "the loss is a 0-dim tensor computed from the batch (got no tensor). "
        "Reduce it with .mean()."
    )


def test_a_metric_that_is_a_number_is_refused_by_name() -> None:
    with pytest.raises(CaptureError, match=r"the metric width is a 0-dim tensor .*got no tensor"):
        capture(
            Linear(), F.cross_entropy, X, Y, metrics={"acc": accuracy, "width": lambda o, t: 3.0}
        )


def test_a_model_that_ignores_its_inputs_is_refused() -> None:
    with pytest.raises(CaptureError):
        capture(ReturnsNothingFromInputs(), lambda output, target: output.mean(), X, Y)


def test_a_model_that_evaluates_in_an_unknown_way_is_refused() -> None:
    assert "does not evaluate as model.eval() does" in refusal(DiffersInEvaluation())


def test_a_dtype_that_cannot_travel_is_refused_as_a_fault_of_the_model() -> None:
    class Complex(Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(torch.fft.fft(x).real)

    assert refusal(Complex()) == (
        "the model cannot be captured: a tensor has one of the dtypes float32, float64, float16, "
        "bfloat16, int8, int16, int32, int64, uint8, bool (got torch.complex64). "
        "Convert it in the model or the data set."
    )


def test_an_error_inside_the_users_loss_is_reported_whole() -> None:
    def broken(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        raise ValueError("my own mistake")

    assert refusal(Linear(), broken).endswith("ValueError: my own mistake")


def test_a_trainable_parameter_of_the_loss_is_refused() -> None:
    class Learnt(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            return F.cross_entropy(output, target) * self.scale

    assert refusal(Linear(), Learnt()) == (
        "what is trained belongs to the model (the loss holds scale). "
        "Move it into the model, or freeze it."
    )


def test_the_weights_of_a_loss_module_travel_but_are_in_no_state_dict() -> None:
    loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0]))
    model = Linear()
    pipeline = Pipeline(capture(model, loss, X, Y))
    assert_same_training(pipeline.train([(X, Y)]), train_eagerly(model, loss, [(X, Y)]))
    assert pipeline.stages[0].state_dict().keys() == model.state_dict().keys()


def test_a_closure_over_a_tensor_is_a_loss_too() -> None:
    weight = torch.tensor([1.0, 0.5, 2.0])

    def weighted(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(output, target, weight=weight) + 0.1 * output.square().mean()

    model = Linear()
    pipeline = Pipeline(capture(model, weighted, X, Y))
    assert_same_training(pipeline.train([(X, Y)]), train_eagerly(model, weighted, [(X, Y)]))


def test_metrics_are_captured_by_name_beside_the_loss() -> None:
    def margin(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return output.max() - output.min()

    model = Linear()
    captured = capture(model, F.cross_entropy, X, Y, metrics={"acc": accuracy, "margin": margin})
    pipeline = Pipeline(captured, captured.program.unit_numbers[1:])
    metrics = pipeline.forward((X[:3], Y[:3]), Moment(0, 0)).metrics
    output = model(X[:3])
    assert torch.equal(metrics["acc"], accuracy(output, Y[:3]))
    assert torch.equal(metrics["margin"], margin(output, Y[:3]))


def test_metrics_are_means_so_that_weighting_by_samples_gives_the_whole_batch() -> None:
    model = Linear()
    pipeline = Pipeline(capture(model, F.cross_entropy, X, Y, metrics={"acc": accuracy}))
    parts = microbatches((X, Y), (3, 1))
    each = [pipeline.forward(part, Moment(0, i)).metrics["acc"] for i, part in enumerate(parts)]
    assert float(each[0] * 3 + each[1]) / 4 == pytest.approx(float(accuracy(model(X), Y)))


@pytest.mark.parametrize("training", [True, False])
def test_capture_leaves_every_module_in_the_mode_it_was_in(training: bool) -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)).train(training)
    model[1].train(not training)
    capture(model, F.cross_entropy, X, Y)
    assert [module.training for module in model.modules()] == [
        training,
        training,
        not training,
        training,
    ]


def test_a_failed_capture_leaves_the_mode_as_it_was() -> None:
    model = BranchesOnData().eval()
    refusal(model)
    assert not model.training
    assert not model.linear.training


def test_capture_leaves_the_random_state_of_the_caller() -> None:
    model = nn.Sequential(nn.Linear(6, 3), nn.Dropout(0.5))
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    capture(model, F.cross_entropy, X, Y)
    assert torch.equal(torch.rand(3), expected)


def test_capture_changes_no_parameter_no_buffer_and_no_gradient() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    capture(model, F.cross_entropy, X, Y)
    assert all(torch.equal(before[n], tensor) for n, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_captured_state_is_the_models_own_not_a_copy() -> None:
    model = Linear()
    captured = capture(model, F.cross_entropy, X, Y)
    assert captured.state["linear.weight"].data_ptr() == model.linear.weight.data_ptr()


def test_capture_needs_no_gradient_mode() -> None:
    with torch.no_grad():
        captured = capture(Linear(), F.cross_entropy, X, Y)
    assert captured.program.values()[captured.program.loss or ""].requires_grad


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(6, 3)
        self.right = nn.Linear(6, 3)

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return self.left(left) - self.right(right)


@pytest.mark.parametrize(
    "inputs",
    [(X, 2 * X), [X, 2 * X], {"left": X, "right": 2 * X}, {"right": 2 * X, "left": X}],
    ids=["tuple", "list", "dict", "dict in another order"],
)
def test_inputs_come_as_tuple_list_or_keywords(inputs: Any) -> None:
    model = TwoInputs()
    pipeline = Pipeline(capture(model, F.cross_entropy, inputs, Y))
    found = pipeline.train([(inputs, Y)])
    assert_same_training(found, train_eagerly(model, F.cross_entropy, [((X, 2 * X), Y)]))


def test_the_order_of_a_dictionarys_keys_does_not_matter_after_capture() -> None:
    first = {"left": X, "right": 2 * X}
    pipeline = Pipeline(capture(TwoInputs(), F.cross_entropy, first, Y))
    loss = pipeline.forward((first, Y), Moment(0, 0)).loss
    swapped = dict(reversed(first.items()))
    assert torch.equal(pipeline.forward((swapped, Y), Moment(0, 0)).loss, loss)


def test_names_count_the_leaves_of_inputs_and_of_target() -> None:
    named = flatten_inputs({"b": X, "a": (Y, Y)}, [X])
    assert list(named) == ["input:0", "input:1", "input:2", "target:0"]
    assert named["input:2"] is X


def test_a_structured_target_reaches_the_loss_as_it_was() -> None:
    def loss(output: torch.Tensor, target: dict[str, torch.Tensor]) -> torch.Tensor:
        return (F.cross_entropy(output, target["y"], reduction="none") * target["w"]).mean()

    target = {"y": Y, "w": torch.tensor([1.0, 0.0, 2.0, 0.5])}
    model = Linear()
    pipeline = Pipeline(capture(model, loss, X, target))
    assert_same_training(pipeline.train([(X, target)]), train_eagerly(model, loss, [(X, target)]))


def test_a_model_with_several_outputs_hands_all_of_them_on() -> None:
    class Several(Linear):
        def forward(self, x: torch.Tensor) -> Any:
            hidden = self.linear(x)
            return {"hidden": hidden, "scaled": (2 * hidden, None, 7), "positive": hidden > 0}

    captured = capture(Several(), lambda out, y: F.cross_entropy(out["hidden"], y), X, Y)
    assert len(captured.program.outputs) == 3


def test_a_batch_of_one_runs_after_capture_at_four() -> None:
    model = Linear()
    pipeline = Pipeline(capture(model, F.cross_entropy, X, Y))
    part = (X[:1], Y[:1])
    assert_same_training(pipeline.train([part]), train_eagerly(model, F.cross_entropy, [part]))


@pytest.mark.parametrize("n", [1, 2, pytest.param(3, marks=pytest.mark.slow), 7])
@pytest.mark.parametrize(
    "name",
    [
        *("mlp", "lenet", "vit", "bert"),
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("gpt2", "llama", "lstm")),
    ],
)
def test_a_model_captured_at_four_samples_runs_at_any_number(
    captured: Any, name: str, n: int
) -> None:
    example = ZOO[name]
    parts = [example.batch(n, seed=n)]
    pipeline = Pipeline(captured(name), captured(name).program.unit_numbers[1:4])
    expected = train_eagerly(example.model(), example.loss, parts)
    assert_same_training(pipeline.train(parts), expected)


@pytest.mark.parametrize("n", [2, pytest.param(3, marks=pytest.mark.slow), 7])
@pytest.mark.parametrize("name", ["unet", "resnet18", "mobilenetv2"])
def test_a_model_with_batch_norm_captured_at_four_samples_runs_at_any_number_above_one(
    captured: Any, name: str, n: int
) -> None:
    example = ZOO[name]
    parts = [example.batch(n, seed=n)]
    pipeline = Pipeline(captured(name), captured(name).program.unit_numbers[1:4])
    expected = train_eagerly(example.model(), example.loss, parts)
    assert_same_training(pipeline.train(parts), expected)


def test_state_keeps_the_users_names_and_says_what_is_trained() -> None:
    model = mlp()
    model[0].weight.requires_grad_(False)
    example = ZOO["mlp"]
    program = capture(model, example.loss, *example.batch(4)).program
    specs = {spec.name: spec for spec in program.state}
    assert specs.keys() == dict(model.named_parameters()).keys()
    assert not specs["0.weight"].trainable
    assert specs["0.bias"].trainable
