"""Damaged entries of the caches: whatever happened to a file, what is asked for is right, and the entry mended."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemma_cuda.device.cuda.algorithm_cache import ALGORITHM_BYTES, AlgorithmCache, Entry
from gemma_cuda.device.cuda.compile import compile_kernel
from gemma_cuda.device.emulator import precompiled
from gemma_cuda.device.emulator.device import Emulator
from gemma_cuda.errors import GemmaError
from gemma_cuda.formats import demo_weights
from tests.support.fuzz import examples
from tests.support.paths import KERNELS

ENTRY = Entry(bytes(range(ALGORITHM_BYTES)), "it was the fastest", 1.0, 2.0, 1.0, 0.5)
REFUSED = 3  # exit code of a child whose answer is an error of the package
_WAIT_S = 120

# --- what is asked of each kind of entry ---


def use_library(cache: Path) -> None:
    out = np.zeros(64, np.float32)
    device = Emulator(kernels=KERNELS, cache=cache, workers=1)
    device.launch("copy<float>", (1,), (64,), 0, [out, np.arange(64, dtype=np.float32)])
    assert out.tolist() == list(range(64))


def use_cubin(cache: Path) -> None:
    assert facts_of_cubin(cache) == (cache / "expected").read_text()


def facts_of_cubin(cache: Path) -> str:
    compiled = compile_kernel("softcap<4>", "sm_90a", cache=cache)
    content = hashlib.sha256(compiled.cubin.read_bytes()).hexdigest()
    return f"{compiled.lowered_name} {compiled.parameters} {compiled.resources} {compiled.notes} {content}"


def use_algorithms(cache: Path) -> None:
    assert AlgorithmCache(cache, "GPU", 1).get("product") in (ENTRY.algorithm, None)


def use_headers(cache: Path) -> None:
    """A kernel is compiled anew, with the precompiled headers if they are whole."""
    next((cache / "emulator").glob("copy-*.so")).unlink(missing_ok=True)
    use_library(cache)


def use_weights(cache: Path) -> None:
    os.environ["GEMMA_CUDA_CACHE"] = str(cache)
    content = bytes(range(250)) * 20
    demo_weights._SIZE, demo_weights._SHA256 = len(content), hashlib.sha256(content).hexdigest()
    chunks = [cache / f"chunk{i}" for i in range(4)]
    for i, chunk in enumerate(chunks):
        chunk.write_bytes(content[i * 1250 : (i + 1) * 1250])
    demo_weights._find_chunks = lambda: chunks
    assert demo_weights.demo_weights().read_bytes() == content


# name -> (what uses it, which file is damaged)
KINDS: dict[str, tuple[Callable[[Path], None], str]] = {
    "library": (use_library, "emulator/copy-*.so"),
    "cubin": (use_cubin, "cuda/softcap-*.cubin"),
    "description": (use_cubin, "cuda/softcap-*.json"),
    "algorithms": (use_algorithms, "gpu-cublaslt-*.json"),
    "precompiled header": (use_headers, "emulator/precompiled-*/prelude.h.gch"),
    "header": (use_headers, "emulator/precompiled-*/prelude.h"),
    "weights": (use_weights, f"{demo_weights.DEMO_MODEL}.gguf"),
    "marker": (use_weights, f"{demo_weights.DEMO_MODEL}.gguf.verified"),
}


def child(kind: str, cache: Path) -> None:
    """Uses an entry; exits with 0, with REFUSED, or as a crash does."""
    warnings.simplefilter("ignore")
    try:
        KINDS[kind][0](cache)
    except GemmaError:
        os._exit(REFUSED)


def exit_code(kind: str, cache: Path) -> int | None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.fuzz.test_caches"])
    process = context.Process(target=child, args=(kind, cache))
    process.start()
    process.join(_WAIT_S)
    if process.exitcode is None:
        process.kill()
    return process.exitcode


# --- the harm ---


def damage(path: Path, harm: str, place: float, other: Path) -> None:
    data = bytearray(path.read_bytes())
    position = min(int(place * len(data)), len(data) - 1)
    path.unlink()  # links to the whole cache are not to change it
    if harm == "a flipped bit":
        data[position] ^= 1 << int(place * 1e6) % 8
    elif harm == "cut":
        del data[position:]
    elif harm == "zeros":
        data[position : position + 512] = bytes(len(data[position : position + 512]))
    elif harm == "more":
        data += b"more"
    elif harm == "moved":
        data = data[position:] + data[:position]
    elif harm == "another entry":
        data = bytearray(other.read_bytes())
    if harm == "a directory":
        path.mkdir()
    elif harm == "a FIFO":
        os.mkfifo(path)
    elif harm == "a link":
        path.symlink_to("/etc/passwd")
    elif harm != "missing":
        path.write_bytes(data)
        os.utime(path, (1, 1))


HARMS = (
    *("a flipped bit", "a flipped bit", "a flipped bit", "cut", "cut", "zeros", "more", "moved", "another entry"),
    *("missing", "a directory", "a FIFO", "a link"),
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with an entry of each kind."""
    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(precompiled, "_PAYS_AFTER", 0)
        use_library(cache)
    Emulator(kernels=KERNELS, cache=cache)._compiler.library("ok_global", checked=False)
    (cache / "expected").write_text(facts_of_cubin(cache))
    compile_kernel("static_shared", "sm_90a", kernels=KERNELS, cache=cache)
    AlgorithmCache(cache, "GPU", 1).put("product", ENTRY)
    assert exit_code("weights", cache) == 0
    for _, pattern in KINDS.values():
        assert list(cache.glob(pattern)), pattern
    return cache


@examples(24)
@given(kind=st.sampled_from(sorted(KINDS)), harm=st.sampled_from(HARMS), place=st.floats(0, 1, exclude_max=True))
def test_damage_is_noticed_and_mended(whole: Path, tmp_path: Path, kind: str, harm: str, place: float) -> None:
    cache = tmp_path / "cache"
    shutil.rmtree(cache, ignore_errors=True)
    shutil.copytree(whole, cache, copy_function=os.link)
    (path,) = cache.glob(KINDS[kind][1])
    others = [other for other in whole.rglob(f"*{path.suffix}") if other.name != path.name] or [whole / "expected"]
    damage(path, harm, place, sorted(others)[0])
    if kind == "weights" and harm == "a directory":  # nobody removes a directory of the user's
        assert exit_code(kind, cache) == REFUSED
        return
    assert exit_code(kind, cache) == 0
    if harm != "a directory" and kind in ("library", "cubin", "description", "weights"):
        assert path.is_file() and not path.is_symlink()
