"""The ``edgeweave`` command: its sub-commands put together, and its ``main``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from edgeweave.cli.boundary import guarded
from edgeweave.cli.fleet_commands import join, status
from edgeweave.cli.gossip_command import gossip
from edgeweave.cli.job_commands import demo, plan, profile, serve, train
from edgeweave.core.version import __version__
from edgeweave.device import memory

__all__ = ["app", "main"]

app = typer.Typer(
    name="edgeweave",
    help="Train and serve one PyTorch model on the unequal, unreliable devices you already have.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code, as docs/reference-errors.md lists them.

    Without ``arguments`` it is the command that this process was started for, and its end.
    """
    if arguments is None:
        memory.leave_at_exit()
    words = list(sys.argv[1:] if arguments is None else arguments)
    command = typer.main.get_command(app)
    return guarded(
        lambda: command.main(args=words, prog_name="edgeweave", standalone_mode=False), words
    )


@app.callback(invoke_without_command=True)
def _root(
    *,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and end.", is_eager=True)
    ] = False,
) -> None:
    if version:
        sys.stdout.write(f"edgeweave {__version__}\n")
        raise typer.Exit


for _command in (demo, join, status, profile, plan, train, gossip, serve):
    app.command()(_command)
