"""What a device makes of ``Enrol``: program and data checked, and a learner that is ready to train.

Devices have data of their own, which nobody else has seen: what does not fit is told here, before
anybody has begun.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from edgeweave.core.errors import ConfigError, PlanError
from edgeweave.core.units import format_bytes
from edgeweave.device.messages import Weigh, encode_message
from edgeweave.device.peers.learner import Learner
from edgeweave.device.peers.messages import Enrol, Enrolled
from edgeweave.device.peers.rows import Rows, load_rows
from edgeweave.device.workplace import Workplace
from edgeweave.mixing import graph_of
from edgeweave.program import Program, decode, state_bytes

__all__ = ["Ready", "prepare"]


@dataclass(frozen=True, slots=True)
class Ready:
    """A device that may begin."""

    learner: Learner
    first: torch.Tensor
    """The model to begin with."""
    class_names: tuple[str, ...]

    def enrolled(self) -> Enrolled:
        """What the device brings."""
        selection = self.learner.selection
        return Enrolled(
            self.learner.n_samples,
            self.first.nbytes,
            selection.n_groups,
            selection.grouping_seconds,
            selection.n_bytes,
            self.class_names,
        )


def prepare(message: Enrol, place: Workplace, *, number: int) -> Ready:
    """Check all that was sent, and read the data. ``number`` is the device's own among all peers.

    ``PlanError`` if memory is too small, ``ConfigError`` if the data are not there or do not fit.
    """

    def examine(program: Program) -> None:
        place.run_task("check", encode_message(program))

    captured = decode(message.graph, message.tensors, examine=examine)
    _check_memory(captured.program, message, place)
    torch.set_num_threads(place.n_threads)
    rows = load_rows(message.data)
    _check_fits(rows, captured.program, message.name)
    learner = Learner(
        captured,
        message.optimizer,
        rows,
        message.settings,
        number=number,
        now=place.clock.now,
        throttle=place.throttle.on_another_thread(),
        device=place.torch_device,
    )
    return Ready(learner, learner.layout.flat(captured.state), rows.class_names)


def _check_fits(rows: Rows, program: Program, device: str) -> None:
    """Whether a sample is of what the model was captured with."""
    sample = rows.take(torch.arange(1))
    for value in program.inputs:
        tensor = sample.get(value.name)
        wanted = _described(value.dtype, value.shape_at(1))
        found = (
            "nothing"
            if tensor is None
            else _described(str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
        )
        if found != wanted:
            raise ConfigError(
                f"all devices have samples of one kind ({value.name} on {device} is {found}, the "
                f"model takes {wanted}). Correct the data of {device}, or leave it out."
            )


def _described(dtype: str, shape: tuple[int, ...]) -> str:
    """The kind of one sample."""
    return f"{dtype} of {'x'.join(map(str, shape[1:])) or 'one number'}"


def _check_memory(program: Program, message: Enrol, place: Workplace) -> None:
    """The model with its gradients and activations, and the copies that are mixed."""
    limit, settings = place.settings.memory_limit_bytes, message.settings
    if limit is None:
        return
    weigh = Weigh(program, settings.batch_size, 1, message.optimizer, 3)
    needed = int.from_bytes(place.run_task("weigh", encode_message(weigh)), "big")
    degree = len(graph_of(settings).neighbours(message.name))
    copies = degree * (1 if settings.codec.name == "none" else 3)
    needed += copies * sum(state_bytes(spec) for spec in program.trainable)
    if needed > limit:
        raise PlanError(
            f"a peer on {message.name} needs {format_bytes(needed)} (limit: {format_bytes(limit)})."
            " Lower batch_size, or leave the device out."
        )
