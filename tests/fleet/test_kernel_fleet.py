"""A whole run in kernel mode: the same fleet description, trained over network namespaces."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import pytest
import torch

import edgeweave as ew
from edgeweave.core.errors import ConfigError
from edgeweave.fleet import FleetDescription
from edgeweave.fleet._nettools import Kernel, look
from tests.fleet.worlds import assert_gone, family_of, plan_of
from tests.train.reference import assert_equal_runs, job_of, train_eagerly
from tests.train.trained_models import MLP, n_units

pytestmark = [pytest.mark.wire, pytest.mark.timeout(180)]


@pytest.fixture
def kernel() -> Kernel:
    try:
        return look()
    except ConfigError as error:
        pytest.skip(str(error))


def described(shape: ew.LinkShape) -> FleetDescription:
    return FleetDescription(
        devices=(ew.Device("a", speed=0.9), ew.Device("b")),
        links=ew.Links(default=shape),
        chaos=ew.Chaos()
        .rate("a", "b", 1e6, at_step=1, for_steps=2)
        .link_down("b", "coordinator", at_step=2, for_seconds=0.2),
    )


@pytest.mark.slow
def test_a_run_over_namespaces_equals_a_plain_loop_bit_for_bit(kernel: Kernel) -> None:
    job = job_of(MLP, 24, batch_size=6, n_microbatches=2, epochs=1)
    with ew.Fleet.described(described(ew.LinkShape(5e6)), kernel=True) as fleet:
        agents = [process for name in fleet.devices for process in family_of(fleet.pid(name))]
        namespaces = {Path(f"/proc/{fleet.pid(name)}/ns/net").readlink() for name in fleet.devices}
        assert len(namespaces | {Path(f"/proc/{os.getpid()}/ns/net").readlink()}) == 3
        trainer = ew.PipelineTrainer(
            job.model,
            job.loss,
            optimizer=ew.Optimizer("SGD", lr=0.05),
            fleet=fleet,
            plan=plan_of(("a", "b"), (1,), n_units(MLP), n_microbatches=2),
            n_microbatches=2,
            seed=job.seed,
        )
        report = trainer.fit(job.data, batch_size=6, epochs=1, progress=False)
        state = trainer.state_dict()
    expected = train_eagerly(job, partial(torch.optim.SGD, lr=0.05))
    assert_equal_runs(report, state, expected)
    whats = [record.what for record in fleet.chaos_log]
    assert "rate a -> b 976.6 KiB/s" in whats
    assert_gone(agents)


def test_a_description_with_a_delay_is_refused_before_anything_starts(kernel: Kernel) -> None:
    if not kernel.netem:
        pytest.skip("this kernel has netem, so it takes delays")
    slow = described(ew.LinkShape(5e6, delay_seconds=0.01))
    with (
        pytest.raises(ConfigError, match=r"need the kernel module sch_netem \(coordinator -> a"),
        ew.Fleet.described(slow, kernel=True),
    ):
        pass
