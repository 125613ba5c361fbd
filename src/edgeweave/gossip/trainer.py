"""``GossipTrainer``: every device trains its own copy on its own data and averages with neighbours.

Knows data sets, epochs, reports; what a device does is ``edgeweave.device.peers.run``.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

from edgeweave.codec import Codec, none
from edgeweave.core.errors import ConfigError
from edgeweave.core.evaluation import Evaluation
from edgeweave.data import Split, deal
from edgeweave.data.batches import Batch, example, n_batches, ordered_batches
from edgeweave.device import Data, Enrol, Enrolled, Optimizer, PeerStatus, SentData, SourceData
from edgeweave.device.peers.learner import layout_of
from edgeweave.fleet import Fleet
from edgeweave.gossip.members import Members, OnStatus
from edgeweave.gossip.report import (
    GossipReport,
    PeerReport,
    State,
    consensus_distance,
    mean_state,
)
from edgeweave.mixing import (
    Algorithm,
    BalanceSettings,
    Choosing,
    GossipSettings,
    Importance,
    Topology,
)
from edgeweave.mixing import topology as named_topology
from edgeweave.program import Captured, LossFunction, StageProgram, capture, encode

__all__ = ["DeviceFiles", "GossipTrainer"]

_EXAMPLE_SAMPLES = 2
_EVALUATED_AT_ONCE = 256
_EXACT = none()


@dataclass(frozen=True, slots=True)
class DeviceFiles:
    """Data that are on the devices: a data source by name, and where its files are there.

    With ``own`` every device trains on all it has; else all have the same files, and each takes a
    share of them, as ``fit(split=)`` says.
    """

    source: str
    path: str | Path | None = None
    normalise: bool = False
    own: bool = True


class GossipTrainer:
    """Trains ``model`` on every device of ``fleet`` at once, without a server.

    Program and settings are sent once; from then on devices talk to their neighbours in
    ``topology`` only, and this process may end: ``collect``, from anywhere, finds the run again.
    ``algorithm`` is d-psgd (average with all neighbours in every iteration), gossip-sgd (with one),
    ad-psgd (with one, and nobody waits) or push-sum (nobody waits, and lost messages lose nothing).

    ``balance`` lets slow devices train on as many samples of a batch as they have time for, so that
    all take as long as the fastest; ``importance`` says which (docs/explanation-gossip.md). What is
    learnt then differs a little from whole batches; devices of equal speed train whole ones.
    ``codec`` makes models smaller on their way; what it loses is made up for.

    A device that vanishes is averaged with no more. One that comes back takes a neighbour's model
    and goes on, if its data are files on it.

    >>> trainer = GossipTrainer(model, loss_fn, optimizer=ew.Optimizer("SGD", lr=0.05),
    ...                         fleet=fleet)  # doctest: +SKIP
    >>> report = trainer.fit(ew.DeviceFiles("mnist", "/data/mnist"), batch_size=64, epochs=2,
    ...                      validate=test_set)  # doctest: +SKIP
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        *,
        optimizer: Optimizer,
        fleet: Fleet,
        metrics: Mapping[str, LossFunction] | None = None,
        topology: str | Topology = "ring",
        algorithm: Algorithm = "d-psgd",
        local_steps: int = 1,
        balance: bool | BalanceSettings = True,
        importance: Importance = "last-layer",
        choosing: Choosing = "weighted",
        group_size: int = 8,
        warm_up_epochs: int = 1,
        codec: Codec = _EXACT,
        consensus_rate: float = 1.0,
        seed: int = 0,
    ) -> None:
        self._model = model
        self._loss_fn = loss_fn
        self._optimizer = optimizer
        self._fleet = fleet
        self._metrics = dict(metrics or {})
        self._topology = topology
        self._options: dict[str, Any] = {
            "algorithm": algorithm,
            "local_steps": local_steps,
            "balance": balance
            if isinstance(balance, BalanceSettings)
            else BalanceSettings(enabled=balance),
            "importance": importance,
            "choosing": choosing,
            "group_size": group_size,
            "warm_up_epochs": warm_up_epochs,
            "codec": codec,
            "consensus_rate": consensus_rate,
            "seed": seed,
        }
        self._seed = seed
        self._captured: Captured | None = None
        self._members: Members | None = None
        self._enrolled: dict[str, Enrolled] = {}
        self._trained: State = {}

    def fit(
        self,
        train_set: Dataset[Any] | DeviceFiles | Mapping[str, DeviceFiles],
        *,
        batch_size: int,
        epochs: float = 1,
        split: Split | None = None,
        validate: Dataset[Any] | None = None,
        on_status: OnStatus = lambda _statuses: None,
    ) -> GossipReport:
        """Train until all devices have done their steps, and return what came of it.

        ``train_set`` is on the devices, or is sent to them now, to each its share by ``split``.
        ``epochs`` are of the mean device: all do as many steps, whatever each has. ``validate`` is
        kept here: the mean model and every peer's own are evaluated on it.
        """
        self.start(train_set, batch_size=batch_size, epochs=epochs, split=split, example=validate)
        return self.collect(validate=validate, on_status=on_status)

    def start(
        self,
        train_set: Dataset[Any] | DeviceFiles | Mapping[str, DeviceFiles],
        *,
        batch_size: int,
        epochs: float = 1,
        split: Split | None = None,
        example: Dataset[Any] | None = None,
    ) -> str:
        """Begin a run, and return its name; nobody has to wait for it.

        ``example``: samples to capture the model with, where ``train_set`` is on the devices.
        """
        if not 0 < epochs < math.inf:
            raise ConfigError(f"epochs are above 0 (got {epochs}). Train for 1, say.")
        devices = self._fleet.devices
        graph = self._graph(devices)
        settings = GossipSettings(graph, batch_size=batch_size, **self._options)
        captured = self._capture(_first(train_set, example))
        layout_of(captured.program)
        data = _data_of(train_set, devices, split or Split(seed=self._seed))
        others = {name: each for name, each in data.items() if isinstance(each, SourceData)}
        encoded, tensors = encode(captured.program, captured.state)
        run = f"gossip-{secrets.token_hex(4)}"
        members = Members(self._fleet, run, devices)
        self._enrolled = members.enrol(
            {
                name: Enrol(
                    run,
                    name,
                    settings,
                    self._optimizer,
                    encoded,
                    memoryview(tensors),
                    data[name],
                    others,
                )
                for name in devices
            }
        )
        try:
            _check_classes(self._enrolled)
            mean = fmean(each.n_samples for each in self._enrolled.values())
            members.begin(math.ceil(epochs * mean / batch_size))
        except BaseException:
            members.release()
            raise
        self._members = members
        return run

    def collect(
        self,
        *,
        run: str | None = None,
        validate: Dataset[Any] | None = None,
        on_status: OnStatus = lambda _statuses: None,
        release: bool = True,
    ) -> GossipReport:
        """Wait for a run to end, fetch its models and evaluate them.

        The run may be another process's: the one called ``run``, or the only one of the fleet.
        With ``release`` devices forget it afterwards.
        """
        if self._captured is None and validate is not None:
            self._capture(validate)
        members = self._members
        if members is None or (run is not None and members.run != run):
            members, self._enrolled = Members.of_run(self._fleet, run), {}
        last: dict[str, PeerStatus] = {}

        def note(statuses: Mapping[str, PeerStatus]) -> None:
            last.update(statuses)
            on_status(statuses)

        done = members.wait_until_done(note)
        models = members.models(_that_learnt(done))
        if not models:
            raise ConfigError(f"run {members.run} has no model left. Start it again.")
        states = list(models.values())
        self._trained = mean_state(states)
        if release:
            members.release()
        self._members = None
        return GossipReport(
            run=members.run,
            peers=tuple(
                PeerReport(
                    device,
                    last.get(device),
                    self._enrolled.get(device),
                    device in models,
                    self._evaluated(models[device], validate) if device in models else None,
                )
                for device in members.devices
            ),
            seconds=max(status.seconds for status in done.values()),
            evaluation=self._evaluated(self._trained, validate),
            consensus_distance=consensus_distance(states),
        )

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The mean of all models, under the names of the user's model."""
        aliases = self._captured.program.aliases if self._captured else {}
        return {
            name: self._trained.get(aliases.get(name, name), tensor).detach().clone()
            for name, tensor in self._model.state_dict().items()
        }

    def _graph(self, devices: tuple[str, ...]) -> Topology:
        if isinstance(self._topology, str):
            return named_topology(self._topology, devices, seed=self._seed)
        graph = self._topology
        if set(graph.peers) != set(devices):
            raise ConfigError(
                f"a topology is of the fleet's devices ({', '.join(sorted(devices))}; it names "
                f"{', '.join(sorted(graph.peers))}). Correct its names."
            )
        return graph

    def _capture(self, dataset: Dataset[Any]) -> Captured:
        if self._captured is None:
            inputs, target = example(dataset, _EXAMPLE_SAMPLES)
            self._captured = capture(
                self._model, self._loss_fn, inputs, target, metrics=self._metrics
            )
        return self._captured

    def _evaluated(self, state: State, dataset: Dataset[Any] | None) -> Evaluation | None:
        captured = self._captured
        if captured is None or dataset is None:
            return None
        stage = StageProgram(captured.program, {**captured.state, **state})
        totals: dict[str, float] = {}
        n_samples = 0
        for batch in ordered_batches(dataset, _EVALUATED_AT_ONCE):
            result = stage.evaluate(batch.tensors)
            values = dict(result.metrics)
            if result.loss is not None:
                values["loss"] = result.loss
            for name, value in values.items():
                totals[name] = totals.get(name, 0.0) + value.item() * batch.n_samples
            n_samples += batch.n_samples
        means = {name: total / n_samples for name, total in totals.items()}
        return Evaluation(means.pop("loss", math.nan), means, n_samples)


