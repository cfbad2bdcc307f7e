"""Headers precompiled for the emulator's kernels: only where that pays, never old ones, and the same code."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gemma_cuda.device import product_cache, sources
from gemma_cuda.device.emulator import host_compiler, precompiled
from gemma_cuda.device.emulator.device import Emulator
from gemma_cuda.device.product_cache import ProductCache
from tests.support.paths import KERNELS

INSTANCES = [f"shuffle<{width}>" for width in (1, 2, 4, 8, 16, 32)]


def products(cache: Path) -> list[Path]:
    return sorted(cache.glob("emulator/precompiled-*/*.gch"))


def compiled(cache: Path, *, checked: bool) -> list[Path]:
    """The libraries of INSTANCES, and no precompiled header before the fifth."""
    compiler = Emulator(kernels=KERNELS, cache=cache)._compiler
    libraries = [compiler.library(instance, checked=checked) for instance in INSTANCES[:4]]
    assert products(cache) == []
    return libraries + [compiler.library(instance, checked=checked) for instance in INSTANCES[4:]]


def code(library: Path, target: Path) -> bytes:
    subprocess.run(["objcopy", "-O", "binary", "-j", ".text", str(library), str(target)], check=True)
    return target.read_bytes()


@pytest.mark.parametrize("checked", [False, True])
def test_from_the_fifth_kernel_on_headers_are_precompiled_and_the_code_is_the_same(
    checked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []
    run = subprocess.run

    def noted(command: list[str], **options: Any) -> Any:
        commands.append(command)
        return run(command, **options)

    with monkeypatch.context() as patch:
        patch.setattr(host_compiler.subprocess, "run", noted)
        libraries = compiled(tmp_path / "a", checked=checked)
    (product,) = products(tmp_path / "a")
    source = f'#include "{KERNELS / "primitives.cu"}"\n'
    said = run([*commands[-1], "-H", "-fsyntax-only"], input=source, capture_output=True, text=True, check=False).stderr
    assert f"! {product}" in said  # GCC's mark of a precompiled header that it used
    monkeypatch.setattr(precompiled, "options", lambda *arguments: ())
    for library, plain in zip(libraries, compiled(tmp_path / "b", checked=checked), strict=True):
        assert library.name == plain.name
        assert code(library, tmp_path / "code") == code(plain, tmp_path / "plain") != b""
    assert products(tmp_path / "b") == []


def test_an_edited_header_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = sources.source_root()
    for folder in ("kernels", "bindings/emulator"):
        shutil.copytree(root / folder, tmp_path / folder)
    monkeypatch.setattr(sources, "source_root", lambda: tmp_path)
    kernels = tmp_path / "own"
    kernels.mkdir()
    kernel = "template <int N>\n__global__ void constant(int* out) { out[0] = 100 * kEdited + N; }\n"
    (kernels / "constant.cu").write_text(f"#include <platform.cuh>\n{kernel}")
    header = tmp_path / "bindings" / "emulator" / "platform.cuh"
    text = header.read_text()
    device, out = Emulator(kernels=kernels, cache=tmp_path, workers=1), np.zeros(1, np.int32)
    for edited in (7, 8):
        header.write_text(f"{text}constexpr int kEdited = {edited};\n")
        for n in range(6):
            device.launch(f"constant<{n}>", (1,), (1,), 0, [out])
            assert out[0] == 100 * edited + n
    assert len(products(tmp_path)) == 2


def test_what_cannot_be_precompiled_is_tried_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[list[str]] = []
    run = subprocess.run

    def noted(command: list[str], **options: Any) -> Any:
        tries.append(command)
        return run(command, **options)

    monkeypatch.setattr(precompiled.subprocess, "run", noted)
    for _ in range(8):
        assert precompiled.options("#include <nothing>\n", [], ["g++"], "", ProductCache(tmp_path)) == ()
    assert len(tries) == 1
    (tmp_path / "file").write_text("")
    for _ in range(8):
        assert precompiled.options("#include <stddef.h>\n", [], ["g++"], "", ProductCache(tmp_path / "file")) == ()
    assert not list(tmp_path.rglob("*.gch"))


def test_products_of_other_headers_go_after_a_day(tmp_path: Path) -> None:
    for name, hours in (("old", 25), ("new", 23)):
        product = tmp_path / f"precompiled-{name}" / "prelude.h.gch"
        product.parent.mkdir()
        product.write_text("")
        os.utime(product, (time.time() - 3600 * hours,) * 2)
    for _ in range(5):
        given = precompiled.options("#include <stddef.h>\n", [], ["g++"], "", ProductCache(tmp_path))
    kept = {path.parent.name for path in tmp_path.rglob("*.gch")}
    assert kept == {"precompiled-new", Path(given[1]).parent.name}


@pytest.mark.parametrize("harm", ["flipped bit", "cut", "empty", "another text", "writable by others"])
def test_a_product_that_cannot_be_trusted_is_made_anew(harm: str, tmp_path: Path) -> None:
    def given() -> tuple[str, ...]:
        return precompiled.options("#include <stddef.h>\n", [], ["g++"], "", ProductCache(tmp_path))

    header = Path([given() for _ in range(5)][-1][1])
    product = Path(f"{header}.gch")
    whole = product.read_bytes()
    assert given() == ("-include", str(header))
    if harm == "flipped bit":
        product.write_bytes(whole[:1000] + bytes([whole[1000] ^ 1]) + whole[1001:])
    elif harm == "another text":
        header.write_text("#include <stdlib.h>\n")
    elif harm == "writable by others":
        product.chmod(0o666)
    else:
        product.write_bytes(whole[: len(whole) // 2 if harm == "cut" else 0])
    precompiled._whole.clear()  # as in a new process
    assert given() == ()
    precompiled._compilations.clear()
    assert [given() for _ in range(5)][-1] == ("-include", str(header))
    assert header.read_text() == "#include <stddef.h>\n" and product_cache.read(product) is not None
    assert product.stat().st_mode & 0o022 == 0
