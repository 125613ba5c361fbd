"""What a claim is: metrics that a benchmark measures, and the bounds they should keep."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["Claim", "Metric"]


@dataclass(frozen=True, slots=True)
class Metric:
    """One number of a benchmark. Without ``least`` and ``most`` it is shown and not judged."""

    key: str
    meaning: str
    least: float | None = None
    most: float | None = None

    @property
    def target(self) -> str:
        """The bounds in words."""
        if self.least is not None and self.most is not None:
            return f"{self.least:g} to {self.most:g}"
        if self.least is not None:
            return f"at least {self.least:g}"
        return "-" if self.most is None else f"at most {self.most:g}"

    def is_met(self, value: float) -> bool | None:
        """Whether ``value`` keeps the bounds; None where there are none."""
        if self.least is None and self.most is None:
            return None
        return (self.least is None or value >= self.least) and (
            self.most is None or value <= self.most
        )


@dataclass(frozen=True, slots=True)
class Claim:
    """One benchmark: its metrics in the order shown, and which of them its picture shows."""

    name: str
    title: str
    metrics: tuple[Metric, ...]
    drawn: tuple[str, ...]
    """Keys of metrics that have raw samples under the same key."""
    drawn_unit: str
    columns: Mapping[str, str] = field(default_factory=dict)
    """With ``rows``: shown as a matrix of the metrics ``<column>_<row>``."""
    rows: Mapping[str, str] = field(default_factory=dict)
