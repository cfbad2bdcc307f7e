"""Tensors as a file stores them: bytes of one format, read and decoded in row blocks by several threads.

No temporary has the size of a tensor: a block of rows is read and decoded into the caller's array (through a small
scratch array unless that is float32), so that memory grows by the output only. Files are read, never mapped: if a file
is truncated meanwhile, a read gives an error, but access to a mapping ends the process by SIGBUS.
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

_BLOCK_ELEMENTS = 1 << 17  # float32 of one row block: 512 KiB, so that block, stored rows and scratch stay in L2
_OUT_DTYPES = (np.float32, np.float64, np.float16, ml_dtypes.bfloat16)


class ModelFile:
    """An open file of `len(self)` bytes. CheckpointError if it cannot be opened or is empty."""

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
        """`count` bytes from `start` on; CheckpointError if the file has become shorter."""
        out = np.empty(count, np.uint8)
        self.read_into(out, start)
        return out.tobytes()

    def read_into(self, out: NDArray[np.uint8], start: int) -> None:
        """Fills out, contiguous, with the bytes from `start` on; CheckpointError if the file has become shorter."""
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
        """CheckpointError if size or time of modification have changed since the file was opened.

        A check after a read vouches for the bytes read. Replacing the file by name does not change the open one.
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
class StoredTensor:
    """A tensor of HuggingFace's `shape` (a Linear is [out, in]) at byte `start` of a file; a row is whole blocks."""

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

    def stored_rows(self, rows: slice = slice(None)) -> NDArray[np.uint8]:
        """[n, row_bytes] uint8: the bytes of consecutive rows."""
        begin, end, _ = rows.indices(self.row_count)
        stored = np.empty((end - begin, self.row_bytes), np.uint8)
        self.file.read_into(stored, self.start + begin * self.row_bytes)
        return stored

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

        def read_block(block: slice) -> None:
            _decode(self.format, self.stored_rows(block), rows[block])

        for_row_blocks(self.row_count, self.row_elements, read_block, block_elements=_BLOCK_ELEMENTS)
        self.file.require_unchanged()

    def gather(self, ids: NDArray[np.integer[Any]]) -> Floats:
        """[n, columns] float32: the rows `ids` [n]; no other row is read."""
        self.require_readable()
        if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < self.row_count:
            raise CheckpointError(
                f"{self.file.path}: {self.name} has rows 0..{self.row_count - 1}, asked for {ids.min()}..{ids.max()}"
            )
        out = np.empty((len(ids), self.row_elements), np.float32)
        block_rows = max(1, _BLOCK_ELEMENTS // max(1, self.row_elements))
        stored = np.empty((min(block_rows, len(ids)), self.row_bytes), np.uint8)
        for begin in range(0, len(ids), block_rows):
            block = ids[begin : begin + block_rows]
            for row, i in zip(stored, block.tolist(), strict=False):
                self.file.read_into(row, self.start + i * self.row_bytes)
            _decode(self.format, stored[: len(block)], out[begin : begin + block_rows])
        self.file.require_unchanged()
        return out


def _decode(block_format: BlockFormat, stored: NDArray[np.uint8], out: NDArray[Any]) -> None:
    """Decodes stored [rows, row_bytes] into out [rows, columns], both contiguous."""
    assert block_format.decode is not None  # callers ask require_readable() first
    blocks = stored.reshape(-1, block_format.block_bytes)
    # Scales of a damaged file may be inf or NaN: the values show it, NumPy's warnings are not needed.
    with np.errstate(all="ignore"):
        if out.dtype == np.float32:
            block_format.decode(blocks, out.reshape(-1, block_format.block_size))
            return
        scratch = np.empty((len(blocks), block_format.block_size), np.float32)
        block_format.decode(blocks, scratch)
        np.copyto(out, scratch.reshape(out.shape), casting="unsafe")
