"""The page about fleet files, and the how-to, against the program."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import edgeweave as ew
from edgeweave.fleet import PRESETS
from edgeweave.fleet._chaos_tables import _ACTS

DOCS = Path(__file__).parents[2] / "docs"
REFERENCE = (DOCS / "reference-fleet-file.md").read_text()
HOW_TO = (DOCS / "how-to-emulate-a-fleet.md").read_text()


def test_every_preset_and_every_event_is_in_the_reference() -> None:
    assert [name for name in PRESETS if f"\n| `{name}` |" not in REFERENCE] == []
    assert [name for name in _ACTS if f'\n| `"{name}"` |' not in REFERENCE] == []


def test_the_fleet_file_of_the_how_to_can_be_read(tmp_path: Path) -> None:
    (text,) = re.findall(r"^```toml\n# fleet\.toml\n(.*?)^```$", HOW_TO, re.M | re.S)
    path = tmp_path / "fleet.toml"
    path.write_text(text)
    assert len(ew.load_fleet(path).chaos.events) == 2


@pytest.mark.parametrize("page", [REFERENCE, HOW_TO], ids=["reference", "how-to"])
def test_scripts_on_the_pages_are_scripts(page: str) -> None:
    for code in re.findall(r"^```python\n(.*?)^```$", page, re.M | re.S):
        compile(code, "page", "exec")
        chained = re.search(r"chaos = \((.*?)^\)", code, re.M | re.S)
        if chained:
            assert eval(f"({chained[1]})", {"ew": ew})
