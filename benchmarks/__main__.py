"""Run a benchmark: ``python -m benchmarks efficiency [--quick] [--json]``, or ``--all``.

Without ``--quick`` the full result is written to ``benchmarks/results/NAME.json``, which is
committed. With ``--json`` the last line of output is one JSON object with the metrics.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys

from benchmarks.harness import NAMES, Result, write

__all__ = ["main"]


def main(arguments: list[str]) -> int:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("name", nargs="?", choices=NAMES, help="which claim to measure")
    parser.add_argument("--all", action="store_true", help="run every benchmark")
    parser.add_argument("--quick", action="store_true", help="less work, at most 60 s on 2 cores")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    options = parser.parse_args(arguments)
    if options.all == (options.name is not None):
        parser.error("name one benchmark, or pass --all")
    for name in NAMES if options.all else [options.name]:
        run = importlib.import_module(f"benchmarks.{name}").run
        result: Result = run(quick=options.quick)
        for line in result.lines:
            print(line, file=sys.stderr if options.json else sys.stdout)
        if not options.quick:
            write(result)
        if options.json:
            print(json.dumps(result.summary()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
