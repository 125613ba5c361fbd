"""How a model is served: one frozen value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from edgeweave.codec import Codec, none
from edgeweave.core.errors import ConfigError
from edgeweave.plan import Objective

__all__ = ["ServeOptions"]

_EXACT = none()


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """What a served model accepts, and what it is cut for.

    ``use="all"`` takes every device, also where fewer would be faster. ``devices`` names those that
    may serve, also ones still to come; all that are there, if it is empty.

    ``kernels="fast"`` rewrites the model (BatchNorm folded into convolutions, which compute
    channels-last): convolutional networks are faster, and the last bits of answers differ.

    ``codec`` makes what devices hand on smaller, for slow links; answers are then close to the
    model's. One of ``edgeweave.codec``.

    ``queue_size`` requests may be unanswered at once; a further one waits or is refused. A request
    that is not answered in ``timeout_seconds`` fails. ``max_samples`` is the most samples in one
    request (None: as many as the example has).

    ``join_samples`` lets requests that wait be computed together, up to so many samples, and
    ``join_seconds`` how long the first of them waits for others. It makes small models faster and
    may change the last bits of answers: kernels add up in another order for more rows. 0 never
    joins: answers are then bit for bit those of the model.

    ``watts`` is what one busy core of a device draws above idle, for the estimate of energy.
    """

    objective: Objective = "throughput"
    use: Literal["fastest", "all"] = "fastest"
    devices: tuple[str, ...] = ()
    kernels: Literal["exact", "fast"] = "exact"
    codec: Codec = _EXACT
    queue_size: int = 64
    timeout_seconds: float = 30.0
    max_samples: int | None = None
    join_samples: int = 0
    join_seconds: float = 0.0
    watts: float = 1.0

    def __post_init__(self) -> None:
        known = {
            "objective": get_args(Objective),
            "use": ("fastest", "all"),
            "kernels": ("exact", "fast"),
        }
        for name, words in known.items():
            if getattr(self, name) not in words:
                raise ConfigError(
                    f"{name} is {' or '.join(words)} (got {getattr(self, name)!r}). Choose one."
                )
        if self.queue_size < 1 or self.timeout_seconds <= 0 or self.watts <= 0:
            raise ConfigError(
                "queue_size is 1 or more, timeout_seconds and watts are above 0 (got "
                f"{self.queue_size}, {self.timeout_seconds} and {self.watts}). Correct them."
            )
        most = 1 if self.max_samples is None else self.max_samples
        if most < 1 or self.join_samples < 0 or self.join_seconds < 0:
            raise ConfigError(
                "max_samples is 1 or more, join_samples and join_seconds 0 or more (got "
                f"{self.max_samples}, {self.join_samples} and {self.join_seconds}). Correct them."
            )

    def allows(self, device: str) -> bool:
        """Whether a device may serve."""
        return not self.devices or device in self.devices
