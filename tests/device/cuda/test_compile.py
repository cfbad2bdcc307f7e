"""Kernels compile for every supported architecture within their budget, and open with their contract.

Another NVRTC than the installed one is tested by naming its library: GEMMA_CUDA_NVRTC=.../libnvrtc.so.13 pytest ...
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import pytest

from gemma_cuda.device import sources
from gemma_cuda.device.cuda.compile import ARCHITECTURES, SHARED_BYTES, compile_kernel
from gemma_cuda.device.dry_run import Launch
from gemma_cuda.ops.instances import launches, published
from tests.support import cases
from tests.support.cases import of_published_models, one_of_each_kind
from tests.support.paths import KERNELS

REGISTERS = 65536  # of a multiprocessor
# Of a multiprocessor's shared memory, for each block; it has as much more than one block may have.
RESERVED_BYTES = 1024
# Per thread: so that as many threads as the kernel's design counts on fit a multiprocessor.
REGISTER_BUDGET = {
    **{"rms_norm": 48, "qk_norm_rope": 64, "geglu": 32, "embed": 32, "softcap": 32, "top_k": 128},
    **{"linear": 255, "attention": 255, "attention_merge": 128},
}
CONTRACT = ("shapes", "types", "constant", "template", "launch", "numerics", "cost", "source")


def check(launch: Launch, architecture: str) -> None:
    compiled = compile_kernel(launch.instance, architecture)
    needs, what = compiled.resources, f"{launch} for {architecture} by {compiled.compiler}: {compiled.resources}"
    assert needs.spill_store_bytes == needs.spill_load_bytes == needs.stack_bytes == 0, what
    assert 0 < needs.registers <= REGISTER_BUDGET[sources.kernel_name(launch.instance)], what
    blocks = blocks_at_once(launch.instance)
    shared_bytes = needs.static_shared_bytes + launch.shared_bytes + RESERVED_BYTES
    assert blocks * -(-needs.registers // 8) * 8 * launch.threads <= REGISTERS, what
    assert blocks * shared_bytes <= SHARED_BYTES[architecture] + RESERVED_BYTES, what
    assert compiled.notes == (), what


def blocks_at_once(instance: str) -> int:
    """Blocks that must fit a multiprocessor: two of attention, so that one computes while the other waits."""
    found = re.match(r"attention<\w+, (\d+),", instance)
    return 2 if found is not None and int(found[1]) <= 128 else 1


def check_all(wanted: Iterable[Launch], architecture: str) -> None:
    with ThreadPoolExecutor(2) as threads:  # NVRTC compiles outside Python's lock
        for _ in threads.map(lambda launch: check(launch, architecture), wanted):
            pass


@pytest.mark.parametrize("architecture", ["sm_90a"])
def test_kernels_stay_within_their_budget(architecture: str) -> None:
    check_all(one_of_each_kind(architecture), architecture)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_instance_of_every_op_and_model_stays_within_its_budget(architecture: str) -> None:
    check_all({*cases.every_launch(architecture), *of_published_models(architecture)}, architecture)


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90a", "sm_120a"])
def test_what_the_published_models_launch_is_among_the_cases(architecture: str) -> None:
    launched = {each for each in of_published_models(architecture) if not each.instance.startswith("rms_norm<")}
    assert launched <= set(cases.every_launch(architecture))


def test_the_published_models_launch_what_their_configurations_say() -> None:
    instances = {
        launch.instance
        for launch in launches([published()["gemma-3-270m"]], ["bfloat16"], shared_bytes=SHARED_BYTES["sm_90a"])
    }
    assert "rms_norm<bf16, 8, OnePlus, NormAdd, 96>" in instances  # 640 elements in 80 vectors
    assert not any("half" in instance or ", Add," in instance for instance in instances)
    assert "qk_norm_rope<bf16, 256, OnePlus, false>" in instances
    assert "linear<bf16, float, 16, 64, 4, 4, Store>" in instances  # the logits of one row
    assert "linear<bf16, bf16, 64, 64, 4, 8, GeGlu>" in instances  # the MLP of 64 rows
    assert not any("SoftCap" in instance or "Residual" in instance for instance in instances)
    assert {i for i in instances if i.startswith("attention")} == {
        *("attention<bf16, 256, 64, 64, 1, Plain>", "attention_merge<bf16, 256, 64>")
    }
    gemma1 = {
        launch.instance
        for launch in launches([published()["gemma-2b"]], ["float32"], shared_bytes=SHARED_BYTES["sm_90a"])
    }
    assert "rms_norm<float, 4, OnePlus, Add, 512>" in gemma1
    assert not any("NormAdd" in instance for instance in gemma1)


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90a", "sm_120a"])
def test_the_seams_primitives_compile_for_gpus(architecture: str) -> None:
    instances = ["multiply<bf16, 8>", "multiply<half, 1>", "load_matrices<4, Transposed>", "load_matrices<1, Straight>"]
    instances += [
        "round_to<half>",
        "pack_pairs<bf16>",
        "shuffle<8>",
        "vote",
        "atomics<float>",
        "compared_atomics<int>",
        "approximate<Tanh>",
    ]
    instances += ["ordered_launches", "sum_block<256>", "copy_strided<float, 4>", "widen<half>", "indices"]
    if architecture != "sm_80":
        instances += ["store_matrices<4, Straight>", "store_matrices<2, Transposed>"]
    for instance in instances:
        assert compile_kernel(instance, architecture, kernels=KERNELS).resources.registers > 0
    for instance in ("ok_named_barrier", "ok_async", "last_block_sums<true, true>", "prints", "traps"):
        assert compile_kernel(instance, architecture, kernels=KERNELS).resources.registers > 0


def test_every_kernel_opens_with_its_contract() -> None:
    kernels = sorted(sources.kernel_directory().glob("*.cu"))
    assert kernels
    for path in kernels:
        block = re.match(r"(//[^\n]*\n)+", path.read_text())
        assert block is not None, path.name
        text = block[0]
        assert re.match(rf"// {path.stem}: \S", text), path.name
        found = re.findall(r"^//   (\w+) ", text, re.MULTILINE)
        assert [word for word in found if word in CONTRACT] == list(CONTRACT), (path.name, found)


def test_kernels_hold_no_assembly_and_no_conditional_compilation() -> None:
    root = sources.kernel_directory()
    for path in [*root.glob("*.cu"), *root.glob("common/*.cuh")]:
        assert not re.search(r"\basm\b|^\s*#\s*if|__CUDA_ARCH__", path.read_text(), re.MULTILINE), path.name


def test_kernels_call_only_those_math_functions_whose_errors_the_emulator_knows() -> None:
    root = sources.kernel_directory()
    text = "".join(path.read_text() for path in [*root.glob("*.cu"), *root.glob("common/*.cuh")])
    called = set(re.findall(r"\b(r?(?:sqrt|cbrt|exp|log|pow|sin|cos|tan|erf|norm)\w*f)\(", text))
    assert called == {"rsqrtf", "tanhf", "log2f"}


def test_both_halves_of_the_seam_have_the_same_files_and_functions() -> None:
    gpu, cpu = sources.kernel_directory() / "gpu", sources.emulator_directory()
    names = {path.name for path in gpu.glob("*.cuh")}
    assert names == {path.name for path in cpu.glob("*.cuh")}
    pattern = re.compile(r"__forceinline__\s+[\w:<>*&\s]*?\b([a-z]\w*)\s*(?:<\w+>)?\(")
    for name in sorted(names):
        defined = set(pattern.findall((gpu / name).read_text())) - {"shared_address"}
        missing = defined - set(re.findall(r"\b([a-z]\w*)\s*(?:<\w+>)?\(", (cpu / name).read_text()))
        assert defined and not missing, f"{name}: the emulator lacks {sorted(missing)}"
