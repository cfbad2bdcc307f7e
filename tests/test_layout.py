"""Tests, benchmarks and the package: who may import whom, where files lie, and that files named in text exist."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import conftest
from tests.support.paths import ROOT, TESTS

FOLDERS_OF_THEIR_OWN = {"benchmarks", "fuzz", "support"}
"""Folders of tests that mirror no folder of the package."""
TEXTS = ("Makefile", "*.md", "pyproject.toml", "docs/*.md", "gemma_cuda/**/*.py", "benchmarks/**/*.py", "tests/**/*.py")
NAMED_FILE = re.compile(r"(?<![\w/.])(?:tests|benchmarks|gemma_cuda)/(?!_sources/)[\w/]+\.(?:py|c|cu|json|toml)\b")
NAMED_PROGRAM = re.compile(r"python -m ((?:tests|benchmarks)(?:\.\w+)+)")
# The first names files as they were called then, the others invent some.
LEFT_OUT = {"CHANGELOG.md", "test_docs.py", "test_layout.py"}
# What readers of docs/add-a-kernel.md write.
TO_COME = {"gemma_cuda/ops/scale.py", "gemma_cuda/reference/scale.py", "tests/ops/test_scale.py"}


def modules_imported(text: str) -> set[str]:
    """Full names of all that a text imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def misplaced(path: str, text: str) -> list[str]:
    """Imports of a file, named relative to the root, that the rule of docs/conventions.md forbids."""
    found = []
    for name in sorted(modules_imported(text)):
        package, _, rest = name.partition(".")
        room = rest.partition(".")[0]
        if package == "benchmarks":
            is_allowed = path.startswith(("benchmarks/", "tests/benchmarks/"))
        elif package == "tests":
            is_allowed = room == "support" or (name == "tests.conftest" and path == "tests/test_layout.py")
        else:
            continue
        if not is_allowed or path.startswith("gemma_cuda/") or re.search(r"\.test_\w+", name):
            found.append(name)
    return found


def python_files() -> Iterator[Path]:
    for folder in ("gemma_cuda", "tests", "benchmarks"):
        yield from sorted((ROOT / folder).rglob("*.py"))


def test_tests_and_benchmarks_meet_in_support_only() -> None:
    wrong = {
        str(path.relative_to(ROOT)): misplaced(str(path.relative_to(ROOT)), path.read_text()) for path in python_files()
    }
    assert {path: names for path, names in wrong.items() if names} == {}


@pytest.mark.parametrize(
    ("path", "text", "is_wrong"),
    [
        ("tests/ops/test_x.py", "from benchmarks import cost", True),
        ("tests/ops/test_x.py", "def f():\n    import benchmarks.cost", True),
        ("tests/support/x.py", "from benchmarks.cost import count", True),
        ("tests/support/x.py", "from tests.ops.test_linear import check", True),
        ("tests/ops/test_x.py", "from tests.ops.test_linear import check", True),
        ("tests/support/x.py", "from tests.support.test_compare import f", True),
        ("benchmarks/x.py", "from tests.ops import test_linear", True),
        ("gemma_cuda/x.py", "from tests.support import paths", True),
        ("gemma_cuda/x.py", "import benchmarks.cost", True),
        ("tests/benchmarks/test_x.py", "from benchmarks import cost", False),
        ("tests/ops/test_x.py", "from tests.support import paths", False),
        ("benchmarks/x.py", "from tests.support.paths import ROOT\nfrom benchmarks import cost", False),
    ],
)  # fmt: skip
def test_a_misplaced_import_is_found(path: str, text: str, is_wrong: bool) -> None:
    assert bool(misplaced(path, text)) == is_wrong


def test_folders_of_tests_mirror_the_package() -> None:
    for path in TESTS.rglob("test_*.py"):
        folder = path.parent.relative_to(TESTS)
        assert (folder.parts[:1] and folder.parts[0] in FOLDERS_OF_THEIR_OWN) or (
            ROOT / "gemma_cuda" / folder
        ).is_dir(), path


def test_what_is_no_test_is_in_support() -> None:
    kept = {"__init__.py", "conftest.py"}
    others = [path for path in TESTS.rglob("*.py") if not path.name.startswith("test_") and path.name not in kept]
    assert [path for path in others if (TESTS / "support") not in path.parents] == []


def test_no_function_changes_a_global() -> None:
    for folder in (TESTS, ROOT / "benchmarks"):
        for path in folder.rglob("*.py"):
            assert not any(isinstance(node, ast.Global) for node in ast.walk(ast.parse(path.read_text()))), path


def test_files_and_programs_that_are_named_exist() -> None:
    for path in (path for pattern in TEXTS for path in ROOT.glob(pattern) if path.name not in LEFT_OUT):
        text = path.read_text()
        lost = [name for name in NAMED_FILE.findall(text) if not (ROOT / name).exists() and name not in TO_COME]
        programs = (ROOT.joinpath(*name.split(".")) for name in NAMED_PROGRAM.findall(text))
        lost += [str(p) for p in programs if not p.with_suffix(".py").exists() and not (p / "__main__.py").exists()]
        assert lost == [], path


def test_every_long_file_is_a_file_of_tests() -> None:
    names = [path.stem.removeprefix("test_") for path in TESTS.rglob("test_*.py")]
    assert [name for name in conftest.LONG if names.count(name) != 1] == []
