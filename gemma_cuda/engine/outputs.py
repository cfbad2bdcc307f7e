"""Which tokens' outputs a caller wants, and how they get back into the caller's layout."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import arguments
from ..errors import InputError
from ..model.decoder import Hook
from ..ops.kernel_ops import KernelOps
from ..precision import Array
from ..reference import ReferenceOps
from .batch import Batch


def kept_columns(batch: Batch, logits_to_keep: int | ArrayLike) -> tuple[NDArray[np.bool_], NDArray[np.int64] | int]:
    """(bool [N]: whose outputs are wanted, the output's columns: the last so many, or the caller's columns [K])."""
    if arguments.has_axes(logits_to_keep):
        columns = arguments.integers("logits_to_keep", logits_to_keep)
        if columns.ndim != 1 or len(columns) == 0:
            raise InputError(f"logits_to_keep is {list(columns.shape)}, expected columns [K]")
        if columns.min() < -batch.seq_len or columns.max() >= batch.seq_len:
            raise InputError(f"logits_to_keep: a column is outside the prompt's {batch.seq_len}")
        columns = columns % batch.seq_len
        return np.isin(batch.column, columns), columns
    count = arguments.integer("logits_to_keep", logits_to_keep, least=0, otherwise=" or columns [K]")
    if count == 0:
        return np.ones(len(batch.row), bool), np.arange(batch.seq_len)
    keep = min(count, batch.seq_len)
    from_end = batch.cu_seqlens[1:][batch.row] - np.arange(len(batch.row))
    return np.asarray(from_end <= keep), keep


def is_in_place(batch: Batch, wanted: NDArray[np.bool_], columns: NDArray[np.int64] | int) -> bool:
    """Whether the wanted tokens stand as the caller's layout [B, keep] has them."""
    kept = columns if isinstance(columns, int) else len(columns)
    if int(wanted.sum()) != batch.batch_size * kept:
        return False
    return isinstance(columns, int) or np.array_equal(batch.column[wanted], np.tile(columns, batch.batch_size))


def placed(
    batch: Batch, wanted: NDArray[np.bool_], columns: NDArray[np.int64] | int, values: Array, *, empty: float
) -> Array:
    """[B, keep, …] of the values [M, …] of the wanted tokens.

    Of the last n tokens the last column is every row's last token, and a row of fewer begins with `empty`; of columns,
    `empty` stands where the caller has padding.
    """
    rows = batch.row[wanted]
    keep = columns if isinstance(columns, int) else len(columns)
    out = np.full((batch.batch_size, keep, *values.shape[1:]), empty, values.dtype)
    if isinstance(columns, int):
        from_end = (batch.cu_seqlens[1:][batch.row] - np.arange(len(batch.row)))[wanted]
        out[rows, columns - from_end] = values
        return out
    by_column = np.zeros((batch.batch_size, batch.seq_len), np.int64) - 1
    by_column[rows, batch.column[wanted]] = np.arange(len(rows))
    source = by_column[:, columns]
    out[source >= 0] = values[source[source >= 0]]
    return out


def decoder_hook(
    batch: Batch, states: list[Array] | None, layer_hook: Hook | None, ops: ReferenceOps | KernelOps
) -> Hook:
    """The decoder's hook on packed tokens, out of the caller's on [B, S, E] and the collection of hidden states."""

    def hook(index: int, x: Array) -> Array | None:
        values = ops.to_host(x)
        replacement: Array | None = None
        if index > 0 and layer_hook is not None:
            given = layer_hook(index - 1, batch.unpack(values))
            if given is not None:
                expected = (batch.batch_size, batch.seq_len, x.shape[1])
                returned = arguments.host_array("what layer_hook returned", given)
                if returned.shape != expected or returned.dtype.kind == "c":
                    raise InputError(
                        f"layer_hook returned {returned.dtype} {list(returned.shape)}, expected [B, S, E] = "
                        f"{list(expected)}"
                    )
                values = np.ascontiguousarray(returned[batch.row, batch.column], values.dtype)
                replacement = ops.as_hidden(values)
        if states is not None:
            states.append(batch.unpack(values))
        return replacement

    return hook
