"""One rank of ``torch.distributed.pipelining``, driven by lines: a child of ``TorchPipeline``.

    {"steps": n}  ->  {"step_seconds": s, "losses": [...]}    losses on the last rank only

Between two lines it waits for its standard input, and Gloo for its sockets: nothing spins.
"""

from __future__ import annotations

import json
import sys
import time
from statistics import fmean
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe

from benchmarks.children import reply
from benchmarks.pipelines import Work
from benchmarks.resnet import Images, cross_entropy, resnet18, stage_module

__all__ = ["main"]

_SCHEDULES = {"1f1b": Schedule1F1B, "gpipe": ScheduleGPipe}


class _Rank:
    def __init__(self, work: Work, rank: int) -> None:
        self._work = work
        self._rank = rank
        self._steps = 0
        self._data = Images(work.n_samples, seed=work.seed)
        module = stage_module(resnet18(work.seed), *work.blocks(rank))
        self._optimizer = torch.optim.SGD(module.parameters(), lr=work.lr, momentum=work.momentum)
        stage = PipelineStage(module, rank, work.n_stages, torch.device("cpu"))
        self._schedule = _SCHEDULES[work.schedule](stage, work.n_microbatches, cross_entropy)

    @property
    def _is_last(self) -> bool:
        return self._rank == self._work.n_stages - 1

    def burst(self, n_steps: int) -> dict[str, Any]:
        losses: list[float] = []
        ends: list[float] = []
        for _ in range(n_steps):
            losses += self._step()
            ends.append(time.perf_counter())
        return {"step_seconds": (ends[-1] - ends[0]) / (n_steps - 1), "losses": losses}

    def _step(self) -> list[float]:
        images, labels = self._data.step_batch(self._steps, self._work.batch_size)
        self._steps += 1
        losses: list[torch.Tensor] = []
        if self._rank == 0:
            self._schedule.step(images, return_outputs=False)
        elif self._is_last:
            self._schedule.step(target=labels, losses=losses, return_outputs=False)
        else:
            self._schedule.step(return_outputs=False)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return [fmean(loss.item() for loss in losses)] if losses else []


def main(settings: dict[str, Any]) -> None:
    """Meet the other ranks and serve until standard input closes."""
    torch.set_num_threads(1)
    values = settings["work"]
    work = Work(**{**values, "first_blocks": tuple(values["first_blocks"])})
    dist.init_process_group(
        "gloo",
        init_method=f"file://{settings['meeting']}",
        rank=settings["rank"],
        world_size=work.n_stages,
    )
    try:
        rank = _Rank(work, settings["rank"])
        reply({"ready": True})
        for line in sys.stdin:
            reply(rank.burst(json.loads(line)["steps"]))
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
