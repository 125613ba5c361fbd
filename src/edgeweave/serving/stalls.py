"""Whose fault it is that no answer comes, from what devices say of themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edgeweave.device import Pulse

__all__ = ["culprits"]


def culprits(
    devices: Sequence[str], pulses: Mapping[str, Pulse | None], n_sent: int
) -> dict[str, str]:
    """Devices without which requests would flow -> why, in words. All that are silent, or else one.

    ``devices`` are those of the pipeline in order, ``n_sent`` how many requests the first was sent.
    If all answer, it is the first that has not computed what was sent to it: it stands still, or
    its link does. If there is none, answers do not arrive from the last.

    >>> at = {"a": Pulse("run", rounds=7), "b": Pulse("run", rounds=5)}
    >>> culprits(["a", "b"], at, 7)
    {'b': 'it computed 5 of the 7 requests that a has handed on'}
    """
    silent = [device for device in devices if pulses.get(device) is None]
    if silent:
        return dict.fromkeys(silent, "it answers no pulse")
    before, n_before = "the coordinator", n_sent
    for device in devices:
        pulse = pulses[device]
        assert pulse is not None
        if pulse.rounds < n_before:
            facts = f"it computed {pulse.rounds} of the {n_before} requests that {before} has "
            return {device: facts + "handed on"}
        before, n_before = device, pulse.rounds
    return {devices[-1]: f"its answers do not arrive, {n_before} are computed"}
