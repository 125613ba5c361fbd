"""Scripts drawn from seeds, and what is counted of the runs."""

from __future__ import annotations

import itertools
from typing import Any

from benchmarks.chaos import Ended, counted
from benchmarks.chaos_run import drawn
from edgeweave.fleet.chaos import Kill, Restart

SEEDS = range(200)


def test_a_seed_stands_for_one_script_that_its_fleet_accepts() -> None:
    for seed in SEEDS:
        trouble = drawn(seed, 12)
        assert trouble == drawn(seed, 12)
        trouble.chaos.check(tuple(trouble.speeds))
        bounds = (0, *trouble.boundaries, 12)
        assert len(bounds) == len(trouble.speeds) + 1
        assert all(first < stop for first, stop in itertools.pairwise(bounds))


def test_who_is_killed_is_known() -> None:
    for seed in SEEDS:
        trouble = drawn(seed, 12)
        acts = [event.act for event in trouble.chaos.events]
        assert trouble.killed == {act.device for act in acts if isinstance(act, Kill | Restart)}


def test_two_hundred_seeds_have_every_kind_of_trouble() -> None:
    seen = {type(e.act).__name__ for seed in SEEDS for e in drawn(seed, 12).chaos.events}
    assert seen == {"Kill", "Restart", "Stop", "Slow", "LinkDown", "Rate"}


LOSSES = ("0x1p+0", "0x1p-1")
CLEAN: dict[str, Any] = {"sockets": 0, "files": [], "threads": [], "processes": 0}
DONE: dict[str, Any] = {**CLEAN, "left": ["a"], "losses": list(LOSSES), "recoveries": []}


def ended(told: dict[str, Any] | None, n_orphans: int = 0) -> Ended:
    return Ended(0, told, 1.0, n_orphans)


def test_undisturbed_runs_count_for_nothing_else() -> None:
    found = counted([ended(DONE), ended({**DONE, "recoveries": ["step 3"]})], LOSSES)
    assert (found.pop("runs"), found.pop("recovered")) == (2, 1)
    assert set(found.values()) == {0}


def test_every_failure_is_counted_as_what_it_is() -> None:
    runs = [
        ended(None),
        ended({**DONE, "losses": ["0x1p+0", "0x1.0000000000001p-1"]}),
        ended({**CLEAN, "left": ["a"], "error": "DeviceTimeout"}),
        ended({**CLEAN, "left": [], "error": "DeviceLost"}),
        ended({**CLEAN, "left": [], "error": "WireError"}),
        ended({**DONE, "sockets": 2, "files": ["x"], "threads": ["t"], "processes": 1}, 3),
    ]
    assert counted(runs, LOSSES) == {
        "runs": 6,
        "hangs": 1,
        "unequal": 1,
        "ended_early": 1,
        "unclear": 1,
        "nobody_left": 2,
        "recovered": 0,
        "orphans": 4,
        "sockets": 2,
        "files": 1,
        "threads": 1,
    }
