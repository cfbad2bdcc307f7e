"""What the decoder needs to know of the tokens of a batch: rotary angles, cache rows, masks, which rows are kept."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..config import LayerConfig, ModelConfig
from ..model.decoder import Mask
from ..model.kv_cache import LayerKV
from ..model.masks import Int32, key_range
from ..model.rope import Rope
from ..ops.kernel_ops import KernelOps
from ..precision import Array
from ..reference import ReferenceOps
from .batch import Batch


@dataclass(frozen=True)
class Kept:
    """The tokens whose output is asked for, as rows of the packed tokens."""

    rows: NDArray[np.int64]  # [M], rising
    cu_seqlens: NDArray[np.int32]  # [B + 1] over the kept

    @classmethod
    def of(cls, wanted: NDArray[np.bool_], cu_seqlens: NDArray[np.int32]) -> Kept:
        """The tokens [N] that are wanted, of sequences that begin at cu_seqlens."""
        rows = np.flatnonzero(wanted)
        return cls(rows, np.searchsorted(rows, cu_seqlens).astype(np.int32))


class BatchStep:
    """The step of a batch of any kind: what layers share is computed, and placed on the device, once."""

    def __init__(self, config: ModelConfig, ops: ReferenceOps | KernelOps, batch: Batch, kept: Kept) -> None:
        self.narrow = len(kept.rows) < len(batch.row)
        self._config, self._ops, self._batch, self._kept = config, ops, batch, kept
        self._ropes: dict[tuple[object, ...], Rope] = {}
        self._slots: dict[tuple[int, int], Array] = {}
        self._masks: dict[tuple[object, ...], Mask] = {}
        self._biases: dict[tuple[int, int, bool], Array] = {}
        self._kept_rows = ops.index(kept.rows)

    def rope(self, layer: LayerConfig, *, kept: bool) -> Rope:
        key = (layer.rope, layer.head_dim, kept)
        if key not in self._ropes:
            positions = self._batch.position_ids
            self._ropes[key] = self._ops.rope(layer.rope, layer.head_dim, self._rows(positions, kept))
        return self._ropes[key]

    def slots(self, kv: LayerKV) -> Array:
        capacity = kv.k.shape[1]
        key = (capacity, kv.first_slot)
        if key not in self._slots:
            self._slots[key] = self._ops.index(self._batch.row * capacity + self._batch.slots - kv.first_slot)
        return self._slots[key]

    def mask(self, layer: LayerConfig, kv: LayerKV, *, kept: bool) -> Mask:
        key = (layer.layer_type, layer.head_dim, layer.num_key_value_heads, kv.first_slot, kept)
        if key not in self._masks:
            begin, end = self._key_range(layer)
            self._masks[key] = self._ops.mask(
                self._rows(np.maximum(begin - kv.first_slot, 0), kept),
                self._rows(end - kv.first_slot, kept),
                self._kept.cu_seqlens if kept else self._batch.cu_seqlens,
                group=self._config.num_attention_heads // layer.num_key_value_heads,
                head_dim=layer.head_dim,
                is_plain=self._config.attn_logit_softcapping is None and layer.layer_type not in self._batch.attn_bias,
            )
        return self._masks[key]

    def bias(self, layer: LayerConfig, kv: LayerKV, *, kept: bool) -> Array | None:
        bias = self._batch.attn_bias.get(layer.layer_type)
        if bias is None:
            return None
        key = id(bias), kv.first_slot, kept  # layer types may share an array
        if key not in self._biases:
            if kept:  # the same columns in every row: a bias goes with rows of equal length
                bias = bias[:, :, self._batch.column[self._kept.rows[: self._kept.cu_seqlens[1]]]]
            self._biases[key] = self._ops.bias(bias[..., kv.first_slot :])
        return self._biases[key]

    def take_kept(self, x: Array) -> Array:
        return self._ops.take(x, self._kept_rows)

    def _key_range(self, layer: LayerConfig) -> tuple[Int32, Int32]:
        if layer.layer_type not in self._batch.attn_bias:
            return key_range(self._config, layer, self._batch.queries)
        begin = np.zeros_like(self._batch.slots)  # a ready-made mask replaces the layer's own
        return begin, np.full_like(begin, self._batch.attn_bias[layer.layer_type].shape[-1])

    def _rows(self, array: Array, kept: bool) -> Array:
        return array[self._kept.rows] if kept else array
