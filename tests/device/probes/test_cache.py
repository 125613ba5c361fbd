"""Probes are kept in a file that counts only if it is sound and of the same device."""

from __future__ import annotations

import logging
from pathlib import Path

import msgspec
import pytest

from edgeweave.device.probes.cache import ProbeCache, user_cache_directory
from edgeweave.predict.probe import Probe
from tests.predict.probes import FACTS, made_up_probe

PROBE = made_up_probe()


def only_file(directory: Path) -> Path:
    (path,) = directory.iterdir()
    return path


def test_a_probe_is_there_for_the_next_process(tmp_path: Path) -> None:
    directory = tmp_path / "not" / "yet"
    ProbeCache("pi-a", directory).keep(PROBE)
    assert ProbeCache("pi-a", directory).load(FACTS) == PROBE
    assert only_file(directory).name == f"probe-pi-a-{FACTS.digest()}.json"


def test_another_device_or_another_fact_has_no_probe(tmp_path: Path) -> None:
    ProbeCache("pi-a", tmp_path).keep(PROBE)
    assert ProbeCache("pi-b", tmp_path).load(FACTS) is None
    assert ProbeCache("pi-a", tmp_path).load(msgspec.structs.replace(FACTS, threads=1)) is None


def test_a_later_probe_replaces_the_one_before(tmp_path: Path) -> None:
    cache = ProbeCache("pi-a", tmp_path)
    cache.keep(PROBE)
    cache.keep(PROBE.stretched(2.0))
    assert cache.load(FACTS) == PROBE.stretched(2.0)
    assert ProbeCache("pi-a", tmp_path).load(FACTS) == PROBE.stretched(2.0)
    assert len(list(tmp_path.iterdir())) == 1


def test_without_a_directory_memory_keeps_probes_and_nothing_is_written() -> None:
    cache = ProbeCache("pi-a", None)
    assert cache.load(FACTS) is None
    cache.keep(PROBE)
    assert cache.load(FACTS) == PROBE
    assert ProbeCache("pi-a", None).load(FACTS) is None


def other_facts(probe: Probe) -> bytes:
    facts = msgspec.structs.replace(FACTS, cores=1)
    return msgspec.json.encode(msgspec.structs.replace(probe, facts=facts))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b'{"facts": {}}',
        msgspec.json.encode(PROBE)[:-100],
        msgspec.json.encode(msgspec.structs.replace(PROBE, digest="another")),
        msgspec.json.encode(PROBE.stretched(-1.0)),
    ],
    ids=["empty", "no text", "no probe", "cut off", "other networks", "no durations"],
)
def test_a_damaged_file_counts_as_none_with_a_warning(
    content: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ProbeCache("pi-a", tmp_path).keep(PROBE)
    only_file(tmp_path).write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert ProbeCache("pi-a", tmp_path).load(FACTS) is None
    assert "pi-a is probed again" in caplog.text


def test_a_file_under_another_device_s_name_counts_as_none(tmp_path: Path) -> None:
    ProbeCache("pi-a", tmp_path).keep(PROBE)
    only_file(tmp_path).write_bytes(other_facts(PROBE))
    assert ProbeCache("pi-a", tmp_path).load(FACTS) is None


def test_where_nothing_can_be_written_memory_keeps_the_probe_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    cache = ProbeCache("pi-a", tmp_path / "file" / "directory")
    with caplog.at_level(logging.WARNING):
        cache.keep(PROBE)
    assert "pi-a's probe is kept in memory alone" in caplog.text
    assert cache.load(FACTS) == PROBE


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "/home/pi/.cache/edgeweave"),
        ({"XDG_CACHE_HOME": "/big/cache"}, "/big/cache/edgeweave"),
        ({"XDG_CACHE_HOME": "relative"}, "/home/pi/.cache/edgeweave"),
        ({"XDG_CACHE_HOME": ""}, "/home/pi/.cache/edgeweave"),
    ],
)
def test_the_cache_directory_is_the_user_s(environment: dict[str, str], expected: str) -> None:
    assert str(user_cache_directory(environment, Path("/home/pi"))) == expected
