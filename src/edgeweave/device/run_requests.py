"""What others ask of a run on this device: parts of its state, and what it did."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from edgeweave.device.messages import Release, StateRequest, decode_message, encode_message
from edgeweave.device.serving.hosting import Hosting
from edgeweave.device.serving.messages import Retire
from edgeweave.device.slices.messages import MemberMoved
from edgeweave.device.slices.slicing import Slicing
from edgeweave.device.stages.membership import Membership
from edgeweave.device.stages.messages import Fetch, Replicate
from edgeweave.net.transport import REQUEST_BYTES

__all__ = ["requests_of_runs"]


def requests_of_runs(
    training: Callable[[str], Membership],
    hosting: Callable[[str], Hosting],
    slicing: Callable[[str], Slicing],
) -> Mapping[str, tuple[Callable[[bytes], bytes], int]]:
    """The verbs with their handlers and the largest requests, in bytes.

    ``training(run)`` and the others are what there is of a run here, or raise.
    """

    def fetch(payload: bytes) -> bytes:
        message = decode_message(payload, Fetch)
        return training(message.run).fetch(message)

    def replicate(payload: bytes) -> bytes:
        message = decode_message(payload, Replicate)
        return training(message.run).replicate(message)

    def state(payload: bytes) -> bytes:
        message = decode_message(payload, StateRequest)
        return training(message.run).running.wait_state(message)

    def statistics(payload: bytes) -> bytes:
        message = decode_message(payload, Release)
        return encode_message(training(message.run).running.statistics())

    def serving(payload: bytes) -> bytes:
        message = decode_message(payload, Release)
        return encode_message(hosting(message.run).statistics())

    def retire(payload: bytes) -> bytes:
        message = decode_message(payload, Retire)
        hosting(message.run).retire(message.before, message.after)
        return b""

    def part(payload: bytes) -> bytes:
        message = decode_message(payload, StateRequest)
        return slicing(message.run).state(message.rounds)

    def copy(payload: bytes) -> bytes:
        return slicing(decode_message(payload, Release).run).copy()

    def reception(payload: bytes) -> bytes:
        message = decode_message(payload, Release)
        return encode_message(slicing(message.run).statistics())

    def moved(payload: bytes) -> bytes:
        message = decode_message(payload, MemberMoved)
        slicing(message.run).move(message.stage, message.device)
        return b""

    of_stages = (fetch, replicate, state, statistics, serving, retire)
    handlers = (*of_stages, part, copy, reception, moved)
    return {handler.__name__: (handler, REQUEST_BYTES) for handler in handlers}
