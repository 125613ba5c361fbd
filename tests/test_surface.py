"""What users may rely on: the public names, the tree of errors, and that no other error leaves."""

from __future__ import annotations

import importlib
import pkgutil
import re
import subprocess
import sys

import pytest

import edgeweave
from edgeweave.core import errors
from edgeweave.net.remote import decode_error, encode_error

PUBLIC = {
    "edgeweave": """
        BalanceSettings CaptureError Chaos CheckpointError ConfigError Device DeviceBusy
        DeviceError DeviceFailed DeviceFiles DeviceLost DeviceTimeout EdgeweaveError Endpoint
        Evaluation Fleet FleetDescription FleetError FormatError GossipReport GossipTrainer
        LRSchedule LinkShape Links NetSettings Optimizer PipelineTrainer Plan PlanError
        QueueFull Report RequestError RequestTimeout ServeOptions Split SuperNeuronReport
        SuperNeuronTrainer Timeouts TlsFiles VersionError WireError __version__ load_fleet
        load_preset serve
    """,
    "edgeweave.data": """
        ArrayDataset DataPair NORMALISATIONS Normalisation SOURCES Split SplitKind deal
        load_source told_split
    """,
    "edgeweave.device": """
        Admit Agent AgentSettings Agreement Assignment BeginGossip COORDINATOR CodingProbe
        CodingSeconds Data Deploy DeploySlice Emulate Enrol Enrolled Fault Fetch FrameId
        Greeting Halt Holdings Inbox Layout Learner LinkProbe LinkTimings MemberMoved
        ModelRequest Optimizer Outboxes PeerStatus Place ProbeRequest Profile Pulse Relay
        Release Replicate Retire Roster Rows RunStatus SelectionCosts SenderStatistics SentData
        Serve Served ServiceLevel ServingStatistics SliceAssignment SliceStatistics SourceData
        StageStatistics StageTiming StateRequest StopGossip TraceEvent UnitTimings as_mapping
        build coding_names decode_message encode_message layout_of load_rows metrics_in
        probe_link received_state state_bytes_per_trainable_byte step_bytes_per_trainable_byte
        tensor_frame told_hyperparameters told_products told_rates told_replicas told_timings
        write_whole
    """,
    "edgeweave.fleet": """
        Chaos ChaosEvent ChaosRecord Device Fleet FleetDescription PRESETS load_fleet
        load_preset
    """,
    "edgeweave.gossip": """
        DeviceCosts DeviceFiles GossipReport GossipTrainer Members PeerReport VirtualGossip
        consensus_distance mean_state running wait_members
    """,
    "edgeweave.mixing": """
        ALGORITHMS Algorithm Balance BalanceSettings CHOOSINGS Choosing Chosen Effect Exchange
        Finished GossipSettings Groups IMPORTANCES Importance KINDS LARGEST_INCARNATION Message
        NAMES Peer PeerStatistics Send Topology Train Trained Wake aggregate edge_weight
        edges_in exchange_of graph_of last_layer_scores matching mixing_matrix spectral_gap
        topology weighted whole_groups
    """,
    "edgeweave.serving": """
        Change DeviceUse Endpoint ServeOptions ServingReport serve
    """,
    "edgeweave.train": """
        DeviceReport EpochRecord Evaluation Experience Fates LRSchedule PipelineTrainer
        RecordedLosses Recovery Rehearsal RehearsalSetup Report SuperNeuronReport
        SuperNeuronTrainer device_latencies losses_on_all_links measure_costs predict_units
        probe_devices
    """,
}
"""The names of ``program``, ``plan`` and ``net`` are pinned beside their tests."""


@pytest.mark.parametrize("module", PUBLIC)
def test_public_names_change_on_purpose_only(module: str) -> None:
    assert sorted(importlib.import_module(module).__all__) == sorted(PUBLIC[module].split())


def modules() -> list[str]:
    found = pkgutil.walk_packages(edgeweave.__path__, "edgeweave.")
    return sorted(each.name for each in found if "__main__" not in each.name)


@pytest.mark.parametrize("name", modules())
def test_every_public_name_exists_and_every_module_says_what_it_is(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__doc__
    missing = [each for each in getattr(module, "__all__", ()) if not hasattr(module, each)]
    assert missing == []


def public_errors() -> list[type[errors.EdgeweaveError]]:
    return [getattr(errors, name) for name in errors.__all__]


TREE_LINE = re.compile(r"^[\s│├└─]*(\w+)\s+(?:(\d+)\s+)?(\S.*)$", re.MULTILINE)


def documented() -> dict[str, int | None]:
    """Class -> exit code, as the tree on top of ``errors.py`` shows them."""
    lines = [line for line in (errors.__doc__ or "").splitlines() if line.startswith("    ")]
    found = [TREE_LINE.match(line) for line in lines]
    return {match[1]: int(match[2]) if match[2] else None for match in found if match}


def test_every_error_stands_in_the_tree_with_its_exit_code() -> None:
    abstract = {"DeviceError"}  # never raised itself
    shown = {
        name: code
        for name, code in documented().items()
        if name.endswith(("Error", "Busy", "Full", "Timeout")) or name.startswith("Device")
    }
    expected = {kind.__name__: kind.exit_code for kind in public_errors()}
    assert {name: shown.get(name) for name in expected.keys() - abstract} == {
        name: code for name, code in expected.items() if name not in abstract
    }


def test_exit_codes_tell_errors_apart() -> None:
    codes = [kind.exit_code for kind in public_errors() if kind is not errors.DeviceError]
    assert len(set(codes)) == len(codes)
    assert min(codes) == 1
    assert max(codes) < 64  # what shells and signals use begins there


def test_the_tree_is_the_order_of_inheritance() -> None:
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"^    ([│ ]*)[├└]── (\w+)", line)
        if match:
            kind = getattr(errors, match[2])
            depth = len(match[1]) // 4 + 1
            real = [b for b in kind.__mro__[1:] if b.__name__ in errors.__all__]
            shown = [b for b in real if b is not errors.DeviceError]
            assert len(shown) == depth, kind


@pytest.mark.parametrize("kind", public_errors(), ids=lambda kind: kind.__name__)
def test_every_error_is_public_documented_and_survives_the_wire(
    kind: type[errors.EdgeweaveError],
) -> None:
    assert getattr(edgeweave, kind.__name__) is kind
    assert kind.__doc__
    assert issubclass(kind, errors.EdgeweaveError)
    if issubclass(kind, errors.DeviceError):
        if kind is errors.DeviceError:
            return
        found = decode_error(encode_error(kind("what", device="pi-a", stage=2)), "pi-a")
        assert isinstance(found, errors.DeviceError)
        assert (found.device, found.stage) == ("pi-a", 2)
    else:
        found = decode_error(encode_error(kind("what")), "pi-a")
    assert type(found) is kind
    assert str(found).startswith("what")


def test_importing_the_package_starts_nothing_and_loads_nothing_heavy() -> None:
    script = (
        "import sys, threading, edgeweave\n"
        "loaded = [n for n in ('torch', 'zenoh', 'sklearn', 'rich') if n in sys.modules]\n"
        "print(threading.active_count(), loaded)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split(maxsplit=1) == ["1", "[]\n"]
