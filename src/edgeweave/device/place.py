"""A stage's place in a run: who the others are, and what travels between them and it."""

from __future__ import annotations

import msgspec

__all__ = ["COORDINATOR", "Place"]

COORDINATOR = -1
"""The stage number of the coordinator."""


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """One stage among those of a run, in one term of it."""

    run: str
    term: int
    coordinator: str
    stage: int
    devices: tuple[str, ...]
    """The device of every stage, in order."""
    microbatch_size: int
    """The most samples that come at once."""
    max_microbatches: int
    extra_in_flight: int = 0
    tied: dict[str, tuple[int, ...]] = {}
    """Trainable parameters that several stages hold -> those stages."""
    sources: dict[str, int] = {}
    """Inputs that do not come from the stage before -> the earlier stage they come from."""
    targets: dict[str, int] = {}
    """Outputs that do not go to the stage behind -> the later stage they go to."""

    def __post_init__(self) -> None:
        before, behind = self.sources.values(), self.targets.values()
        if not all(0 <= stage < self.stage for stage in before) or not all(
            self.stage < stage < self.n_stages for stage in behind
        ):
            raise ValueError(
                f"sources are stages before stage {self.stage} and targets stages behind it "
                f"(got {sorted(before)} and {sorted(behind)} of {self.n_stages} stages)"
            )

    @property
    def senders(self) -> tuple[int, ...]:
        """The stages whose activations this one takes, the nearest first."""
        return tuple(sorted({*self.sources.values(), *range(self.stage)[-1:]}, reverse=True))

    @property
    def receivers(self) -> tuple[int, ...]:
        """The stages that take this one's activations, the nearest first."""
        behind = range(self.stage + 1, self.n_stages)
        return tuple(sorted({*self.targets.values(), *behind[:1]}))

    def source(self, name: str) -> int:
        """The stage that an input comes from, to which its gradient returns."""
        return self.sources.get(name, self.stage - 1)

    def target(self, name: str) -> int:
        """The stage that an output goes to."""
        return self.targets.get(name, self.stage + 1)

    @property
    def n_stages(self) -> int:
        return len(self.devices)

    @property
    def device(self) -> str:
        return self.devices[self.stage]

    def device_of(self, stage: int) -> str:
        """Who holds a stage; the coordinator's own name for ``COORDINATOR``."""
        return self.coordinator if stage == COORDINATOR else self.devices[stage]

    def peer(self, stage: int) -> str:
        """A stage as messages name it."""
        if stage == COORDINATOR:
            return f"the coordinator ({self.coordinator})"
        return f"stage {stage} on {self.devices[stage]}"
