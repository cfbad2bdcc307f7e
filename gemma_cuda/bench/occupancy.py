"""How many blocks a multiprocessor holds.

Limits: CUDA C++ Programming Guide, technical specifications per compute capability.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..device.cuda.cubin import Resources
from ..device.dry_run import Launch

REGISTERS = 64 * 1024  # 32-bit ones, of a multiprocessor; the same on every architecture below
REGISTER_UNIT = 256  # a warp's registers are allotted in these
RESERVED_SHARED = 1024  # bytes that the system takes of each block


@dataclass(frozen=True)
class Multiprocessor:
    """warps and blocks at once, bytes of shared memory."""

    warps: int
    blocks: int
    shared_bytes: int


MULTIPROCESSORS = {
    "sm_80": Multiprocessor(64, 32, 164 * 1024),
    "sm_86": Multiprocessor(48, 16, 100 * 1024),
    "sm_89": Multiprocessor(48, 24, 100 * 1024),
    "sm_90a": Multiprocessor(64, 32, 228 * 1024),
    "sm_100a": Multiprocessor(64, 32, 228 * 1024),
    "sm_120a": Multiprocessor(48, 24, 100 * 1024),
}


def blocks_per_multiprocessor(architecture: str, launch: Launch, needs: Resources) -> int:
    """Blocks of a launch, of a kernel with these needs. Raises KeyError for an architecture that is not known."""
    multiprocessor, warps = MULTIPROCESSORS[architecture], -(-launch.threads // 32)
    per_warp = -(-needs.registers * 32 // REGISTER_UNIT) * REGISTER_UNIT
    return min(
        multiprocessor.blocks,
        multiprocessor.warps // warps,
        REGISTERS // per_warp // warps,
        multiprocessor.shared_bytes // (launch.shared_bytes + needs.static_shared_bytes + RESERVED_SHARED),
    )
