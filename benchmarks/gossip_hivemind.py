"""One peer that averages by hivemind: a child of ``gossip_beside``, as ``gossip_rank`` is.

Steps are its own; after every ``EVERY`` of them models are averaged by hivemind's
``DecentralizedAverager``, with its own settings, among those that a group is found for. Where none
is found in time the peer goes on with its model, as hivemind's optimizer does.
"""

from __future__ import annotations

import json
import sys
from types import TracebackType
from typing import Any, Self

import torch

from benchmarks.children import reply
from benchmarks.gossip_rank import trained
from edgeweave.train.models import lenet

__all__ = ["EVERY", "main"]

EVERY = 10
_AVERAGE_SECONDS = 30.0


def main(settings: dict[str, Any]) -> None:
    """Join the others' hash table, tell how to reach it, serve until standard input closes."""
    import hivemind  # noqa: PLC0415 - only where this comparison is run

    torch.set_num_threads(1)
    table = hivemind.DHT(initial_peers=settings["meeting"], start=True)
    reply({"meeting": [str(address) for address in table.get_visible_maddrs()]})
    for line in sys.stdin:
        asked = json.loads(line)
        with _Averaging(hivemind, table, settings["n"]) as averaging:
            told = trained(settings, asked, after_step=averaging.after_step)
            reply({**told, "found_share": averaging.found_share})
    table.shutdown()


class _Averaging:
    """Models of all peers, averaged now and then."""

    def __init__(self, hivemind: Any, table: Any, n: int) -> None:
        self._failures = (
            hivemind.averaging.partition.AllreduceException,
            hivemind.averaging.matchmaking.MatchmakingException,
            TimeoutError,
        )
        self._averager = hivemind.averaging.DecentralizedAverager(
            [parameter.detach().clone() for parameter in lenet().parameters()],
            table,
            prefix="edgeweave",
            target_group_size=n,
            start=True,
        )
        self._tried = self._failed = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._averager.shutdown()

    @property
    def found_share(self) -> float:
        """Of all averages, those for which a group was found."""
        return 1 - self._failed / max(self._tried, 1)

    def after_step(self, model: torch.nn.Module, done: int) -> None:
        if done % EVERY:
            return
        self._tried += 1
        with self._averager.get_tensors() as mine, torch.no_grad():
            for kept, parameter in zip(mine, model.parameters(), strict=True):
                kept.copy_(parameter)
        try:
            self._averager.step(timeout=_AVERAGE_SECONDS)
        except self._failures as error:
            self._failed += 1
            sys.stderr.write(f"hivemind: {error}\n")
            return
        with self._averager.get_tensors() as mine, torch.no_grad():
            for kept, parameter in zip(mine, model.parameters(), strict=True):
                parameter.copy_(kept)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
