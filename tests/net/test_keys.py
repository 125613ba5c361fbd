"""Names that cannot be key sections are refused, with the offending character in the message."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeweave.core.errors import ConfigError
from edgeweave.net.keys import (
    check_device_name,
    check_key,
    check_name,
    control_key,
    control_pattern,
    device_of,
    frame_key,
    frame_pattern,
)


def test_control_keys_name_fleet_device_and_verb() -> None:
    assert control_key("home", "pi-1", "deploy") == "ew/home/pi-1/deploy"
    assert control_pattern("home", "alive") == "ew/home/*/alive"
    assert device_of("ew/home/pi-1/deploy") == "pi-1"


def test_frame_keys_name_run_term_stage_and_kind() -> None:
    assert frame_key("home", "r1", 3, -1, "result") == "ew/home/run/r1/3/-1/result"
    assert frame_pattern("home", "r1", 3, 0) == "ew/home/run/r1/3/0/*"


@pytest.mark.parametrize("character", [*"/*$#? \t\n", "\u00a0", "\x00"])
def test_a_character_that_separates_or_matches_is_refused(character: str) -> None:
    with pytest.raises(ConfigError, match="a device name holds no"):
        check_name(f"pi{character}1", "device name")


@pytest.mark.parametrize("name", ["", "x" * 129, "@pi"])
def test_a_name_is_neither_empty_nor_long_nor_internal(name: str) -> None:
    with pytest.raises(ConfigError, match="a fleet name has 1 to 128 characters"):
        check_name(name, "fleet name")


@pytest.mark.parametrize("name", ["run", "bulk"])
def test_a_device_is_not_called_like_a_part_of_the_fabric(name: str) -> None:
    with pytest.raises(ConfigError, match=f"'{name}' is not a device name"):
        check_device_name(name)


@pytest.mark.parametrize("key", ["ew/home/run/r1/0", "ew/home", "xx/home/pi/alive"])
def test_only_a_control_key_has_a_device(key: str) -> None:
    with pytest.raises(ConfigError, match="a control key is"):
        device_of(key)


@pytest.mark.parametrize("key", ["ew/other/pi/alive", "ew/homes/pi/alive", "ew/home//alive", "x"])
def test_a_key_outside_the_fleet_is_refused(key: str) -> None:
    with pytest.raises(ConfigError, match="keys of the fleet 'home' begin with ew/home/"):
        check_key("home", key)


@given(st.text(min_size=1, max_size=20), st.text(min_size=1, max_size=20))
def test_every_accepted_name_survives_a_key(device: str, verb: str) -> None:
    try:
        key = control_key("home", device, verb)
    except ConfigError:
        return
    assert device_of(key) == device
    assert key.split("/") == ["ew", "home", device, verb]
