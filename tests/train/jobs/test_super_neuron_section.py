"""``SuperNeuronTrainer`` from data to weights, its plan, its report and its command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import TensorDataset

import edgeweave as ew
from edgeweave.cli import main
from edgeweave.core.errors import ConfigError
from edgeweave.net import Links, LinkShape
from edgeweave.plan import SlicePlan
from edgeweave.program import Group
from edgeweave.train.jobs.job import load_job
from tests.train.sliced_worlds import losing, lossy_fleet

pytestmark = pytest.mark.timeout(180)
DEVICES = ("pi-0", "pi-1", "pi-2", "pi-3")
SGD = ew.Optimizer("SGD", lr=0.3)


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(12, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 3)
    )


def samples(n: int, seed: int) -> TensorDataset:
    inputs = torch.randn(n, 12, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(inputs, inputs[:, :3].argmax(1))


def accuracy(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return (output.argmax(1) == target).float().mean()


def trainer(fleet: ew.Fleet, **options: Any) -> ew.SuperNeuronTrainer:
    return ew.SuperNeuronTrainer(
        model(),
        nn.functional.cross_entropy,
        optimizer=SGD,
        fleet=fleet,
        metrics={"accuracy": accuracy},
        **{"groups": [(1, 2), (2, 2)], "delivery": "tolerant", **options},
    )


def test_over_links_that_lose_it_learns_what_one_device_learns_almost() -> None:
    train_set, test_set = samples(640, 1), samples(500, 2)
    with lossy_fleet(*DEVICES, links=losing(0.2)) as world:
        used = trainer(world.fleet)
        report = used.fit(train_set, batch_size=32, epochs=3, validate=test_set, progress=False)
        evaluated = used.evaluate(test_set, batch_size=100)
    assert 0.1 < report.lost_share < 0.3
    last = report.epochs[-1].validation
    assert last is not None
    assert last.metrics["accuracy"] > 0.8
    assert evaluated.metrics["accuracy"] == pytest.approx(last.metrics["accuracy"])
    assert (report.n_samples, len(report.step_losses)) == (3 * 640, 60)
    learnt = model()
    learnt.load_state_dict(used.state_dict())
    inputs, target = test_set.tensors
    assert accuracy(learnt(inputs), target).item() == pytest.approx(last.metrics["accuracy"])
    members = [member.statistics for member in report.members if member.statistics]
    told = [each for member in members for each in member.senders]
    assert {each.sender for each in told} == set(DEVICES)
    assert all(0.6 < each.share <= 1 for each in told)


@pytest.mark.slow
def test_by_itself_it_plans_for_all_devices_and_tries_both_ways_to_send() -> None:
    with lossy_fleet(*DEVICES, links=losing(0.3)) as world:
        used = trainer(world.fleet, groups="auto", delivery="auto")
        report = used.fit(samples(3000, 1), batch_size=32, epochs=1, progress=False)
    plan = used.plan
    assert plan is not None
    assert sorted(plan.devices) == list(DEVICES)
    assert all(group.n_members >= 2 for group in plan.groups)
    assert plan.predicted is not None
    assert len(report.choices) == 1


@pytest.mark.slow
def test_edgepipes_groups_and_a_plan_of_ones_own_are_taken() -> None:
    with lossy_fleet(*DEVICES) as world:
        plan = trainer(world.fleet, groups="edgepipe").prepare(samples(32, 1), batch_size=32)
        assert [group.n_members for group in plan.groups] == [2, 1, 1]
        own = SlicePlan((Group(0, 4, 3),), DEVICES[:3])
        used = trainer(world.fleet, plan=own)
        report = used.fit(samples(64, 1), batch_size=32, progress=False)
    assert report.plan == own


def test_groups_have_all_layers() -> None:
    with lossy_fleet(*DEVICES) as world:
        wrong = trainer(world.fleet, groups=[(1, 2), (1, 2)])
        with pytest.raises(ConfigError, match=r"^groups have all layers of the model, .* has 3; g"):
            wrong.prepare(samples(32, 1), batch_size=32)


def test_words_that_mean_nothing_are_refused() -> None:
    refused = pytest.raises(ConfigError, match=r"^unknown delivery 'soon' \(known: tolerant, ")
    with lossy_fleet("pi-0") as world, refused:
        trainer(world.fleet, delivery="soon")


JOB = """
[model]
factory = "mlp"
args = {n_inputs = 64, n_classes = 10, hidden = [32, 32]}

[optimizer]
name = "SGD"
lr = 0.1

[data]
source = "digits"

[metrics]
accuracy = "accuracy"

[train]
batch_size = 32
epochs = 4

[fleet]
file = "fleet.toml"

