"""GossipTrainer over agents: they agree, they outlive their coordinator, they come and go."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional
from torch.utils.data import TensorDataset

import edgeweave as ew
from edgeweave.core.errors import ConfigError, DeviceFailed, FleetError
from edgeweave.data import ArrayDataset, Split, load_source
from edgeweave.device import PeerStatus, SourceData
from edgeweave.fleet import Fleet
from edgeweave.gossip import DeviceFiles, GossipTrainer, Members, mean_state, running
from edgeweave.mixing import ALGORITHMS, Algorithm, BalanceSettings, edges_in
from edgeweave.net import Frame, FrameHeader, NetSettings, frame_key, specs_of
from edgeweave.train.metrics import accuracy
from edgeweave.train.models import mlp
from tests.fleet.worlds import QUICK, MemoryFleet, memory_fleet, wait_until

DIGITS = load_source("digits", path=None)
FILES = DeviceFiles("digits", own=False)
SAMPLED = [
    "ad-psgd",
    *(pytest.param(each, marks=pytest.mark.slow) for each in ALGORITHMS if each != "ad-psgd"),
]
"""All; the rest than the first are slow, and D-PSGD is held against the virtual clock anyway."""


def trainer_of(fleet: ew.Fleet, **options: object) -> GossipTrainer:
    torch.manual_seed(0)
    return GossipTrainer(
        mlp(64, 10, hidden=(24,)),
        functional.cross_entropy,
        optimizer=ew.Optimizer("SGD", lr=0.1, momentum=0.9),
        fleet=fleet,
        metrics={"accuracy": accuracy},
        **options,  # type: ignore[arg-type]
    )


@pytest.fixture(scope="module")
def world() -> Iterator[MemoryFleet]:
    with memory_fleet("a", "b", "c", "d") as found:
        yield found


@pytest.mark.parametrize("algorithm", SAMPLED)
def test_real_peers_learn_and_agree(world: MemoryFleet, algorithm: Algorithm) -> None:
    trainer = trainer_of(world.fleet, algorithm=algorithm, balance=False)
    report = trainer.fit(FILES, batch_size=32, epochs=8, validate=DIGITS.test)
    assert report.evaluation is not None
    assert report.evaluation.metrics["accuracy"] > 0.9
    assert report.consensus_distance < 0.5
    assert [peer.device for peer in report.peers] == ["a", "b", "c", "d"]
    for peer in report.peers:
        assert peer.there
        assert peer.status is not None
        assert peer.status.steps_here == peer.status.steps == 90
        assert peer.status.n_samples > 2600
        assert peer.evaluation is not None
        assert peer.evaluation.metrics["accuracy"] > 0.85
    model = mlp(64, 10, hidden=(24,))
    model.load_state_dict(trainer.state_dict())
    inputs, targets = DIGITS.test.batch(torch.arange(len(DIGITS.test)))
    found = accuracy(model(inputs), targets).item()
    assert found == pytest.approx(report.evaluation.metrics["accuracy"], abs=1e-6)
    assert running(world.fleet) == {}


def test_d_psgd_over_agents_gives_the_bits_of_the_virtual_clock(world: MemoryFleet) -> None:
    from .runs import plain, run_of, settings_of  # noqa: PLC0415

    trainer = trainer_of(world.fleet, balance=False, importance="none")
    report = trainer.fit(FILES, batch_size=32, epochs=1, validate=DIGITS.test)
    virtual = run_of(plain(settings_of("ring", 4)), steps=12)
    assert virtual.run()
    assert report.peers[0].status is not None
    assert report.peers[0].status.steps == 12
    mean = torch.stack(list(virtual.models().values())).mean(dim=0)
    found = torch.cat([tensor.reshape(-1) for tensor in trainer.state_dict().values()])
    assert torch.equal(found, mean)


def test_peers_that_were_never_told_to_begin_are_not_waited_for_without_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Members, "begin", lambda _self, _steps: None)
    with memory_fleet("a", "b", timeouts=replace(QUICK, work=3.0)) as world:
        trainer = trainer_of(world.fleet, balance=False)
        with pytest.raises(FleetError, match=r"^a, b of run .* were not told to begin for 3 s"):
            trainer.fit(FILES, batch_size=32, epochs=1, validate=DIGITS.test)


@pytest.mark.slow
def test_shards_are_sent_once_and_skewed_as_asked(world: MemoryFleet) -> None:
    trainer = trainer_of(world.fleet, balance=False)
    report = trainer.fit(
        DIGITS.train,
        batch_size=32,
        epochs=8,
        split=Split("sizes", alpha=1.0),
        validate=DIGITS.test,
    )
    sizes = [peer.enrolled.n_samples for peer in report.peers if peer.enrolled is not None]
    assert sum(sizes) == len(DIGITS.train)
    assert max(sizes) > 1.5 * min(sizes)
    assert report.evaluation is not None
    assert report.evaluation.metrics["accuracy"] > 0.85


def test_a_fixed_share_scores_points_and_says_what_they_cost(world: MemoryFleet) -> None:
    trainer = trainer_of(world.fleet, balance=BalanceSettings(share=0.5), group_size=4)
    report = trainer.fit(FILES, batch_size=32, epochs=2, validate=DIGITS.test)
    for peer in report.peers:
        assert peer.status is not None
        assert peer.enrolled is not None
        assert peer.status.share == pytest.approx(0.5, abs=0.1)
        assert peer.status.scoring_seconds > 0
        assert peer.enrolled.n_groups > 50
        assert peer.enrolled.grouping_bytes > 50 * 64 * 4


def test_another_process_finds_the_run_and_fetches_its_results(world: MemoryFleet) -> None:
    first = trainer_of(world.fleet, balance=False)
    run = first.start(FILES, batch_size=32, epochs=6, example=DIGITS.test)
    net = NetSettings(timeouts=QUICK)
    with Fleet.over(world.fabric.join, net, devices=["a", "b", "c", "d"]) as other:
        assert {status.run for status in running(other).values()} == {run}
        second = trainer_of(other)
        seen: list[dict[str, PeerStatus]] = []
        report = second.collect(validate=DIGITS.test, on_status=lambda each: seen.append({**each}))
        assert report.run == run
        assert report.evaluation is not None
        assert report.evaluation.metrics["accuracy"] > 0.8
        assert all(status.phase == "finished" for status in seen[-1].values())
        with pytest.raises(FleetError, match="one gossip run to go on with"):
            second.collect()


def test_a_run_that_is_stopped_keeps_its_models_and_is_fetched_as_at_its_end(
    world: MemoryFleet,
) -> None:
    trainer = trainer_of(world.fleet, balance=False)
    run = trainer.start(FILES, batch_size=8, epochs=200, example=DIGITS.test)
    wait_until(lambda: min(s.step for s in running(world.fleet).values()) > 20, "some steps")
    members = Members.of_run(world.fleet, run)
    assert members.stop() == ("a", "b", "c", "d")
    stopped = members.statuses()
    assert {status.phase for status in stopped.values()} == {"finished"}
    assert max(status.step for status in stopped.values()) < 200 * 45
    assert world.fleet.greet("a").run is None  # free for others
    models = members.models(members.devices)
    report = trainer.collect(validate=DIGITS.test)
    for name, tensor in mean_state(list(models.values())).items():
        assert torch.equal(trainer.state_dict()[name], tensor)
    assert 0 < report.seconds < 60
    assert all(peer.there for peer in report.peers)


def test_a_run_that_never_began_is_gone_when_it_is_stopped(
    world: MemoryFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Members, "begin", lambda _self, _steps: None)
    run = trainer_of(world.fleet).start(FILES, batch_size=32, example=DIGITS.test)
    assert Members.of_run(world.fleet, run).stop() == ("a", "b", "c", "d")
    assert running(world.fleet) == {}
    assert world.fleet.greet("a").run is None


def test_a_device_that_leaves_in_order_says_so_and_nobody_waits_for_it() -> None:
    with memory_fleet("a", "b", "c") as world:
        trainer = trainer_of(world.fleet, algorithm="push-sum", balance=False)
        trainer.start(FILES, batch_size=8, epochs=8, example=DIGITS.test)
        wait_until(lambda: running(world.fleet)["b"].step > 5, "some steps")
        world.agents["b"].__exit__(None, None, None)
        report = trainer.collect(validate=DIGITS.test)
    assert [peer.there for peer in report.peers] == [True, False, True]
    for peer in (report.peers[0], report.peers[2]):
        assert peer.status is not None
        assert peer.status.edges_lost == 0  # it said good-bye before it went
        assert peer.status.step == peer.status.steps
    assert report.evaluation is not None
    assert report.evaluation.metrics["accuracy"] > 0.8


def test_a_device_that_nobody_knew_is_let_in_and_learns_with_the_others() -> None:
    with memory_fleet("a", "b", "c") as world:
        world.start("new")
        trainer = trainer_of(world.fleet, balance=False)
        run = trainer.start(FILES, batch_size=8, epochs=5, example=DIGITS.test)
        wait_until(lambda: running(world.fleet)["b"].step > 5, "some steps")
        members = Members.of_run(world.fleet, run)
        assert members.admit("new", SourceData("digits")) == ("a", "b")
        report = trainer.collect(validate=DIGITS.test)
    assert [peer.device for peer in report.peers] == ["a", "b", "c", "new"]
    for peer in report.peers:
        assert peer.there
        assert peer.status is not None
        assert peer.status.error is None
        assert peer.status.step == peer.status.steps
        assert peer.evaluation is not None
        assert peer.evaluation.metrics["accuracy"] > 0.8
    joined = report.peers[-1].status
    assert joined is not None
    assert 0 < joined.steps_here < joined.steps


def test_runs_whose_peers_agreed_on_pairs_let_nobody_in(world: MemoryFleet) -> None:
    trainer = trainer_of(world.fleet, algorithm="gossip-sgd", balance=False)
    run = trainer.start(FILES, batch_size=8, epochs=200, example=DIGITS.test)
    members = Members.of_run(world.fleet, run)
    try:
        wait_until(lambda: running(world.fleet)["a"].step > 0, "a step")
        with pytest.raises(ConfigError, match="devices join runs of d-psgd and push-sum"):
            members.admit("new", SourceData("digits"))
    finally:
        members.release()


def test_a_device_without_a_step_of_its_own_does_not_count_in_the_mean() -> None:
    """Bug: one that came back when all was over brought its first model, or one twice."""
    from edgeweave.gossip.trainer import _that_learnt  # noqa: PLC0415

    done = {
        "a": PeerStatus("r", "finished", step=9, steps=9, steps_here=9),
        "b": PeerStatus("r", "finished", step=9, steps=9, steps_here=0),
        "c": PeerStatus("r", "finished", step=4, steps=9, steps_here=4, error="it broke"),
    }
    assert _that_learnt(done) == ["a"]
    assert _that_learnt({"b": done["b"], "c": done["c"]}) == ["b"]


def test_a_run_released_while_it_is_enrolled_leaves_nobody_busy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Bug: its threads and the request waited for each other; then nobody released the device."""
    from edgeweave.device.peers import place as peer_place  # noqa: PLC0415

    with memory_fleet("a", "b") as world:
        reading, go_on = threading.Event(), threading.Event()
        prepare = peer_place.PeerRun

        def slow(*arguments: object, **options: object) -> peer_place.PeerRun:
            reading.set()
            go_on.wait(10.0)
            return prepare(*arguments, **options)  # type: ignore[arg-type]

        monkeypatch.setattr(peer_place, "PeerRun", slow)
        failed: list[BaseException] = []

        def start() -> None:
            try:
                trainer_of(world.fleet).start(FILES, batch_size=32, example=DIGITS.test)
            except FleetError as error:
                failed.append(error)

        starting = threading.Thread(target=start)
        starting.start()
        assert reading.wait(10.0)
        wait_until(lambda: world.fleet.greet("a").run is not None, "a is busy")
        run = world.fleet.greet("a").run
        assert run is not None
        Members(world.fleet, run, ("a", "b")).release()
        go_on.set()
        starting.join(20.0)
        assert "was released before it was enrolled" in str(failed[0])
        wait_until(lambda: world.fleet.greet("a").run is None, "a is free")
        wait_until(lambda: world.fleet.greet("b").run is None, "b is free")


