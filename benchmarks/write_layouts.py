"""Writes CuTe's layouts of matrix instructions to tests/support/isa/: python -m benchmarks.write_layouts [--nvcc nvcc]

CuTe is the part of CUTLASS that describes instructions; its traits have run on GPUs for years. The package
nvidia-cutlass is fetched into a temporary directory, print_layouts.cu is compiled with its headers, which takes two
minutes, and run on the host. nvcc must have the headers of the CUDA runtime. Tests read the JSON files only.
"""

from __future__ import annotations

import argparse
import ast
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PACKAGE = "nvidia-cutlass==4.2.0"
HERE = Path(__file__).parents[1] / "tests" / "support" / "isa"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nvcc", default="nvcc", help="the compiler's command")
    nvcc = parser.parse_args().nvcc
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", PACKAGE, "-d", name]
        subprocess.run(download, check=True)
        (wheel,) = work.glob("*.whl")
        zipfile.ZipFile(wheel).extractall(work)
        include = work / "cutlass_library" / "source" / "include"
        program = work / "print_layouts"
        subprocess.run([nvcc, "-std=c++17", f"-I{include}", "-o", program, HERE / "print_layouts.cu"], check=True)
        printed = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    version, files = parse(printed)
    for file, content in files.items():
        path = HERE / f"{file}.json"
        path.write_text("\n".join(lines({"cutlass": version, **content})) + "\n", encoding="utf-8")
        print(path)


def parse(printed: str) -> tuple[str, dict[str, Any]]:
    """The version, and what each file holds."""
    version, files = "", {}
    for line in printed.splitlines():
        *keys, value = line.split(" | ")
        if keys == ["version"]:
            version = value
        elif keys:  # else what CuTe complains of: a host has no addresses in shared memory
            place: dict[str, Any] = files
            for key in keys[:-1]:
                place = place.setdefault(key, {})
            place[keys[-1]] = parse_value(keys[-1], value)
    return version, files


def parse_value(key: str, value: str) -> Any:
    """A layout as shape and stride, with the swizzle of addresses in bytes that comes after it; numbers; or text."""
    if value.startswith("Sw<"):
        swizzle, _, layout = value.partition(" o ")
        numbers = ast.literal_eval(f"[{swizzle.removeprefix('Sw<').removesuffix('>')}]")
        return {"swizzle": numbers, **(parse_value(key, layout) if layout else {})}
    if not value.startswith("("):
        return value
    parts = [_listed(part) for part in value.split(":")]
    if key == "descriptors":
        return [f"{number:#018x}" for number in parts[0]]
    return dict(zip(("shape", "stride"), parts, strict=True)) if len(parts) == 2 else parts[0]


def _listed(text: str) -> Any:
    return ast.literal_eval(text.replace("_", "").replace("(", "[").replace(")", "]"))


def lines(value: dict[str, Any], indent: int = 0) -> Iterator[str]:
    """JSON in which an object without objects is one line."""
    yield "{"
    for number, (key, item) in enumerate(value.items()):
        comma = "," if number < len(value) - 1 else ""
        start = " " * (indent + 1) + json.dumps(key) + ": "
        if isinstance(item, dict) and any(isinstance(part, dict) for part in item.values()):
            first, *rest = lines(item, indent + 1)
            yield start + first
            yield from rest[:-1]
            yield rest[-1] + comma
        else:
            yield start + json.dumps(item) + comma
    yield " " * indent + "}"


if __name__ == "__main__":
    main()
