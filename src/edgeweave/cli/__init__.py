"""The command line: ``edgeweave COMMAND``. Reads options, shows values; decides nothing else."""

from edgeweave.cli.app import main

__all__ = ["main"]
