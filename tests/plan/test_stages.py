from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeweave.core.errors import ConfigError, FormatError
from edgeweave.plan import LinkCodec, Plan, Replication, Stage, from_json, to_json
from edgeweave.plan.routes import SKIPS

PLAN = Plan(
    stages=(Stage("pi-a", 0, 3, 0.5, 1.0, 1000), Stage("pi-b", 3, 5, 0.25, 0.5, 2000)),
    schedule="1f1b",
    n_microbatches=4,
    extra_in_flight=1,
    period_seconds=1.5,
    step_seconds=7.25,
)

seconds = st.floats(0, 1e9)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    devices = draw(st.lists(st.text(min_size=1), min_size=1, max_size=5, unique=True))
    bounds = [0]
    for _ in devices:
        bounds.append(bounds[-1] + draw(st.integers(1, 9)))
    stages = tuple(
        Stage(device, first, stop, draw(seconds), draw(seconds), draw(st.integers(0, 2**40)))
        for device, first, stop in zip(devices, bounds, bounds[1:], strict=False)
    )
    schedule = draw(st.sampled_from(["1f1b", "gpipe"]))
    n_microbatches, extra = draw(st.integers(1, 99)), draw(st.integers(0, 9))
    skips = draw(st.sampled_from(SKIPS))
    pairs = [(source, target) for source in devices for target in devices if source != target]
    ends = draw(st.lists(st.sampled_from(pairs), unique=True)) if pairs else []
    codecs = tuple(LinkCodec(*each, draw(st.integers(1, 32))) for each in ends)
    times = draw(seconds), draw(seconds)
    replication = Replication(draw(st.integers(1, 999)), draw(st.integers(1, 999)))
    return Plan(stages, schedule, n_microbatches, extra, *times, skips, codecs, replication)


def refusal(data: bytes) -> str:
    with pytest.raises(FormatError) as caught:
        from_json(data)
    return str(caught.value)


def document(**changes: object) -> bytes:
    content = json.loads(to_json(PLAN))
    content["plan"] |= changes
    return json.dumps(content).encode()


@given(plans())
def test_a_plan_survives_json(plan: Plan) -> None:
    assert from_json(to_json(plan)) == plan


def test_the_document_names_its_format_and_version() -> None:
    content = json.loads(to_json(PLAN))
    assert (content["format"], content["version"]) == ("edgeweave/plan", 4)


@given(st.data())
def test_mutated_bytes_are_refused_or_still_a_plan(data: st.DataObject) -> None:
    mutated = bytearray(to_json(PLAN))
    for _ in range(data.draw(st.integers(1, 4))):
        mutated[data.draw(st.integers(0, len(mutated) - 1))] = data.draw(st.integers(0, 255))
    try:
        plan = from_json(bytes(mutated))
    except FormatError:
        return
    assert from_json(to_json(plan)) == plan


@given(st.binary())
def test_foreign_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(FormatError):
        from_json(data)


def test_a_torn_document_is_refused_wherever_it_is_torn() -> None:
    whole = to_json(PLAN)
    for length in range(len(whole)):
        with pytest.raises(FormatError):
            from_json(whole[:length])


def test_another_version_is_named() -> None:
    newer = to_json(PLAN).replace(b'"version":4', b'"version":5')
    assert refusal(newer) == (
        "not a plan that this package reads (got 'edgeweave/plan' version 5, "
        "reads 'edgeweave/plan' version 4). Plan again."
    )


def test_skips_travel_one_of_two_ways() -> None:
    direct = replace(PLAN, skips="direct")
    assert from_json(to_json(direct)) == direct
    with pytest.raises(ConfigError) as refused:
        replace(PLAN, skips="thrown")  # type: ignore[arg-type]
    assert str(refused.value) == (
        "skips of a plan are relayed or direct (got 'thrown'). Plan again."
    )


def test_codecs_are_written_by_their_names() -> None:
    coded = replace(PLAN, codecs=(LinkCodec("pi-a", "pi-b", 8), LinkCodec("pi-b", "pi-a", 12)))
    assert json.loads(to_json(coded))["plan"]["codecs"] == [
        {"source": "pi-a", "target": "pi-b", "bits": 8},
        {"source": "pi-b", "target": "pi-a", "bits": 12},
    ]
    assert from_json(to_json(coded)) == coded != PLAN


