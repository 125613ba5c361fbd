"""Run a benchmark: ``python -m benchmarks wire [--quick] [--json]``, or ``--all``; or ``--page``.

Without ``--quick`` the full result is written to ``benchmarks/results/NAME.json``, which is
committed, and its picture to ``docs/images``. ``--page`` writes ``docs/reference-benchmarks.md``
from the results that are there, which ``--all`` does too. With ``--json`` the last line of output
is one JSON object with the metrics. ``convergence``, ``edgepipe``, ``gossip`` and ``serving`` take
long: with ``--kept FOLDER`` they keep each part there when it is done, and a run that was cut off
goes on from them.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path

from benchmarks import page
from benchmarks.harness import NAMES, Result, write

__all__ = ["main"]

_KEEPING = ("convergence", "edgepipe", "gossip", "serving")


def main(arguments: list[str]) -> int:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("name", nargs="?", choices=NAMES, help="which claim to measure")
    parser.add_argument("--all", action="store_true", help="run every benchmark, then --page")
    parser.add_argument("--page", action="store_true", help="write the page from kept results")
    parser.add_argument("--quick", action="store_true", help="less work, at most 60 s on 2 cores")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    parser.add_argument(
        "--kept",
        type=Path,
        metavar="FOLDER",
        help="parts of it that are done already",
    )
    options = parser.parse_args(arguments)
    if options.all + options.page + (options.name is not None) != 1:
        parser.error("name one benchmark, or pass --all or --page")
    if options.kept and options.name not in _KEEPING:
        parser.error(f"--kept FOLDER goes with {', '.join(_KEEPING)}")
    kept = {"kept": options.kept} if options.kept else {}
    names = NAMES if options.all else [options.name] if options.name else []
    for name in names:
        run = importlib.import_module(f"benchmarks.{name}").run
        result: Result = run(quick=options.quick, **kept)
        for line in result.lines:
            print(line, file=sys.stderr if options.json else sys.stdout)
        if result.metrics and not options.quick:
            write(result)
        if options.json:
            print(json.dumps(result.summary()))
    if options.page or (options.all and not options.quick):
        page.write()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
