"""Each of our kernels waits for the launch before it: without its wait, or with a late one, it is reported."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gemma_cuda.device import sources
from gemma_cuda.device.cuda.device import Cuda
from gemma_cuda.device.emulator.device import Emulator
from gemma_cuda.errors import KernelError
from gemma_cuda.ops.attention import attend
from gemma_cuda.ops.attention_plan import plan_attention
from gemma_cuda.ops.embed import embed
from gemma_cuda.ops.geglu import geglu
from gemma_cuda.ops.linear import SMALL, linear
from gemma_cuda.ops.logits import softcap, top_k
from gemma_cuda.ops.qk_norm_rope import qk_norm_rope
from gemma_cuda.ops.rms_norm import add_norm, rms_norm
from tests.support.emulated import kernel_emulator, values
from tests.support.fake_cublaslt import CublasLt
from tests.support.fake_cuda import Machine
from tests.support.kernel_models import GRAPHS, load, text

Array = np.ndarray[Any, Any]
TOKENS, WIDTH, DIM = 6, 256, 64
WAIT, RELEASE = "  grid_dependency_wait();\n", "  grid_dependency_release();\n"


class Inputs:
    """What the ops take, on the emulator. What `made` gives is of a launch that may still run when the op starts."""

    def __init__(self, device: Emulator) -> None:
        self.device = device
        self.table = device.from_host(values(1, 8, WIDTH, dtype="bfloat16"))
        self.weight = device.from_host(values(2, WIDTH, dtype="bfloat16"))
        self.matrix = device.from_host(values(3, WIDTH, WIDTH, dtype="bfloat16"))
        self.head_weight = device.from_host(values(4, DIM, dtype="bfloat16"))
        self.angles = device.from_host(values(5, TOKENS, DIM // 2, dtype="float32"))
        self.rows = device.from_host(np.arange(TOKENS, dtype=np.int32))
        self.counters = device.from_host(np.zeros(256, np.int32))
        self.caches = [device.from_host(values(i, 1, 200, 1, DIM, dtype="bfloat16")) for i in (6, 7)]

    def made(self) -> Array:
        """bfloat16 [TOKENS, WIDTH]."""
        return rms_norm(self.table[:TOKENS], self.weight, eps=1e-6, device=self.device)

    def logits(self) -> Array:
        return linear(self.made(), self.matrix, device=self.device, out_dtype=np.float32, counters=self.counters)


def run_attention(given: Inputs, *, split: int | None) -> None:
    begin, end = np.zeros(TOKENS, np.int32), np.full(TOKENS, 200, np.int32)
    plan = plan_attention(
        begin, end, np.array([0, TOKENS], np.int32), group=WIDTH // DIM, head_dim=DIM, is_plain=True, split_keys=split,
        device=given.device,
    )  # fmt: skip
    attend(
        plan, given.made().reshape(TOKENS, WIDTH // DIM, DIM), *given.caches, scale=0.125, softcap=None, bias=None,
        device=given.device,
    )  # fmt: skip


def run_qk_norm_rope(given: Inputs) -> None:
    x, caches = given.made(), [cache[0] for cache in given.caches]
    qk_norm_rope(
        x, heads=2, cos=given.angles, sin=given.angles, eps=1e-6, q_weight=given.head_weight, slots=given.rows,
        k_weight=given.head_weight, k_cache=caches[0], v_cache=caches[1], positions=given.rows, device=given.device,
    )  # fmt: skip


def run_rms_norm(given: Inputs) -> None:
    weights = {"post_weight": given.weight, "pre_weight": given.weight}
    add_norm(given.table[:TOKENS], given.made(), **weights, eps=1e-6, device=given.device)


RUNS: dict[str, Callable[[Inputs], object]] = {
    "attention": partial(run_attention, split=None),
    "attention_merge": partial(run_attention, split=64),
    "embed": lambda given: embed(given.rows, given.made(), scale=1.0, device=given.device),
    "geglu": lambda given: geglu(*np.split(given.made(), 2, axis=1), device=given.device),
    "linear": lambda given: linear(given.made(), given.matrix, device=given.device, tiling=SMALL[0]),
    "qk_norm_rope": run_qk_norm_rope,
    "rms_norm": run_rms_norm,
    "softcap": lambda given: softcap(given.logits(), 30.0, device=given.device),
    "top_k": lambda given: top_k(given.logits(), 3, device=given.device),
}


def edited(directory: Path, kernel: str, old: str, new: str) -> Path:
    """A copy of the kernels in which the first `old` in the kernel's body is `new`."""
    shutil.copytree(sources.kernel_directory(), directory, dirs_exist_ok=True)
    path = directory / sources.find_kernel(f"{kernel}<>").path.name
    text = path.read_text()
    start = re.search(rf"__global__[^{{;]*?\b{kernel}\(", text)
    assert start is not None
    at = text.index(old, start.end())
    assert "__global__" not in text[start.end() : at]
    path.write_text(text[:at] + new + text[at + len(old) :])
    return directory


