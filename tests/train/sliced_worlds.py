"""Super neurons on agents in this process, over links that lose, and the same rehearsed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

import edgeweave as ew
from edgeweave.core.clock import SystemClock
from edgeweave.core.timeouts import Timeouts
from edgeweave.data.batches import Batch
from edgeweave.device import Optimizer
from edgeweave.net import Links, LinkShape, ShapedTransport
from edgeweave.net.bursts import N_ENDS
from edgeweave.net.link_model import LinkModel
from edgeweave.plan import SlicePlan
from edgeweave.program import (
    Captured,
    Group,
    Mode,
    capture,
    flatten_inputs,
    slice_program,
    without_outputs,
)
from edgeweave.train.slices.deployment import SliceSettings
from edgeweave.train.slices.link_fates import Fates
from edgeweave.train.slices.rehearsal import Rehearsal, RehearsalSetup
from edgeweave.train.slices.run import SliceRun
from tests.fleet.worlds import QUICK, MemoryFleet, memory_fleet

BATCH = 32
RATE = 0.1
HYBRID = (Group(0, 2, 2), Group(2, 6, 2))
HORIZONTAL = (Group(0, 6, 3),)

Samples = tuple[torch.Tensor, torch.Tensor]


def network(width: int = 64) -> nn.Module:
    torch.manual_seed(3)
    layers: list[nn.Module] = []
    for n_in, n_out in ((8, width), (width, width), (width, width), (width, width)):
        layers += [nn.Linear(n_in, n_out), nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(width, 64))


def captured() -> Captured:
    example = torch.randn(4, 8), torch.randint(3, (4,))
    return capture(network(), nn.functional.cross_entropy, *example)


def batches(n: int, size: int = BATCH) -> Iterator[Samples]:
    chance = torch.Generator().manual_seed(7)
    for _ in range(n):
        inputs = torch.randn(size, 8, generator=chance)
        yield inputs, inputs[:, :3].argmax(1)


def devices(groups: Sequence[Group]) -> tuple[str, ...]:
    return tuple(f"pi-{index}" for index in range(sum(group.n_members for group in groups)))


@contextlib.contextmanager
def lossy_fleet(
    *names: str, links: Links | None = None, timeouts: Timeouts = QUICK
) -> Iterator[MemoryFleet]:
    """Everybody behind the same emulated links."""

    with contextlib.ExitStack() as stack:

        def wrap(transport: Any) -> Any:
            if links is None:
                return transport
            shaped = ShapedTransport(transport, links, clock=SystemClock(), timeouts=timeouts)
            return stack.enter_context(shaped)

        with memory_fleet(*names, timeouts=timeouts, wrap=wrap, wrap_coordinator=True) as world:
            yield world


@contextlib.contextmanager
def slice_run(
    fleet: ew.Fleet,
    model: Captured,
    groups: Sequence[Group],
    mode: Mode = "exchange",
    **options: Any,
) -> Iterator[SliceRun]:
    # Long: a machine that is busy with other things must not make masks.
    settings = {
        "optimizer": Optimizer("SGD", lr=RATE),
        "least_wait_seconds": 8.0,
        "batch_size": BATCH,
        **options,
    }
    plan = SlicePlan(tuple(groups), devices(groups), mode)
    run = SliceRun(
        fleet,
        model.program,
        model.state,
        plan,
        SliceSettings(**settings),
    )
    with run:
        yield run


@contextlib.contextmanager
def sliced_world(
    model: Captured,
    groups: Sequence[Group],
    mode: Mode = "exchange",
    links: Links | None = None,
    spares: Sequence[str] = (),
    **options: Any,
) -> Iterator[tuple[MemoryFleet, SliceRun]]:
    """A fleet as large as the groups, but for spares, and a run on it."""
    with (
        lossy_fleet(*devices(groups), *spares, links=links) as world,
        slice_run(world.fleet, model, groups, mode, **options) as run,
    ):
        yield world, run


def trained(
    run: SliceRun,
    data: Iterator[Samples],
    *,
    reliable: bool = False,
    before_step: Callable[[int], None] = lambda _step: None,
    first_step: int = 0,
) -> list[float]:
    """Train on all batches; their losses."""
    losses: list[float] = []
    for step, (inputs, target) in enumerate(data, first_step):
        before_step(step)
        if run.n_under_way >= run.window:
            losses.append(run.collect().loss)
        batch = Batch(flatten_inputs(inputs, target), len(inputs))
        run.submit(step, batch, {"lr": RATE}, reliable=reliable)
    while run.n_under_way:
        losses.append(run.collect().loss)
    return losses


class EmulatedLosses:
    """The fates of one link's datagrams as a ``ShapedTransport`` draws them: those of a message,
    and then those of its ends, which tell nobody anything here.
    """

    def __init__(self, links: Links, source: str, target: str) -> None:
        shape = links.shape(source, target)
        self._model = LinkModel(shape, (source, target), seed=links.seed)

    def draw(self, n_packets: int) -> npt.NDArray[np.bool_]:
        return self._model.lose_datagrams(n_packets + N_ENDS)[:n_packets]


def rehearsed(
    model: Captured,
    groups: Sequence[Group],
    mode: Mode = "exchange",
    links: Links | None = None,
) -> Rehearsal:
    known = links or Links()
    fates = Fates(lambda source, target: EmulatedLosses(known, source, target))
    return Rehearsal(
        slice_program(without_outputs(model.program), groups, mode),
        model.state,
        lambda parameters: torch.optim.SGD(parameters, lr=RATE),
        fates,
        RehearsalSetup(devices(groups)),
    )


def losing(share: float, seed: int = 5) -> Links:
    """Every link between devices loses a share of its packets, and the coordinator's none."""
    links = Links(LinkShape(loss=share), seed=seed)
    for name in [f"pi-{index}" for index in range(8)]:
        links = links.with_shape("coordinator", name, LinkShape())
        links = links.with_shape(name, "coordinator", LinkShape())
    return links
