"""Job files: layers, checks, messages, and the way back to text."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeweave.core.errors import ConfigError
from edgeweave.train.jobs.job import (
    DataSection,
    DeviceEntry,
    FleetSection,
    Job,
    LossSection,
    LrScheduleSection,
    MemoryBytes,
    MetricsSection,
    ModelSection,
    OptimizerSection,
    Reference,
    TrainSection,
    dump_job,
    load_job,
)
from edgeweave.train.jobs.toml import to_toml, toml_value

SMALL = """
[model]
factory = "digits-cnn"
[optimizer]
name = "SGD"
lr = 0.05
[data]
source = "digits"
[fleet]
devices = [{name = "pi-a", speed = 0.5, memory = "512MiB"}, {name = "pi-b"}]
"""

WHOLE = """
[model]
factory = "nets/mine.py:build"
args = {n_classes = 4, widths = [8, 16]}
[loss]
function = "losses.py:focal"
[metrics]
accuracy = "accuracy"
top5 = "my.metrics:top5"
[optimizer]
name = "AdamW"
lr = 1e-3
betas = [0.9, 0.98]
[lr_schedule]
name = "CosineAnnealingLR"
interval = "step"
T_max = 100
[data]
source = "mnist"
path = "data/mnist"
normalise = true
[train]
batch_size = 64
n_microbatches = 8
epochs = 3
schedule = "gpipe"
measure = "probe"
seed = 7
clip_grad_norm = 1
checkpoint_directory = "runs/a"
checkpoint_every_steps = 50
[fleet]
kind = "lan"
devices = []
connect = ["tcp/10.0.0.5:7447"]
namespace = "home"
"""


def read(folder: Path, text: str, environment=None, overrides=None) -> Job:
    path = folder / "job.toml"
    path.write_text(text)
    return load_job(path, environment=environment or {}, overrides=overrides or {})


def test_a_job_goes_on_without_lost_devices_unless_told_otherwise(tmp_path: Path) -> None:
    assert read(tmp_path, SMALL).train.recover is True
    assert read(tmp_path, SMALL, overrides={"train.recover": "false"}).train.recover is False
    with pytest.raises(ConfigError, match="whether a run goes on without devices that vanish"):
        read(tmp_path, SMALL, overrides={"train.recover": "sometimes"})


def test_a_small_job_has_the_defaults(tmp_path: Path) -> None:
    assert read(tmp_path, SMALL) == Job(
        model=ModelSection(Reference("digits-cnn")),
        optimizer=OptimizerSection("SGD", {"lr": 0.05}),
        data=DataSection("digits"),
        loss=LossSection(Reference("torch.nn.functional:cross_entropy")),
        metrics=MetricsSection({}),
        lr_schedule=None,
        train=TrainSection(128, "auto", 1, "1f1b", 0, None, None, None, "profile"),
        fleet=FleetSection(
            devices=(DeviceEntry("pi-a", 0.5, MemoryBytes(512 * 2**20)), DeviceEntry("pi-b"))
        ),
    )


@pytest.mark.parametrize(("text", "value"), [("auto", "auto"), ("16", 16)])
def test_microbatches_are_a_number_or_left_to_the_planner(
    tmp_path: Path, text: str, value: object
) -> None:
    job = read(tmp_path, WHOLE, overrides={"train.n_microbatches": text})
    assert job.train.n_microbatches == value
    assert read(tmp_path, dump_job(job)) == job


def test_a_whole_job_has_every_key_and_paths_from_its_own_folder(tmp_path: Path) -> None:
    job = read(tmp_path, WHOLE)
    assert job.model == ModelSection(
        Reference(f"{tmp_path}/nets/mine.py:build"), {"n_classes": 4, "widths": [8, 16]}
    )
    assert job.loss.function == f"{tmp_path}/losses.py:focal"
    assert job.metrics.functions == {"accuracy": "accuracy", "top5": "my.metrics:top5"}
    assert job.optimizer == OptimizerSection("AdamW", {"lr": 1e-3, "betas": (0.9, 0.98)})
    assert job.lr_schedule == LrScheduleSection("CosineAnnealingLR", "step", {"T_max": 100})
    assert job.data == DataSection("mnist", tmp_path / "data/mnist", normalise=True)
    kept = (tmp_path / "runs/a", 50)
    assert job.train == TrainSection(64, 8, 3, "gpipe", 7, 1.0, *kept, "probe")
    assert job.fleet == FleetSection("lan", (), ("tcp/10.0.0.5:7447",), "home")


def test_the_environment_wins_over_the_file_and_the_command_line_over_both(tmp_path: Path) -> None:
    environment = {
        "EDGEWEAVE_TRAIN_BATCH_SIZE": "32",
        "EDGEWEAVE_TRAIN_EPOCHS": "9",
        "EDGEWEAVE_DATA": "/somewhere/else",
        "HOME": "/root",
    }
    job = read(tmp_path, WHOLE, environment, {"train.batch_size": "16"})
    assert (job.train.batch_size, job.train.epochs, job.train.seed) == (16, 9, 7)


def test_text_becomes_what_the_key_holds(tmp_path: Path) -> None:
    overrides = {
        "train.clip_grad_norm": "none",
        "train.schedule": "1f1b",
        "fleet.connect": "tcp/a:1, tcp/b:2",
        "fleet.devices": '[{name = "7", memory = "1GiB"}]',
        "fleet.namespace": "12",
        "data.normalise": "false",
        "model.args.n_classes": "3",
        "model.args.act": "relu",
        "optimizer.lr": "0.5",
        "metrics.loss2": "torch.nn.functional:mse_loss",
    }
    job = read(tmp_path, WHOLE, overrides=overrides)
    assert (job.train.clip_grad_norm, job.train.schedule) == (None, "1f1b")
    assert job.fleet == FleetSection(
        "lan", (DeviceEntry("7", memory=MemoryBytes(2**30)),), ("tcp/a:1", "tcp/b:2"), "12"
    )
    assert not job.data.normalise
    assert job.model.args == {"n_classes": 3, "widths": [8, 16], "act": "relu"}
    assert job.optimizer.options["lr"] == 0.5
    assert job.metrics.functions["loss2"] == "torch.nn.functional:mse_loss"


def test_variables_reach_tables_and_options_whose_case_they_lost(tmp_path: Path) -> None:
    environment = {
        "EDGEWEAVE_MODEL_ARGS_N_CLASSES": "5",
        "EDGEWEAVE_LR_SCHEDULE_T_MAX": "7",
        "EDGEWEAVE_LR_SCHEDULE_ETA_MIN": "0.1",
        "EDGEWEAVE_OPTIMIZER_WEIGHT_DECAY": "0.01",
    }
    job = read(tmp_path, WHOLE, environment)
    assert job.model.args["n_classes"] == 5
    assert job.lr_schedule == LrScheduleSection(
        "CosineAnnealingLR", "step", {"T_max": 7, "eta_min": 0.1}
    )
    assert job.optimizer.options["weight_decay"] == 0.01
    named_later = {"EDGEWEAVE_LR_SCHEDULE_NAME": "StepLR", "EDGEWEAVE_LR_SCHEDULE_STEP_SIZE": "2"}
    assert read(tmp_path, SMALL, named_later).lr_schedule == LrScheduleSection(
        "StepLR", options={"step_size": 2}
    )


def test_paths_of_the_command_line_start_from_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    job = read(tmp_path, WHOLE, {"EDGEWEAVE_DATA_PATH": "d"}, {"model.factory": "n.py:build"})
    assert job.data.path == here / "d"
    assert job.model.factory == f"{here}/n.py:build"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"train.batch_size": "0"},
            r"command line: train\.batch_size is how many samples a step takes, 1 or more \(got 0: "
            r"Expected int >= 1\)\. Write for example batch_size = 128 in \[train\]\.",
        ),
        ({"train.batch_size": "many"}, r"got 'many': Expected int, got str"),
        ({"train.batch_size": "1.5"}, r"got 1\.5: Expected int, got float"),
        ({"train.bach_size": "4"}, r"train\.bach_size is not a key of a job\. Did you mean batch_"),
        ({"trian.batch_size": "4"}, r"\(got 'trian'\)\. Did you mean train\?"),
        ({"train.batch_size.x": "4"}, r"train\.batch_size has no keys of its own"),
        (
            {"train.schedule": "zigzag"},
            r'train\.schedule is "1f1b", "gpipe" or "async-1f1b" \(no flush\) \(got \'zigzag\'',
        ),
        ({"train.seed": "-1"}, r"train\.seed is a whole number of 0 or more \(got -1"),
        ({"train.seed": str(2**64)}, r"train\.seed is a whole number of 0 or more"),
        ({"train.seed": f"0x{'f' * 5000}"}, r"0 or more \(got a very large int"),
        (
            {"train.checkpoint_directory": "~nobody-here/x"},
            r"train\.checkpoint_directory is a folder",
        ),
        ({"model.factory": "~nobody-here/x.py:f"}, r"begins with a user's folder"),
        ({"train.clip_grad_norm": "nan"}, r"train\.clip_grad_norm is the largest norm"),
        ({"train.clip_grad_norm": "inf"}, r"train\.clip_grad_norm is the largest norm"),
        ({"train.n_microbatches": "many"}, r"1 or more, or \"auto\" \(got 'many'"),
        ({"train.n_microbatches": "0"}, r"train\.n_microbatches is how many parts .*\(got 0"),
        ({"train.n_microbatches": "129"}, r"at most train\.batch_size \(got 129 and 128\)"),
        ({"train.checkpoint_every_steps": "5"}, r"needs a place to write to"),
        ({"data.normalise": "yes"}, r"data\.normalise is true or false \(got 'yes'"),
        ({"data.path": ""}, r"data\.path is the file or folder of the source \(got ''"),
        ({"model.factory": "lenett"}, r"model\.factory is .*got 'lenett'.*Did you mean lenet\?"),
        ({"model.args": "3"}, r"model\.args is a table of keyword arguments .*\(got 3: Expected"),
        ({"metrics.accuracy": "acuracy"}, r"metrics\.accuracy is a function .*mean accuracy\?"),
        ({"metrics.accuracy": "3"}, r"metrics\.accuracy is a function"),
        ({"optimizer.name": "SDG"}, r"class in torch\.optim \(got 'SDG'\)\. Did you mean SGD\?"),
        ({"optimizer.momentun": "0.9"}, r"not an option of SGD\. Did you mean momentum\?"),
        ({"train.weight_aggregation": "0"}, r"weight_aggregation is the updates between two means"),
        ({"lr_schedule.T_max": "9"}, r"job\.toml: lr_schedule\.name is needed"),
        ({"lr_schedule.name": "Optimizer"}, r"class in torch\.optim\.lr_scheduler \(got 'Optimi"),
        ({"fleet.devices": "[]"}, r"a local fleet has at least one device"),
        ({"fleet.preset": "lan"}, r"described once \(fleet\.devices and fleet\.preset given\)"),
        (
            {"fleet.devices": "[]", "fleet.file": "a.toml", "fleet.preset": "lan"},
            r"described once \(fleet\.file and fleet\.preset given\)\. Leave one out",
        ),
        (
            {"fleet.devices": "[]", "fleet.preset": "laan"},
            r"comes with Edgeweave \(got 'laan'\)\. Did you mean lan\?",
        ),
        (
            {"fleet.kind": "lan", "fleet.file": "a.toml"},
            r"fleet\.file describes an emulated fleet \(fleet\.kind is lan\)",
        ),
        ({"fleet.devices": '[{name = "a"}, {name = "a"}]'}, r"\('a' comes 2 times\)\. Rename one"),
        ({"fleet.devices": '[{name = "a", sped = 1}]'}, r"unknown field sped - at \$\[0\]"),
        ({"fleet.devices": '[{name = "a", speed = 0}]'}, r"Expected float > 0\.0 - at \$\[0\]\.sp"),
        ({"fleet.devices": '[{name = "a", memory = "1 XB"}]'}, r"Write it like 512MiB or 1\.5GB"),
        ({"fleet.devices": '[{name = "a", memory = 0}]'}, r"expected a size above 0"),
        ({"fleet.devices": '[{name = "a", memory = true}]'}, r"expected a size such as 512MiB"),
        ({"fleet.devices": f'[{{name = "a", memory = "{"9" * 400}"}}]'}, r"fleet\.devices is a li"),
    ],
)
def test_what_breaks_a_rule_is_named_with_the_rule_and_the_fix(
    tmp_path: Path, overrides: dict[str, str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        read(tmp_path, SMALL, overrides=overrides)


def test_the_message_names_where_the_value_came_from(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"^{tmp_path}/job.toml: train.epochs is how often"):
        read(tmp_path, SMALL + "[train]\nepochs = 0\n")
    with pytest.raises(ConfigError, match=r"^environment variable EDGEWEAVE_TRAIN_EPOCHS: train"):
        read(tmp_path, SMALL, {"EDGEWEAVE_TRAIN_EPOCHS": "x"})
    with pytest.raises(ConfigError, match=r"variable EDGEWEAVE_TRAIN_EPOCH: .* mean epochs\?"):
        read(tmp_path, SMALL, {"EDGEWEAVE_TRAIN_EPOCH": "3"})


@pytest.mark.parametrize("section", ["model", "optimizer", "data"])
def test_a_missing_section_is_named_by_its_first_key(tmp_path: Path, section: str) -> None:
    first = {"model": "factory", "optimizer": "name", "data": "source"}[section]
    text = SMALL.replace(f"[{section}]", "[metrics]").replace(f"\n{first} =", "\n#")
    text = text.replace("lr = 0.05", "")
    with pytest.raises(
        ConfigError, match=rf"{section}\.{first} is needed .*; none given\)\. Write"
    ):
        read(tmp_path, text)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"train = 3", r"train is a section \(got 3\)\. Write \[train\] above its keys"),
        (b"[train", "a job file is TOML in UTF-8 .TOMLDecodeError"),
        (b"\xff", "a job file is TOML in UTF-8 .UnicodeDecodeError"),
        (b"a = " + b"[" * 50_000, "a job file is TOML in UTF-8 .RecursionError"),
        (b"[[train]]\nepochs = 1", "train is a section"),
        (b"[tarin]", r"Did you mean train\?"),
    ],
)
def test_a_file_that_is_no_job_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "job.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        load_job(path, environment={}, overrides={})


def test_a_file_that_is_absent_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml: a job file is .*FileNotFoundError"):
        load_job(tmp_path / "none.toml", environment={}, overrides={})


@given(content=st.binary(max_size=60), override=st.text(max_size=20))
@settings(max_examples=100, deadline=None)
def test_no_text_and_no_file_makes_anything_but_a_config_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, override: str
) -> None:
    folder = tmp_path_factory.getbasetemp()
    path = folder / "fuzzed.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError):
        load_job(path, environment={}, overrides={})
    for dotted in ("train.batch_size", "fleet.devices", "optimizer.lr", "model.args.x", override):
        with contextlib.suppress(ConfigError):
            read(folder, SMALL, overrides={dotted: override})


words = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)
names = st.from_regex(r"[a-z][a-z0-9_-]{0,8}", fullmatch=True)
numbers = st.integers() | st.floats(allow_nan=False) | st.booleans()
dates = st.dates() | st.datetimes() | st.times() | st.datetimes(timezones=st.just(datetime.UTC))
values = st.recursive(
    numbers | words | dates,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=6,
)
counts = st.integers(1, 2**31)
paths = names.map(lambda name: Path("/jobs") / name / 'with "quotes" and ü')
references = st.sampled_from(["lenet", "my.module:build", "/jobs/net.py:build"]).map(Reference)
speeds = st.floats(0, 1000, exclude_min=True)


@st.composite
def jobs(draw: st.DrawFn) -> Job:
    batch_size = draw(counts)
    devices = st.builds(
        DeviceEntry,
        words.filter(bool),
        speeds,
        st.none() | st.integers(1, 2**62).map(MemoryBytes),
    )
    train = TrainSection(
        batch_size,
        draw(st.integers(1, batch_size)),
        draw(counts),
        draw(st.sampled_from(["1f1b", "gpipe", "async-1f1b"])),
        draw(st.integers(0, 2**63 - 1)),
        draw(st.none() | speeds),
        draw(paths),
        draw(st.none() | counts),
        draw(st.sampled_from(["profile", "probe"])),
        weight_aggregation=draw(st.none() | counts),
    )
    return Job(
        ModelSection(draw(references), draw(st.dictionaries(words, values, max_size=4))),
        OptimizerSection("SGD", {"lr": draw(numbers), "momentum": draw(numbers)}),
        DataSection(draw(words.filter(bool)), draw(st.none() | paths), draw(st.booleans())),
        LossSection(draw(references)),
        MetricsSection(draw(st.dictionaries(words, references, max_size=3))),
        draw(st.none() | st.just(LrScheduleSection("StepLR", "step", {"step_size": 3}))),
        train,
        FleetSection(
            "local",
            tuple(draw(st.lists(devices, min_size=1, max_size=3, unique_by=lambda d: d.name))),
            tuple(draw(st.lists(words, max_size=2))),
            draw(words.filter(bool)),
        ),
    )


@pytest.mark.parametrize("key", ["file", "preset"])
def test_a_fleet_of_its_own_file_or_of_a_preset_needs_no_devices(tmp_path: Path, key: str) -> None:
    text = SMALL[: SMALL.index("devices")] + f'{key} = "lan"'
    job = read(tmp_path, text)
    assert job.fleet == FleetSection(**{key: tmp_path / "lan" if key == "file" else "lan"})
    assert read(tmp_path, dump_job(job)) == job


@given(job=jobs())
@settings(max_examples=150, deadline=None)
def test_a_dumped_job_is_read_back_equal(
    tmp_path_factory: pytest.TempPathFactory, job: Job
) -> None:
    path = tmp_path_factory.getbasetemp() / "dumped.toml"
    path.write_text(dump_job(job), encoding="utf-8", newline="")
    assert load_job(path, environment={}, overrides={}) == job


@given(document=st.dictionaries(words, st.dictionaries(words, values, max_size=4), max_size=4))
def test_any_document_of_plain_values_is_read_back_equal(document) -> None:
    assert tomllib.loads(to_toml(document)) == document


@pytest.mark.parametrize("value", [None, b"bytes", object(), [1, None], {"a": {1, 2}}])
def test_what_toml_has_no_word_for_is_refused(value: object) -> None:
    with pytest.raises(ConfigError, match="a job file holds text, numbers"):
        toml_value(value)


def test_a_resolved_job_means_the_same_in_another_folder(tmp_path: Path) -> None:
    job = read(tmp_path, WHOLE, {"EDGEWEAVE_TRAIN_SEED": "3"})
    other = tmp_path / "other"
    other.mkdir()
    assert read(other, dump_job(job)) == job


def test_a_job_cannot_be_changed(tmp_path: Path) -> None:
    job = read(tmp_path, SMALL)
    with pytest.raises(dataclasses.FrozenInstanceError):
        job.train = TrainSection()
