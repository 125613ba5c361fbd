"""One peer that averages by hivemind: a child of ``gossip_beside``, as ``gossip_rank`` is.

Steps are its own; after every ``EVERY`` of them models are averaged by hivemind's
``DecentralizedAverager`` among those that a group is found for. It is made for averages that are
minutes apart: finding a group takes a second, however small the model is.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch

from benchmarks.children import reply
from benchmarks.gossip_rank import trained

__all__ = ["EVERY", "main"]

EVERY = 10
_GROUP_SECONDS = 1.0
_AVERAGE_SECONDS = 20.0


def main(settings: dict[str, Any]) -> None:
    """Join the others' hash table, tell how to reach it, serve until standard input closes."""
    import hivemind  # noqa: PLC0415 - only where this comparison is run

    torch.set_num_threads(1)
    table = hivemind.DHT(initial_peers=settings["meeting"], start=True)
    reply({"meeting": [str(address) for address in table.get_visible_maddrs()]})
    for line in sys.stdin:
        asked = json.loads(line)
        with _Averaging(hivemind, table, settings["n"]) as averaging:
            reply(trained(settings, asked, after_step=averaging.after_step))


class _Averaging:
    """Models of all peers, averaged now and then."""

    def __init__(self, hivemind: Any, table: Any, n: int) -> None:
        self._hivemind, self._table, self._n = hivemind, table, n
        self._averager: Any = None

    def __enter__(self) -> _Averaging:
        return self

    def __exit__(self, *_told: object) -> None:
        if self._averager is not None:
            self._averager.shutdown()

    def after_step(self, model: torch.nn.Module, done: int) -> None:
        if self._averager is None:
            self._averager = self._hivemind.averaging.DecentralizedAverager(
                [parameter.detach().clone() for parameter in model.parameters()],
                self._table,
                prefix="edgeweave",
                target_group_size=self._n,
                min_matchmaking_time=_GROUP_SECONDS,
                request_timeout=_GROUP_SECONDS / 2,
                start=True,
            )
        if done % EVERY:
            return
        with self._averager.get_tensors() as mine, torch.no_grad():
            for kept, parameter in zip(mine, model.parameters(), strict=True):
                kept.copy_(parameter)
        self._averager.step(timeout=_AVERAGE_SECONDS)
        with self._averager.get_tensors() as mine, torch.no_grad():
            for kept, parameter in zip(mine, model.parameters(), strict=True):
                parameter.copy_(kept)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
