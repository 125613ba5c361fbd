"""Imports point down only, as DESIGN.md section 2 draws them, and the pure layers stay pure."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "edgeweave"

BELOW: dict[str, set[str]] = {
    "core": set(),
    "codec": {"core"},
    "program": {"core"},
    "data": {"core", "program"},
    "mixing": {"core", "codec"},
    "net": {"core", "codec"},
    "plan": {"core", "codec", "program"},
    "predict": {"core", "codec", "program", "plan"},
    "device": {"core", "codec", "program", "data", "mixing", "net", "plan", "predict"},
    "fleet": {"core", "codec", "program", "net", "plan", "predict", "device"},
}
"""What each folder may import. Folders above ``fleet`` may import all of these, and their own."""

TOP = {
    "train": set(BELOW),
    "gossip": set(BELOW),
    "serving": set(BELOW),
    "observe": {*BELOW, "train", "gossip", "serving"},
    "cli": {*BELOW, "train", "gossip", "serving", "observe"},
}

PURE = ("core", "program", "codec", "mixing", "plan", "predict")
"""Values in, values out: no files, no threads, no sockets, no clock."""

IMPURE_MODULES = {
    "asyncio",
    "concurrent",
    "fcntl",
    "http",
    "multiprocessing",
    "os",
    "pickle",
    "psutil",
    "queue",
    "select",
    "selectors",
    "shelve",
    "shutil",
    "signal",
    "socket",
    "ssl",
    "subprocess",
    "sys",
    "tempfile",
    "threading",
    "time",
    "urllib",
    "zenoh",
}

CLOCK = SOURCE / "core" / "clock.py"
"""The one pure module that may name the system's clock: it hands it on as an argument."""

MODULES = sorted(SOURCE.rglob("*.py"))


def _imports(path: Path) -> Iterator[str]:
    """Full names of the modules that a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _folder(path: Path) -> str:
    parts = path.relative_to(SOURCE).parts
    return parts[0] if len(parts) > 1 else ""


def _own_folders(path: Path) -> set[str]:
    names = (name.split(".") for name in _imports(path))
    found = {parts[1] for parts in names if parts[0] == "edgeweave" and len(parts) > 1}
    return {name for name in found if (SOURCE / name).is_dir()}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_point_down_only(path: Path) -> None:
    folder = _folder(path)
    if folder:
        allowed = {folder} | (BELOW | TOP)[folder]
        assert _own_folders(path) <= allowed


@pytest.mark.parametrize("folder", PURE)
def test_a_pure_folder_imports_nothing_that_waits_reads_or_writes(folder: str) -> None:
    for path in sorted((SOURCE / folder).rglob("*.py")):
        if path != CLOCK:
            roots = {name.split(".")[0] for name in _imports(path)}
            assert roots & IMPURE_MODULES == set(), path


@pytest.mark.parametrize("folder", PURE)
def test_a_pure_folder_opens_no_file(folder: str) -> None:
    for path in sorted((SOURCE / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in {"open", "print", "input", "exec", "eval"}, path


@pytest.mark.parametrize(
    "path", [p for p in MODULES if p.name == "__init__.py"], ids=lambda p: str(p.parent.name)
)
def test_a_package_file_hands_names_on_and_does_nothing_else(path: Path) -> None:
    if path.parent == SOURCE:
        return  # the user's surface loads its parts lazily
    for node in ast.parse(path.read_text()).body:
        assert isinstance(node, ast.Import | ast.ImportFrom | ast.Assign | ast.Expr), ast.dump(node)


def test_nothing_unpickles() -> None:
    for path in MODULES:
        roots = {name.split(".")[0] for name in _imports(path)}
        assert roots & {"pickle", "cloudpickle", "dill", "marshal", "shelve"} == set(), path
