"""Fleet files: read whole, refused by name, and the presets that come with the package."""

from __future__ import annotations

import contextlib
import re
import tomllib
from importlib import resources
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeweave.core.errors import ConfigError
from edgeweave.fleet import PRESETS, Chaos, Device, FleetDescription, load_fleet, load_preset
from edgeweave.net import GilbertElliott, Links, LinkShape, RateTrace
from edgeweave.plan import Costs, Cut, DeviceCosts, Link, UnitFacts, partition

WHOLE = """
source = "made up for this test"
seed = 7

[[devices]]
name = "pi-1"
speed = 0.3
memory = "900MiB"

[[devices]]
name = "pi-2"

[links.default]
rate = "20Mbit/s"
delay = "3ms"
jitter = "1ms"
loss = 0.001

[[links.pairs]]
from = "coordinator"
to = "pi-1"
both = true
rate = "90Mbit/s"

[[links.pairs]]
from = "pi-1"
to = "pi-2"
trace = "wifi.csv"
loss = { to_bad = 0.01, to_good = 0.3, loss_bad = 0.8 }
up = false

[[chaos]]
event = "kill"
device = "pi-2"
at_step = 7

[[chaos]]
event = "stop"
device = "pi-1"
at_seconds = 1.5
for_seconds = 0.5

[[chaos]]
event = "slow"
device = "pi-1"
speed = 0.1
for_steps = 3

[[chaos]]
event = "link_down"
from = "pi-1"
to = "pi-2"
both = true
at_step = 4
for_seconds = 1

[[chaos]]
event = "drop"
from = "pi-1"
to = "coordinator"
loss = 0.2
at_step = 5

[[chaos]]
event = "rate"
from = "pi-2"
to = "pi-1"
rate = "1MB/s"
at_step = 6
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "wifi.csv").write_text("seconds,bytes_per_second\n0,1000\n2,500\n")
    return tmp_path


def read(folder: Path, text: str) -> FleetDescription:
    path = folder / "fleet.toml"
    path.write_text(text)
    return load_fleet(path)


def test_everything_a_file_says_is_in_the_value(folder: Path) -> None:
    default = LinkShape(2.5e6, 0.003, 0.001, 0.001)
    wired = LinkShape(11.25e6, 0.003, 0.001, 0.001)
    traced = LinkShape(
        RateTrace((0.0, 2.0), (1000.0, 500.0), 4.0),
        0.003,
        0.001,
        GilbertElliott(0.01, 0.3, loss_bad=0.8),
        up=False,
    )
    assert read(folder, WHOLE) == FleetDescription(
        devices=(Device("pi-1", 0.3, "900MiB"), Device("pi-2")),
        links=Links.of(
            {
                ("coordinator", "pi-1"): wired,
                ("pi-1", "coordinator"): wired,
                ("pi-1", "pi-2"): traced,
            },
            default=default,
            seed=7,
        ),
        chaos=Chaos()
        .kill("pi-2", at_step=7)
        .stop("pi-1", at_seconds=1.5, for_seconds=0.5)
        .slow("pi-1", 0.1, at_step=0, for_steps=3)
        .link_down("pi-1", "pi-2", both=True, at_step=4, for_seconds=1)
        .drop("pi-1", "coordinator", 0.2, at_step=5)
        .rate("pi-2", "pi-1", 1e6, at_step=6),
        source="made up for this test",
    )


def test_a_list_of_devices_is_a_fleet(folder: Path) -> None:
    assert read(folder, '[[devices]]\nname = "a"\n') == FleetDescription((Device("a"),))


def test_a_pair_that_is_unlimited_again_says_so(folder: Path) -> None:
    text = WHOLE.replace('rate = "90Mbit/s"', 'rate = "unlimited"\nloss = 0\ndelay = "0s"')
    shape = read(folder, text).links.shape("pi-1", "coordinator")
    assert shape == LinkShape(None, 0.0, 0.001, 0.0)


names = st.sampled_from(["a", "b-2", "pi_3", "Jetson.4"])
milliseconds = st.integers(0, 5000)


@st.composite
def shapes(draw: st.DrawFn) -> tuple[str, LinkShape]:
    """The lines of a shape, and the value they mean."""
    kilobits = draw(st.none() | st.integers(1, 10**7))
    delay, jitter, loss = draw(milliseconds), draw(milliseconds), draw(st.floats(0, 0.99))
    rate = "unlimited" if kilobits is None else f"{kilobits} kbit/s"
    lines = f'rate = "{rate}"\ndelay = "{delay}ms"\njitter = "{jitter}ms"\nloss = {loss!r}\n'
    limit = None if kilobits is None else kilobits * 125.0
    return lines, LinkShape(limit, delay / 1000, jitter / 1000, loss)


@settings(max_examples=60, deadline=None)
@given(
    devices=st.lists(names, min_size=2, unique=True),
    speeds=st.lists(st.floats(0.01, 1), min_size=4, max_size=4),
    default=shapes(),
    shape=shapes(),
    both=st.booleans(),
    seed=st.integers(0, 2**40),
)
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory,
    devices: list[str],
    speeds: list[float],
    default: tuple[str, LinkShape],
    shape: tuple[str, LinkShape],
    both: bool,
    seed: int,
) -> None:
    ends = (devices[0], devices[1])
    text = f"seed = {seed}\n"
    for name, speed in zip(devices, speeds, strict=False):
        text += f'[[devices]]\nname = "{name}"\nspeed = {speed!r}\n'
    text += f"[links.default]\n{default[0]}[[links.pairs]]\n{shape[0]}"
    text += f'from = "{ends[0]}"\nto = "{ends[1]}"\nboth = {str(both).lower()}\n'
    found = read(tmp_path_factory.mktemp("written"), text)
    pairs = {ends: shape[1]} | ({ends[::-1]: shape[1]} if both else {})
    assert found.devices == tuple(Device(*each) for each in zip(devices, speeds, strict=False))
    assert found.links == Links.of(pairs, default=default[1], seed=seed)


# What is wrong is named: the file, the key, the rule and a way out.

DEVICE = '[[devices]]\nname = "a"\n'

WRONG = [
    ("devices = 3", r"devices is a list of tables \(got 3\)"),
    ("devices = [3]", r"devices\[0\] is a table \(got 3\)"),
    ("", r"a fleet has at least one device"),
    ("[[devices]]", r'devices\[0\]\.name is needed\. Write for example name = "pi-1"'),
    ("[[devices]]\nname = 3", r"devices\[0\]\.name: expected text \(got 3\)"),
    ('[[devices]]\nname = ""', r"devices\[0\]\.name: expected text"),
    ('[[devices]]\nname = "a/b"', r"devices\[0\]: .*a/b"),
    ('[[devices]]\nname = "coordinator"', r"Name the device otherwise"),
    ('[[devices]]\nname = "coordinator-2"', r"Name the device otherwise"),
    (DEVICE + DEVICE, r"unique names"),
    (DEVICE + "speed = 0", r"devices\[0\]: speed is a fraction of one core"),
    (DEVICE + "speed = 2", r"devices\[0\]: speed is a fraction of one core"),
    (DEVICE + 'speed = "fast"', r"devices\[0\]\.speed: expected a number \(got 'fast'\)"),
    (DEVICE + "speed = true", r"devices\[0\]\.speed: expected a number"),
    (DEVICE + "speed = nan", r"devices\[0\]\.speed: expected a finite number"),
    (DEVICE + "speed = inf", r"devices\[0\]\.speed: expected a"),
    (DEVICE + "sped = 1", r"devices\[0\]\.sped is not a key here\. Did you mean speed\?"),
    (DEVICE + 'memory = "1 XB"', r"devices\[0\]: a size is a number and a unit"),
    (DEVICE + "memory = true", r"devices\[0\]\.memory: expected a size"),
    (DEVICE + "memory = 1.5", r"devices\[0\]\.memory: expected a size"),
    ("devises = 1\n" + DEVICE, r"devises is not a key here\. Did you mean devices\?"),
    ("seed = -1\n" + DEVICE, r"seed: expected a whole number of 0 or more \(got -1\)"),
    ("seed = 1.5\n" + DEVICE, r"seed: expected a whole number"),
    (f"seed = {'9' * 30}\n" + DEVICE, r"seed: expected a whole number"),
    ("source = 3\n" + DEVICE, r"source: expected text"),
    ("links = 3\n" + DEVICE, r"links is a table \(got 3\)"),
    (DEVICE + "[links.defualt]", r"links\.defualt is not a key here\. Did you mean default\?"),
    (DEVICE + "[links.default]\nrate = 20", r"links\.default\.rate: expected text with a unit"),
    (DEVICE + '[links.default]\nrate = "20"', r"rate: a rate is a number and bits or bytes"),
    (DEVICE + '[links.default]\nrate = "20Mb/s"', r"Write it like 20Mbit/s or 2\.5MB/s"),
    (DEVICE + '[links.default]\nrate = "20Mbps"', r"links\.default\.rate: a rate is"),
    (DEVICE + '[links.default]\nrate = "0Mbit/s"', r"rate: bytes_per_second of a link is above 0"),
    (DEVICE + '[links.default]\nrate = "-1Mbit/s"', r"links\.default\.rate: a rate is"),
    (DEVICE + "[links.default]\ndelay = 3", r"delay: expected text with a unit \(got 3\)"),
    (DEVICE + '[links.default]\ndelay = "3"', r"links\.default\.delay: a duration is"),
    (DEVICE + '[links.default]\ndelay = "3 parsec"', r"Write it like 3ms or 1\.5s"),
    (DEVICE + '[links.default]\ndelay = "-3ms"', r"links\.default\.delay: a duration is"),
    (DEVICE + "[links.default]\njitter = true", r"links\.default\.jitter: expected text"),
    (DEVICE + "[links.default]\nloss = 1", r"links\.default\.loss: loss of a link is a share"),
    (DEVICE + "[links.default]\nloss = -0.1", r"links\.default\.loss: loss of a link is a share"),
    (DEVICE + '[links.default]\nloss = "1%"', r"links\.default\.loss: expected a number"),
    (DEVICE + "[links.default]\nloss = {to_bad = 0.1}", r"needs to_bad and to_good"),
    (DEVICE + "[links.default]\nloss = {to_bad = 0.1, to_god = 1}", r"'to_god' is not a key of a"),
    (DEVICE + "[links.default]\nloss = {to_bad = 2, to_good = 1}", r"to_bad of a Gilbert-Elliott"),
    (DEVICE + "[links.default]\nup = 1", r"links\.default\.up: expected true or false \(got 1\)"),
    (DEVICE + '[links.default]\nrate = "1MB/s"\ntrace = "a"', r"has a rate or a trace, not both"),
    (
        DEVICE + '[links.default]\ntrace = "none.csv"',
        r"links\.default\.trace: .*none\.csv: a trace",
    ),
    (DEVICE + "[links.default]\ntrace = 3", r"links\.default\.trace: expected text"),
    (DEVICE + '[links.default]\nfrom = "a"', r"links\.default\.from is not a key here"),
    (DEVICE + "[links.pairs]", r"links\.pairs is a list of tables"),
    (DEVICE + "[[links.pairs]]", r"links\.pairs\[0\]\.from is needed"),
    (DEVICE + '[[links.pairs]]\nfrom = "a"', r"links\.pairs\[0\]\.to is needed"),
    (DEVICE + '[[links.pairs]]\nfrom = "a"\nto = "b"', r"pairs\[0\]: 'b' is not in the fleet"),
    (DEVICE + '[[links.pairs]]\nfrom = "x"\nto = "a"', r"'x' is not in the fleet\. Known: coord"),
    (DEVICE + '[[links.pairs]]\nfrom = "a"\nto = "a"', r"a link joins two devices"),
    (
        DEVICE + 2 * '[[links.pairs]]\nfrom = "a"\nto = "coordinator"\nboth = true\n',
        r"links\.pairs\[1\]: a link is described once \(a -> coordinator again\)",
    ),
    (DEVICE + "[chaos]", r"chaos is a list of tables"),
    (DEVICE + "[[chaos]]", r'chaos\[0\]\.event is needed\. Write for example event = "kill"'),
    (DEVICE + '[[chaos]]\nevent = "kil"', r"chaos\[0\]\.event: 'kil' is not an event\. Did you me"),
    (DEVICE + "[[chaos]]\nevent = []", r"chaos\[0\]\.event: \[\] is not an event"),
    (DEVICE + '[[chaos]]\nevent = "kill"', r"chaos\[0\]\.device is needed"),
    (DEVICE + '[[chaos]]\nevent = "kill"\ndevice = "b"', r"'b' is not in the fleet \(a\)"),
    (DEVICE + '[[chaos]]\nevent = "kill"\ndevice = "coordinator"', r"is not in the fleet \(a\)"),
    (DEVICE + '[[chaos]]\nevent = "kill"\ndevice = "a"\nfor_steps = 1', r"kill a: is for good"),
    (DEVICE + '[[chaos]]\nevent = "restart"\ndevice = "a"', r"restart a: lasts for_steps or for_s"),
    (DEVICE + '[[chaos]]\nevent = "kill"\ndevice = "a"\nspeed = 1', r"speed is not a key here"),
    (
        DEVICE + '[[chaos]]\nevent = "stop"\ndevice = "a"\nat_step = 1\nat_seconds = 1',
        r"chaos\[0\]: chaos: stop a: happens at_step or at_seconds, one of them",
    ),
    (
        DEVICE + '[[chaos]]\nevent = "stop"\ndevice = "a"\nfor_steps = 1\nfor_seconds = 1',
        r"lasts for_steps or for_seconds, not both \(at_step = 0, for_steps = 1, for_seconds = 1",
    ),
    (
        DEVICE + '[[chaos]]\nevent = "stop"\ndevice = "a"\nat_step = -1',
        r"at_step: expected a whole",
    ),
    (DEVICE + '[[chaos]]\nevent = "stop"\ndevice = "a"\nat_step = 1.5', r"at_step: expected a who"),
    (DEVICE + '[[chaos]]\nevent = "stop"\ndevice = "a"\nat_seconds = -1', r"at_seconds is 0 or mo"),
    (DEVICE + '[[chaos]]\nevent = "stop"\ndevice = "a"\nfor_steps = 0', r"for_steps is 1 or more"),
    (
        DEVICE + '[[chaos]]\nevent = "stop"\ndevice = "a"\nfor_seconds = 0',
        r"for_seconds is above 0",
    ),
    (DEVICE + '[[chaos]]\nevent = "slow"\ndevice = "a"', r"chaos\[0\]\.speed is needed"),
    (DEVICE + '[[chaos]]\nevent = "slow"\ndevice = "a"\nspeed = 0', r"chaos\[0\]: speed is a frac"),
    (DEVICE + '[[chaos]]\nevent = "link_down"', r"chaos\[0\]\.from is needed"),
    (DEVICE + '[[chaos]]\nevent = "link_down"\nfrom = "a"\nto = "a"', r"a link has two ends"),
    (DEVICE + '[[chaos]]\nevent = "drop"\nfrom = "a"\nto = "coordinator"', r"\.loss is needed"),
    (
        DEVICE + '[[chaos]]\nevent = "rate"\nfrom = "a"\nto = "coordinator"\nrate = "unlimited"',
        r"chaos\[0\]\.rate: an event sets a rate",
    ),
    ("[[devices", r"a fleet file is TOML in UTF-8 \(.*\)\. Correct the line"),
]


@pytest.mark.parametrize(("text", "message"), WRONG)
def test_what_is_wrong_is_named_with_its_file_and_place(
    folder: Path, text: str, message: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        read(folder, text)
    said = str(refused.value)
    assert said.startswith(f"{folder / 'fleet.toml'}: "), said
    assert re.search(message, said), said
    assert said.count("fleet.toml") == 1


KEYS = """
devices name speed memory links default pairs from to both rate trace delay jitter loss up to_bad
chaos event device at_step for_seconds source seed nonsense
"""
VALUES = """
1 -1 0 0.5 true nan 1e400 [] {} [1] [{}] 1979-05-27 '' 'a' 'kill' '3ms' '1MB/s' 'coordinator'
{to_bad=1,to_good=1} [{name='a'}] {default={}} 99999999999999999999
"""


@settings(max_examples=400, deadline=None)
@given(
    line=st.integers(0, 60),
    key=st.sampled_from(KEYS.split()),
    value=st.sampled_from(VALUES.split()),
    how=st.sampled_from(["insert", "replace", "delete"]),
)
def test_a_damaged_file_is_read_or_refused_but_never_breaks(
    tmp_path_factory: pytest.TempPathFactory, line: int, key: str, value: str, how: str
) -> None:
    lines = WHOLE.replace('trace = "wifi.csv"', "").splitlines()
    line %= len(lines)
    lines[line : line + (how != "insert")] = [] if how == "delete" else [f"{key} = {value}"]
    path = tmp_path_factory.mktemp("damaged") / "fleet.toml"
    path.write_text("\n".join(lines))
    with contextlib.suppress(ConfigError):
        assert isinstance(load_fleet(path), FleetDescription)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml: a fleet file is a file that can be read"):
        load_fleet(tmp_path / "none.toml")


def test_a_file_that_is_far_too_large_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "fleet.toml"
    with path.open("wb") as file:
        file.truncate((1 << 20) + 1)
    with pytest.raises(ConfigError, match="a fleet file has at most 1 MiB"):
        load_fleet(path)


def test_a_value_made_by_hand_is_checked_as_well() -> None:
    with pytest.raises(ConfigError, match=r"\(x -> a: 'x' is not one of coordinator, a\)"):
        FleetDescription((Device("a"),), Links.of({("x", "a"): LinkShape()}))
    with pytest.raises(ConfigError, match=r"chaos: kill b: 'b' is not in the fleet"):
        FleetDescription((Device("a"),), chaos=Chaos().kill("b"))


# Presets.


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_says_where_its_figures_come_from_and_fits_on_two_cores(name: str) -> None:
    found = load_preset(name)
    assert "Assumption" in found.source
    assert 2 <= len(found.devices) <= 4
    assert sum(device.speed for device in found.devices) <= 1.5
    assert not found.links.default.is_plain
    assert not found.chaos


def test_every_preset_in_the_package_has_a_name() -> None:
    folder = resources.files("edgeweave.fleet").joinpath("presets")
    assert sorted(each.name for each in folder.iterdir()) == [f"{name}.toml" for name in PRESETS]


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_copied_into_a_file_is_the_same_fleet(name: str, tmp_path: Path) -> None:
    copied = resources.files("edgeweave.fleet").joinpath("presets", f"{name}.toml").read_text()
    assert tomllib.loads(copied)
    assert read(tmp_path, copied) == load_preset(name)


def test_a_preset_that_is_not_there_gets_a_suggestion() -> None:
    with pytest.raises(ConfigError, match=r"^'laan' is not a preset\. Did you mean lan\?$"):
        load_preset("laan")


def costs_on(description: FleetDescription) -> Costs:
    """Four equal units, as long on each device as its speed and links make them."""

    def link(source: str, target: str) -> Link:
        shape = description.links.shape(source, target)
        assert isinstance(shape.bytes_per_second, float)
        return Link(shape.bytes_per_second, shape.delay_seconds)

    names = [device.name for device in description.devices]
    return Costs(
        units=tuple(UnitFacts(f"unit {i}", 1 << 16, 1 << 16, 0, 1 << 16) for i in range(4)),
        cuts=(Cut(forward_bytes=1 << 12, backward_bytes=1 << 12),) * 3,
        devices=tuple(
            DeviceCosts(
                device.name,
                (0.1 / device.speed,) * 4,
                (0.2 / device.speed,) * 4,
                device.memory_bytes,
            )
            for device in description.devices
        ),
        links={a: {b: link(a, b) for b in names if a != b} for a in names},
        default_link=Link(1e9, 0.0),
        optimizer_bytes_per_trainable_byte=0.0,
    )


@pytest.mark.parametrize("name", PRESETS)
def test_a_model_is_planned_on_every_preset_and_gains_by_it(name: str) -> None:
    costs = costs_on(load_preset(name))
    plan = partition(costs, n_microbatches=8, schedule="1f1b")
    alone = [
        partition(costs, n_microbatches=8, schedule="1f1b", devices=[device.device]).step_seconds
        for device in costs.devices
    ]
    assert len(plan.stages) >= 2
    assert plan.step_seconds < min(alone)
