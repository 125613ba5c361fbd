"""Super neurons rehearsed in one process: against plain training, other pipelines, and by hand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.stale_stages import Order, StalePipeline
from edgeweave.plan.super_neurons import horizontal_slots, pipelined_slots
from edgeweave.program import Captured, Group, Mode, Sliced, capture, cut, slice_program
from edgeweave.train.slices.link_fates import Fates, losses_on_all_links
from edgeweave.train.slices.rehearsal import Rehearsal, RehearsalSetup

BATCH = 12


def network() -> nn.Module:
    torch.manual_seed(3)
    layers: list[nn.Module] = []
    for n_in, n_out in ((8, 12), (12, 12), (12, 12), (12, 12)):
        layers += [nn.Linear(n_in, n_out), nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(12, 3))


def example(loss: Any = nn.functional.cross_entropy) -> Captured:
    return capture(network(), loss, torch.randn(4, 8), torch.randint(3, (4,)))


def batches(n: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    chance = torch.Generator().manual_seed(7)
    for _ in range(n):
        inputs = torch.randn(BATCH, 8, generator=chance)
        yield inputs, (inputs[:, :3].argmax(1))


def sgd(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.2)


def sliced(captured: Captured, *groups: tuple[int, int, int], mode: Mode = "exchange") -> Sliced:
    return slice_program(captured.program, [Group(*group) for group in groups], mode)


def rehearsal(captured: Captured, cut_up: Sliced, loss: float = 0.0, **options: Any) -> Rehearsal:
    per = options.pop("per", "datagram")
    names = [f"pi-{index}" for index in range(len(cut_up.members))]
    fates = Fates(losses_on_all_links(loss, 1), per=per)
    return Rehearsal(cut_up, captured.state, sgd, fates, RehearsalSetup(names, **options))


HYBRID = ((0, 2, 2), (2, 6, 2))
VERTICAL = ((0, 2, 1), (2, 4, 1), (4, 6, 1))


@pytest.mark.parametrize("groups", [HYBRID, ((0, 6, 3),)])
def test_without_loss_and_pipelining_it_trains_as_one_process_does(groups: Any) -> None:
    captured = example()
    found = rehearsal(captured, sliced(captured, *groups), is_pipelined=False)
    assert found.train(batches(10)) == 10
    model = network()
    optimizer = sgd(list(model.parameters()))
    for inputs, target in batches(10):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), target).backward()
        optimizer.step()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("delivery", ["tolerant", "dropping", "retransmitting"])
def test_without_loss_a_pipeline_of_single_devices_is_the_asynchronous_one(delivery: Any) -> None:
    captured = example()
    found = rehearsal(captured, sliced(captured, *VERTICAL), delivery=delivery)
    found.train(batches(12))
    other = StalePipeline(cut(captured.program, (2, 4)), captured.state, sgd, Order(), seed=0)
    other.train(([batch] for batch in batches(12)), [0.2] * 12)
    for name, tensor in other.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], tensor, rtol=1e-6, atol=1e-7)


def test_its_clock_counts_the_slots_of_the_formulas() -> None:
    captured = example()
    thirds = sliced(captured, (0, 1, 1), (1, 3, 2), (3, 6, 1))
    for cut_up, expected in (
        (thirds, pipelined_slots(5, 2, 9)),
        (sliced(captured, (0, 6, 4)), horizontal_slots(5, 9)),
    ):
        found = rehearsal(captured, cut_up)
        found.train(batches(9))
        assert found.slots == expected


def test_it_stops_when_its_slots_are_over() -> None:
    captured = example()
    found = rehearsal(captured, sliced(captured, (0, 6, 2)))
    assert found.train(batches(100), slots=90) == 10


def test_a_lost_message_ends_the_microbatch_of_a_dropping_pipeline() -> None:
    """Nothing gets past the first stage, so no weight changes anywhere."""
    captured = example()
    found = rehearsal(captured, sliced(captured, *VERTICAL), loss=1.0, delivery="dropping")
    assert found.train(batches(6)) == 6
    assert found.n_broken == 6
    assert all(torch.equal(t, captured.state[n]) for n, t in found.state_dict().items())


def test_sending_again_loses_nothing_and_takes_time() -> None:
    captured = example()
    cut_up = sliced(captured, *VERTICAL)
    exact = rehearsal(captured, cut_up, delivery="retransmitting")
    lossy = rehearsal(captured, cut_up, loss=0.6, delivery="retransmitting")
    for each in (exact, lossy):
        each.train(batches(10))
    assert lossy.slots > exact.slots
    for name, tensor in exact.state_dict().items():
        assert torch.equal(lossy.state_dict()[name], tensor)


def test_a_dead_device_is_a_mask_and_trains_again_when_it_returns() -> None:
    captured = example()
    cut_up = sliced(captured, *HYBRID)
    dead = rehearsal(captured, cut_up, deaths={"pi-1": (0.0, 1e9)})
    dead.train(batches(8))
    (share,) = cut_up.state["0.weight"][1]
    ((start, stop),) = share.spans[1]
    before, after = captured.state["0.weight"], dead.state_dict()["0.weight"]
    assert torch.equal(after[start:stop], before[start:stop])
    assert not torch.equal(after[:start], before[:start])
    returned = rehearsal(captured, cut_up, deaths={"pi-1": (0.0, 10.0)})
    returned.train(batches(8))
    assert not torch.equal(returned.state_dict()["0.weight"][start:stop], before[start:stop])


class Known(Fates):
    """Links whose reception is known, as it is in the long run."""

    def __init__(self, share: float, seed: int, per: Any) -> None:
        super().__init__(losses_on_all_links(1 - share, seed), per=per)
        self._share = share

    def scale(self, source: str, target: str) -> float:
        return 1 / self._share


@pytest.mark.parametrize(
    ("groups", "per"),
    [
        (HYBRID, "message"),
        pytest.param(HYBRID, "datagram", marks=pytest.mark.slow),
        pytest.param(((0, 6, 3),), "message", marks=pytest.mark.slow),
        pytest.param(((0, 6, 3),), "datagram", marks=pytest.mark.slow),
    ],
)
def test_the_mean_of_gradients_under_loss_is_the_gradient_without(groups: Any, per: Any) -> None:
    """Where nothing bends (no activation, a loss that adds up), masks are the only chance."""
    torch.manual_seed(0)
    layers = [nn.Linear(6, 6, bias=False) for _ in range(5)]
    for layer in layers:
        nn.init.orthogonal_(layer.weight)
    inputs, target = torch.randn(2, 6), torch.randn(2, 6)

    def product(output: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        return (output * wanted).sum(1).mean()

    captured = capture(nn.Sequential(*layers), product, inputs, target)
    cut_up = sliced(captured, *groups)
    names = [f"pi-{index}" for index in range(len(cut_up.members))]
    n_draws = 500
    fates = Known(0.8, 5, per)
    total = {name: torch.zeros_like(tensor) for name, tensor in captured.state.items()}
    for _ in range(n_draws):
        found = Rehearsal(
            cut_up,
            captured.state,
            lambda parameters: torch.optim.SGD(parameters, lr=1.0),
            fates,
            RehearsalSetup(names),
        )
        found.train(iter([(inputs, target)]))
        for name, tensor in found.state_dict().items():
            total[name] += captured.state[name] - tensor
    exact = Rehearsal(
        cut_up,
        captured.state,
        lambda parameters: torch.optim.SGD(parameters, lr=1.0),
        Known(1.0, 0, per),
        RehearsalSetup(names),
    )
    exact.train(iter([(inputs, target)]))
    for name, tensor in exact.state_dict().items():
        gradient = captured.state[name] - tensor
        error = (total[name] / n_draws - gradient).norm() / gradient.norm()
        assert error < 0.2, name


def test_what_is_learnt_of_links_is_what_they_lose() -> None:
    fates = Fates(losses_on_all_links({("a", "b"): 0.3, ("b", "a"): 0.0}, 2))
    for _ in range(200):
        fates.arrived("a", "b", 10)
        fates.arrived("b", "a", 10)
    assert fates.scale("a", "b") == pytest.approx(1 / 0.7, rel=0.05)
    assert fates.scale("b", "a") == 1.0
    assert fates.scale("a", "c") == 1.0
