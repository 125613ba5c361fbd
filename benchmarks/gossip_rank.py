"""One rank of data parallel training with all-reduce over Gloo: a child of ``gossip_beside``.

    {"steps": n, "dies_at": k}  ->  {"done": n, "seconds": [...], "accuracies": [...], "error": ""}

Paced to a fraction of a core as emulated devices are. A rank that is to die kills itself, as
``kill -9`` would; the others tell what that does to them.
"""

from __future__ import annotations

import datetime
import functools
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch.nn import functional

from benchmarks.children import reply
from benchmarks.gossip_runs import TASKS
from edgeweave.core.clock import SystemClock
from edgeweave.data import Split, deal
from edgeweave.device.throttle import Throttle

__all__ = ["main", "trained"]

_TIMEOUT = datetime.timedelta(seconds=20)
_EVERY = 10
"""Steps between two copies of the model, which are evaluated in the end."""


def main(settings: dict[str, Any]) -> None:
    """Meet the other ranks and serve until standard input closes."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{settings['meeting'][0]}",
        rank=settings["rank"],
        world_size=settings["n"],
        timeout=_TIMEOUT,
    )
    reply({"ready": True})
    for line in sys.stdin:
        average = functools.partial(_average, n=settings["n"])
        reply(trained(settings, json.loads(line), before_step=average))


def trained(
    settings: dict[str, Any],
    asked: dict[str, Any],
    *,
    before_step: Callable[[torch.nn.Module], None] = lambda _model: None,
    after_step: Callable[[torch.nn.Module, int], None] = lambda _model, _done: None,
) -> dict[str, Any]:
    """Train, at the pace of the device; ``before_step`` has the gradients, ``after_step`` the model
    and the number of steps done. ``RuntimeError`` of either ends it.
    """
    task, rank = TASKS["mnist"], settings["rank"]
    torch.manual_seed(settings["seed"])
    model = task.model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.5)
    throttle = Throttle(settings["speed"], SystemClock())
    inputs, targets = task.train()
    part = torch.from_numpy(deal(targets.numpy(), settings["n"], Split(seed=0))[rank])
    order = torch.randperm(len(part), generator=torch.Generator().manual_seed(rank))
    batch, began, copies, done, error = settings["batch_size"], time.perf_counter(), [], 0, ""
    try:
        for step in range(asked["steps"]):
            if rank == settings["n"] - 1 and step == asked["dies_at"]:
                os.kill(os.getpid(), signal.SIGKILL)
            start = step * batch % (len(order) - batch)
            rows = part[order[start : start + batch]]
            with throttle.pace("step"):
                optimizer.zero_grad()
                loss = functional.cross_entropy(model(inputs[rows]), targets[rows])
                loss.backward()  # type: ignore[no-untyped-call]
            before_step(model)
            optimizer.step()
            done = step + 1
            after_step(model, done)
            if rank == 0 and done % _EVERY == 0:
                copy = {name: tensor.clone() for name, tensor in model.state_dict().items()}
                copies.append((time.perf_counter() - began, copy))
    except RuntimeError as failed:
        error = str(failed)
    seconds = [moment for moment, _ in copies]
    return {
        "done": done,
        "seconds": seconds,
        "accuracies": [_accuracy(model, copy) for _, copy in copies],
        "error": error,
    }


def _average(model: torch.nn.Module, n: int) -> None:
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    dist.all_reduce(flat)
    start = 0
    for gradient in gradients:
        gradient.copy_(flat[start : start + gradient.numel()].view_as(gradient) / n)
        start += gradient.numel()


def _accuracy(model: torch.nn.Module, copy: dict[str, torch.Tensor]) -> float:
    model.load_state_dict(copy)
    inputs, targets = (each[:2000] for each in TASKS["mnist"].test())
    with torch.no_grad():
        return 100 * float((model(inputs).argmax(dim=1) == targets).float().mean())


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