[super_neurons]
groups = [[2, 2], [1, 1]]
delivery = "tolerant"
"""

FLEET = """
[[devices]]
name = "pi-a"
[[devices]]
name = "pi-b"
[[devices]]
name = "pi-c"
[links.default]
loss = 0.1
"""


def test_the_section_is_read_and_its_absence_means_stages(tmp_path: Path) -> None:
    path = tmp_path / "job.toml"
    path.write_text(JOB)
    job = load_job(path, environment={}, overrides={})
    assert job.super_neurons is not None
    assert job.super_neurons.groups == ((2, 2), (1, 1))
    path.write_text(JOB[: JOB.index("[super_neurons]")])
    assert load_job(path, environment={}, overrides={}).super_neurons is None
    again = load_job(path, environment={}, overrides={"super_neurons.mode": "grouped"})
    assert again.super_neurons is not None
    assert again.super_neurons.mode == "grouped"


def test_a_plan_is_explained_by_what_devices_and_links_were_measured_to_take() -> None:
    with lossy_fleet(*DEVICES) as world:
        used = trainer(world.fleet)
        found = used.explain(samples(64, 1), batch_size=32)
        assert used.plan == found.plan
        with pytest.raises(ConfigError, match=r"^a plan is explained when it is made \(this"):
            used.explain(samples(64, 1), batch_size=32)
    assert [group.n_members for group in found.plan.groups] == [2, 2]
    assert found.plan.predicted == found.predicted
    assert [each.device for each in found.members] == list(found.plan.devices)
    assert [each.n_layers for each in found.members] == [1, 1, 2, 2]
    assert sum(each.weights_share for each in found.members) == pytest.approx(1.0)
    assert found.predicted.step_seconds >= max(each.compute_seconds for each in found.members[:2])
    assert 0 < found.predicted.lost_share + found.predicted.kept <= 1.0 + 1e-9


def test_plans_of_super_neurons_are_neither_saved_nor_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "job.toml").write_text(JOB)
    assert main(["plan", str(tmp_path / "job.toml"), "--save", str(tmp_path / "plan.json")]) != 0
    assert "a plan of super neurons is made anew by each training" in capsys.readouterr().err


@pytest.mark.wire
@pytest.mark.slow
def test_edgeweave_plan_shows_slices_and_what_is_predicted_of_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "job.toml").write_text(JOB)
    (tmp_path / "fleet.toml").write_text(FLEET)
    assert main(["plan", str(tmp_path / "job.toml"), "--json"]) == 0
    told = capsys.readouterr()
    document = json.loads(told.out)
    assert document["command"] == "plan"
    assert [group["n_members"] for group in document["plan"]["groups"]] == [2, 1]
    assert sorted(document["plan"]["devices"]) == ["pi-a", "pi-b", "pi-c"]
    explanation = document["explanation"]
    assert explanation["predicted"] == document["plan"]["predicted"]
    assert 0.02 < explanation["predicted"]["lost_share"] < 0.3
    assert [each["n_layers"] for each in explanation["members"]] == [2, 2, 1]
    assert "Plan: super neurons, mode exchange, 2 groups" in told.err
    for line in explanation["lines"]:
        assert line in told.err


@pytest.mark.wire
@pytest.mark.slow
def test_edgeweave_train_trains_in_slices_over_processes_whose_links_lose(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "job.toml").write_text(JOB)
    (tmp_path / "fleet.toml").write_text(FLEET)
    saved = tmp_path / "weights.safetensors"
    assert main(["train", str(tmp_path / "job.toml"), "--save", str(saved), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)["report"]
    assert 0.05 < report["lost_share"] < 0.2
    assert report["epochs"][-1]["validation"]["metrics"]["accuracy"] > 0.4
    assert all(torch.isfinite(tensor).all() for tensor in load_file(saved).values())


@pytest.mark.wire
@pytest.mark.slow
def test_a_killed_process_is_a_mask_and_comes_back_with_what_it_had_learnt() -> None:
    fleet = ew.Fleet.local(
        [ew.Device(name) for name in DEVICES],
        links=Links(LinkShape(loss=0.1)),
        chaos=ew.Chaos().restart("pi-1", at_step=10, for_seconds=1.0),
    )
    with fleet:
        used = trainer(fleet)
        report = used.fit(samples(40_000, 1), batch_size=32, epochs=1, progress=False)
    (absence,) = report.absences
    assert absence.device == "pi-1"
    assert absence.first_step >= 10
    assert absence.stop_step is not None
    assert report.step_losses[-1] < 0.5


@pytest.mark.slow
def test_a_run_resumes_from_its_checkpoint_on_other_groups(tmp_path: Path) -> None:
    """With nothing lost and one group, sums over slices are all that differs."""
    momentum = ew.Optimizer("SGD", lr=0.1, momentum=0.9)
    with lossy_fleet(*DEVICES) as world:

        def run(groups: Any, epochs: int, name: str, resume: bool) -> dict[str, torch.Tensor]:
            used = ew.SuperNeuronTrainer(
                model(),
                nn.functional.cross_entropy,
                optimizer=momentum,
                fleet=world.fleet,
                groups=groups,
                delivery="reliable",
            )
            report = used.fit(
                samples(160, 1),
                batch_size=32,
                epochs=epochs,
                checkpoint=tmp_path / name,
                resume=resume,
                progress=False,
            )
            assert len(report.step_losses) == 5 * epochs
            return used.state_dict()

        whole = run([(3, 4)], 2, "whole", False)
        run([(3, 4)], 1, "parts", False)
        resumed = run([(3, 3)], 2, "parts", True)
    for name, tensor in whole.items():
        torch.testing.assert_close(resumed[name], tensor, rtol=1e-4, atol=1e-5)