def _that_learnt(done: Mapping[str, PeerStatus]) -> list[str]:
    """Whose models count: a device that came back too late for a step has a neighbour's model, or
    none yet. All, if nobody did a step.
    """
    able = {device: status for device, status in done.items() if status.error is None}
    return [device for device, status in able.items() if status.steps_here] or list(able)


def _check_classes(enrolled: Mapping[str, Enrolled]) -> None:
    """A class has one number on all devices, or each would learn what another one unlearns."""
    named = {device: each.class_names for device, each in enrolled.items() if each.class_names}
    for device, names in named.items():
        one, others = next(iter(named.items()))
        if names != others:
            raise ConfigError(
                f"devices have the same classes ({one}: {', '.join(others)}; {device}: "
                f"{', '.join(names)}). Make the folders that one lacks; they may be empty."
            )


def _first(
    train_set: Dataset[Any] | DeviceFiles | Mapping[str, DeviceFiles],
    samples: Dataset[Any] | None,
) -> Dataset[Any]:
    """Samples to capture the model with."""
    if isinstance(train_set, Dataset):
        return train_set
    if samples is None:
        raise ConfigError(
            "the model is captured with samples like those of the devices (none are here). "
            "Pass validate= (or example=)."
        )
    return samples


def _data_of(
    train_set: Dataset[Any] | DeviceFiles | Mapping[str, DeviceFiles],
    devices: tuple[str, ...],
    split: Split,
) -> dict[str, Data]:
    """What each device trains on."""
    if isinstance(train_set, Dataset):
        return dict(_shards(train_set, devices, split))
    files = dict.fromkeys(devices, train_set) if isinstance(train_set, DeviceFiles) else train_set
    missing = [device for device in devices if device not in files]
    if missing:
        raise ConfigError(f"every device has data ({missing[0]} was given none). Add its files.")
    found: dict[str, Data] = {}
    for number, device in enumerate(devices):
        each = files[device]
        found[device] = SourceData(
            each.source,
            None if each.path is None else str(each.path),
            each.normalise,
            split,
            0 if each.own else number,
            1 if each.own else len(devices),
        )
    return found


def _shards(dataset: Dataset[Any], devices: tuple[str, ...], split: Split) -> dict[str, SentData]:
    from safetensors.torch import save  # noqa: PLC0415

    n = n_batches(dataset, 1)
    (whole,) = ordered_batches(dataset, n)
    parts = deal(_classes(whole).numpy(), len(devices), split)
    return {
        device: SentData(save(_rows(whole, torch.from_numpy(part))))
        for device, part in zip(devices, parts, strict=True)
    }


def _classes(whole: Batch) -> torch.Tensor:
    """One class for each sample, as splits need it; zeros where there are none."""
    targets = [tensor for name, tensor in whole.tensors.items() if name.startswith("target:")]
    if len(targets) == 1 and targets[0].ndim == 1 and not targets[0].is_floating_point():
        return targets[0].to(torch.int64)
    return torch.zeros(whole.n_samples, dtype=torch.int64)


def _rows(whole: Batch, indices: torch.Tensor) -> dict[str, torch.Tensor]:
    return {name: tensor[indices].contiguous() for name, tensor in whole.tensors.items()}
