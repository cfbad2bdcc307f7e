"""Launches on the emulator: arguments and instances that are refused, compilation, and kernels that are cached."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gemma_cuda.device import sources
from gemma_cuda.device.emulator.device import missing
from gemma_cuda.errors import DeviceError, KernelError, LaunchError
from tests.support.paths import KERNELS
from tests.support.planted import bug_lines, caught, emulator, floats

# --- arguments and instances ---


def test_arguments_reach_the_kernel_with_their_types() -> None:
    out = np.zeros(1, np.float64)
    emulator().launch("sums", (1,), (1,), 0, [out, floats(1) + 0.5, -3, 4_000_000_000, 0.25, 2**40, True])
    assert out[0] == 0.5 - 3 + 4_000_000_000 + 0.25 + 2**40 + 1


GOOD = [np.zeros(1, np.float64), floats(1), 1, 1, 1.0, 1, True]


@pytest.mark.parametrize(
    ("position", "value", "message"),
    [
        (0, floats(1), "argument 0 (out) is an array of float32, the kernel wants a pointer to float64"),
        (1, 3, "argument 1 (a) is int, the kernel wants an array of float32"),
        (2, 1.5, "argument 2 (n) is float 1.5, the kernel wants int32"),
        (2, True, "argument 2 (n) is bool True, the kernel wants int32"),
        (2, np.int64(1), "argument 2 (n) is int64, the kernel wants int32"),
        (2, 2**31, "argument 2 (n) is 2147483648"),
        (3, -1, "argument 3 (u) is -1"),
        (4, np.float64(1), "argument 4 (x) is float64, the kernel wants float32"),
        (4, 1, "argument 4 (x) is int 1, the kernel wants float32"),
        (4, floats(1), "argument 4 (x) is an array of float32, the kernel wants float32"),
        (4, None, "argument 4 (x) is None, the kernel wants float32"),
        (6, 1, "argument 6 (flag) is int 1, the kernel wants bool"),
    ],
)
def test_a_wrong_argument_type_is_refused(position: int, value: Any, message: str) -> None:
    args = [*GOOD[:position], value, *GOOD[position + 1 :]]
    with pytest.raises(LaunchError, match=re.escape(message)):
        emulator(checked=False).launch("sums", (1,), (1,), 0, args)


@pytest.mark.parametrize("args", [GOOD[:-1], [*GOOD, 1], []])
def test_a_wrong_argument_count_is_refused(args: list[Any]) -> None:
    with pytest.raises(LaunchError, match=rf"sums takes 7 arguments \(out, a, n, u, x, big, flag\), not {len(args)}"):
        emulator(checked=False).launch("sums", (1,), (1,), 0, args)


def test_a_read_only_array_is_refused_where_the_kernel_may_write() -> None:
    out = floats(64)
    out.flags.writeable = False
    with pytest.raises(LaunchError, match=r"argument 0 \(out\) is read-only"):
        emulator().launch("copy<float>", (1,), (64,), 0, [out, floats(64)])


@pytest.mark.parametrize(
    ("instance", "message"),
    [
        ("no_such_kernel<float>", "no kernel is called no_such_kernel; there are .*copy"),
        ("copy<float", "is not a kernel instance"),
        ("copy<float>); system(", "is not a kernel instance"),
        ("copy<nonsense>", "copy<nonsense> does not compile: .*nonsense"),
        ("copy<float, float>", "does not compile"),
    ],
)
def test_an_unknown_instance_is_refused(instance: str, message: str) -> None:
    with pytest.raises(LaunchError, match=message):
        emulator(checked=False).launch(instance, (1,), (64,), 0, [floats(64), floats(64)])


@pytest.mark.parametrize(
    ("grid", "block", "shared", "message"),
    [
        ((0,), (32,), 0, "grid is (0,), expected 1 to 3 positive sizes"),
        ((1,), (1025,), 0, "has 1025 threads, at most 1024"),
        ((1,), (32, 32, 2), 0, "has 2048 threads"),
        ((1, 70000), (32,), 0, "grid is (1, 70000, 1)"),
        ((1,), (32,), 10**6, "1000000 bytes of shared memory"),
        ((1,), (1, 1, 1, 1), 0, "block is (1, 1, 1, 1)"),
    ],
)
def test_an_impossible_launch_is_refused(grid: Any, block: Any, shared: int, message: str) -> None:
    with pytest.raises(LaunchError, match=re.escape(message)):
        emulator(checked=False).launch("copy<float>", grid, block, shared, [floats(64), floats(64)])


def test_a_block_beyond_the_launch_bounds_is_refused() -> None:
    emulator().launch("bounded<64>", (1,), (64,), 0, [floats(64)])
    with pytest.raises(LaunchError, match=r"the block is \(65, 1, 1\), the kernel's launch bounds allow 64 threads"):
        emulator().launch("bounded<64>", (1,), (65,), 0, [floats(128)])


# --- compilation ---


@pytest.mark.parametrize(
    ("compiler", "message"),
    [
        ("no-such-compiler", "no-such-compiler, which is not installed"),
        (sys.executable, f"{sys.executable}, which is not GCC"),
    ],
)
def test_without_a_compiler_the_device_says_so(compiler: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", compiler)
    assert message in str(missing())
    with pytest.raises(DeviceError, match=re.escape(message)):
        emulator().launch("copy<float>", (1,), (64,), 0, [floats(64), floats(64)])


def test_without_the_compiled_part_the_device_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gemma_cuda._emulator", None)
    assert "needs the compiled part of gemma-cuda" in str(missing())
    with pytest.raises(DeviceError, match=r"Linux on x86-64 and a C\+\+ compiler"):
        emulator()


def test_an_edited_kernel_runs_at_the_next_call(tmp_path: Path) -> None:
    kernels = tmp_path / "kernels"
    kernels.mkdir()
    source = kernels / "constant.cu"
    text = "#include <platform.cuh>\n__global__ void constant(int* out) { out[0] = VALUE; }\n"
    device = emulator(kernels=kernels, cache=tmp_path / "cache", checked=False)
    out = np.zeros(1, np.int32)
    for value in (7, 8):
        source.write_text(text.replace("VALUE", f"{value} - 0"))
        device.launch("constant", (1,), (1,), 0, [out])
        assert out[0] == value
    assert len(list((tmp_path / "cache" / "emulator").glob("constant-*.so"))) == 2


@pytest.mark.parametrize("checkout", ["a", "z"])  # names before and after that of kernels/
def test_checkouts_share_one_cache(checkout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A report names the kernel's lines, whichever checkout has compiled it."""
    copy = tmp_path / checkout / "bindings" / "emulator"
    shutil.copytree(sources.emulator_directory(), copy)
    kernels = tmp_path / "kernels"
    kernels.symlink_to(sources.kernel_directory())
    monkeypatch.setattr(sources, "kernel_directory", lambda: kernels)
    with monkeypatch.context() as patch:
        patch.setattr(sources, "emulator_directory", lambda: copy)
        other = emulator(cache=tmp_path, checked=False)
        path = other._compiler.library("divergent_helper", checked=False)
    device = emulator(cache=tmp_path, checked=False)
    assert device._compiler.library("divergent_helper", checked=False) == path
    with pytest.raises(KernelError) as info:
        device.launch("divergent_helper", (1,), (32,), 0, [floats(32)])
    assert bug_lines("divergent_helper")[0] in str(info.value) and "platform.cuh" not in str(info.value)


