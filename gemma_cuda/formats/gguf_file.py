"""GGUF v2/v3 files: metadata, vocabulary and mapped tensor bytes, parsed without a Python object per string.

The `gguf` package's reader makes several NumPy objects per vocabulary entry (11 s for Gemma's 262 144 tokens). Here an
array of strings is one bytes buffer plus two offset arrays, decoded on demand (40 ms).
"""

from __future__ import annotations

import itertools
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..arguments import shown
from ..errors import CheckpointError
from ..printable import shown_line
from .dequantize import FORMATS, BlockFormat
from .gguf_vocabulary import GgufVocabulary, StringArray, read_vocabulary
from .stored_tensor import ModelFile, StoredTensor

_MAX_DIMS = 4  # GGML_MAX_DIMS
_MAX_ALIGNMENT = 1 << 20
# Budgets. Gemma 3's files have 40 entries, 786 and fewer tensors, 0.8 million strings and 16 MB before tensors.
_MAX_ENTRIES = _MAX_NAME = 1 << 16
_MAX_STRINGS = 4 << 20
_MAX_HEADER = 256 << 20
_BLOCK = 1 << 20
_STRING, _ARRAY = 8, 9
_SCALARS: dict[int, tuple[str, str]] = {  # GGUF value type: (struct code, NumPy dtype)
    0: ("<B", "<u1"), 1: ("<b", "<i1"), 2: ("<H", "<u2"), 3: ("<h", "<i2"), 4: ("<I", "<u4"), 5: ("<i", "<i4"),
    6: ("<f", "<f4"), 7: ("<?", "<b1"), 10: ("<Q", "<u8"), 11: ("<q", "<i8"), 12: ("<d", "<f8"),
}  # fmt: skip
_GGML_TYPES = {  # ggml type id: name. All types, so that an unsupported one is refused by its name.
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K",
    12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S",
    20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64",
    29: "IQ1_M", 30: "BF16", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4", 41: "Q1_0",
}  # fmt: skip


