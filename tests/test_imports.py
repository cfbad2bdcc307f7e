"""Imports go down only: from a room of the package to rooms on lower floors, type-only and lazy imports included."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.paths import ROOT

# Lowest floor first. A room is a package or a module, and "device.__init__" the module of a package alone; a module
# belongs to the most specific room named here. Rooms of one floor do not import each other.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("printable",),
    ("errors",),
    ("arguments", "config", "precision"),
    ("host",),
    ("formats", "device"),
    ("device.cuda", "device.emulator"),
    ("device.__init__",),
    ("device.doctor", "device.foreign"),
    ("text", "model"),
    ("ops", "reference"),
    ("engine",),
    ("gemma",),
    ("bench", "interop"),
    ("",),
    ("cli",),
    ("__main__",),
)
ROOM_OF_FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}

Graph = dict[str, set[str]]


def imports_of(package: Path) -> Graph:
    """Module -> modules of the package that its file imports anywhere; names are relative to the package."""
    files = {_name(path, package): path for path in sorted(package.rglob("*.py"))}
    return {name: set(_imported(name, path, files, package.name)) for name, path in files.items()}


def _name(path: Path, package: Path) -> str:
    parts = path.relative_to(package).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imported(name: str, path: Path, modules: dict[str, Path], package: str) -> Iterator[str]:
    parent = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = [package, *parent.split(".")] if parent else [package]
            base = above[: len(above) - node.level + 1] if node.level else []
            base += [node.module] if node.module else []
            targets = [".".join([*base, alias.name]) for alias in node.names]
        else:
            continue
        for target in targets:
            if target != package and not target.startswith(f"{package}."):
                continue
            target = target[len(package) + 1 :]
            yield target if target in modules else target.rpartition(".")[0]


def room_of(module: str) -> str:
    """The most specific room that holds a module."""
    if f"{module}.__init__" in ROOM_OF_FLOOR:
        return f"{module}.__init__"
    parts = module.split(".")
    rooms = (".".join(parts[:n]) for n in range(len(parts), 0, -1))
    return next((room for room in rooms if room in ROOM_OF_FLOOR), module)


def upward(graph: Graph) -> list[str]:
    """Imports that do not go down."""
    found = []
    for module, targets in graph.items():
        for target in sorted(targets):
            here, there = room_of(module), room_of(target)
            if here != there and ROOM_OF_FLOOR[there] >= ROOM_OF_FLOOR[here]:
                found.append(f"{module} -> {target}")
    return found


def circle(graph: Graph) -> list[str]:
    """The modules of one circle of imports; empty where there is none."""
    done: set[str] = set()

    def search(module: str, path: list[str]) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        if module in done:
            return []
        for target in sorted(graph[module]):
            if found := search(target, [*path, module]):
                return found
        done.add(module)
        return []

    return next((found for module in graph if (found := search(module, []))), [])


def test_every_module_is_in_a_room_and_every_room_exists() -> None:
    rooms = {room_of(module) for module in imports_of(ROOT / "gemma_cuda")}
    assert rooms == set(ROOM_OF_FLOOR)


def test_imports_go_down() -> None:
    assert upward(imports_of(ROOT / "gemma_cuda")) == []


def test_there_is_no_circle_of_imports() -> None:
    assert circle(imports_of(ROOT / "gemma_cuda")) == []


@pytest.mark.parametrize(
    ("file", "line", "reported"),
    [
        ("ops/x.py", "from ..engine import batch", "ops.x -> engine.batch"),
        ("ops/x.py", "def f():\n    from gemma_cuda.gemma import Gemma", "ops.x -> gemma"),
        ("ops/x.py", "if TYPE_CHECKING:\n    from ..reference.linear import linear", "ops.x -> reference.linear"),
        ("ops/x.py", "import gemma_cuda.engine.batch", "ops.x -> engine.batch"),
        ("errors.py", "from . import host", "errors -> host"),
        ("device/protocol.py", "from .cuda.device import Cuda", "device.protocol -> device.cuda.device"),
        ("model/x.py", "from .. import Gemma", "model.x -> "),
        ("ops/x.py", "from ..model.masks import key_range", None),
    ],
)  # fmt: skip
def test_an_upward_import_is_found(file: str, line: str, reported: str | None, tmp_path: Path) -> None:
    package = tmp_path / "gemma_cuda"
    held = ("", "ops", "engine", "host", "device", "device/cuda", "model", "reference")
    for name in (*(f"{room}/__init__" for room in held), "gemma", "engine/batch", "device/cuda/device", "model/masks"):
        (package / f"{name}.py").parent.mkdir(parents=True, exist_ok=True)
        (package / f"{name}.py").touch()
    (package / "reference" / "linear.py").touch()
    (package / file).write_text(line)
    assert upward(imports_of(package)) == ([] if reported is None else [reported])


def test_a_circle_is_found() -> None:
    assert circle({"a": {"b"}, "b": {"c", "d"}, "c": set(), "d": {"b"}}) == ["b", "d", "b"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []
