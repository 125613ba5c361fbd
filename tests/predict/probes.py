"""Probes that no device took: their times follow a rule."""

from __future__ import annotations

import numpy as np

from edgeweave.predict import FAMILIES, FEATURES, unit_features
from edgeweave.predict.facts import DeviceFacts
from edgeweave.predict.features import Floats
from edgeweave.predict.probe import NetworkSeconds, Probe, probe_digest, probe_programs
from edgeweave.program import without_outputs

__all__ = ["FACTS", "made_up_probe"]

FACTS = DeviceFacts(
    processor="Cortex-A76",
    cores=4,
    threads=3,
    device="cpu",
    accelerator=None,
    torch="2.8.0",
    cpu_capability="DEFAULT",
    onednn=True,
    memory_bytes=8 << 30,
    clock_hertz=2_400_000_000,
)

_FREE = [FAMILIES.index(name) for name in ("view", "pass")]
_MOVED = ("input_bytes", "output_bytes", "weight_bytes")


def made_up_probe(
    n_networks: int | None = None,
    *,
    backward: float = 2.0,
    seconds_per_mac: float = 1e-10,
    seconds_per_byte: float = 1e-10,
    seconds_per_operator: float = 1e-5,
) -> Probe:
    """What a device takes with these costs; ``backward`` times the forward."""

    def seconds(rows: Floats) -> float:
        values = {name: np.expm1(rows[:, 1 + i]) for i, name in enumerate(FEATURES)}
        works = ~np.isin(rows[:, 0].astype(int), _FREE)
        moved = sum(float(values[name][works].sum()) for name in _MOVED)
        macs = float(values["macs"].sum())
        return float(
            seconds_per_mac * macs + seconds_per_byte * moved + seconds_per_operator * works.sum()
        )

    networks = []
    for each in probe_programs()[:n_networks]:
        rows = unit_features(without_outputs(each.program), each.microbatch_size).values()
        forward = tuple(seconds(unit) for unit in rows)
        networks.append(
            NetworkSeconds(each.name, forward, tuple(backward * one for one in forward), 3)
        )
    left_out = tuple(each.name for each in probe_programs()[len(networks) :])
    return Probe(FACTS, tuple(networks), left_out, probe_digest())
