"""The probe: its networks are sound and cover the families, and its values say what they are of."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from benchmarks.latency import probe_networks
from edgeweave.core.errors import FormatError
from edgeweave.predict import FAMILIES, FEATURES
from edgeweave.predict.probe import (
    NetworkSeconds,
    Probe,
    decode_probe_programs,
    encode_probe_programs,
    probe_programs,
)
from edgeweave.program import unit_bytes, without_outputs
from tests.predict.probes import FACTS, made_up_probe

COLUMNS = {name: 1 + index for index, name in enumerate(FEATURES)}


def rows() -> np.ndarray:
    """Every operator of every network."""
    return np.concatenate([each.rows for each in made_up_probe().measurements()])


def test_the_file_of_the_package_decodes_and_passes_every_check() -> None:
    data = probe_networks.FILE.read_bytes()
    assert len(data) < 100_000
    assert decode_probe_programs(data) == probe_programs()


def test_the_file_has_the_networks_of_its_script_in_their_order() -> None:
    found = [(each.name, each.microbatch_size) for each in probe_programs()]
    told = [(each.name, each.microbatch_size) for each in probe_networks.NETWORKS]
    assert found == told


def test_the_same_programs_make_the_same_file() -> None:
    assert encode_probe_programs(probe_programs()) == encode_probe_programs(probe_programs())
    assert decode_probe_programs(encode_probe_programs(probe_programs())) == probe_programs()


def test_the_networks_have_every_family_of_operators() -> None:
    present = {FAMILIES[int(family)] for family in rows()[:, 0]}
    assert present >= set(FAMILIES) - {"other"}


def test_the_first_two_networks_have_most_families_already() -> None:
    first = msgspec.structs.replace(
        made_up_probe(), networks=made_up_probe().networks[:2], left_out=made_up_probe(2).left_out
    )
    families = {FAMILIES[int(row[0])] for each in first.measurements() for row in each.rows}
    assert families >= {"conv", "matmul", "attention", "norm", "pool", "cheap", "reduce", "lookup"}


def test_convolutions_reach_from_many_positions_to_many_channels() -> None:
    convolutions = rows()[rows()[:, 0] == FAMILIES.index("conv")]
    values = {name: np.expm1(convolutions[:, column]) for name, column in COLUMNS.items()}
    assert {1, 9, 25, 49} <= {round(kernel) for kernel in values["kernel"]}
    assert values["positions"].max() > 1500
    assert values["channels_in"][values["positions"] < 20].max() > 500
    assert values["groups"].max() > 7


def test_each_network_has_a_handful_of_units_and_all_need_little_memory() -> None:
    needed = 0
    for network in probe_programs():
        program = without_outputs(network.program)
        units = unit_bytes(program, network.microbatch_size).values()
        assert 5 <= len(units) <= 14, network.name
        needed += 2 * sum(unit.parameters for unit in units)
    assert needed < 60e6


def test_a_measurement_is_of_one_unit_and_none_has_no_operators() -> None:
    probe = made_up_probe()
    found = probe.measurements()
    assert len(found) == sum(len(each.forward_seconds) for each in probe.networks)
    assert all(len(each.rows) for each in found)


def test_where_no_gradient_flows_a_measurement_has_no_backward() -> None:
    probe = made_up_probe(backward=0.0)
    assert {each.backward_seconds for each in probe.measurements()} == {None}


def test_a_stretched_probe_takes_longer_everywhere() -> None:
    probe = made_up_probe()
    stretched = probe.stretched(3.0)
    for before, after in zip(probe.measurements(), stretched.measurements(), strict=True):
        assert after.forward_seconds == 3 * before.forward_seconds
        assert after.backward_seconds == 3 * (before.backward_seconds or 0.0)
    assert stretched.facts == probe.facts


def changed(probe: Probe, seconds: tuple[float, ...]) -> Probe:
    first = msgspec.structs.replace(probe.networks[0], forward_seconds=seconds)
    return msgspec.structs.replace(probe, networks=(first, *probe.networks[1:]))


N_UNITS = len(made_up_probe().networks[0].forward_seconds)


@pytest.mark.parametrize(
    "damaged",
    [
        msgspec.structs.replace(made_up_probe(), digest="0" * 64),
        msgspec.structs.replace(made_up_probe(), networks=()),
        msgspec.structs.replace(made_up_probe(), left_out=("plain",)),
        msgspec.structs.replace(
            made_up_probe(), networks=(NetworkSeconds("unknown", (1.0,), (1.0,), 1),)
        ),
        changed(made_up_probe(), (1.0,)),
        changed(made_up_probe(), (-1.0,) * N_UNITS),
        changed(made_up_probe(), (float("nan"),) * N_UNITS),
        changed(made_up_probe(), (float("inf"),) * N_UNITS),
    ],
)
def test_a_probe_of_other_networks_or_of_no_durations_is_refused(damaged: Probe) -> None:
    with pytest.raises(FormatError, match=r"^a probe has a time for every unit of the networks"):
        damaged.measurements()


def test_rates_are_found_again_in_times_that_follow_them() -> None:
    probe = made_up_probe(seconds_per_mac=1e-10, seconds_per_byte=2e-10, seconds_per_operator=3e-6)
    rates = probe.rates()
    assert rates.convolution_macs_per_second == pytest.approx(1e10, rel=1e-3)
    assert rates.matmul_macs_per_second == pytest.approx(1e10, rel=1e-3)
    assert rates.bytes_per_second == pytest.approx(5e9, rel=1e-3)
    assert rates.operator_seconds == pytest.approx(3e-6, rel=1e-3)


def test_what_costs_nothing_has_no_rate() -> None:
    rates = made_up_probe(seconds_per_operator=0.0, seconds_per_byte=1e-9).rates()
    assert rates.operator_seconds is None
    assert rates.bytes_per_second == pytest.approx(1e9, rel=1e-3)


def test_a_probe_without_any_time_has_no_rates() -> None:
    probe = made_up_probe(seconds_per_mac=0, seconds_per_byte=0, seconds_per_operator=0)
    assert set(msgspec.structs.astuple(probe.rates())) == {None}


def test_the_digest_of_facts_changes_with_every_fact() -> None:
    others = [
        msgspec.structs.replace(FACTS, **{field: value})
        for field, value in {
            "processor": "another",
            "cores": 8,
            "threads": 1,
            "device": "cuda",
            "accelerator": "another",
            "torch": "2.9.0",
            "cpu_capability": "AVX2",
            "onednn": False,
            "memory_bytes": 1,
            "clock_hertz": None,
        }.items()
    ]
    assert len({each.digest() for each in (FACTS, *others)}) == 1 + len(FACTS.__struct_fields__)
    assert Path(FACTS.digest()).name == FACTS.digest()
