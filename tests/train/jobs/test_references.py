"""Functions named in text: found, run once, and told apart from our own failures."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from edgeweave.core.errors import ConfigError
from edgeweave.train.jobs.references import (
    BUILT_IN,
    absolute_reference,
    check_reference,
    resolve_function,
)


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_built_in_name_resolves(name: str) -> None:
    assert callable(resolve_function(name, base=Path()))


def test_a_function_of_an_installed_module_is_found() -> None:
    found = resolve_function("torch.nn.functional:mse_loss", base=Path())
    assert found is torch.nn.functional.mse_loss


def test_a_file_is_found_from_the_base_runs_once_and_imports_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "width_of_mine.py").write_text("WIDTH = 7\n")
    (tmp_path / "net.py").write_text(
        "from width_of_mine import WIDTH\ndef build(): return WIDTH\ndef other(): return build\n"
    )
    before = list(sys.path)
    build = resolve_function("net.py:build", base=tmp_path)
    assert build() == 7
    assert resolve_function(f"{tmp_path}/net.py:other", base=Path("/"))() is build
    assert sys.path == before


def test_a_package_beside_the_job_is_found(tmp_path: Path) -> None:
    package = tmp_path / "package_beside"
    package.mkdir()
    (package / "nets.py").write_text("def build(): return 'built'\n")
    assert resolve_function("package_beside.nets:build", base=tmp_path)() == "built"


def test_an_error_in_the_users_file_is_the_cause_and_the_file_may_be_corrected(
    tmp_path: Path,
) -> None:
    path = tmp_path / "broken.py"
    path.write_text("1 / 0\n")
    with pytest.raises(
        ConfigError, match=r"broken\.py can be imported \(ZeroDivisionError"
    ) as caught:
        resolve_function("broken.py:build", base=tmp_path)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    path.write_text("def build(): return 'now it is longer'\n")
    assert resolve_function("broken.py:build", base=tmp_path)() == "now it is longer"


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    (tmp_path / "some.py").write_text("def build_net(): pass\nnumber = 3\n")
    with pytest.raises(ConfigError, match=r"some\.py has a function build_nett .* mean build_net"):
        resolve_function("some.py:build_nett", base=tmp_path)
    with pytest.raises(ConfigError, match=r"has a function number \(there is none\)\. Define it"):
        resolve_function("some.py:number", base=tmp_path)
    with pytest.raises(ConfigError, match=r"none\.py is a file of yours \(there is none\)"):
        resolve_function("none.py:build", base=tmp_path)
    with pytest.raises(ConfigError, match=r"no_such_module can be imported \(ModuleNotFound"):
        resolve_function("no_such_module:build", base=tmp_path)


@pytest.mark.parametrize("text", ["", "net.py", ":build", "net.py:", "net.py:a b", "digit-cnn"])
def test_what_has_no_form_of_a_reference_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"a function is named path/to/file\.py:function"):
        check_reference(text)


def test_a_mistyped_built_in_name_gets_a_suggestion() -> None:
    with pytest.raises(ConfigError, match=r"Did you mean digits-cnn\?"):
        check_reference("digit-cnn")


def test_only_files_get_a_folder() -> None:
    base = Path("/jobs")
    assert absolute_reference("a/net.py:build", base=base) == "/jobs/a/net.py:build"
    assert absolute_reference("/b/net.py:build", base=base) == "/b/net.py:build"
    assert absolute_reference("a.net:build", base=base) == "a.net:build"
    assert absolute_reference("lenet", base=base) == "lenet"
