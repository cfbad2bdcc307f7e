"""The tokens whose outputs a caller asks for, and their way back into the caller's layout."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import arguments
from ..errors import InputError
from ..model.decoder import Hook
from ..model.kv_cache import KVCache
from ..model.ops import Ops
from ..precision import Array
from .batch import Batch


@dataclass(frozen=True)
class PrefillOutput:
    """What a prefill gives; B rows, `keep` kept tokens, V vocabulary, E hidden_size.

    Logits and last_hidden_state are arrays of the device: cupy.ndarray on CUDA, else NumPy. hidden_states are NumPy.
    """

    logits: Array  # [B, keep, V] float32 (float64 in a float64 model)
    last_hidden_state: Array  # [B, keep, E] after the final norm
    past_key_values: KVCache
    # L + 1 of [B, S, E]: each layer's input, then last_hidden_state of all tokens
    hidden_states: tuple[Array, ...] | None = None


@dataclass(frozen=True)
class OutputRows:
    """M of a batch's N tokens, whose outputs fill [B, keep, …] in the caller's layout."""

    rows: NDArray[np.int64]  # [M] among the packed tokens, rising
    cu_seqlens: NDArray[np.int32]  # [B + 1] over these rows
    columns: NDArray[np.int64] | int  # of the output: the last so many tokens, or the caller's columns [keep]
    in_place: bool  # whether the rows' outputs are [B, keep, …] as they stand
    are_last: bool  # whether they are the last token of each sequence

    @classmethod
    def of(cls, batch: Batch, logits_to_keep: int | ArrayLike) -> OutputRows:
        """The rows that `Gemma.prefill`'s logits_to_keep asks for; InputError unless it is a number or columns."""
        if not arguments.has_axes(logits_to_keep):
            count = arguments.integer("logits_to_keep", logits_to_keep, least=0, otherwise=" or columns [K]")
            if count == 1:
                last = (batch.cu_seqlens[1:] - 1).astype(np.int64)
                return cls(last, np.arange(len(last) + 1, dtype=np.int32), 1, True, True)
            if count > 0:
                keep = min(count, batch.seq_len)
                from_end = batch.cu_seqlens[1:][batch.sequence] - np.arange(len(batch.sequence))
                return cls._of(batch, from_end <= keep, keep)
            columns = np.arange(batch.seq_len)
            return cls._of(batch, np.ones(len(batch.sequence), bool), columns)
        columns = arguments.integers("logits_to_keep", logits_to_keep)
        if columns.ndim != 1 or len(columns) == 0:
            raise InputError(f"logits_to_keep is {list(columns.shape)}, expected columns [K]")
        if columns.min() < -batch.seq_len or columns.max() >= batch.seq_len:
            raise InputError(f"logits_to_keep: a column is outside the prompt's {batch.seq_len}")
        columns = columns % batch.seq_len
        return cls._of(batch, np.isin(batch.column, columns), columns)

    @classmethod
    def all(cls, batch: Batch) -> OutputRows:
        """All tokens, packed."""
        return cls(np.arange(len(batch.sequence)), batch.cu_seqlens, 0, False, False)

    @classmethod
    def _of(cls, batch: Batch, asked: NDArray[np.bool_], columns: NDArray[np.int64] | int) -> OutputRows:
        rows = np.flatnonzero(asked)
        keep = columns if isinstance(columns, int) else len(columns)
        in_place = len(rows) == batch.batch_size * keep and (
            isinstance(columns, int) or np.array_equal(batch.column[rows], np.tile(columns, batch.batch_size))
        )
        are_last = in_place and np.array_equal(rows, batch.cu_seqlens[1:] - 1)
        return cls(rows, np.searchsorted(rows, batch.cu_seqlens).astype(np.int32), columns, in_place, are_last)

    def in_layout(self, batch: Batch, values: Array, ops: Ops, *, empty: float) -> Array:
        """[B, keep, …] on the device of the values [M, …] of these rows.

        Of the last n tokens the last column is every sequence's last token, and a shorter sequence begins with `empty`;
        of columns, `empty` stands where the caller has padding.
        """
        if self.in_place:
            return values.reshape(batch.batch_size, len(values) // batch.batch_size, *values.shape[1:])
        return ops.memory.from_host(self._scattered(batch, ops.to_host(values), empty))

    def _scattered(self, batch: Batch, values: Array, empty: float) -> Array:
        sequence, columns = batch.sequence[self.rows], self.columns
        keep = columns if isinstance(columns, int) else len(columns)
        out = np.full((batch.batch_size, keep, *values.shape[1:]), empty, values.dtype)
        if isinstance(columns, int):
            out[sequence, columns - (batch.cu_seqlens[1:][sequence] - self.rows)] = values
            return out
        by_column = np.zeros((batch.batch_size, batch.seq_len), np.int64) - 1
        by_column[sequence, batch.column[self.rows]] = np.arange(len(self.rows))
        source = by_column[:, columns]
        out[source >= 0] = values[source[source >= 0]]
        return out


def decoder_hook(batch: Batch, states: list[Array] | None, layer_hook: Hook | None, ops: Ops) -> Hook:
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
                values = np.ascontiguousarray(returned[batch.sequence, batch.column], values.dtype)
                replacement = ops.as_hidden(values)
        if states is not None:
            states.append(batch.unpack(values))
        return replacement

    return hook
