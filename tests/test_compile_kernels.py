"""What the ops launch compiles for every architecture without spills, within a budget of registers."""

from __future__ import annotations

import pytest

from gemma_cuda.device.compile import ARCHITECTURES, compile_kernel
from gemma_cuda.ops.linear import TILINGS

# Kernel -> instances, most registers: so that as many threads as the kernel's design counts on fit a multiprocessor.
BUDGETS: dict[str, tuple[list[str], int]] = {
    "qk_norm_rope": (
        [
            f"qk_norm_rope<{cpp}, {head_dim}, {norm}>"
            for cpp in ("bf16", "half")
            for head_dim in (64, 128, 256, 512)
            for norm in ("Raw, false", "OnePlus, false", "Times, true")
        ],
        64,
    ),
    "geglu": ([f"geglu<{cpp}, {vector}>" for cpp in ("bf16", "half") for vector in (1, 2, 4, 8)], 32),
    "embed": ([f"embed<{cpp}, {vector}>" for cpp in ("bf16", "half") for vector in (1, 2, 4, 8)], 32),
    "softcap": ([f"softcap<{vector}>" for vector in (1, 2, 4)], 32),
    "top_k": ([*(f"top_k<Logits, {vector}>" for vector in (1, 2, 4)), "top_k<Keys, 1>"], 128),
    "linear": (
        [
            f"linear<{cpp}, {out}, {tiling.block_m}, {tiling.block_n}, {tiling.stages}, {vector}, {epilogue}>"
            for cpp, out, vector, epilogue, tilings in (
                *(("bf16", "bf16", 8, epilogue, TILINGS) for epilogue in ("Store", "GeGlu", "Residual")),
                *(("bf16", "float", 4, epilogue, TILINGS) for epilogue in ("Store", "SoftCap")),
                ("half", "half", 8, "Store", TILINGS),
                *(("half", "half", 1, epilogue, TILINGS[::4]) for epilogue in ("Store", "GeGlu", "Residual")),
                ("half", "float", 1, "SoftCap", TILINGS[::4]),
            )
            for tiling in tilings
        ],
        255,
    ),
}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("kernel", BUDGETS)
def test_compiles_without_spills(kernel: str, architecture: str) -> None:
    instances, most_registers = BUDGETS[kernel]
    for instance in instances[:: 1 if architecture in ("sm_80", "sm_90a", "sm_120a") else 3]:
        compiled = compile_kernel(instance, architecture)
        needs = compiled.resources
        assert needs.spill_store_bytes == needs.spill_load_bytes == needs.stack_bytes == 0, compiled
        assert 0 < needs.registers <= most_registers and needs.static_shared_bytes == 0, compiled
        assert compiled.notes == (), compiled.notes
