"""Training with codecs has the numbers of the same stages with coded tensors between them."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import edgeweave as ew
from edgeweave.codec import Codec, blockfloat, decode, encode, none, uniform
from edgeweave.device.frames import deflating
from edgeweave.device.frames.codec import FrameCoding, encoded_frame, message_seed
from edgeweave.net import Frame
from edgeweave.plan import LinkCodec, Plan
from edgeweave.program import (
    Moment,
    StageProgram,
    StageResult,
    capture,
    cut,
    flatten_inputs,
    ways,
    without_outputs,
)
from tests.fleet.worlds import plan_of
from tests.models import Example
from tests.train.reference import (
    Job,
    Reference,
    assert_equal_runs,
    differing,
    epoch_indices,
    evaluate_eagerly,
    job_of,
    train_eagerly,
)
from tests.train.trained_models import CNN, MLP, UNET, n_units

SGD = ew.Optimizer("SGD", lr=0.05, momentum=0.9)
BOUNDARIES = {"mlp": (2, 5), "cnn": (1, 3), "unet": (2, 5)}
DEVICES = ("a", "b", "c")
Tensors = dict[str, torch.Tensor]
Bits = Mapping[tuple[int, int], int]
"""Of values from one stage to another; without any they travel as they are."""

BOTH_WAYS = [(0, 1), (1, 0), (1, 2), (2, 1)]
EIGHT: Bits = dict.fromkeys(BOTH_WAYS, 8)
MIXED: Bits = {(0, 1): 5, (1, 2): 12, (2, 1): 3}


class CodedStages:
    """The stages of a job in this process; what one hands another is encoded and decoded."""

    def __init__(self, job: Job, plan: Plan, codec: Codec, bits: Bits) -> None:
        captured = capture(copy.deepcopy(job.model), job.loss, *job.data[:4])
        first_units = [stage.first_unit for stage in plan.stages[1:]]
        program = without_outputs(captured.program)
        programs = cut(program, first_units, direct=plan.skips == "direct")
        self._ways = ways(programs)
        self._stages = [StageProgram(each, captured.state, seed=job.seed) for each in programs]
        self._job, self._codec, self._bits = job, codec, bits
        parameters = [own for stage in self._stages for own in stage.parameters.values()]
        self._optimizer = torch.optim.SGD(parameters, lr=0.05, momentum=0.9)

    def train(self) -> Reference:
        done = Reference()
        for epoch in range(self._job.epochs):
            for indices in epoch_indices(self._job, epoch):
                done.step_losses.append(self._step(len(done.step_losses), indices))
            done.state = self._state()
            if self._job.validation is not None:
                model = copy.deepcopy(self._job.model)
                model.load_state_dict(done.state)
                done.validations.append(evaluate_eagerly(model, self._job, self._job.validation))
        return done

    def _state(self) -> Tensors:
        states = (stage.state_dict().items() for stage in self._stages)
        return {name: tensor.clone() for state in states for name, tensor in state}

    def _step(self, step: int, indices: torch.Tensor) -> float:
        parts = indices.split(self._job.microbatch_size)
        losses = [self._forward(Moment(step, n), part) for n, part in enumerate(parts)]
        for number, part in enumerate(parts):
            self._backward(Moment(step, number), len(part) / len(indices))
        self._optimizer.step()
        self._optimizer.zero_grad()
        total = sum(loss * len(part) for loss, part in zip(losses, parts, strict=True))
        return total / len(indices)

    def _forward(self, moment: Moment, part: torch.Tensor) -> float:
        external = flatten_inputs(*self._job.data[part])
        arriving: list[Tensors] = [{} for _ in self._stages]
        for index, stage in enumerate(self._stages):
            known = {**external, **arriving[index]}
            given = {value.name: known[value.name].clone() for value in stage.program.inputs}
            result: StageResult = stage.forward(given, moment)
            outputs = {} if index == len(self._stages) - 1 else result.outputs
            for target, sent in self._grouped(outputs, self._ways[index].targets, index + 1):
                arriving[target] |= self._sent(sent, (index, target), None)
        assert result.loss is not None
        return result.loss.item()

    def _backward(self, moment: Moment, loss_weight: float) -> None:
        arriving: list[Tensors] = [{} for _ in self._stages]
        for index in reversed(range(len(self._stages))):
            returned = self._stages[index].backward(
                moment.microbatch, arriving[index], loss_weight=loss_weight
            )
            inner = {name: grad for name, grad in returned.items() if index > 0}
            for source, sent in self._grouped(inner, self._ways[index].sources, index - 1):
                seed = message_seed(self._job.seed, moment.step, moment.microbatch, index, source)
                arriving[source] |= self._sent(sent, (index, source), seed)

    def _grouped(
        self, tensors: Tensors, other: Mapping[str, int], neighbour: int
    ) -> Iterator[tuple[int, Tensors]]:
        """By the stage that each goes to, in their order."""
        stages = {name: other.get(name, neighbour) for name in tensors}
        for stage in set(stages.values()):
            yield stage, {name: tensors[name] for name in tensors if stages[name] == stage}

    def _sent(self, tensors: Tensors, link: tuple[int, int], seed: int | None) -> Tensors:
        if link not in self._bits:
            return {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}
        codec = dataclasses.replace(self._codec, bits=self._bits[link])
        seeds = [None if seed is None else seed + index for index in range(len(tensors))]
        return {
            name: decode(encode(tensor, codec, seed=own))
            for (name, tensor), own in zip(tensors.items(), seeds, strict=True)
        }


def coded_plan(job: Job, example: Example, bits: Bits, **options: Any) -> Plan:
    plan = plan_of(
        DEVICES, BOUNDARIES[example.name], n_units(example), n_microbatches=job.n_microbatches
    )
    codecs = tuple(LinkCodec(DEVICES[s], DEVICES[t], bits[s, t]) for s, t in bits)
    return dataclasses.replace(plan, codecs=codecs, **options)


def trainer_of(job: Job, fleet: ew.Fleet, plan: Plan, codec: Codec) -> ew.PipelineTrainer:
    return ew.PipelineTrainer(
        copy.deepcopy(job.model),
        job.loss,
        optimizer=SGD,
        fleet=fleet,
        plan=plan,
        n_microbatches=job.n_microbatches,
        seed=job.seed,
        metrics=job.metrics,
        codec=codec,
    )


def fit(trainer: ew.PipelineTrainer, job: Job) -> ew.Report:
    return trainer.fit(
        job.data,
        batch_size=job.batch_size,
        epochs=job.epochs,
        validate=job.validation,
        progress=False,
    )


def plain_run(job: Job) -> Reference:
    def sgd(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)

    return train_eagerly(job, sgd)


@pytest.mark.parametrize(
    ("example", "codec", "bits", "options"),
    [
        (MLP, uniform(8), EIGHT, {}),
        (MLP, uniform(8), EIGHT, {"schedule": "gpipe"}),
        (MLP, blockfloat(16), MIXED, {}),
        (CNN, uniform(8, 64), EIGHT, {}),
        (UNET, uniform(16), MIXED, {}),
        (UNET, uniform(16), MIXED | {(0, 2): 6, (2, 0): 4}, {"skips": "direct"}),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_coded_training_equals_coded_stages_in_one_process_bit_for_bit(
    fleet: ew.Fleet, example: Example, codec: Codec, bits: Bits, options: dict[str, Any]
) -> None:
    job = job_of(example, 40)  # batches of 12, 12, 12 and 4
    plan = coded_plan(job, example, bits, **options)
    trainer = trainer_of(job, fleet, plan, codec)
    report = fit(trainer, job)
    assert_equal_runs(report, trainer.state_dict(), CodedStages(job, plan, codec, bits).train())
    assert len(differing(trainer.state_dict(), plain_run(job).state)) > 5


@pytest.mark.slow
def test_the_coded_stages_without_bits_are_a_plain_loop() -> None:
    """What the test above compares with is itself right."""
    for example in (MLP, CNN, UNET):
        job = job_of(example, 40)
        plain = plain_run(job)
        for skips in ("relayed", "direct"):
            plan = coded_plan(job, example, {}, skips=skips)
            found = CodedStages(job, plan, uniform(8), {}).train()
            assert found.step_losses == plain.step_losses
            assert differing(found.state, plain.state) == []


@pytest.mark.wire
def test_coded_training_over_processes_equals_coded_stages_bit_for_bit(
    local_fleet: ew.Fleet,
) -> None:
    job = job_of(MLP, 40)
    plan = coded_plan(job, MLP, EIGHT)
    trainer = trainer_of(job, local_fleet, plan, uniform(8))
    report = fit(trainer, job)
    expected = CodedStages(job, plan, uniform(8), EIGHT).train()
    assert_equal_runs(report, trainer.state_dict(), expected)


def test_the_same_coded_run_has_the_same_numbers_and_another_seed_others(fleet: ew.Fleet) -> None:
    def states(seed: int) -> tuple[tuple[float, ...], Tensors]:
        job = job_of(MLP, 12, epochs=3, seed=seed, batch_size=12)  # one batch: seeds shuffle little
        trainer = trainer_of(job, fleet, coded_plan(job, MLP, EIGHT), uniform(8))
        return tuple(fit(trainer, job).step_losses), trainer.state_dict()

    (losses, state), (again, same), (_, other) = states(3), states(3), states(4)
    assert losses == again
    assert differing(state, same) == []
    assert differing(state, other) != []


@pytest.fixture
def coded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, str]]:
    """Kind, sending stage and codec of every frame that was coded."""
    found = []

    def noted(frame: Frame, coding: FrameCoding) -> Frame:
        found.append((frame.header.kind, frame.header.stage, str(coding.codec)))
        assert (coding.seed is None) == (frame.header.kind == "activation")
        return encoded_frame(frame, coding)

    monkeypatch.setattr(deflating, "encoded_frame", noted)
    return found


def test_frames_of_training_are_coded_as_planned_and_those_of_evaluation_are_not(
    fleet: ew.Fleet, coded: list[tuple[str, int, str]]
) -> None:
    held_out = TensorDataset(*CNN.batch(17, seed=9))
    job = job_of(CNN, 24, validation=held_out)
    plan = coded_plan(job, CNN, MIXED)
    trainer = trainer_of(job, fleet, plan, uniform(8))
    report = fit(trainer, job)
    n_messages = 2 * 2 * job.n_microbatches  # epochs, steps of each
    assert sorted(coded) == sorted(
        [("activation", 0, "uniform(5, 256)")] * n_messages
        + [("activation", 1, "uniform(12, 256)")] * n_messages
        + [("gradient", 2, "uniform(3, 256)")] * n_messages
    )
    expected = CodedStages(job, plan, uniform(8), MIXED).train()
    assert_equal_runs(report, trainer.state_dict(), expected)
    validations = [(e.validation.loss, e.validation.metrics) for e in report.epochs if e.validation]
    assert validations == expected.validations
    coded.clear()
    model = copy.deepcopy(job.model)
    model.load_state_dict(trainer.state_dict())
    found = trainer.evaluate(held_out, batch_size=job.batch_size)
    assert (found.loss, found.metrics) == evaluate_eagerly(model, job, held_out)
    assert coded == []


def test_fewer_bytes_travel_where_links_are_coded(fleet: ew.Fleet) -> None:
    job = job_of(UNET, 24)

    def bytes_out(bits: Bits) -> dict[str, int]:
        codec = uniform(16) if bits else none()  # one that is given codes where the plan has none
        trainer = trainer_of(job, fleet, coded_plan(job, UNET, bits), codec)
        return {device.device: device.bytes_out for device in fit(trainer, job).devices}

    exact, first, all_links = bytes_out({}), bytes_out({(0, 1): 4}), bytes_out(EIGHT)
    assert first["a"] < 0.3 * exact["a"]
    assert (first["b"], first["c"]) == (exact["b"], exact["c"])
    assert all(all_links[name] < 0.5 * exact[name] for name in DEVICES)


def test_codecs_of_a_plan_are_used_by_a_trainer_that_was_told_of_none(fleet: ew.Fleet) -> None:
    job = job_of(MLP, 40)
    plan = coded_plan(job, MLP, EIGHT)
    trainer = trainer_of(job, fleet, plan, none())
    report = fit(trainer, job)
    expected = CodedStages(job, plan, uniform(8), EIGHT).train()
    assert_equal_runs(report, trainer.state_dict(), expected)
