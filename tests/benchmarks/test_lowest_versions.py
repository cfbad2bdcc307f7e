"""The lower bounds of pyproject.toml are what `make test-slow` installs, and its tests can run there."""

from __future__ import annotations

import ast
import tomllib
from importlib.metadata import version

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from benchmarks.lowest_versions import FILES, LEFT_OUT, ROOT, lowest, pins

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CORE = [Requirement(line) for line in PROJECT["dependencies"]]


def test_every_dependency_of_the_core_is_pinned_to_the_lowest_version_that_it_allows() -> None:
    pinned = pins()
    for requirement in CORE:
        bound = Version(pinned[canonicalize_name(requirement.name)])
        assert requirement.specifier.contains(bound)
        assert not requirement.specifier.contains(Version(f"{bound}.dev0"), prereleases=True), requirement


def test_what_is_installed_is_no_older_than_the_pins() -> None:
    older = {name: version(name) for name, pin in pins().items() if Version(version(name)) < Version(pin)}
    assert older == {}


@pytest.mark.parametrize("line", ["numpy", "numpy<3", "numpy>=1,>=2"])
def test_a_dependency_without_one_lower_bound_is_refused(line: str) -> None:
    with pytest.raises(SystemExit, match=r"expected one lower bound, as in numpy>=1\.0"):
        lowest(Requirement(line))


@pytest.mark.parametrize("file", FILES)
def test_the_files_import_nothing_that_is_left_out(file: str) -> None:
    names = {
        name.partition(".")[0]
        for node in ast.walk(ast.parse((ROOT / file).read_text()))
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [])
        + ([alias.name for alias in node.names] if isinstance(node, ast.Import) else [])
    }
    assert not names & (LEFT_OUT - {"gemma-cuda"})
