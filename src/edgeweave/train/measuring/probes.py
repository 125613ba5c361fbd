"""Ask every device what the probe's networks take there: about two seconds, whatever the model."""

from __future__ import annotations

from collections.abc import Sequence

from edgeweave.core.errors import FormatError
from edgeweave.device import ProbeRequest, decode_message
from edgeweave.fleet import Fleet
from edgeweave.predict.probe import Probe

__all__ = ["probe_devices"]


def probe_devices(fleet: Fleet, names: Sequence[str] = ()) -> dict[str, Probe]:
    """The probe of each device, all of them if none is named; each is checked.

    Real devices measure at the same time, or answer with what they kept. Emulated ones share a
    host: the fastest measures for all, each takes it over at its own speed. ``DeviceBusy`` if one
    works for a run; ``FormatError`` if one has another version of the networks.
    """
    wanted = tuple(names) or fleet.devices

    def ask(name: str, full_speed: Probe | None = None) -> bytes:
        message = ProbeRequest(full_speed)
        return fleet.ask(name, "probe", message, timeout_seconds=fleet.timeouts.work)

    if not fleet.is_local:
        return _read(fleet.for_each(wanted, ask, one_at_a_time=False))
    speeds = {name: fleet.greet(name).speed or 1.0 for name in wanted}
    first = max(wanted, key=speeds.__getitem__)
    measured = ask(first)
    full_speed = decode_message(measured, Probe).stretched(speeds[first])
    return _read({name: measured if name == first else ask(name, full_speed) for name in wanted})


def _read(answers: dict[str, bytes]) -> dict[str, Probe]:
    probes = {name: decode_message(answer, Probe) for name, answer in answers.items()}
    for name, probe in probes.items():
        try:
            probe.check()
        except FormatError as error:
            raise FormatError(f"{name}: {error}") from error
    return probes