def test_every_kernel_is_run() -> None:
    assert set(RUNS) == set(sources.kernels_in(sources.kernel_directory()))


@pytest.mark.parametrize("kernel", RUNS)
def test_kernels_wait_before_they_touch_anything(kernel: str) -> None:
    RUNS[kernel](Inputs(kernel_emulator()))


@pytest.mark.parametrize("kernel", RUNS)
def test_a_kernel_without_its_wait_is_reported(kernel: str, tmp_path: Path) -> None:
    device = kernel_emulator(kernels=edited(tmp_path, kernel, WAIT, ""))
    with pytest.raises(KernelError, match=rf"dependent launch in {kernel}<.* no grid_dependency_wait comes") as info:
        RUNS[kernel](Inputs(device))
    assert info.value.kernel is not None and info.value.kernel.startswith(f"{kernel}<") and info.value.source


@pytest.mark.parametrize("kernel", ["rms_norm", "attention_merge"])
def test_a_kernel_that_waits_at_its_end_is_reported(kernel: str, tmp_path: Path) -> None:
    """In a destructor, so that it waits wherever it returns."""
    late = "  struct Late { __device__ ~Late() { grid_dependency_wait(); } } late;\n"
    device = kernel_emulator(kernels=edited(tmp_path, kernel, WAIT, late))
    with pytest.raises(KernelError, match=rf"dependent launch in {kernel}<.* no grid_dependency_wait comes"):
        RUNS[kernel](Inputs(device))


def test_to_release_before_the_wait_is_no_error_between_two_launches(tmp_path: Path) -> None:
    kernels = edited(tmp_path, "softcap", WAIT + RELEASE, RELEASE + WAIT)
    RUNS["softcap"](Inputs(kernel_emulator(kernels=kernels)))


def test_weights_may_be_loaded_before_the_wait_and_activations_not(tmp_path: Path) -> None:
    def loads(name: str) -> str:
        return f"  volatile float early = to_float({name}[threadIdx.x]);\n" + WAIT

    def run(device: Emulator) -> None:
        given = Inputs(device)
        rms_norm(given.made(), given.weight, eps=1e-6, device=device)

    run(kernel_emulator(kernels=edited(tmp_path / "weights", "rms_norm", WAIT, loads("weight"))))
    with pytest.raises(KernelError, match=r"dependent launch in rms_norm<.*reads byte \d+ of argument 2 \(x\)"):
        run(kernel_emulator(kernels=edited(tmp_path / "activations", "rms_norm", WAIT, loads("x"))))


def test_what_a_kernel_wrote_is_no_weight() -> None:
    given = Inputs(kernel_emulator())
    with pytest.raises(KernelError, match=r"dependent launch in rms_norm<.*\(weight\).* declared constant"):
        rms_norm(given.table, given.made()[0], eps=1e-6, device=given.device)


# --- whole models ---


class Watched(Emulator):
    """Notes which kernels were launched to overlap the one before them, and which not."""

    def __init__(self, **options: Any) -> None:
        super().__init__(checked=True, **options)
        self.launched: set[tuple[str, bool]] = set()

    def launch(self, instance: str, *args: Any, overlap: bool = False, **options: Any) -> None:
        self.launched.add((sources.kernel_name(instance), overlap))
        super().launch(instance, *args, overlap=overlap, **options)


@pytest.mark.parametrize("graphs", [True, False])
def test_a_prefill_of_a_model_overlaps_all_launches(graphs: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    emulator = Watched()
    machine = Machine(emulator)
    machine.install(monkeypatch)
    gpu = load("gemma2", Cuda(), gemm="kernel")
    gpu.warmup(**GRAPHS, graphs=graphs)
    emulator.launched.clear()
    gpu.to_host(gpu.prefill(**text("gemma2")).logits)
    assert machine.graphs_launched == graphs
    assert emulator.launched == {
        (kernel, True) for kernel in ("embed", "rms_norm", "linear", "qk_norm_rope", "attention", "softcap")
    }


@pytest.mark.parametrize("start", ["graph", "plan", "one by one"])
@pytest.mark.parametrize("gemm", ["kernel", "library"])
def test_a_prefill_of_a_model_shows_that_a_wait_is_missing(
    start: str, gemm: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    machine = Machine(Emulator(checked=True, kernels=edited(tmp_path, "qk_norm_rope", WAIT, "")))
    machine.install(monkeypatch)
    CublasLt(machine).install(monkeypatch)
    gpu = load("gemma2", Cuda(), gemm=gemm)
    with pytest.raises(KernelError, match=r"dependent launch in qk_norm_rope<.*which (linear<.*>|matmul) may still be"):
        if start != "one by one":
            gpu.warmup(**GRAPHS, graphs=start == "graph", tune=False)
        gpu.to_host(gpu.prefill(**text("gemma2")).logits)
