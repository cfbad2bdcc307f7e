"""Tensors as a file stores them: bytes of one format, read and decoded in row blocks by a few threads.

Nothing here makes a full-size temporary: a block of rows is read and decoded into the caller's array (through a small
scratch where that is not float32), so that resident memory grows by the output only. Tensors are read, not mapped: a
file that somebody cuts meanwhile gives an error, where a mapping would end the process by SIGBUS.
"""

from __future__ import annotations

import math
import os
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from ..errors import CheckpointError
from ..host.threads import for_row_blocks
from ..printable import reason
from .dequantize import FORMATS, BlockFormat, Floats

_BLOCK_ELEMENTS = 1 << 17  # float32 of one row block: 512 KiB, so that block, packed rows and scratch stay in L2
_OUT_DTYPES = (np.float32, np.float64, np.float16, ml_dtypes.bfloat16)


class ModelFile:
    """An open file of `len(self)` bytes. CheckpointError if it cannot be opened or is empty.

    It is read, never mapped: to touch a mapping after the file was cut ends the process.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                self._stamp = _stamp(file.fileno())
                if self._stamp[0] == 0:
                    raise CheckpointError(f"{path}: the file is empty")
                self._descriptor = os.dup(file.fileno())
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read: {reason(error)}") from error
        weakref.finalize(self, os.close, self._descriptor).atexit = False

    def __len__(self) -> int:
        return self._stamp[0]

    def read(self, start: int, count: int) -> bytes:
        """A copy of bytes; CheckpointError where the file has become shorter."""
        out = np.empty(count, np.uint8)
        self.read_into(out, start)
        return out.tobytes()

    def read_into(self, out: NDArray[np.uint8], start: int) -> None:
        """The bytes from `start` on, into all of out, contiguous; CheckpointError where the file has become shorter."""
        buffer: Any = out  # mypy's arrays are no buffers in Python 3.11
        done = 0
        try:
            while done < out.nbytes:
                rest = memoryview(buffer).cast("B")[done:] if done else buffer
                count = os.preadv(self._descriptor, [rest], start + done)
                if count == 0:
                    raise self._changed()
                done += count
        except OSError as error:
            raise CheckpointError(f"{self.path}: cannot be read: {reason(error)}") from error

    def require_unchanged(self) -> None:
        """CheckpointError if size or time of modification are not those of when the file was opened.

        Asked after reading: then what was read is what was there. A file that another has replaced by name is still
        the one that was opened.
        """
        if _stamp(self._descriptor) != self._stamp:
            raise self._changed()

    def _changed(self) -> CheckpointError:
        return CheckpointError(f"{self.path}: the file was changed after it was opened; load the model again")


def _stamp(descriptor: int) -> tuple[int, int]:
    """(size, time of modification in ns) of an open file."""
    status = os.fstat(descriptor)
    return status.st_size, status.st_mtime_ns


@dataclass(frozen=True)
class PackedTensor:
    """A tensor of HuggingFace's `shape` (a Linear is [out, in]) at byte `start` of a file, rows of whole blocks."""

    name: str  # as the file spells it
    shape: tuple[int, ...]
    format: BlockFormat
    file: ModelFile
    start: int

    @property
    def row_elements(self) -> int:
        return self.shape[-1] if self.shape else 1

    @property
    def row_count(self) -> int:
        return math.prod(self.shape[:-1])

    @property
    def row_bytes(self) -> int:
        return self.row_elements // self.format.block_size * self.format.block_bytes

    @property
    def nbytes(self) -> int:
        return self.row_count * self.row_bytes

    def require_readable(self) -> None:
        """CheckpointError naming the format, if its values cannot be decoded."""
        if self.format.decode is None:
            raise CheckpointError(
                f"{self.file.path}: tensor {self.name} is stored as {self.format.name}, which is not supported "
                f"(supported: {', '.join(FORMATS)})"
            )

    def packed_rows(self, rows: slice = slice(None)) -> NDArray[np.uint8]:
        """[n, row_bytes] uint8 of consecutive rows, as the file has them now."""
        begin, end, _ = rows.indices(self.row_count)
        packed = np.empty((end - begin, self.row_bytes), np.uint8)
        self.file.read_into(packed, self.start + begin * self.row_bytes)
        return packed

    def read_into(self, out: NDArray[Any]) -> None:
        """Decodes every element into out [*shape] (float32, float64, float16 or bfloat16, C-contiguous)."""
        if out.shape != self.shape or not out.flags.c_contiguous or not out.flags.writeable:
            raise CheckpointError(
                f"{self.file.path}: {self.name} is {list(self.shape)}; it cannot be read into an array of "
                f"{list(out.shape)}" + ("" if out.flags.c_contiguous else " whose rows are not contiguous")
            )
        if out.dtype not in _OUT_DTYPES:
            raise CheckpointError(f"{self.file.path}: {self.name} cannot be read as {out.dtype}")
        self.require_readable()
        if out.size == 0:
            return
        rows = out.reshape(self.row_count, self.row_elements)
        step = max(1, _BLOCK_ELEMENTS // self.row_elements)

        def read_block(block: slice) -> None:
            _decode(self.format, self.packed_rows(block), rows[block])

        for_row_blocks(self.row_count, step, read_block)
        self.file.require_unchanged()

    def gather(self, ids: NDArray[np.integer[Any]]) -> Floats:
        """[n, columns] float32: rows `ids` [n] in [0, rows), decoding only those."""
        self.require_readable()
        if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < self.row_count:
            raise CheckpointError(
                f"{self.file.path}: {self.name} has rows 0..{self.row_count - 1}, asked for {ids.min()}..{ids.max()}"
            )
        out = np.empty((len(ids), self.row_elements), np.float32)
        step = max(1, _BLOCK_ELEMENTS // max(1, self.row_elements))
        packed = np.empty((min(step, len(ids)), self.row_bytes), np.uint8)
        for begin in range(0, len(ids), step):
            block = ids[begin : begin + step]
            for row, i in zip(packed, block.tolist(), strict=False):
                self.file.read_into(row, self.start + i * self.row_bytes)
            _decode(self.format, packed[: len(block)], out[begin : begin + step])
        self.file.require_unchanged()
        return out


def _decode(block_format: BlockFormat, packed: NDArray[np.uint8], out: NDArray[Any]) -> None:
    """Decodes packed [rows, row_bytes] into out [rows, columns], both contiguous."""
    assert block_format.decode is not None  # callers ask require_readable() first
    blocks = packed.reshape(-1, block_format.block_bytes)
    # A damaged file may hold inf or NaN scales: they show in the values, not as warnings.
    with np.errstate(all="ignore"):
        if out.dtype == np.float32:
            block_format.decode(blocks, out.reshape(-1, block_format.block_size))
            return
        scratch = np.empty((len(blocks), block_format.block_size), np.float32)
        block_format.decode(blocks, scratch)
        np.copyto(out, scratch.reshape(out.shape), casting="unsafe")