def test_a_device_is_busy_while_it_gossips_and_free_afterwards(world: MemoryFleet) -> None:
    trainer = trainer_of(world.fleet)
    trainer.start(FILES, batch_size=8, epochs=30, example=DIGITS.test)
    with pytest.raises(ew.DeviceBusy, match="already works for gossip-"):
        trainer_of(world.fleet).start(FILES, batch_size=32, example=DIGITS.test)
    assert world.fleet.greet("a").run is not None
    world_run = next(iter(running(world.fleet).values())).run
    assert world_run is not None
    from edgeweave.gossip import Members  # noqa: PLC0415

    Members(world.fleet, world_run, world.fleet.devices).release()
    assert world.fleet.greet("a").run is None


def test_messages_that_make_no_sense_are_dropped_and_disturb_nobody(world: MemoryFleet) -> None:
    trainer = trainer_of(world.fleet, balance=False)
    run = trainer.start(FILES, batch_size=16, epochs=4, example=DIGITS.test)
    tensors = {"model": torch.zeros(3)}
    with world.fabric.join("stranger") as stranger:
        for kind, sent in (("hello", {}), ("model", tensors), ("state", tensors), ("nonsense", {})):
            header = FrameHeader(kind, "stranger", 7, 0, 0, 0, specs_of(sent))
            key = frame_key("default", run, 0, 0, kind)
            stranger.send(key, Frame(header, tuple(sent.values())), device="a")
        report = trainer.collect(validate=DIGITS.test)
    assert all(peer.status is not None and peer.status.error is None for peer in report.peers)
    assert all(peer.status is not None and peer.status.phase == "finished" for peer in report.peers)