class GgufFile:
    """Metadata and tensors of a GGUF file, little-endian v2 or v3; CheckpointError for a damaged or unsupported file.

    `metadata`: key -> int, float, bool, str, NumPy array or StringArray. `tensors`: GGUF's name -> StoredTensor, its
    shape in HuggingFace's order ([rows, columns]; GGUF lists the columns first).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        cursor = _Cursor(ModelFile(path))
        tensor_count, entry_count = _read_preamble(cursor)
        self.metadata: dict[str, object] = {}
        for _ in range(entry_count):
            key = cursor.text("a metadata key", limit=_MAX_NAME)
            if key in self.metadata:
                raise CheckpointError(f"{path}: metadata key {shown_line(key)} occurs twice")
            self.metadata[key] = cursor.value(cursor.number("<I", key), key)
        _check_whole(path, self.metadata.get("split.count", 1))
        headers = [_read_tensor_header(cursor) for _ in range(tensor_count)]
        alignment = _alignment(path, self.metadata)
        data_start = -(-cursor.position // alignment) * alignment
        self.tensors: dict[str, StoredTensor] = {}
        for header in headers:
            if header.name in self.tensors:
                raise CheckpointError(f"{path}: tensor {shown_line(header.name)} occurs twice")
            self.tensors[header.name] = header.locate(cursor.file, data_start, alignment)
        _check_overlap(path, self.tensors)
        cursor.file.require_unchanged()

    def vocabulary(self) -> GgufVocabulary | None:
        """The tokenizer in the metadata, None without one; CheckpointError if its parts contradict each other."""
        return read_vocabulary(str(self.path), self.metadata) if "tokenizer.ggml.tokens" in self.metadata else None


class _Cursor:
    """Reads a file from front to back; CheckpointError at its end."""

    def __init__(self, file: ModelFile) -> None:
        self.file = file
        self.position = 0
        self.buffer = bytearray()  # the file's beginning, as far as it has been read
        self.string_count = 0  # in all arrays so far: even an empty string takes 60 bytes of memory

    def take(self, count: int, what: str) -> int:
        """Start of the next `count` bytes; the position moves behind them."""
        start = self.position
        if count > len(self.file) - start:
            raise CheckpointError(
                f"{self.file.path}: {shown_line(what)} needs {count} bytes at byte {start}, the file has "
                f"{len(self.file)}: it is cut or damaged"
            )
        if count > _MAX_HEADER - start:
            raise CheckpointError(
                f"{self.file.path}: {shown_line(what)} needs {count} bytes at byte {start}; all metadata and names of "
                f"tensors may have at most {_MAX_HEADER}"
            )
        self.position = start + count
        self.fill(self.position)
        return start

    def fill(self, end: int) -> bool:
        """Reads at least up to `end` if the file and the budget reach so far; whether the buffer has grown."""
        have, most = len(self.buffer), min(len(self.file), _MAX_HEADER)
        if end <= have or have >= most:
            return False
        self.buffer += self.file.read(have, min(most, max(end, have + _BLOCK)) - have)
        return True

    def number(self, code: str, what: str) -> Any:
        return struct.unpack_from(code, self.buffer, self.take(struct.calcsize(code), what))[0]

    def text(self, what: str, *, limit: int = _MAX_HEADER) -> str:
        length: int = self.number("<Q", what)
        start = self.take(length, what)
        if length > limit:
            raise CheckpointError(f"{self.file.path}: {shown_line(what)} has {length} bytes, expected at most {limit}")
        try:
            return str(memoryview(self.buffer)[start : start + length], "utf-8")
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{self.file.path}: {shown_line(what)} is not UTF-8 at byte {start}") from error

    def value(self, value_type: int, key: str) -> object:
        if value_type == _STRING:
            return self.text(key)
        if value_type in _SCALARS:
            return self.number(_SCALARS[value_type][0], key)
        if value_type != _ARRAY:
            raise CheckpointError(f"{self.file.path}: {shown_line(key)} has unknown type {value_type}")
        item_type, count = self.number("<I", key), self.number("<Q", key)
        if item_type == _STRING:
            return self._strings(count, key)
        if item_type not in _SCALARS:
            raise CheckpointError(
                f"{self.file.path}: {shown_line(key)} is an array of type {item_type}, expected numbers or strings"
            )
        dtype = np.dtype(_SCALARS[item_type][1])
        start = self.take(count * dtype.itemsize, key)
        return np.frombuffer(self.buffer, dtype, count, start).copy() if count else np.empty(0, dtype)

    def _strings(self, count: int, key: str) -> StringArray:
        """`count` strings, each behind its length: one after another, in the only loop here that must be fast."""
        begin = self.position
        self.take(8 * count, key)  # each has at least a length
        self.string_count += count
        if self.string_count > _MAX_STRINGS:
            raise CheckpointError(
                f"{self.file.path}: {self.string_count} strings with {shown_line(key)}, expected at most {_MAX_STRINGS}"
            )
        unpack, buffer, position = struct.Struct("<Q").unpack_from, self.buffer, begin
        starts: list[int] = []
        append = starts.append
        while len(starts) < count:
            try:
                for _ in range(count - len(starts)):
                    position, start = position + 8 + unpack(buffer, position)[0], position + 8
                    append(start)
            except (struct.error, OverflowError):  # the length is not read yet, or beyond the file
                if not self.fill(position + 8):
                    starts.append(position + 8)
                    position = len(self.file) + 1
                    break
        self.position = begin
        self.take(position - begin, f"{key} (string {len(starts) - 1})")
        start_array = np.array(starts, np.int64) - begin
        end_array = np.append(start_array[1:] - 8, position - begin) if count else start_array
        return StringArray(bytes(buffer[begin:position]), start_array, end_array)


@dataclass(frozen=True)
class _TensorHeader:
    name: str
    shape: tuple[int, ...]
    type_id: int
    offset: int

    def locate(self, file: ModelFile, data_start: int, alignment: int) -> StoredTensor:
        """The tensor at its position in the file; CheckpointError unless it lies inside the file."""
        where = f"{file.path}: tensor {shown_line(self.name)}"
        if self.type_id not in _GGML_TYPES:
            raise CheckpointError(f"{where} has unknown type {self.type_id}")
        type_name = _GGML_TYPES[self.type_id]
        # An unsupported type has no size here; it is refused only if the model needs the tensor.
        block_format = FORMATS.get(type_name, BlockFormat(type_name, 1, 0, None))
        if self.shape[-1] % block_format.block_size:
            raise CheckpointError(
                f"{where}: rows of {self.shape[-1]} are not whole {type_name} blocks of {block_format.block_size}"
            )
        if self.offset % alignment:
            raise CheckpointError(f"{where}: offset {self.offset} is not a multiple of the alignment {alignment}")
        tensor = StoredTensor(self.name, self.shape, block_format, file, data_start + self.offset)
        if tensor.start + tensor.nbytes > len(file):
            raise CheckpointError(
                f"{where} ends at byte {tensor.start + tensor.nbytes} of a file of {len(file)} bytes: the file is cut"
            )
        return tensor


def _read_preamble(cursor: _Cursor) -> tuple[int, int]:
    """Numbers of tensors and of metadata entries."""
    path, size = cursor.file.path, len(cursor.file)
    if cursor.file.read(0, min(4, size)) != b"GGUF":
        raise CheckpointError(f"{path}: not a GGUF file (it does not begin with GGUF)")
    cursor.take(4, "the header")
    version = cursor.number("<I", "the header")
    if version not in (2, 3):
        what = "a big-endian file" if version in (2 << 24, 3 << 24) else f"GGUF version {version}"
        raise CheckpointError(f"{path}: {what} is not supported (little-endian versions 2 and 3 are)")
    tensor_count, entry_count = cursor.number("<Q", "the header"), cursor.number("<Q", "the header")
    if 32 * tensor_count + 13 * entry_count > size:  # the fewest bytes of each
        raise CheckpointError(
            f"{path}: the header claims {tensor_count} tensors and {entry_count} metadata entries in {size} bytes"
        )
    if max(tensor_count, entry_count) > _MAX_ENTRIES:
        raise CheckpointError(
            f"{path}: {tensor_count} tensors and {entry_count} metadata entries, expected at most {_MAX_ENTRIES}"
        )
    return tensor_count, entry_count


def _read_tensor_header(cursor: _Cursor) -> _TensorHeader:
    name = cursor.text("a tensor's name", limit=_MAX_NAME)
    where = f"{cursor.file.path}: tensor {shown_line(name)}"
    dim_count = cursor.number("<I", f"tensor {name}")
    if not 1 <= dim_count <= _MAX_DIMS:
        raise CheckpointError(f"{where} has {dim_count} dimensions, expected 1 to {_MAX_DIMS}")
    dims = [cursor.number("<Q", f"tensor {name}") for _ in range(dim_count)]
    if 0 in dims or math.prod(dims) >= 1 << 60:
        raise CheckpointError(f"{where} has impossible dimensions {dims}")
    return _TensorHeader(
        name, tuple(reversed(dims)), cursor.number("<I", f"tensor {name}"), cursor.number("<Q", f"tensor {name}")
    )


def _check_whole(path: Path, split_count: object) -> None:
    if type(split_count) is not int or split_count not in (0, 1):
        raise CheckpointError(
            f"{path}: one part of a split model (split.count is {shown(split_count)}); merge the parts with: "
            "llama-gguf-split --merge"
        )


def _alignment(path: Path, metadata: Mapping[str, object]) -> int:
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or not 0 < alignment <= _MAX_ALIGNMENT or alignment & (alignment - 1):
        raise CheckpointError(f"{path}: general.alignment is {shown(alignment)}, expected a power of two")
    return alignment


def _check_overlap(path: Path, tensors: Mapping[str, StoredTensor]) -> None:
    ordered = sorted(tensors.values(), key=lambda tensor: (tensor.start, tensor.nbytes))
    for before, after in itertools.pairwise(ordered):
        if before.start + before.nbytes > after.start:
            raise CheckpointError(f"{path}: tensor {shown_line(after.name)} overlaps {shown_line(before.name)}")
