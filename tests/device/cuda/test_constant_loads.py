"""Kernels read memory through the GPU's non-coherent path only where its parameter is declared constant.

A launch may begin while the one before it still writes (programmatic dependent launch). What the compiler takes for
constant it reads by ld.global.nc, which need not see such writes even after griddepcontrol.wait.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gemma_cuda.device import sources
from gemma_cuda.device.cuda.compile import ARCHITECTURES
from tests.support import cases
from tests.support.cases import of_published_models, one_of_each_kind
from tests.support.ptx import UNKNOWN, ReadOnlyLoad, compile_ptx

# Before sm_90 a launch begins when the one before it has ended: what that wrote is as good as constant.
WITH_OVERLAP = [name for name in ARCHITECTURES if int(re.sub(r"\D", "", name)) >= 90]
_IN_ONE_PROGRAM = 8  # instances


def parameters_read(instance: str, loads: Iterable[ReadOnlyLoad], kernels: Path | None = None) -> set[str]:
    """Names of the parameters that read-only loads go through; each must come from a pointer and from nothing else."""
    parameters = sources.find_kernel(instance, kernels).parameters
    names = set()
    for load in loads:
        assert UNKNOWN not in load.parameters, f"{instance}: where does the address come from? {load.text}"
        pointers = {parameters[i].name for i in load.parameters if parameters[i].is_pointer}
        assert pointers, f"{instance}: {load.text}"
        names |= pointers
    return names


def constants(instance: str, kernels: Path | None = None) -> set[str]:
    return {p.name for p in sources.find_kernel(instance, kernels).parameters if p.is_constant}


def check_all(instances: Iterable[str], architecture: str) -> dict[str, set[str]]:
    """Kernel -> parameters that its instances read as constants; fails for one that is not declared so."""
    by_file = defaultdict(list)
    for instance in sorted(set(instances)):
        by_file[sources.find_kernel(instance).path].append(instance)
    programs = [
        all_[i : i + _IN_ONE_PROGRAM] for all_ in by_file.values() for i in range(0, len(all_), _IN_ONE_PROGRAM)
    ]
    read: dict[str, set[str]] = defaultdict(set)
    with ThreadPoolExecutor(2) as threads:  # NVRTC compiles outside Python's lock
        for loads in threads.map(lambda program: list(compile_ptx(program, architecture)), programs):
            for instance, found in loads:
                names = parameters_read(instance, found)
                assert names <= constants(instance), f"{instance} reads {names - constants(instance)} by ld.global.nc"
                read[sources.kernel_name(instance)] |= names
    return read


def of_each_kind(architecture: str) -> list[str]:
    """Instances, but of products that differ in their tile only the one that compiles fastest."""
    kinds: dict[tuple[str, ...], str] = {}
    for launch in sorted(one_of_each_kind(architecture), key=lambda launch: -launch.shared_bytes):
        dtype, *rest = launch.instance.split(", ")
        is_product = dtype.startswith("linear<")
        kinds[(dtype, rest[0], *rest[-2:]) if is_product else (launch.instance,)] = launch.instance
    return list(kinds.values())


def test_kernels_read_only_constants_by_the_non_coherent_path() -> None:
    read = check_all(of_each_kind("sm_90a"), "sm_90a")
    assert read["rms_norm"] == {"weight", "post_weight"}  # so what is looked for is there
    assert read["qk_norm_rope"] == {"q_weight", "k_weight", "cos", "sin", "positions", "slots"}
    assert not any(read[kernel] for kernel in ("embed", "geglu", "attention", "attention_merge", "softcap", "top_k"))


@pytest.mark.slow
@pytest.mark.parametrize("architecture", WITH_OVERLAP)
def test_every_instance_reads_only_constants_by_the_non_coherent_path(architecture: str) -> None:
    launches = {*cases.every_launch(architecture), *of_published_models(architecture)}
    check_all((launch.instance for launch in launches), architecture)


def test_contracts_say_what_is_constant() -> None:
    """To declare a parameter constant is a promise of whoever launches the kernel: it is written down, too."""
    kernels = sources.kernels_in(sources.kernel_directory()).values()
    for path in {kernel.path for kernel in kernels}:
        declared = {p.name for kernel in kernels if kernel.path == path for p in kernel.parameters if p.is_constant}
        found = re.search(r"^//   constant  (.*)$", path.read_text(), re.MULTILINE)
        assert found is not None, path.name
        promised = set() if found[1].startswith("none") else set(found[1].split(", "))
        assert promised == declared, path.name


PLANTED = """
#include <platform.cuh>
struct Two { const float* a; const float* b; };
__global__ void reads(float* out, const float* __restrict__ a, const float* b, const int* __restrict__ at) {
  out[threadIdx.x] = a[at[threadIdx.x]] + b[threadIdx.x];
}
__global__ void chooses(float* __restrict__ out, const float* __restrict__ a, const float* __restrict__ b, int n) {
  const float* source = a + n;
  for (int i = 0; i < n; ++i) source = threadIdx.x % (i + 2) == 0 ? source + 3 : b + i;
  out[threadIdx.x] = *source;
}
__global__ void loads_its_address(float* out, const float* const* __restrict__ table) {
  float x;
  asm volatile("ld.global.nc.f32 %0, [%1];" : "=f"(x) : "l"(table[threadIdx.x]));
  out[threadIdx.x] = x;
}
__global__ void puts_it_together(float* out, unsigned low, unsigned high) {
  const float* source = reinterpret_cast<const float*>(static_cast<uint64_t>(high) << 32 | low);
  float x;
  asm volatile("ld.global.nc.f32 %0, [%1];" : "=f"(x) : "l"(source));
  out[threadIdx.x] = x;
}
__global__ void by_hand(float* out, const float* a) {
  float x;
  asm volatile("ld.global.L1::no_allocate.nc.f32 %0, [%1];" : "=f"(x) : "l"(a));
  out[threadIdx.x] = x;
}
"""


def test_the_flow_of_addresses_is_followed(tmp_path: Path) -> None:
    (tmp_path / "planted.cu").write_text(PLANTED)
    names = ["reads", "chooses", "loads_its_address", "puts_it_together", "by_hand"]
    found = dict(compile_ptx(names, "sm_90a", kernels=tmp_path))
    assert parameters_read("reads", found["reads"], tmp_path) == {"a", "at"} and len(found["reads"]) == 2
    assert parameters_read("chooses", found["chooses"], tmp_path) == {"a", "b"}
    assert parameters_read("by_hand", found["by_hand"], tmp_path) == {"a"} > constants("by_hand", tmp_path)
    for name in ("loads_its_address", "puts_it_together"):
        with pytest.raises(AssertionError, match=name):
            parameters_read(name, found[name], tmp_path)


def test_an_activation_that_is_read_as_a_constant_is_found(tmp_path: Path) -> None:
    """The source of geglu with what __restrict__ does to it, but without its declaration."""
    text = (sources.kernel_directory() / "geglu.cu").read_text()
    assert "const T* gate" in text
    (tmp_path / "geglu.cu").write_text(text.replace("const T* gate", "const T* __restrict__ gate"))
    ((instance, loads),) = compile_ptx(["geglu<bf16, 8>"], "sm_90a", kernels=tmp_path)
    assert parameters_read(instance, loads, tmp_path) == {"gate"} > constants(instance)