def test_processes_share_one_cache(tmp_path: Path) -> None:
    program = f"""
import numpy as np
from pathlib import Path
from gemma_cuda.device.emulator import Emulator
out = np.zeros(64, np.float32)
Emulator(kernels=Path({str(KERNELS)!r}), cache=Path({str(tmp_path)!r})).launch(
    "copy<float>", (1,), (64,), 0, [out, np.ones(64, np.float32)])
assert out.sum() == 64
"""
    running = [subprocess.Popen([sys.executable, "-c", program]) for _ in range(3)]
    assert [process.wait() for process in running] == [0, 0, 0]
    kept = list((tmp_path / "emulator").iterdir())
    assert [path.suffix for path in kept] == [".so"] and kept[0].name.startswith("copy-")


def test_launches_from_several_threads_do_not_disturb_each_other() -> None:
    failures: list[BaseException] = []

    def work(run: Callable[[], None]) -> None:
        try:
            run()
        except BaseException as error:
            failures.append(error)

    def good() -> None:
        out = floats(64)
        for _ in range(20):
            emulator(workers=1).launch("ok_shared", (1,), (64,), 256, [np.zeros(64, np.float32), out])

    def bad() -> None:
        for _ in range(20):
            caught("wild_pointer", [floats(64), np.uint64(64)], kind="wild pointer", checked=False)

    threads = [threading.Thread(target=work, args=(run,)) for run in (good, bad, good)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
