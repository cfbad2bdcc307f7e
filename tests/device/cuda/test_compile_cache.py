"""What the compile function says of a kernel, what it refuses, and that its cache never lies."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gemma_cuda.device import product_cache, sources
from gemma_cuda.device.cuda import compile as gpu_compiler
from gemma_cuda.device.cuda import nvrtc
from gemma_cuda.device.cuda.compile import CompiledKernel, compile_kernel
from gemma_cuda.device.cuda.cubin import Resources, parse_notes, parse_resources, read_symbol
from gemma_cuda.errors import DeviceError, LaunchError
from gemma_cuda.host import private_directory
from tests.support.paths import KERNELS, ROOT

INSTANCE = "rms_norm<bf16, 8, OnePlus, NormAdd, 128>"


def files(cache: Path) -> list[Path]:
    return sorted((cache / "cuda").iterdir())


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The name of each program that NVRTC compiles."""
    names: list[str] = []
    build = nvrtc.build

    def counted(name: str, *arguments: Any) -> nvrtc.Product:
        names.append(name)
        return build(name, *arguments)

    monkeypatch.setattr(nvrtc, "build", counted)
    return names


# --- what it says of a kernel ---


def test_parameters_are_those_that_the_host_compiler_sees() -> None:
    from gemma_cuda.device.emulator.device import Emulator

    cases = [(INSTANCE, None), ("rms_norm<float, 1, Unit, Nothing, 32>", None)]
    cases += [(f"pointers<{cpp}>", KERNELS) for cpp in ("bf16", "half", "float", "double", "int64_t", "Triple")]
    cases += [(name, KERNELS) for name in ("numbers", "nothing", "sums", "wild_pointer", "spins", "misaligned_word")]
    for instance, directory in cases:
        emulator = Emulator(kernels=directory)
        library = emulator._runtime.Library(str(emulator._compiler.library(instance, checked=False)))
        parameters = compile_kernel(instance, "sm_90a", kernels=directory).parameters
        assert [(p.kind, p.is_const, p.size, p.type) for p in parameters] == library.parameters, instance
    names = [parameter.name for parameter in compile_kernel(INSTANCE, "sm_90a").parameters]
    assert names == ["y", "h", "x", "residual", "weight", "post_weight", "E", "eps", "layer_scalar"]


def test_spills_local_memory_and_shared_memory_are_seen() -> None:
    spills, array, call, shared = (
        compile_kernel(name, "sm_90a", kernels=KERNELS).resources
        for name in ("spills", "local_array", "local_array_in_a_call", "static_shared")
    )
    assert spills.registers == 32 and spills.spill_store_bytes > 0 and spills.spill_load_bytes > 0
    assert array.stack_bytes == 128 and array.spill_store_bytes == 0
    assert call.stack_bytes >= 128
    assert shared.static_shared_bytes == 4000 and shared.stack_bytes == 0


def test_warnings_are_notes() -> None:
    (note,) = compile_kernel("warns", "sm_90a", kernels=KERNELS).notes
    assert note.startswith("resources.cu(") and "warning #186-D: pointless comparison" in note


def test_resources_are_read_from_what_ptxas_prints() -> None:
    log = """ptxas info    : 0 bytes gmem, 16 bytes cmem[3]
ptxas info    : Compiling entry function '_Z5otherv' for 'sm_80'
ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 10 registers, used 0 barriers
ptxas info    : Compiling entry function '_Z1kv' for 'sm_80'
ptxas info    : Function properties for _Z1kv
ptxas         .     16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 2048 bytes smem, 400 bytes cmem[0]
ptxas info    : Function properties for helper
ptxas         .     32 bytes stack frame, 0 bytes spill stores, 4 bytes spill loads
ptxas info    : (C7508) Potential Performance Loss: 'setmaxnreg' ignored
ptxas info    : Compile time = 3.797 ms
"""
    assert parse_resources(log, "_Z1kv") == Resources(255, 2048, 48, 8, 16)
    assert parse_notes(log) == ("ptxas info    : (C7508) Potential Performance Loss: 'setmaxnreg' ignored",)
    with pytest.raises(ValueError, match="no registers of _Z1xv"):
        parse_resources(log, "_Z1xv")


