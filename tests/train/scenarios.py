"""What happens in scripted runs, by name. Most are slow; the others are a sample of each kind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from edgeweave.plan import Replication
from tests.models import Example
from tests.train.trained_models import CNN, MLP, UNET
from tests.train.troubled import (
    Act,
    at_request,
    both,
    cut_off,
    drop,
    kill,
    linger,
    mend,
    resume,
    stall,
    start,
)

OFTEN = Replication(chain_every=2, whole_every=4)


@dataclass(frozen=True)
class Scenario:
    """What happens, and what is seen of it."""

    script: Mapping[int, Act]
    """By batches read before: one is looked at first, and steps are at most three behind."""
    lost: str
    """The devices whose loss is reported, one letter each."""
    devices: str = "abc"
    at_end: str | None = None
    """The devices of the last plan, if not those that were never lost."""
    example: Example = MLP
    schedule: str = "1f1b"
    epochs: int = 4
    validation: Mapping[int, Act] = field(default_factory=dict)
    """The same by parts of the validation set read before; without any there is none."""
    checkpoint_every: int | None = None
    replication: Replication = OFTEN
    is_slow: bool = False


def slow(scenario: Scenario) -> Scenario:
    return replace(scenario, is_slow=True)


def coming_back(device: str, begin: int, *acts: Act) -> dict[int, Act]:
    """Start a device, and read slowly until it takes part."""
    lingering = dict.fromkeys(range(begin + 1, begin + 12), linger(device))
    return {begin: both(*acts, start(device)), **lingering}


GPIPE = {"schedule": "gpipe"}

SCENARIOS: dict[str, Scenario] = {
    # Where in a run.
    "the first stage at the first step": Scenario({1: kill("a")}, "a"),
    "a middle stage at the first step": slow(Scenario({1: kill("b")}, "b", **GPIPE)),
    "the last stage at the first step": slow(Scenario({1: kill("c")}, "c", example=CNN)),
    "all but the last at the first step": slow(Scenario({1: kill("a", "b")}, "ab")),
    "the first stage at the last step": slow(Scenario({16: kill("a")}, "a", **GPIPE)),
    "the last stage at the last step": Scenario({16: kill("c")}, "c"),
    "a middle stage at the last step": slow(Scenario({16: kill("b")}, "b", example=UNET)),
    "one of two": slow(Scenario({6: kill("a")}, "a", devices="ab", **GPIPE)),
    "the other of two": slow(Scenario({6: kill("b")}, "b", devices="ab")),
    "gpipe, the first stage": slow(Scenario({7: kill("a")}, "a", example=UNET, **GPIPE)),
    "gpipe, the last stage": slow(Scenario({7: kill("c")}, "c", example=CNN, **GPIPE)),
    # Several.
    "neighbours of five at once": slow(
        Scenario({6: kill("b", "c")}, "bc", devices="abcde", example=UNET)
    ),
    "all of five but the middle": slow(
        Scenario({6: kill("a", "b", "d", "e")}, "abde", devices="abcde", **GPIPE)
    ),
    "one after another until one is left": Scenario(
        {4: kill("b"), 9: kill("d"), 15: kill("a")}, "abd", devices="abcd", example=UNET
    ),
    "two in consecutive steps": slow(Scenario({8: kill("a"), 9: kill("b")}, "ab")),
    # While the others recover.
    "a second one when it is halted": Scenario(
        {6: both(at_request("c", "halt", kill("c")), kill("b"))}, "bc"
    ),
    "a second one when it gets its new stage": slow(
        Scenario({6: both(at_request("a", "deploy", kill("a")), kill("b"))}, "ab", **GPIPE)
    ),
    "the one whose state is fetched": slow(
        Scenario({6: both(at_request("c", "fetch", kill("c")), kill("b"))}, "bc", example=CNN)
    ),
    "a third one when the second recovery deploys": slow(
        Scenario(
            {
                6: both(
                    at_request("a", "halt", kill("a")),
                    at_request("c", "deploy", kill("c")),
                    kill("b"),
                )
            },
            "abc",
            devices="abcd",
        )
    ),
    "another one when one was deployed": slow(
        Scenario({6: both(at_request("c", "deploy", kill("a")), kill("b"))}, "ab", example=UNET)
    ),
    # Coming back, and the moves that follow.
    "back again": Scenario({5: kill("b"), **coming_back("b", 9)}, "b", at_end="abc", epochs=8),
    "the first stage back again": slow(
        Scenario({5: kill("a"), **coming_back("a", 9)}, "a", at_end="abc", epochs=8, **GPIPE)
    ),
    "back before anybody noticed": slow(
        Scenario(
            {6: both(kill("b"), start("b")), **dict.fromkeys(range(7, 20), linger("b"))},
            "b",
            at_end="abc",
            epochs=8,
        )
    ),
    "killed and started again before anybody looked": slow(
        Scenario(
            {5: both(kill("b"), start("b")), **dict.fromkeys(range(6, 24), linger("b"))},
            "b",
            at_end="abc",
            epochs=8,
            example=UNET,
        )
    ),
    "the first and the last are started again, one after the other": slow(
        Scenario(
            {
                5: both(kill("a"), start("a")),
                **dict.fromkeys(range(6, 16), linger("a")),
                16: both(kill("c"), start("c")),
                **dict.fromkeys(range(17, 29), linger("c")),
            },
            "ac",
            at_end="abc",
            epochs=8,
            **GPIPE,
        )
    ),
    "back while the others recover": slow(
        Scenario(
            {
                6: both(at_request("a", "halt", start("b")), kill("b")),
                **dict.fromkeys(range(7, 25), linger("b")),
            },
            "b",
            at_end="abc",
            epochs=8,
        )
    ),
    "back, and lost again": slow(
        Scenario({5: kill("b"), **coming_back("b", 9), 22: kill("b")}, "b", epochs=8)
    ),
    "back, and lost when it gets its stage": slow(
        Scenario(
            {5: kill("b"), **coming_back("b", 9, at_request("b", "deploy", kill("b")))},
            "b",
            epochs=8,
        )
    ),
    "a move during which another is lost while it finishes its step": Scenario(
        {5: kill("b"), **coming_back("b", 9, at_request("c", "halt", kill("c")))},
        "bc",
        at_end="ab",
        epochs=8,
    ),
    "a move during which another is lost when it gets its stage": slow(
        Scenario(
            {5: kill("b"), **coming_back("b", 9, at_request("a", "deploy", kill("a")))},
            "ab",
            at_end="bc",
            epochs=8,
        )
    ),
    "a move whose source of the state is lost": slow(
        Scenario(
            {5: kill("b"), **coming_back("b", 9, at_request("a", "fetch", kill("a")))},
            "ab",
            at_end="bc",
            epochs=8,
            example=UNET,
        )
    ),
    # Standing still, and links.
    "one stands still and goes on later": Scenario({5: stall("b"), 12: resume("b")}, "b"),
    "the first stands still": slow(
        Scenario({5: stall("a"), 12: resume("a")}, "a", example=CNN, **GPIPE)
    ),
    "the last stands still at the first step": slow(
        Scenario({1: stall("c"), 8: resume("c")}, "c", example=UNET)
    ),
    "one stands still too short to be lost": slow(
        Scenario({5: both(stall("b"), at_request("b", "pulse", resume("b")))}, "")
    ),
    "one stands still when it is halted": slow(
        Scenario({5: both(at_request("a", "halt", stall("a")), kill("b")), 14: resume("a")}, "ab")
    ),
    "one stands still when it gets its new stage": slow(
        Scenario({5: both(at_request("a", "deploy", stall("a")), kill("b")), 14: resume("a")}, "ab")
    ),
    "one goes on while the others recover": slow(
        Scenario({5: both(at_request("a", "halt", resume("b")), stall("b"))}, "b")
    ),
    "one stands still and goes on when the others are lost": Scenario(
        {
            5: both(
                at_request("b", "halt", resume("b")),
                at_request("a", "halt", kill("a", "c")),
                stall("b"),
            )
        },
        "abc",
        at_end="b",
    ),
    "one is cut off, and its links are mended later": slow(
        Scenario({5: cut_off("b"), 12: mend("b")}, "b", example=UNET)
    ),
    "the last is cut off, and its links are mended while the others recover": slow(
        Scenario({5: both(at_request("a", "halt", mend("c")), cut_off("c"))}, "c", **GPIPE)
    ),
    "one is cut off, another is killed": slow(
        Scenario({5: cut_off("b"), 9: kill("c"), 14: mend("b")}, "bc")
    ),
    "no replica of the last stage arrives before it is lost": slow(
        Scenario({1: drop("a", "c"), 9: kill("c")}, "c")
    ),
    # While something else goes on.
    "during an evaluation": Scenario({}, "b", validation={3: kill("b")}),
    "during the last evaluation": slow(Scenario({}, "a", validation={22: kill("a")}, example=CNN)),
    "one stands still during an evaluation": slow(
        Scenario({8: resume("c")}, "c", validation={3: stall("c")}, **GPIPE)
    ),
    "during a checkpoint": Scenario(
        {5: at_request("b", "state", kill("b"))}, "b", checkpoint_every=3
    ),
    "another one during a checkpoint": slow(
        Scenario(
            {5: at_request("a", "state", kill("c"))},
            "c",
            checkpoint_every=3,
            example=UNET,
            **GPIPE,
        )
    ),
    "during the fetch at the end": slow(
        Scenario({16: at_request("a", "state", kill("a"))}, "a", example=CNN)
    ),
    "when the statistics are asked for at the end": slow(
        Scenario({16: at_request("b", "statistics", kill("b"))}, "b")
    ),
    "when the clocks are compared at the end": slow(
        Scenario({16: at_request("b", "hello", kill("b"))}, "", at_end="abc")
    ),
    "when the devices are let go": slow(
        Scenario({16: at_request("b", "release", kill("b"))}, "", at_end="abc")
    ),
    # Newcomers.
    "one that the plan does not know comes": slow(Scenario({5: start("d")}, "")),
    "one comes while another is lost": slow(
        Scenario({5: both(start("d"), kill("b"))}, "b", example=UNET)
    ),
    "one comes and is lost when it is met": slow(
        Scenario({4: kill("b"), 9: both(at_request("b", "hello", kill("b")), start("b"))}, "b")
    ),
}
