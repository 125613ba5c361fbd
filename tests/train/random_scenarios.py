"""Scripts drawn from seeds, of which at least one device comes out unharmed.

``python -m tests.train.random_scenarios FIRST STOP`` tries these seeds and says which fail.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Sequence

from edgeweave.plan import Replication
from tests.train.scenarios import Scenario
from tests.train.trained_models import CNN, MLP, UNET, n_units
from tests.train.troubled import Act, at_request, both, cut_off, kill, linger, resume, stall
from tests.train.troubled import start_if_gone as start

_VERBS = ("halt", "halt", "deploy", "deploy", "fetch", "replicate", "state", "statistics", "pulse")


def drawn(seed: int) -> Scenario:
    """The same for the same seed. Whose loss is reported is not foretold (``lost`` is empty)."""
    rng = random.Random(seed)
    example = rng.choice((MLP, CNN, UNET))
    devices = "abcde"[: rng.randint(2, min(5, n_units(example)))]
    safe = rng.choice(devices)
    script: dict[int, Act] = {}
    for victim in rng.sample(devices, rng.randint(1, len(devices))):
        if victim != safe:
            _trouble(rng, victim, devices, script)
    return Scenario(
        script,
        "",
        devices=devices,
        example=example,
        schedule=rng.choice(("1f1b", "gpipe")),
        epochs=rng.choice((4, 6)),
        checkpoint_every=rng.choice((None, 1, 3)),
        replication=Replication(rng.randint(1, 5), rng.randint(1, 8)),
    )


def _trouble(rng: random.Random, victim: str, devices: str, script: dict[int, Act]) -> None:
    begin = rng.randint(1, 16)
    act, undo = rng.choice(
        (
            (kill(victim), None),
            (kill(victim), start(victim)),
            (both(kill(victim), start(victim)), start(victim)),
            (stall(victim), resume(victim)),
            (cut_off(victim), None),  # mended at once, what was lost would stay lost here
        )
    )
    if rng.random() < 0.4:
        act = at_request(rng.choice(devices), rng.choice(_VERBS), act, number=rng.randint(1, 2))
    _add(script, begin, act)
    if undo is not None:
        _add(script, begin + rng.randint(4, 9), undo)
        for later in range(begin + 9, begin + 14):
            _add(script, later, linger(rng.choice(devices)))


def _add(script: dict[int, Act], at: int, act: Act) -> None:
    script[at] = both(script[at], act) if at in script else act


def main(arguments: Sequence[str]) -> int:
    """Try seeds one after another."""
    from tests.train.test_chaos import as_undisturbed  # noqa: PLC0415  it draws from here too

    n_failed = 0
    for seed in range(*map(int, arguments)):
        started = time.monotonic()
        try:
            as_undisturbed(drawn(seed))
            found = "well"
        except Exception as error:  # noqa: BLE001  whatever it is, it is told, and the next tried
            found, n_failed = f"{type(error).__name__}: {str(error)[:300]}", n_failed + 1
        sys.stdout.write(f"seed {seed}: {found}, {time.monotonic() - started:.1f} s\n")
        sys.stdout.flush()
    return n_failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
