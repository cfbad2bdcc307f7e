"""Safetensors files: header parsed and validated here, tensors left in the file.

An own parser, because the library copies tensors and its errors name neither tensor nor file.
"""

from __future__ import annotations

import math
from pathlib import Path

from ..arguments import shown
from ..errors import CheckpointError
from ..printable import shown_line
from .bounded_files import INDEX, parse_json_object
from .dequantize import FORMATS, BlockFormat
from .stored_tensor import ModelFile, StoredTensor

SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME = "model.safetensors", "model.safetensors.index.json"  # HuggingFace's
_MAX_DIMS = 8
_ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "F8_E8M0": 1, "F8_E4M3FNUZ": 1, "F8_E5M2FNUZ": 1,
    "I16": 2, "U16": 2, "F16": 2, "BF16": 2, "I32": 4, "U32": 4, "F32": 4, "C64": 8, "F64": 8, "I64": 8, "U64": 8,
}  # fmt: skip


def read_tensors(path: Path) -> dict[str, StoredTensor]:
    """Name -> tensor of one safetensors file. Raises CheckpointError naming file and tensor for any inconsistency.

    Tensors of an unsupported dtype are listed too; `StoredTensor.require_readable` refuses them by name.
    """
    file = ModelFile(path)
    if len(file) < 8:
        raise CheckpointError(f"{path}: {len(file)} bytes, too short for a safetensors file")
    header_bytes = int.from_bytes(file.read(0, 8), "little")
    if header_bytes > len(file) - 8:
        raise CheckpointError(
            f"{path}: the header claims {header_bytes} bytes, the file has {len(file)}: it is cut, or not safetensors"
        )
    if header_bytes > INDEX.bytes:
        raise CheckpointError(f"{path}: a header of {header_bytes} bytes; it may have at most {INDEX.bytes}")
    header = parse_json_object(file.read(8, header_bytes), f"{path}: header", INDEX, CheckpointError, unique=True)
    header.pop("__metadata__", None)
    tensors = {name: _read_entry(file, name, entry, 8 + header_bytes) for name, entry in header.items()}
    _check_layout(file, 8 + header_bytes, tensors)
    return tensors


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def _read_entry(file: ModelFile, name: str, entry: object, data_start: int) -> StoredTensor:
    where = f"{file.path}: tensor {shown_line(name)}"
    if not isinstance(entry, dict):
        raise CheckpointError(f"{where}: its header entry is not an object")
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in _ITEM_BYTES:
        raise CheckpointError(f"{where}: unknown dtype {shown(dtype)}")
    if not isinstance(shape, list) or len(shape) > _MAX_DIMS or not all(map(_is_size, shape)):
        raise CheckpointError(f"{where}: shape is {shown(shape)}, expected a list of at most {_MAX_DIMS} sizes")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_size, offsets)):
        raise CheckpointError(f"{where}: data_offsets is {shown(offsets)}, expected [begin, end]")
    begin, end = offsets
    need = math.prod(shape) * _ITEM_BYTES[dtype]
    if end - begin != need:
        raise CheckpointError(
            f"{where}: {dtype} {shape} needs {shown(need)} bytes, its data_offsets span {end - begin}"
        )
    if data_start + end > len(file):
        raise CheckpointError(
            f"{where} ends at byte {data_start + end} of a file of {len(file)} bytes: the file is cut"
        )
    block_format = FORMATS.get(dtype, BlockFormat(dtype, 1, _ITEM_BYTES[dtype], None))
    return StoredTensor(name, tuple(shape), block_format, file, data_start + begin)


def _check_layout(file: ModelFile, data_start: int, tensors: dict[str, StoredTensor]) -> None:
    """The tensors must tile the data exactly, as the format demands: no overlap, no gap, nothing after the last."""
    end, previous = data_start, "the header"
    for tensor in sorted(tensors.values(), key=lambda t: (t.start, t.nbytes)):
        if tensor.start != end:
            what = "overlaps" if tensor.start < end else "leaves a gap after"
            raise CheckpointError(f"{file.path}: tensor {shown_line(tensor.name)} {what} {shown_line(previous)}")
        end, previous = tensor.start + tensor.nbytes, tensor.name
    if end != len(file):
        raise CheckpointError(f"{file.path}: {len(file) - end} bytes follow the last tensor: the header does not match")