@pytest.mark.parametrize("damage", [b"", b"\x7fELF\x02", b"#!/bin/sh"])
def test_a_file_that_is_no_cubin_is_refused(damage: bytes) -> None:
    cubin = compile_kernel(INSTANCE, "sm_90a").cubin.read_bytes()
    assert len(read_symbol(cubin, "kernel_parameters")) == 10 * 16
    with pytest.raises(ValueError, match="no variable nothing"):
        read_symbol(cubin, "nothing")
    with pytest.raises(ValueError, match="not a cubin"):
        read_symbol(damage, "kernel_parameters")
    with pytest.raises(ValueError, match="not a cubin"):
        read_symbol(cubin[: len(cubin) // 2], "kernel_parameters")


# --- what it refuses ---


@pytest.mark.parametrize(
    ("instance", "message"),
    [
        (
            "rms_norm<bf16, 8, OnePlus, Nonsense, 64>",
            'template arguments(1): error: identifier "Nonsense" is undefined',
        ),
        ("rms_norm<bf16>", "template arguments(1): error: cannot determine which instance"),
        ("rms_norm<bf16, 8, Unit, Nothing, 100>", 'error: static assertion failed with "whole warps"'),
    ],
)
def test_what_does_not_compile_is_refused_in_the_compilers_words(tmp_path: Path, instance: str, message: str) -> None:
    with pytest.raises(LaunchError) as info:
        compile_kernel(instance, "sm_90a", cache=tmp_path)
    assert str(info.value).startswith(f"{instance} does not compile for sm_90a: ") and message in str(info.value)
    assert not (tmp_path / "cuda").exists()


def test_unknown_kernels_and_architectures_are_refused() -> None:
    with pytest.raises(LaunchError, match=r"no kernel is called nothing; there are .*rms_norm"):
        compile_kernel("nothing<bf16>", "sm_90a")
    with pytest.raises(LaunchError, match="architecture is 'hopper', expected one such as sm_80"):
        compile_kernel(INSTANCE, "hopper")
    with pytest.raises(DeviceError, match=r"NVRTC \d+\.\d+ does not know an option among --gpu-architecture=sm_42 "):
        compile_kernel(INSTANCE, "sm_42")


def python(code: str, **environment: str) -> str:
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_missing_compiler_is_told_with_what_to_install() -> None:
    asks = "from gemma_cuda.device.cuda.compile import missing; print(missing())"
    assert python(asks).strip() == "None"
    assert "GEMMA_CUDA_NVRTC=/nowhere/libnvrtc.so" in python(asks, GEMMA_CUDA_NVRTC="/nowhere/libnvrtc.so")
    without = "import sys; sys.modules['cuda.bindings'] = None; "
    assert "needs cuda-bindings, which is not installed: pip install 'gemma-cuda[cuda13]'" in python(without + asks)


def test_nothing_of_cuda_is_imported_before_it_is_used() -> None:
    code = (
        "import gemma_cuda, gemma_cuda.cli, gemma_cuda.device.cuda.compile, gemma_cuda.device.cuda, sys;"
        "print([name for name in sys.modules if name.split('.')[0] in ('cupy', 'cuda')])"
    )
    assert python(code).strip() == "[]"


# --- the cache ---


def test_a_compiled_kernel_is_kept(tmp_path: Path, builds: list[str]) -> None:
    first = compile_kernel(INSTANCE, "sm_90a", cache=tmp_path)
    assert compile_kernel(INSTANCE, "sm_90a", cache=tmp_path) == first and builds == ["rms_norm.cu"]
    assert [path.suffix for path in files(tmp_path)] == [".cubin", ".json"] and first.cubin == files(tmp_path)[0]
    compile_kernel(INSTANCE, "sm_80", cache=tmp_path)
    compile_kernel("rms_norm<bf16, 8, Times, NormAdd, 128>", "sm_90a", cache=tmp_path)
    assert len(builds) == 3 and len(files(tmp_path)) == 6


def test_an_entry_says_how_long_it_took(tmp_path: Path, builds: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter((100.0, 102.5))
    with monkeypatch.context() as patch:
        patch.setattr(gpu_compiler.time, "perf_counter", lambda: next(clock))
        assert compile_kernel(INSTANCE, "sm_90a", cache=tmp_path).seconds == 2.5
    assert compile_kernel(INSTANCE, "sm_90a", cache=tmp_path).seconds == 2.5 and len(builds) == 1


def test_an_edited_kernel_or_header_and_another_option_or_compiler_are_other_entries(
    tmp_path: Path, builds: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels = tmp_path / "kernels"
    shutil.copytree(sources.kernel_directory(), kernels)
    monkeypatch.setattr(sources, "kernel_directory", lambda: kernels)

    def compiled() -> CompiledKernel:
        return compile_kernel(INSTANCE, "sm_90a", cache=tmp_path)

    seen = [compiled()]
    for edited in (kernels / "rms_norm.cu", kernels / "common" / "reduce.cuh", kernels / "gpu" / "platform.cuh"):
        edited.write_text(edited.read_text() + "\n// edited\n")
        seen.append(compiled())
        assert compiled() == seen[-1]
    monkeypatch.setattr(gpu_compiler, "_OPTIONS", (*gpu_compiler._OPTIONS, "--use_fast_math"))
    seen.append(compiled())
    monkeypatch.setattr(nvrtc, "version", lambda: "NVRTC 99.0")
    seen.append(compiled())
    assert len(builds) == len(seen) and len({entry.cubin for entry in seen}) == len(seen)


def damaged(kind: str, description: Path, cubin: Path) -> None:
    fields = json.loads(description.read_text())
    if kind == "cut cubin":
        cubin.write_bytes(cubin.read_bytes()[:100])
    elif kind == "empty cubin":
        cubin.write_bytes(b"")
    elif kind == "flipped bit":
        data = bytearray(cubin.read_bytes())
        data[len(data) // 2] ^= 1
        cubin.write_bytes(data)
    elif kind == "no cubin":
        cubin.unlink()
    elif kind == "empty description":
        description.write_text("")
    elif kind == "binary description":
        description.write_bytes(b"\xff\xfe\x00")
    elif kind == "a list":
        description.write_text("[]")
    elif kind == "missing field":
        del fields["lowered_name"]
        description.write_text(json.dumps(fields))
    elif kind == "other registers":
        fields["resources"]["registers"] += 1
        description.write_text(json.dumps(fields))
    else:  # damaged before it was written
        del fields["digest"]
        if kind == "unknown resource":
            fields["resources"]["heat"] = 1
        elif kind == "no digest":
            del fields["sha256"]
        elif kind == "a path to elsewhere":
            elsewhere = Path("/etc/passwd")
            fields |= {"cubin": str(elsewhere), "sha256": hashlib.sha256(elsewhere.read_bytes()).hexdigest()}
        product_cache.write_json(description, fields)


@pytest.mark.parametrize(
    "kind",
    [
        *("cut cubin", "empty cubin", "flipped bit", "no cubin"),
        *("empty description", "binary description", "a list", "missing field", "other registers"),
        *("unknown resource", "no digest", "a path to elsewhere"),
    ],
)
def test_a_damaged_entry_is_made_anew(tmp_path: Path, builds: list[str], kind: str) -> None:
    first = compile_kernel(INSTANCE, "sm_90a", cache=tmp_path)
    (description,) = (path for path in files(tmp_path) if path.suffix == ".json")
    damaged(kind, description, first.cubin)
    again = compile_kernel(INSTANCE, "sm_90a", cache=tmp_path)
    assert len(builds) == 2 and again.resources == first.resources and again.cubin.read_bytes()[:4] == b"\x7fELF"
    assert compile_kernel(INSTANCE, "sm_90a", cache=tmp_path) == again and len(builds) == 2
    assert {path.suffix for path in files(tmp_path)} == {".cubin", ".json"}


def test_a_cache_that_cannot_be_written_is_done_without(
    tmp_path: Path, builds: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    filled = compile_kernel(INSTANCE, "sm_90a", cache=tmp_path)

    def read_only(path: Path) -> None:
        raise OSError(30, "Read-only file system", str(path))

    private_directory._temporary.cache_clear()
    private_directory._made.clear()
    real = product_cache.atomic_path
    monkeypatch.setattr(
        product_cache, "atomic_path", lambda p, **options: read_only(p) if tmp_path in p.parents else real(p, **options)
    )
    assert compile_kernel(INSTANCE, "sm_90a", cache=tmp_path) == filled and len(builds) == 1
    with pytest.warns(RuntimeWarning, match=r"cuda cannot be written \(Read-only file system\)"):
        compile_kernel(INSTANCE, "sm_86", cache=tmp_path)
    (private,) = private_directory.temporary_if_made()
    for _ in range(2):
        other = compile_kernel(INSTANCE, "sm_86", cache=tmp_path)
        assert other.cubin.parent == private and other.cubin.stat().st_size > 1000 and len(builds) == 2
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert compile_kernel(INSTANCE, "sm_89", cache=blocked).cubin.is_file()


def test_what_a_cache_that_cannot_be_written_gave_ends_with_the_process(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code = f"""
from pathlib import Path
from gemma_cuda.device.cuda.compile import compile_kernel
cubin = compile_kernel({INSTANCE!r}, "sm_90a", cache=Path({str(tmp_path / "file")!r})).cubin
assert cubin.is_file()
print(cubin)
"""
    assert not Path(python(code).strip()).parent.exists()


def _compile_at_once(barrier: Any, cache: Path, results: Any) -> None:
    barrier.wait()
    for instance in (INSTANCE, "rms_norm<half, 8, Unit, Nothing, 64>"):
        compiled = compile_kernel(instance, "sm_90a", cache=cache)
        results.put((instance, compiled.lowered_name, compiled.cubin.name, len(compiled.cubin.read_bytes())))


def test_many_processes_may_fill_one_cache(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(6), context.Queue()
    processes = [context.Process(target=_compile_at_once, args=(barrier, tmp_path, results)) for _ in range(6)]
    for process in processes:
        process.start()
    found = [results.get(timeout=120) for _ in range(12)]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert len(set(found)) == 2  # each process got the same two kernels
    assert len(files(tmp_path)) == 4 and not [path for path in files(tmp_path) if "partial" in path.name]
