"""The reference pages against the program: every command, option, variable and exit code."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import typer.main

from edgeweave.cli.app import app
from edgeweave.core import errors

DOCS = Path(__file__).parents[2] / "docs"
COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
ERRORS = [
    kind
    for _name, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, errors.EdgeweaveError)
]


def _section(command: str) -> str:
    page = (DOCS / "reference-cli.md").read_text()
    found = re.search(rf"^## edgeweave {command}$(.*?)(?=^## |\Z)", page, re.M | re.S)
    assert found, f"docs/reference-cli.md lacks the section '## edgeweave {command}'"
    return found[1]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_of_a_command_is_in_the_reference(command: str) -> None:
    section = _section(command)
    for parameter in COMMANDS[command].params:
        for option in (*parameter.opts, *parameter.secondary_opts):
            if option.startswith("--"):
                assert f"`{option}" in section, option
        if parameter.envvar:
            assert f"`{parameter.envvar}`" in section, parameter.envvar


@pytest.mark.parametrize("command", COMMANDS)
def test_the_reference_names_no_option_that_is_not_there(command: str) -> None:
    known = {
        option
        for parameter in COMMANDS[command].params
        for option in (*parameter.opts, *parameter.secondary_opts)
    }
    named = set(re.findall(r"^\| `(--[a-z-]+)", _section(command), re.M))
    assert named <= known | {"--help"}


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)
def test_every_error_is_in_the_reference_with_its_exit_code(kind: type[Any]) -> None:
    page = (DOCS / "reference-errors.md").read_text()
    assert f"| {kind.exit_code} | `{kind.__name__}` |" in page


def test_every_option_has_a_line_of_help() -> None:
    for name, command in COMMANDS.items():
        assert command.help, name
        for parameter in command.params:
            if parameter.opts[0].startswith("--"):
                assert parameter.help, f"{name} {parameter.opts}"


def _source() -> str:
    """All source as text in which string literals over several lines are joined."""
    root = Path(errors.__file__).parents[1]
    text = "\n".join(path.read_text() for path in sorted(root.rglob("*.py")))
    return re.sub(r'"\s*\n\s*f?"', "", text)


def test_messages_in_the_reference_are_those_of_the_program() -> None:
    page = (DOCS / "reference-errors.md").read_text()
    titles = re.findall(r"^### `(.+)`$", page, re.M)
    source = _source()
    fragments = [part.strip() for title in titles for part in title.split("...")]
    assert len(titles) > 20
    assert [part for part in fragments if len(part) > 3 and part not in source] == []
