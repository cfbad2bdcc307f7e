"""Operations and memory traffic of a launch, counted by the emulator: the same on every machine."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Counters:
    """Counts of one launch. Those of memory traffic are 0 unless the launch was checked.

    global_*_bytes: asked for by threads; global_*_sectors: distinct 32-byte sectors of memory that the launch touched.
    A request is one load or store instruction of one warp; global_request_sectors sums the distinct sectors of each; it
    is full when 32 lanes ask for 16 bytes each, of 16 sectors or (where lanes share them) fewer, and scalar when all
    lanes ask for one address.
    A shared-memory request takes one wavefront per phase, and one more for every bank conflict.
    """

    blocks: int
    threads: int
    barriers: int
    warp_collectives: int
    mma: int
    async_copies: int
    global_read_bytes: int
    global_write_bytes: int
    global_read_sectors: int
    global_write_sectors: int
    global_requests: int
    global_full_requests: int
    global_scalar_requests: int
    global_request_sectors: int
    shared_requests: int
    shared_wavefronts: int
    shared_bank_conflicts: int

    @property
    def sectors_per_request(self) -> float:
        """Mean number of 32-byte sectors of a global-memory request: 4 for 32 lanes × 4 neighbouring bytes."""
        return self.global_request_sectors / self.global_requests if self.global_requests else 0.0

    @property
    def conflicts_per_request(self) -> float:
        """Mean number of bank conflicts of a shared-memory request."""
        return self.shared_bank_conflicts / self.shared_requests if self.shared_requests else 0.0
