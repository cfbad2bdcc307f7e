"""Weight storage formats: plain floats and GGML's block-quantised types, decoded to float32.

A row of a tensor is a run of blocks of `block_size` elements in `block_bytes` bytes. Values equal ggml's to the bit:
scales are multiplied in its order. A byte of a block holds the nibbles of elements i and i + 16 (i + 32 or i + 64 in
the 256-element "K" blocks), hence the strided writes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class BlockFormat:
    """One storage format. `decode(blocks [n, block_bytes] uint8, out [n, block_size] float32)` fills `out`.

    Without `decode` the size is known, for checks of a file's layout, but values cannot be read.
    """

    name: str
    block_size: int
    block_bytes: int
    decode: Callable[[Bytes, Floats], None] | None


def _half(blocks: Bytes, start: int) -> Floats:
    """[n, 1] float32: the float16 at byte `start` of each block."""
    return blocks[:, start : start + 2].view("<f2").astype(np.float32)


def _nibbles(packed: Bytes, q: Bytes) -> None:
    """Fills q [n, groups, 2, width] from packed [n, groups * width]: low nibbles at [:, :, 0], high at [:, :, 1]."""
    packed = packed.reshape(q.shape[0], q.shape[1], q.shape[3])
    np.bitwise_and(packed, 15, out=q[:, :, 0])
    np.right_shift(packed, 4, out=q[:, :, 1])


def _f32(blocks: Bytes, out: Floats) -> None:
    np.copyto(out, blocks.view("<f4"))


def _f16(blocks: Bytes, out: Floats) -> None:
    np.copyto(out, blocks.view("<f2"))


def _bf16(blocks: Bytes, out: Floats) -> None:
    # A bfloat16 is the upper half of a float32. ml_dtypes' own cast does the same but holds the GIL.
    bits = out.view(np.uint32)
    np.copyto(bits, blocks.view("<u2"))
    np.left_shift(bits, 16, out=bits)


def _q8_0(blocks: Bytes, out: Floats) -> None:
    np.multiply(blocks[:, 2:].view(np.int8), _half(blocks, 0), out=out)


def _q4(blocks: Bytes, start: int) -> Bytes:
    """[n, 32] uint8: the 4-bit values of a 32-element block whose nibbles begin at byte `start`."""
    q = np.empty((len(blocks), 1, 2, 16), np.uint8)
    _nibbles(blocks[:, start:], q)
    return q.reshape(-1, 32)


def _q5(blocks: Bytes, start: int) -> Bytes:
    """[n, 32] uint8: the 5-bit values: 32 fifth bits at byte `start`, then the nibbles."""
    q = _q4(blocks, start + 4)
    fifth = np.unpackbits(blocks[:, start : start + 4], axis=1, bitorder="little")
    return np.bitwise_or(q, np.left_shift(fifth, 4, out=fifth), out=q)


def _q4_0(blocks: Bytes, out: Floats) -> None:
    np.multiply(_q4(blocks, 2).view(np.int8) - np.int8(8), _half(blocks, 0), out=out)


def _q4_1(blocks: Bytes, out: Floats) -> None:
    np.multiply(_q4(blocks, 4), _half(blocks, 0), out=out)
    out += _half(blocks, 2)


def _q5_0(blocks: Bytes, out: Floats) -> None:
    np.multiply(_q5(blocks, 2).view(np.int8) - np.int8(16), _half(blocks, 0), out=out)


def _q5_1(blocks: Bytes, out: Floats) -> None:
    np.multiply(_q5(blocks, 4), _half(blocks, 0), out=out)
    out += _half(blocks, 2)


def _scaled(q: NDArray[np.generic], scales: Floats, out: Floats) -> Floats:
    """View of out [n, 256] as [n, groups, width], holding q · scales [n, groups]."""
    grouped = out.reshape(*scales.shape, -1)
    np.multiply(q.reshape(grouped.shape), scales[:, :, None], out=grouped)
    return grouped


def _q2_k(blocks: Bytes, out: Floats) -> None:
    # scales[16] (low nibble scale, high nibble minimum), 2-bit values[64], d, dmin
    scales, packed = blocks[:, :16], blocks[:, 16:80].reshape(-1, 2, 1, 32)
    q = (packed >> np.array([0, 2, 4, 6], np.uint8)[:, None]) & np.uint8(3)
    grouped = _scaled(q, _half(blocks, 80) * (scales & 15), out)
    grouped -= (_half(blocks, 82) * (scales >> 4))[:, :, None]


def _q3_k(blocks: Bytes, out: Floats) -> None:
    # third bits[32] (inverted), 2-bit values[64], 16 six-bit scales[12], d
    n = len(blocks)
    packed = blocks[:, 32:96].reshape(n, 2, 1, 32)
    low = (packed >> np.array([0, 2, 4, 6], np.uint8)[:, None]) & np.uint8(3)
    high = (blocks[:, None, :32] >> np.arange(8, dtype=np.uint8)[:, None]) & np.uint8(1)
    q = (low.reshape(n, 256) | (high << 2).reshape(n, 256)).view(np.int8) - np.int8(4)

    low_scales = np.empty((n, 1, 2, 8), np.uint8)
    _nibbles(blocks[:, 96:104], low_scales)
    high_scales = (blocks[:, None, 104:108] >> np.array([0, 2, 4, 6], np.uint8)[:, None]) & np.uint8(3)
    scales = (low_scales.reshape(n, 16) | (high_scales << 4).reshape(n, 16)).view(np.int8) - np.int8(32)
    _scaled(q, _half(blocks, 108) * scales, out)


def _k_scales(blocks: Bytes) -> tuple[Floats, Floats]:
    """Two [n, 8] float32: scale and minimum of each 32-element group of a Q4_K or Q5_K block.

    12 bytes at offset 4 hold 8 + 8 six-bit values: a[4], b[4] with the first four of each in their low 6 bits and the
    upper 2 bits of the last four in their high bits, then c[4] with the low nibbles of the last four.
    """
    a, b, c = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scales = np.concatenate([a & 63, (c & 15) | ((a >> 2) & 48)], axis=1)
    minima = np.concatenate([b & 63, (c >> 4) | ((b >> 2) & 48)], axis=1)
    return _half(blocks, 0) * scales, _half(blocks, 2) * minima


def _q4_k(blocks: Bytes, out: Floats) -> None:
    # d, dmin, scales[12], nibbles[128]
    scales, minima = _k_scales(blocks)
    q = np.empty((len(blocks), 4, 2, 32), np.uint8)
    _nibbles(blocks[:, 16:], q)
    grouped = _scaled(q, scales, out)
    grouped -= minima[:, :, None]


def _q5_k(blocks: Bytes, out: Floats) -> None:
    # d, dmin, scales[12], fifth bits[32], nibbles[128]
    scales, minima = _k_scales(blocks)
    q = np.empty((len(blocks), 4, 2, 32), np.uint8)
    _nibbles(blocks[:, 48:], q)
    groups = q.reshape(-1, 8, 32)
    fifth = (blocks[:, None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None]) & np.uint8(1)
    groups |= fifth << 4
    grouped = _scaled(groups, scales, out)
    grouped -= minima[:, :, None]


def _q6_k(blocks: Bytes, out: Floats) -> None:
    # low nibbles[128], 2 high bits each[64], signed scales[16], d
    n = len(blocks)
    low = np.empty((n, 2, 2, 64), np.uint8)
    _nibbles(blocks[:, :128], low)
    high = (blocks[:, 128:192].reshape(n, 2, 1, 32) >> np.array([0, 2, 4, 6], np.uint8)[:, None]) & np.uint8(3)
    q = (low.reshape(n, 256) | (high << 4).reshape(n, 256)).view(np.int8) - np.int8(32)
    _scaled(q, _half(blocks, 208) * blocks[:, 192:208].view(np.int8), out)


FORMATS: dict[str, BlockFormat] = {
    f.name: f
    for f in (
        BlockFormat("F32", 1, 4, _f32),
        BlockFormat("F16", 1, 2, _f16),
        BlockFormat("BF16", 1, 2, _bf16),
        BlockFormat("Q4_0", 32, 18, _q4_0),
        BlockFormat("Q4_1", 32, 20, _q4_1),
        BlockFormat("Q5_0", 32, 22, _q5_0),
        BlockFormat("Q5_1", 32, 24, _q5_1),
        BlockFormat("Q8_0", 32, 34, _q8_0),
        BlockFormat("Q2_K", 256, 84, _q2_k),
        BlockFormat("Q3_K", 256, 110, _q3_k),
        BlockFormat("Q4_K", 256, 144, _q4_k),
        BlockFormat("Q5_K", 256, 176, _q5_k),
        BlockFormat("Q6_K", 256, 210, _q6_k),
    )
}
