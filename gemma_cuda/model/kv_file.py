"""A KV cache as a safetensors file, whose description is believed only where data and digest bear it out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from ..errors import CacheError
from ..host.files import atomic_path
from ..precision import Array
from .kv_storage import MOST_SLOTS, KVStorage, LayerKV

_FORMAT = "gemma_cuda.kv.2"
_STORED = {  # the dtypes of K and V, by the model's
    "float32": (np.dtype(np.float32),),
    "float64": (np.dtype(np.float64),),
    "bfloat16": (np.dtype(ml_dtypes.bfloat16), np.dtype(np.float32)),  # on kernels; on NumPy
}


def save(cache: KVStorage, path: Path) -> None:
    """Writes the cache, whole or not at all; CacheError where that cannot be."""
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    tensors: dict[str, Array] = {}
    for i, (pair, stored) in enumerate(zip(cache, cache.layers, strict=True)):
        for name, array in zip("kv", pair or (), strict=False):
            own = np.array(cache.memory.to_host(array), order="C")
            assert stored is not None
            _clear_padding(own, cache, stored.first_slot)
            tensors[f"layers.{i}.{name}"] = own
    description = json.dumps(
        {
            "starts": cache.starts.tolist(),
            "ends": cache.ends.tolist(),
            "fingerprint": cache.fingerprint,
            "dtype": cache.dtype,
            "sliding_windows": cache.sliding_windows,
            "first_slots": [None if s is None else s.first_slot for s in cache.layers],
            "spans": cache.spans,
        }
    )
    metadata = {"format": _FORMAT, "cache": description, "digest": _digest(description, tensors)}
    try:
        with atomic_path(path) as temporary:
            save_file(tensors, temporary, metadata=metadata)
    except (SafetensorError, OSError, ValueError) as error:
        raise CacheError(f"{path}: the KV cache cannot be written: {error}") from error


def load(path: Path) -> KVStorage:
    """The cache that `save` wrote; CacheError for a file that is not one, or was changed since."""
    from safetensors import SafetensorError, safe_open

    try:
        if not path.is_file():
            raise CacheError("it is no file")
        with safe_open(str(path), "numpy") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != _FORMAT:
                raise CacheError(f"it is not a saved KV cache (no {_FORMAT} in its metadata)")
            tensors: dict[str, Array] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if metadata["digest"] != _digest(metadata["cache"], tensors):
            raise CacheError("the KV cache was changed after it was saved: its digest is another")
        cache = _described(json.loads(metadata["cache"]), tensors)
        _check_padding(cache)
        return cache
    except CacheError as error:
        raise CacheError(f"{path}: {error}") from error
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise CacheError(f"{path} cannot be read as a saved KV cache: {error}") from error


def _digest(description: str, tensors: Mapping[str, Array]) -> str:
    digest = hashlib.sha256(description.encode())
    for name in sorted(tensors):
        values = tensors[name]
        digest.update(f"{name} {values.dtype} {values.shape}".encode())
        digest.update(memoryview(np.ascontiguousarray(values).reshape(-1).view(np.uint8)))  # type: ignore[arg-type]
    return digest.hexdigest()


def _described(d: Mapping[str, Any], tensors: Mapping[str, Array]) -> KVStorage:
    """The cache of a description; CacheError where it contradicts itself or the tensors."""
    starts, ends = (_integers(name, d[name]) for name in ("starts", "ends"))
    if not starts or len(starts) != len(ends) or any(a > b for a, b in zip(starts, ends, strict=True)):
        raise CacheError(f"its rows begin at {starts} and end at {ends}")
    windows, first_slots, dtype = d["sliding_windows"], d["first_slots"], d["dtype"]
    if dtype not in _STORED or not isinstance(d["fingerprint"], str):
        raise CacheError(f"its dtype is {dtype!r}, its model {d['fingerprint']!r}")
    _integers("sliding_windows", [w for w in windows if w is not None], least=1)
    if len(windows) != len(first_slots):
        raise CacheError(f"it has {len(windows)} windows for {len(first_slots)} layers")
    layers: list[LayerKV | None] = []
    for i, (first_slot, window) in enumerate(zip(first_slots, windows, strict=True)):
        pair = [tensors[name] for name in (f"layers.{i}.k", f"layers.{i}.v") if name in tensors]
        if first_slot is None and not pair:
            layers.append(None)
            continue
        _integers("first_slots", [first_slot])
        if first_slot > (0 if window is None else max(0, min(ends) - window + 1)):
            raise CacheError(f"layer {i} begins at slot {first_slot}, which cuts keys that are seen")
        _check_pair(i, pair, (len(ends), max(ends) - first_slot), _STORED[dtype])
        k, v = (np.ascontiguousarray(x.transpose(0, 2, 1, 3)) for x in pair)
        layers.append(LayerKV(k, v, first_slot))
    if len(tensors) != 2 * sum(layer is not None for layer in layers):
        raise CacheError("it holds tensors of no layer")
    spans = [_spans(row, begin, end) for row, begin, end in zip(d["spans"], starts, ends, strict=True)]
    return KVStorage(
        layers, np.array(starts, np.int32), np.array(ends, np.int32), d["fingerprint"], dtype, tuple(windows), spans
    )


def _integers(name: str, values: Any, least: int = 0) -> list[int]:
    if not isinstance(values, list) or not all(type(x) is int and least <= x <= MOST_SLOTS for x in values):
        raise CacheError(f"its {name} is {str(values)[:100]}, expected integers of at least {least}")
    return values


def _check_pair(layer: int, pair: list[Array], rows_and_slots: tuple[int, int], dtypes: tuple[Any, ...]) -> None:
    if len(pair) != 2 or pair[0].ndim != 4 or pair[0].shape != pair[1].shape:
        raise CacheError(f"layer {layer} lacks matching k and v [B, KH, T, D]")
    if any(x.dtype not in dtypes for x in pair):
        raise CacheError(f"layer {layer} holds {pair[0].dtype} and {pair[1].dtype}, expected {dtypes[0]}")
    if (pair[0].shape[0], pair[0].shape[2]) != rows_and_slots:
        raise CacheError(
            f"layer {layer} holds [B, KH, T, D] = {list(pair[0].shape)}, its description says [B, T] = "
            f"{list(rows_and_slots)}"
        )


def _spans(row: Any, begin: int, end: int) -> list[tuple[int, int]]:
    edges = _integers("spans", [edge for first, last in row for edge in (first, last)])
    spans = list(zip(edges[::2], edges[1::2], strict=True))
    if any(a >= b for a, b in spans) or edges != sorted(edges) or (edges and not begin <= edges[0] <= edges[-1] <= end):
        raise CacheError(f"its spans {row} do not lie one after another in {begin}:{end}")
    return spans


def _clear_padding(values: Array, cache: KVStorage, first_slot: int) -> None:
    """Zeros in values [B, KH, T, D] where no token is."""
    for row, (begin, end) in enumerate(zip(cache.starts.tolist(), cache.ends.tolist(), strict=True)):
        values[row, :, : max(0, begin - first_slot)] = 0
        values[row, :, end - first_slot :] = 0


def _check_padding(cache: KVStorage) -> None:
    """CacheError unless the slots of no token hold zeros, as `save` has left them."""
    for i, stored in enumerate(cache.layers):
        for array in () if stored is None else (stored.k, stored.v):
            for row, (begin, end) in enumerate(zip(cache.starts.tolist(), cache.ends.tolist(), strict=True)):
                first = stored.first_slot  # type: ignore[union-attr]
                if array[row, : max(0, begin - first)].any() or array[row, end - first :].any():
                    raise CacheError(f"layer {i} holds keys in row {row} outside {begin}:{end}")