def test_a_topology_of_other_devices_is_refused(world: MemoryFleet) -> None:
    graph = edges_in("x y", ["x", "y"], origin="edges.txt")
    with pytest.raises(ConfigError, match="a topology is of the fleet's devices"):
        trainer_of(world.fleet, topology=graph).fit(DIGITS.train, batch_size=8)


def test_files_that_are_not_there_are_told_by_the_device_and_leave_nobody_busy(
    world: MemoryFleet, tmp_path: Path
) -> None:
    files = DeviceFiles("npz", tmp_path / "none.npz")
    with pytest.raises(ConfigError, match="there is no such file"):
        trainer_of(world.fleet).fit(files, batch_size=8, validate=DIGITS.test)

    def nobody_is_busy() -> bool:
        return all(world.fleet.greet(device).run is None for device in "abcd")

    wait_until(nobody_is_busy, "the others to have ended what they had begun")


def test_importance_of_real_targets_is_refused_with_the_way_out(world: MemoryFleet) -> None:
    data = ArrayDataset(torch.randn(40, 64), torch.randn(40, 10))
    trainer = GossipTrainer(
        mlp(64, 10),
        functional.mse_loss,
        optimizer=ew.Optimizer("SGD", lr=0.1),
        fleet=world.fleet,
    )
    with pytest.raises(ConfigError, match="Use balance with a random choice"):
        trainer.fit(data, batch_size=8)


