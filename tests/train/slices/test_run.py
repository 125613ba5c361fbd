"""Super neurons on agents: with nothing lost, with losses, and with devices that vanish, against
the rehearsal, which is held against plain training elsewhere.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from edgeweave.codec import uniform
from edgeweave.core.errors import DeviceLost
from edgeweave.data.batches import Batch
from edgeweave.program import Group, flatten_inputs
from edgeweave.train.slices.run import SliceRun
from tests.fleet.worlds import wait_until
from tests.train.sliced_worlds import (
    BATCH,
    HORIZONTAL,
    HYBRID,
    RATE,
    batches,
    captured,
    losing,
    network,
    rehearsed,
    sliced_world,
    trained,
)

pytestmark = pytest.mark.timeout(120)


def assert_equal_states(found: Any, expected: Any) -> None:
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-6, atol=1e-7, msg=name)


def test_one_group_without_loss_trains_as_one_process_does() -> None:
    model = captured()
    with sliced_world(model, HORIZONTAL) as (_, run):
        losses = trained(run, batches(8))
        found = run.fetch_state()[0]
    plain = network()
    optimizer = torch.optim.SGD(plain.parameters(), lr=RATE)
    expected = []
    for inputs, target in batches(8):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(plain(inputs), target)
        loss.backward()
        optimizer.step()
        expected.append(loss.item())
    assert losses == pytest.approx(expected, rel=1e-5)
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", ["exchange", "grouped"])
def test_without_loss_agents_do_what_the_rehearsal_does(mode: Any) -> None:
    model = captured()
    with sliced_world(model, HYBRID, mode) as (_, run):
        trained(run, batches(8))
        found = run.fetch_state()[0]
    expected = rehearsed(model, HYBRID, mode)
    expected.train(batches(8))
    assert_equal_states(found, expected.state_dict())


def test_with_the_same_losses_agents_learn_what_the_rehearsal_learns() -> None:
    model, links = captured(), losing(0.2)
    with sliced_world(model, HYBRID, links=links) as (_, run):
        trained(run, batches(8))
        found = run.fetch_state()[0]
        heard = run.statistics()
    expected = rehearsed(model, HYBRID, links=links)
    expected.train(batches(8))
    assert_equal_states(found, expected.state_dict())
    whole = rehearsed(model, HYBRID)
    whole.train(batches(8))
    assert not torch.allclose(found["0.weight"], whole.state_dict()["0.weight"], atol=1e-4)
    told = [each for device in heard.values() for each in device.senders]
    lost = 1 - sum(each.arrived for each in told) / sum(each.datagrams for each in told)
    assert 0.1 < lost < 0.3


def test_a_reliable_step_loses_nothing_over_links_that_lose() -> None:
    model, links = captured(), losing(0.3)
    with sliced_world(model, HYBRID, links=links) as (_, run):
        trained(run, batches(6), reliable=True)
        found = run.fetch_state()[0]
    expected = rehearsed(model, HYBRID)
    expected.train(batches(6))
    assert_equal_states(found, expected.state_dict())


def test_evaluation_is_exact_over_links_that_lose() -> None:
    model, links = captured(), losing(0.3)
    (inputs, target) = next(batches(1))
    plain = network()
    expected = nn.functional.cross_entropy(plain(inputs), target).item()
    with sliced_world(model, HYBRID, links=links) as (_, run):
        parts = Batch(flatten_inputs(inputs, target), len(inputs)).microbatches(12)
        result = run.evaluate(parts)
    assert result.n_samples == BATCH
    assert result.loss == pytest.approx(expected, rel=1e-5)


def test_a_device_that_dies_is_a_mask_until_it_returns() -> None:
    model = captured()
    with sliced_world(model, HYBRID, copy_every=1) as (world, run):
        data = batches(30)
        trained(run, _first(data, 6))
        before = run.fetch_state()[0]
        world.fabric.kill("pi-1")
        wait_until(lambda: bool(run.absences), "the coordinator sees that pi-1 is gone")
        trained(run, _first(data, 6), first_step=6)
        away = run.fetch_state()[0]
        world.start("pi-1")
        wait_until(lambda: _is_back(run), "pi-1 has a part again")
        trained(run, _first(data, 6), first_step=12)
        back = run.fetch_state()[0]
        absences = run.absences
        (share,) = run.sliced.state["0.weight"][1]
    ((start, stop),) = share.spans[1]
    name = "0.weight"
    assert torch.equal(away[name][start:stop], before[name][start:stop])
    assert not torch.equal(away[name][:start], before[name][:start])
    assert not torch.equal(back[name][start:stop], before[name][start:stop])
    (absence,) = absences
    assert (absence.device, absence.first_step) == ("pi-1", 5)
    assert absence.stop_step == 11


def test_a_group_without_a_device_ends_the_run_by_name() -> None:
    model = captured()
    vertical = (Group(0, 2, 1), Group(2, 6, 1))
    with sliced_world(model, vertical) as (world, run):
        trained(run, batches(2))
        world.fabric.kill("pi-1")
        wait_until(lambda: bool(run.absences), "the coordinator sees that pi-1 is gone")
        with pytest.raises(DeviceLost, match=r"^no device of group 1 \(pi-1\) is there, and "):
            trained(run, batches(2), first_step=2)


def _is_back(run: SliceRun) -> bool:
    """Whether nobody is away, looking again before another round."""
    inputs, target = next(batches(1))
    run.evaluate([Batch(flatten_inputs(inputs, target), len(inputs))])
    return all(each.stop_step is not None for each in run.absences)


def _first(data: Any, n: int) -> Any:
    return (next(data) for _ in range(n))


@pytest.mark.parametrize("share", [0.0, pytest.param(0.2, marks=pytest.mark.slow)])
def test_with_a_codec_less_travels_and_almost_the_same_is_learnt(share: float) -> None:
    model, links = captured(), losing(share)
    sent, losses = [], []
    for codec in (None, uniform(8)):
        with sliced_world(model, HYBRID, links=links, codec=codec) as (_, run):
            losses.append(trained(run, batches(8)))
            sent.append(sum(each.bytes_out for each in run.statistics().values()))
    assert sent[1] < 0.5 * sent[0]
    if not share:
        assert losses[1] == pytest.approx(losses[0], abs=0.01)
    assert all(loss < 6 for loss in losses[1])
