"""Scripts of trouble as values, and what each act makes of a fleet."""

from __future__ import annotations

import pytest

from edgeweave.core.errors import ConfigError
from edgeweave.fleet import Chaos
from edgeweave.fleet.chaos import Drop, Kill, LinkDown, Rate, Restart, Slow, Stop, World
from edgeweave.net import GilbertElliott, Links, LinkShape

WORLD = World({"a": 0.5, "b": 1.0}, Links(default=LinkShape(1e6, 0.01)))


def test_a_script_grows_and_leaves_the_shorter_one_as_it_was() -> None:
    short = Chaos().kill("a", at_step=7)
    long = short.slow("b", 0.2, at_seconds=1, for_seconds=2)
    assert [str(event.act) for event in short.events] == ["kill a"]
    assert [str(event.act) for event in long.events] == ["kill a", "slow b to 0.2"]
    assert bool(short)
    assert not Chaos()
    assert long == Chaos().kill("a", at_step=7).slow("b", 0.2, at_seconds=1, for_seconds=2)


def test_what_has_no_time_happens_with_the_first_step() -> None:
    (event,) = Chaos().drop("a", "b", 0.2).events
    assert (event.at_step, event.at_seconds) == (0, None)


def test_acts_change_what_they_are_about_and_nothing_else() -> None:
    assert Kill("a").act_on(WORLD).killed == {"a"}
    assert Restart("a").act_on(WORLD) == Kill("a").act_on(WORLD)  # until it is undone
    assert Stop("a").act_on(WORLD).stopped == {"a"}
    assert Slow("a", 0.1).act_on(WORLD).speeds == {"a": 0.1, "b": 1.0}
    down = LinkDown("a", "b").act_on(WORLD).links
    assert (down.shape("a", "b").up, down.shape("b", "a").up) == (False, True)
    both = LinkDown("a", "coordinator", both=True).act_on(WORLD).links
    assert not both.shape("coordinator", "a").up
    assert both.shape("a", "coordinator") == LinkShape(1e6, 0.01, up=False)
    assert Drop("a", "b", 0.2).act_on(WORLD).links.shape("a", "b") == LinkShape(1e6, 0.01, 0, 0.2)
    assert Rate("a", "b", 5.0).act_on(WORLD).links.shape("a", "b").bytes_per_second == 5.0


def test_acts_say_what_they_are() -> None:
    acts = [
        Restart("a"),
        Stop("a"),
        LinkDown("a", "b", both=True),
        Drop("a", "b", 0.2),
        Drop("a", "b", GilbertElliott(0.1, 0.3)),
        Rate("a", "b", 1 << 20),
    ]
    assert [str(act) for act in acts] == [
        "restart a",
        "stop a",
        "link down a <-> b",
        "drop a -> b 0.2",
        "drop a -> b 0.25 in bursts",
        "rate a -> b 1.0 MiB/s",
    ]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Chaos().slow("a", 0.0), r"speed is a fraction of one core"),
        (lambda: Chaos().slow("a", float("nan")), r"speed is a fraction of one core"),
        (lambda: Chaos().drop("a", "b", 1.0), r"loss of a link is a share from 0 to below 1"),
        (lambda: Chaos().rate("a", "b", 0.0), r"bytes_per_second of a link is above 0"),
        (
            lambda: Chaos().restart("a"),
            r"restart a: lasts for_steps or for_seconds \(at_s",
        ),
        (lambda: Chaos().stop("a", at_step=-1), r"stop a: at_step is 0 or more \(at_step = -1\)"),
        (lambda: Chaos().stop("a", at_seconds=float("inf")), r"at_seconds is 0 or more"),
        (lambda: Chaos().stop("a", at_step=1, at_seconds=1), r"one of them \(at_step = 1, at_sec"),
        (lambda: Chaos().stop("a", for_seconds=-1), r"for_seconds is above 0"),
    ],
)
def test_what_cannot_happen_is_refused(make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(ConfigError, match=message):
        make()


def test_a_script_is_checked_against_the_devices() -> None:
    Chaos().kill("a").rate("coordinator", "b", 5.0).check(["a", "b"])
    with pytest.raises(ConfigError, match=r"kill pi-b: 'pi-b' is not in the .*Did you mean pi-a\?"):
        Chaos().kill("pi-b").check(["pi-a", "other"])
    with pytest.raises(ConfigError, match=r"restart pi-b: 'pi-b' is not in the fleet"):
        Chaos().restart("pi-b", for_seconds=1).check(["pi-a", "other"])
    with pytest.raises(ConfigError, match=r"'coordinator' is not in the fleet"):
        Chaos().stop("coordinator").check(["a"])
    with pytest.raises(ConfigError, match=r"a link has two ends \(a twice\)"):
        Chaos().link_down("a", "a").check(["a"])
