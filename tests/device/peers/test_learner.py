"""A learner computes what torch computes, whatever model it is given, and keeps none of it."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from edgeweave.core.errors import ConfigError
from edgeweave.device import Learner, Optimizer, SourceData, layout_of, load_rows
from edgeweave.device.peers.rows import TensorRows
from edgeweave.mixing import (
    BalanceSettings,
    Choosing,
    Chosen,
    GossipSettings,
    Importance,
    topology,
)
from edgeweave.program import Captured, capture, flatten_inputs, part_for

INPUTS = torch.randn(64, 1, 6, 6, generator=torch.Generator().manual_seed(0))
TARGETS = torch.arange(64) % 4


def model_of() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 4)
    )


def captured_of(model: nn.Module) -> Captured:
    return capture(model, functional.cross_entropy, INPUTS[:2], TARGETS[:2])


def learner_of(
    model: nn.Module,
    *,
    share: float | None = None,
    importance: Importance = "last-layer",
    choosing: Choosing = "weighted",
) -> Learner:
    settings = GossipSettings(
        topology("full", ["a", "b"]),
        batch_size=16,
        balance=BalanceSettings(share=share, enabled=False),
        importance=importance,
        choosing=choosing,
        group_size=2,
        warm_up_epochs=0,
    )
    rows = TensorRows(flatten_inputs(INPUTS, TARGETS))
    optimizer = Optimizer("SGD", lr=0.1, momentum=0.9)
    captured = captured_of(model)
    return Learner(captured, optimizer, rows, settings, number=0, now=time.thread_time)


def test_steps_are_those_of_torch_running_statistics_included() -> None:
    model = model_of()
    learner = learner_of(model)
    flat = learner.layout.flat(captured_of(model).state)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for step in range(5):
        trained = learner.train(flat, 16, step)
        before = flat.clone()
        flat_after = learner.apply(flat, step)
        assert torch.equal(flat, before)  # nobody changes a model that was handed out
        flat = flat_after
        rows = learner._batches.at(step)
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(INPUTS[rows]), TARGETS[rows])
        loss.backward()
        optimizer.step()
        assert trained.loss == loss.item()
    found = learner.state_dict(flat)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            torch.testing.assert_close(found[name], tensor)


def test_the_step_is_taken_from_the_mixed_model_with_the_gradient_of_the_other() -> None:
    model = nn.Linear(36, 4)
    learner = learner_of(nn.Sequential(nn.Flatten(), model))
    first = torch.zeros(learner.layout.n_values)
    learner.train(first, 16, 0)
    moved = learner.apply(first, 0) - first
    learner.train(first, 16, 0)
    mixed = torch.ones_like(first)
    stepped = learner.apply(mixed, 1)
    torch.testing.assert_close(stepped - mixed, 1.9 * moved)  # momentum: the second step


@pytest.mark.parametrize(
    ("importance", "choosing", "n_scored"),
    [("last-layer", "weighted", 12), ("first-layer", "groups", 8), ("last-layer", "groups", 8)],
)
def test_a_thinned_batch_is_scored_and_has_the_number_asked_for(
    importance: Importance, choosing: Choosing, n_scored: int
) -> None:
    """Two points for each sample now and then, or all groups of the batch."""
    learner = learner_of(model_of(), share=0.5, importance=importance, choosing=choosing)
    flat = learner.layout.flat(captured_of(model_of()).state)
    trained = learner.train(flat, 6, 0)
    assert trained.n_samples == 6
    assert trained.n_scored == n_scored
    assert learner.selection.n_groups >= 16
    assert learner.selection.n_bytes > 0
    again = learner.train(flat, 6, 1)
    assert (again.n_samples, again.n_scored) == (6, 8 if choosing == "groups" else 0)
    whole = learner.train(flat, 16, 0)
    assert (whole.n_samples, whole.n_scored) == (16, 0)


def test_the_gradient_of_a_weighted_choice_is_that_of_the_weighted_mean_of_losses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 4))
    learner = learner_of(model, share=0.5)
    choice = Chosen(np.array([3, 8, 21]), torch.tensor([0.5, 0.5, 2.0]))
    monkeypatch.setattr(Learner, "_choose", lambda _self, _n, _step: (choice, 3))
    flat = learner.layout.flat(captured_of(model).state)
    learner.train(flat, 3, 0)
    moved = learner.apply(flat, 0) - flat
    rows = torch.from_numpy(choice.indices)
    losses = functional.cross_entropy(model(INPUTS[rows]), TARGETS[rows], reduction="none")
    assert choice.weights is not None
    (losses * choice.weights).mean().backward()
    wanted = [p.grad.reshape(-1) for p in model.parameters() if p.grad is not None]
    torch.testing.assert_close(moved, -0.1 * torch.cat(wanted))


def test_first_layer_scores_are_norms_of_single_gradients() -> None:
    model = model_of().eval()
    learner = learner_of(model_of(), share=0.5, importance="first-layer")
    points, labels = INPUTS[:3], TARGETS[:3]
    found = learner._scorer.scores(points, labels)
    for k in range(3):
        model.zero_grad()
        functional.cross_entropy(model(points[k : k + 1]), labels[k : k + 1]).backward()
        convolution = model[0]
        assert isinstance(convolution, nn.Conv2d)
        assert convolution.weight.grad is not None
        torch.testing.assert_close(found[k], convolution.weight.grad.abs().sum())


def test_a_layout_lists_parameters_before_running_statistics() -> None:
    layout = layout_of(captured_of(model_of()).program)
    names = [name for name, _, _ in layout.places]
    assert names[:2] == ["0.weight", "0.bias"]
    assert names[-2:] == ["1.running_mean", "1.running_var"]
    parameters = sum(each.numel() for each in model_of().parameters())
    assert layout.n_values == parameters + 8


def test_shares_of_files_are_dealt_out_by_number() -> None:
    parts = [load_rows(SourceData("digits", part=k, n_parts=3)) for k in range(3)]
    assert sum(map(len, parts)) == 1438
    whole = load_rows(SourceData("digits"))
    assert len(whole) == 1438
    assert parts[0].take(torch.arange(2))["input:0"].shape == (2, 1, 8, 8)


def test_a_part_of_a_program_reads_only_what_it_needs() -> None:
    program = captured_of(model_of()).program
    part = part_for(program, program.outputs)
    assert [value.name for value in part.inputs] == ["input:0"]
    assert part.loss is None
    assert len(part.nodes) < len(program.nodes)


def test_data_of_unequal_lengths_are_refused() -> None:
    with pytest.raises(ConfigError, match="data are tensors of one length"):
        TensorRows({"input:0": torch.zeros(3), "target:0": torch.zeros(4)})
