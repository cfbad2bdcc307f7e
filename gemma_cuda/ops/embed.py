"""Token embedding, and image or audio features in the places of their tokens. Kernel: kernels/embed.cu."""

from __future__ import annotations

from math import gcd

import numpy as np
from numpy.typing import NDArray

from ..device.protocol import Array, Device
from ..errors import InputError
from .checks import check_array, check_int32, check_values, cpp_type16, threads_for_row

_OP = "embed"
_MOST_THREADS = 256
_VECTOR = 8  # elements of 16 bytes


def embed(
    ids: Array,
    table: Array,
    *,
    scale: float,
    device: Device,
    features: Array | None = None,
    feature_index: Array | None = None,
) -> Array:
    """The layer-0 input x [N, E] = table[ids] · scale; where feature_index[n] >= 0, features[feature_index[n]] instead.

    ids int32 [N]; table [V, E] bfloat16 or float16; scale (sqrt(E)) is rounded to that dtype first, the product again.
    features [M, E] of the same dtype are copied unscaled; feature_index int32 [N], as `feature_index_of` makes it: -1
    for a token. An id whose place a feature takes is not looked at. Raises InputError before anything is launched.
    """
    if table.ndim != 2 or table.shape[1] == 0:
        raise InputError(f"{_OP}: table is {list(table.shape)}, expected [V, E]")
    scalar = cpp_type16(_OP, "table", table)
    check_array(_OP, "table", table, "V, E", tuple(table.shape), table.dtype)
    if ids.ndim != 1:
        raise InputError(f"{_OP}: ids is {list(ids.shape)}, expected [N]")
    tokens, width = ids.shape[0], table.shape[1]
    check_int32(_OP, "ids", ids, "N", (tokens,))
    _check_features(features, feature_index, tokens, table)
    looked_up = ids
    if isinstance(ids, np.ndarray) and isinstance(feature_index, np.ndarray):
        looked_up = ids[feature_index < 0]
    check_values(_OP, "ids", looked_up, table.shape[0], "table")

    x = device.empty((tokens, width), table.dtype)
    if tokens:
        placed = [array for array in (table, features) if array is not None]
        vector = gcd(_VECTOR, width, *(device.address(array) // table.dtype.itemsize for array in placed))
        device.launch(
            f"embed<{scalar}, {vector}>",
            (tokens,),
            (threads_for_row(width // vector, _MOST_THREADS),),
            0,
            [x, ids, table, features, feature_index, width, float(scale)],
            overlap=True,
        )
    return x


def feature_index_of(ids: NDArray[np.integer], placeholder: int, features: int) -> NDArray[np.int32]:
    """int32 [N] on the host: the k-th id equal to `placeholder` takes feature row k, every other id -1.

    Raises InputError unless there is one placeholder for each of the `features` rows.
    """
    is_placeholder = np.asarray(ids) == placeholder
    found = int(is_placeholder.sum())
    if found != features:
        raise InputError(f"{_OP}: {found} ids are the placeholder {placeholder}, but there are {features} feature rows")
    return np.where(is_placeholder, np.cumsum(is_placeholder) - 1, -1).astype(np.int32)


def _check_features(features: Array | None, feature_index: Array | None, tokens: int, table: Array) -> None:
    if features is None and feature_index is None:
        return
    if features is None or feature_index is None:
        raise InputError(f"{_OP}: features and feature_index are needed together")
    if features.ndim != 2:
        raise InputError(f"{_OP}: features is {list(features.shape)}, expected [M, E]")
    check_array(_OP, "features", features, "M, E", (features.shape[0], table.shape[1]), table.dtype)
    check_int32(_OP, "feature_index", feature_index, "N", (tokens,))
    if isinstance(feature_index, np.ndarray):
        check_values(_OP, "feature_index", feature_index[feature_index >= 0], features.shape[0], "features")
