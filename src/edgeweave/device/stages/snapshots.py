"""States of stages after a step, kept on a device: its own stage's, and a replica of another's.

A state is tensors by name: parameters that train, buffers that change, and for each parameter what
the optimizer keeps of it, as ``<parameter>|<entry>``. Once a device is lost, the others go back to
a step of which everything is still somewhere; what never changes needs no snapshot.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection, Mapping

import safetensors
import safetensors.torch
import torch

from edgeweave.core.errors import FleetError, WireError
from edgeweave.core.units import format_bytes

__all__ = ["Snapshots", "State", "of_parameter", "received_state"]

_log = logging.getLogger(__name__)

State = Mapping[str, torch.Tensor]

_KEPT_STEPS = 2
"""While the newest is still on its way to others, the one before is complete."""


def of_parameter(name: str) -> str:
    """The parameter or buffer that a tensor of a state belongs to."""
    return name.partition("|")[0]


def received_state(data: bytes, device: str) -> dict[str, torch.Tensor]:
    """What a device sent as safetensors; ``WireError`` if it is not."""
    try:
        return dict(safetensors.torch.load(data))
    except (safetensors.SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise WireError(f"the state that {device} sent is not safetensors ({error}).") from error


class Snapshots:
    """The last two states of a device's own stage, and of the one it keeps replicas of.

    ``room_bytes``: what they may take all together; one that does not fit, once the oldest has
    gone, is not kept, and said in the log. Safe from several threads. Tensors must not change once
    they are here.
    """

    def __init__(self, device: str) -> None:
        self._device = device
        self.room_bytes: int | None = None
        self.fixed: State = {}
        """What the stage holds that never changes."""
        self._own: dict[int, dict[str, torch.Tensor]] = {}
        self._replicas: dict[int, dict[str, torch.Tensor]] = {}
        self._changed = threading.Condition()
        self._newest_own = -1
        self._newest_replica: int | None = None
        self._ended = False

    def add(self, step: int, state: State) -> None:
        """Keep the own stage's state after ``step`` steps, beside what is known of that step."""
        with self._changed:
            self._add(self._own, step, state)
            self._newest_own = max(self._newest_own, step)
            self._changed.notify_all()

    def add_replica(self, step: int, state: State) -> None:
        """Keep another stage's."""
        with self._changed:
            if self._add(self._replicas, step, state):
                self._newest_replica = step

    @property
    def replica_step(self) -> int | None:
        """After which step the newest replica is that came since ``reopen``."""
        return self._newest_replica

    def held(self) -> dict[int, tuple[str, ...]]:
        """By step, the parameters and buffers whose state is here."""
        with self._changed:
            steps = {*self._own, *self._replicas}
            return {step: tuple(sorted(self._names(step))) for step in steps}

    def own(self, step: int, *, timeout_seconds: float) -> State:
        """The own stage's state after ``step`` steps, waiting for it; not for one that was passed,
        or that there was no room for.
        """
        with self._changed:
            self._changed.wait_for(lambda: step <= self._newest_own or self._ended, timeout_seconds)
            if step not in self._own:
                raise FleetError(
                    f"{self._device} does not keep its state after step {step} (it keeps those "
                    f"after {sorted(self._own) or 'none'}). Ask for one of these."
                )
            return dict(self._own[step])

    def take(self, step: int, names: Collection[str]) -> State:
        """The state of some parameters and buffers after ``step`` steps, or of what is fixed."""
        with self._changed:
            known = {**self._replicas.get(step, {}), **self._own.get(step, {})}
            missing = set(names) - self._names(step) - self.fixed.keys()
            if missing:
                raise FleetError(
                    f"{self._device} does not keep the state of {', '.join(sorted(missing)[:3])} "
                    f"after step {step}. Ask who holds it."
                )
            wanted = set(names)
            return {
                **{name: self.fixed[name] for name in wanted & self.fixed.keys()},
                **{name: t for name, t in known.items() if of_parameter(name) in wanted},
            }

    def forget_after(self, step: int) -> None:
        """Drop the states of later steps, which will be computed anew."""
        with self._changed:
            for kept in (self._own, self._replicas):
                for later in [each for each in kept if each > step]:
                    del kept[later]
            self._newest_own = min(self._newest_own, step)

    def end(self) -> None:
        """Nothing more comes: who waits is told so."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def reopen(self) -> None:
        """More will come."""
        with self._changed:
            self._ended = False
            self._newest_replica = None

    def _add(self, kept: dict[int, dict[str, torch.Tensor]], step: int, state: State) -> bool:
        """Whether there was room for it."""
        for old in sorted(kept.keys() - {step})[: -_KEPT_STEPS + 1]:
            del kept[old]
        if self.room_bytes is not None and self._bytes() + _bytes(state) > self.room_bytes:
            for old in sorted(kept.keys() - {step}):
                del kept[old]
        needed = self._bytes() + _bytes(state)
        if self.room_bytes is not None and needed > self.room_bytes:
            _log.warning(
                "%s does not keep the state after step %d: snapshots would take %s, there is room "
                "for %s. After a failure the run goes back to the newest state that is whole.",
                self._device,
                step,
                format_bytes(needed),
                format_bytes(self.room_bytes),
            )
            return False
        kept.setdefault(step, {}).update(state)
        return True

    def _names(self, step: int) -> set[str]:
        both = (self._own.get(step, {}), self._replicas.get(step, {}))
        return {of_parameter(name) for state in both for name in state}

    def _bytes(self) -> int:
        return sum(_bytes(state) for kept in (self._own, self._replicas) for state in kept.values())


def _bytes(state: State) -> int:
    return sum(tensor.nbytes for tensor in state.values())
