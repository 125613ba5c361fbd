"""Links as values: what they refuse, and that they travel as JSON."""

from __future__ import annotations

import math
import re

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeweave.core.errors import ConfigError
from edgeweave.core.names import COORDINATOR_NAME
from edgeweave.net import (
    GilbertElliott,
    Links,
    LinkShape,
    RateTrace,
    link_name,
)

TRACE = RateTrace((0.0, 1.0), (1e6, 0.0), 2.0)
SLOW = LinkShape(2.5e6, 0.02, 0.001, GilbertElliott(0.01, 0.2), up=False)


def test_what_is_not_among_the_pairs_is_the_default() -> None:
    links = Links.of({("b", "a"): SLOW, ("a", "b"): LinkShape(5.0)}, default=LinkShape(7.0))
    assert links.shape("b", "a") == SLOW
    assert links.shape("a", "b") == LinkShape(5.0)
    assert links.shape("a", "c") == LinkShape(7.0)


def test_the_way_of_a_device_to_itself_holds_nothing_back() -> None:
    assert Links(SLOW).shape("a", "a").is_plain


def test_another_shape_replaces_one_pair_and_leaves_the_old_value_alone() -> None:
    before = Links.of({("a", "b"): SLOW}, seed=3)
    after = before.with_shape("a", "b", LinkShape(9.0)).with_shape("b", "a", SLOW)
    assert (after.shape("a", "b"), after.shape("b", "a")) == (LinkShape(9.0), SLOW)
    assert (before.shape("a", "b"), before.shape("b", "a")) == (SLOW, LinkShape())
    assert after.seed == 3


def test_the_order_in_which_pairs_are_given_does_not_matter() -> None:
    one, other = ("a", "b", SLOW), ("b", "a", LinkShape(1.0))
    assert Links(pairs=(one, other)) == Links(pairs=(other, one))
    assert hash(Links(pairs=(one, other))) == hash(Links(pairs=(other, one)))


@given(
    st.dictionaries(
        st.tuples(st.sampled_from("abc"), st.sampled_from("xyz")),
        st.sampled_from([SLOW, LinkShape(), LinkShape(TRACE), LinkShape(loss=0.25)]),
    ),
    st.integers(0, 2**40),
)
def test_links_come_back_from_json(pairs: dict[tuple[str, str], LinkShape], seed: int) -> None:
    links = Links.of(pairs, default=LinkShape(TRACE), seed=seed)
    assert msgspec.json.decode(msgspec.json.encode(links), type=Links) == links


def test_json_that_breaks_a_rule_is_refused_with_that_rule() -> None:
    data = msgspec.json.encode(Links(LinkShape(loss=0.25))).replace(b"0.25", b"1.25")
    with pytest.raises(ConfigError, match="loss of a link is a share from 0 to below 1"):
        msgspec.json.decode(data, type=Links)


def test_the_coordinator_has_one_name_among_links() -> None:
    assert link_name("coordinator-3f2a") == COORDINATOR_NAME
    assert link_name("pi-1") == "pi-1"


def test_the_share_lost_in_bursts_is_that_of_both_states() -> None:
    assert GilbertElliott(0.1, 0.3).share == pytest.approx(0.25)
    assert GilbertElliott(0.1, 0.3, loss_good=0.1, loss_bad=0.5).share == pytest.approx(0.2)
    assert GilbertElliott(0.0, 1.0).share == 0.0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LinkShape(0.0), "bytes_per_second of a link is above 0 (got 0.0)."),
        (lambda: LinkShape(math.inf), "bytes_per_second of a link is above 0 (got inf)."),
        (lambda: LinkShape(delay_seconds=-1.0), "delay_seconds of a link is 0 or more (got -1.0)."),
        (
            lambda: LinkShape(jitter_seconds=math.nan),
            "jitter_seconds of a link is 0 or more (got nan).",
        ),
        (lambda: LinkShape(loss=1.0), "a share from 0 to below 1 (got 1.0). Give up=False"),
        (lambda: GilbertElliott(0.1, 0.0), "leaves its bad state again (to_good is 0)."),
        (lambda: GilbertElliott(1.5, 0.1), "to_bad of a Gilbert-Elliott loss is from 0 to 1"),
        (lambda: GilbertElliott(0.1, 0.1, loss_good=1.0), "a link loses less than everything"),
        (lambda: RateTrace((), (), 1.0), "one beginning for each rate, and at least one"),
        (lambda: RateTrace((0.0,), (1.0, 2.0), 1.0), "one beginning for each rate"),
        (lambda: RateTrace((0.5,), (1.0,), 1.0), "begin at 0 s and one after another."),
        (lambda: RateTrace((0.0, 0.0), (1.0, 1.0), 1.0), "begin at 0 s and one after another."),
        (lambda: RateTrace((0.0, 2.0), (1.0, 1.0), 2.0), "ends after its last piece has begun"),
        (lambda: RateTrace((0.0,), (-1.0,), 1.0), "bytes_per_second in a rate trace is 0 or more"),
        (lambda: RateTrace((0.0,), (0.0,), 1.0), "lets something pass (all its rates are 0)."),
        (lambda: Links(seed=-1), "the seed of links is 0 or more (got -1)."),
        (lambda: Links.of({("a", "a"): SLOW}), "a link joins two devices ('a' is given twice)."),
        (
            lambda: Links(pairs=(("a", "b", SLOW), ("a", "b", LinkShape()))),
            "each link has one shape (a -> b has several).",
        ),
        (lambda: Links.of({("a/b", "c"): SLOW}), "a device name holds no /"),
    ],
)
def test_what_no_link_can_be_is_refused(make: object, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        make()  # type: ignore[operator]
