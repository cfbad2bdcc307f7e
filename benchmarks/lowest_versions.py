"""The lowest versions that pyproject.toml allows, as pins: python -m benchmarks.lowest_versions > FILE

For pip as constraints and requirements of an environment in which `make test-slow` runs the tests in `FILES`. Left out
are torch and transformers, which are pinned or take the newest of what they need, and with them what needs them.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
LEFT_OUT = frozenset({"torch", "transformers", "gemma-cuda"})
_EXTRAS = ("jax", "test")
FILES = tuple(str(next((ROOT / "tests").rglob(f"test_{name}.py")).relative_to(ROOT)) for name in (
    "attention_edges", "checkpoint", "cli", "cli_demo", "embed", "geglu", "gguf", "golden", "hub", "jax_alone",
    "layouts", "mask_tiles", "primitives", "reference", "rms_norm", "rounding",
))  # fmt: skip


def pins() -> dict[str, str]:
    """name: version of every dependency with a lower bound: of the core, the build, and what the tests need."""
    table = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project = table["project"]
    extras = project["optional-dependencies"]
    lines = [*table["build-system"]["requires"], *project["dependencies"], *(x for e in _EXTRAS for x in extras[e])]
    found: dict[str, str] = {}
    for requirement in _applicable(lines):
        name = canonicalize_name(requirement.name)
        if name not in LEFT_OUT:
            found[name] = lowest(requirement)
    return dict(sorted(found.items()))


def lowest(requirement: Requirement) -> str:
    """The version of its only lower bound, or of its pin."""
    bounds = [specifier.version for specifier in requirement.specifier if specifier.operator in (">=", "==")]
    if len(bounds) != 1:
        raise SystemExit(f"pyproject.toml: {requirement}: expected one lower bound, as in {requirement.name}>=1.0")
    return bounds[0]


def _applicable(lines: list[str]) -> Iterator[Requirement]:
    for line in lines:
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate():
            yield requirement


if __name__ == "__main__":
    print("\n".join(f"{name}=={version}" for name, version in pins().items()))