def test_a_plan_of_an_older_version_is_named() -> None:
    older = to_json(PLAN).replace(b'"version":4', b'"version":3')
    assert "(got 'edgeweave/plan' version 3, reads 'edgeweave/plan' version 4)" in refusal(older)


def test_how_often_states_are_copied_is_written_in_steps() -> None:
    often = replace(PLAN, replication=Replication(chain_every=7, whole_every=30))
    written = json.loads(to_json(often))["plan"]["replication"]
    assert written == {"chain_every": 7, "whole_every": 30}
    assert from_json(to_json(often)) == often != PLAN
    for refused in ({"chain_every": 0, "whole_every": 5}, {"chain_every": "often"}, None, 3):
        assert "not a plan (" in refusal(document(replication=refused))


A_TO_B = {"source": "pi-a", "target": "pi-b", "bits": 8}


@pytest.mark.parametrize(
    ("codecs", "rule"),
    [
        ([A_TO_B, A_TO_B | {"bits": 4}], "(got pi-a -> pi-b, pi-a -> pi-b)"),
        ([A_TO_B | {"target": "pi-c"}], "(got pi-a -> pi-c)"),
        ([A_TO_B | {"source": "coordinator"}], "(got coordinator -> pi-b)"),
        ([A_TO_B | {"target": "pi-a"}], "(got 8 bits from 'pi-a' to 'pi-a')"),
        ([A_TO_B | {"bits": 0}], "a codec has bits, and a link two ends (got 0 bits"),
        ([A_TO_B | {"bits": 8.5}], "Expected `int`, got `float`"),
        ([A_TO_B | {"bits": "8"}], "Expected `int`, got `str`"),
        ([{"source": "pi-a", "target": "pi-b"}], "missing required field `bits`"),
        ([["pi-a", "pi-b", 8]], "Expected `object`, got `array`"),
        (None, "Expected `array`, got `null`"),
    ],
)
def test_codecs_that_no_plan_has_are_refused(codecs: object, rule: str) -> None:
    assert from_json(document(codecs=[A_TO_B])).codecs == (LinkCodec("pi-a", "pi-b", 8),)
    assert rule in refusal(document(codecs=codecs))


def test_a_gap_between_stages_is_refused() -> None:
    stages = json.loads(to_json(PLAN))["plan"]["stages"]
    stages[1]["first_unit"] = 4
    assert refusal(document(stages=stages)) == (
        "not a plan (stage 1 must begin at unit 3 (got 4). Plan again.). Save it again."
    )


def test_a_device_with_two_stages_is_refused() -> None:
    stages = json.loads(to_json(PLAN))["plan"]["stages"]
    stages[1]["device"] = "pi-a"
    assert refusal(document(stages=stages)) == (
        "not a plan (a device holds one stage (got pi-a, pi-a). Plan again.). Save it again."
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"stages": []},
        {"schedule": "zero-bubble"},
        {"n_microbatches": 0},
        {"n_microbatches": "4"},
        {"extra_in_flight": -1},
        {"period_seconds": float("nan")},
        {"period_seconds": None},
        {"step_seconds": float("inf")},
        {"step_seconds": -1.0},
    ],
)
def test_a_value_that_no_plan_has_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(FormatError):
        from_json(document(**changes))


def test_nesting_without_end_is_refused() -> None:
    deep = b"[" * 100_000
    assert "not a plan" in refusal(deep)
    with pytest.raises(FormatError):
        from_json(b'{"format":' + deep)
    with pytest.raises(FormatError):
        from_json(b'{"x":' + deep)


def test_a_wrong_plan_cannot_be_built_either() -> None:
    with pytest.raises(ConfigError) as caught:
        replace(PLAN, step_seconds=float("nan"))
    assert str(caught.value) == (
        "step_seconds of a plan must be finite and not negative (got nan). Plan again."
    )
    with pytest.raises(ConfigError) as caught:
        Stage("pi", 3, 3, 0.0, 0.0, 0)
    assert str(caught.value) == (
        "the stage on 'pi' must hold at least one unit (got 3 to 3). Plan again."
    )
    with pytest.raises(ConfigError) as caught:
        replace(PLAN, codecs=(LinkCodec("pi-a", "pi-c", 8),))
    assert str(caught.value) == (
        "a plan has one codec for a link between two of its devices (got pi-a -> pi-c). Plan again."
    )
    with pytest.raises(ConfigError) as caught:
        Stage("", 0, 1, 0.0, 0.0, 0)
    assert str(caught.value) == "a stage must name its device (got ''). Name one."