def test_a_model_of_other_floats_is_refused_before_anything_is_sent(world: MemoryFleet) -> None:
    data = TensorDataset(torch.randn(40, 64, dtype=torch.float64), torch.randint(10, (40,)))
    trainer = GossipTrainer(
        mlp(64, 10).double(),
        functional.cross_entropy,
        optimizer=ew.Optimizer("SGD", lr=0.1),
        fleet=world.fleet,
    )
    with pytest.raises(ew.CaptureError, match="gossip mixes float32"):
        trainer.fit(data, batch_size=8)


@pytest.mark.slow
def test_a_killed_peer_stops_nobody_and_a_neighbour_enrols_it_again() -> None:
    with memory_fleet("a", "b", "c", "d") as world:
        trainer = trainer_of(world.fleet, balance=False)
        trainer.start(FILES, batch_size=8, epochs=20, example=DIGITS.test)
        wait_until(lambda: running(world.fleet)["b"].step > 20, "some steps")
        world.fabric.kill("b")
        world.agents["b"].__exit__(None, None, None)
        before = running(world.fleet)["a"].step
        wait_until(lambda: running(world.fleet)["a"].step > before + 20, "steps without b")
        world.start("b")
        wait_until(lambda: "b" in running(world.fleet), "b is enrolled again")
        report = trainer.collect(validate=DIGITS.test)
    back = report.peers[1]
    assert back.device == "b"
    assert back.there
    assert back.status is not None
    assert 0 < back.status.steps_here < back.status.steps
    assert back.evaluation is not None
    assert back.evaluation.metrics["accuracy"] > 0.85
    assert report.evaluation is not None
    assert report.evaluation.metrics["accuracy"] > 0.9


def test_a_run_in_which_nobody_can_go_on_says_why() -> None:
    with memory_fleet("a", "b") as world:
        trainer = GossipTrainer(
            mlp(64, 10),
            functional.cross_entropy,
            optimizer=ew.Optimizer("SGD", lr=0.1),
            fleet=world.fleet,
            topology="full",
        )
        targets = torch.full((40,), 99)
        targets[:2] = 0  # what the model is captured with
        data = ArrayDataset(torch.randn(40, 64), targets)
        with pytest.raises(DeviceFailed, match=r"can go on \(IndexError: Target 99 is out of"):
            trainer.fit(data, batch_size=8)
