"""`EagerContext`: rotary angles, slot mapping, masks and output rows of one batch."""

from __future__ import annotations

import numpy as np

from ..config import LayerConfig, ModelConfig
from ..model.kv_storage import LayerKV
from ..model.masks import Int32, key_range
from ..model.ops import Mask, Ops
from ..model.rope import Rope
from ..precision import Array
from .batch import Batch
from .outputs import OutputRows


class EagerContext:
    """The `ForwardContext` of a batch of any kind: what layers share is computed and uploaded once per prefill."""

    def __init__(self, config: ModelConfig, ops: Ops, batch: Batch, outputs: OutputRows) -> None:
        self.prunes = len(outputs.rows) < len(batch.sequence)
        self._config, self._ops, self._batch, self._outputs = config, ops, batch, outputs
        self._ropes: dict[tuple[object, ...], Rope] = {}
        self._slot_mappings: dict[tuple[int, int], Array] = {}
        self._masks: dict[tuple[object, ...], Mask] = {}
        self._biases: dict[tuple[int, int, bool], Array] = {}
        self._output_rows = ops.index(outputs.rows)

    def rope(self, layer: LayerConfig, *, pruned: bool) -> Rope:
        key = (layer.rope, layer.head_dim, pruned)
        if key not in self._ropes:
            positions = self._pruned(self._batch.position_ids, pruned)
            self._ropes[key] = self._ops.rope(layer.rope, layer.head_dim, positions)
        return self._ropes[key]

    def slot_mapping(self, kv: LayerKV) -> Array:
        capacity = kv.k.shape[1]
        key = (capacity, kv.first_slot)
        if key not in self._slot_mappings:
            mapping = self._batch.sequence * capacity + self._batch.slots - kv.first_slot
            self._slot_mappings[key] = self._ops.index(mapping)
        return self._slot_mappings[key]

    def mask(self, layer: LayerConfig, kv: LayerKV, *, pruned: bool) -> Mask:
        key = (layer.layer_type, layer.head_dim, layer.num_key_value_heads, kv.first_slot, pruned)
        if key not in self._masks:
            begin, end = self._key_range(layer)
            self._masks[key] = self._ops.mask(
                self._pruned(np.maximum(begin - kv.first_slot, 0), pruned),
                self._pruned(end - kv.first_slot, pruned),
                self._outputs.cu_seqlens if pruned else self._batch.cu_seqlens,
                group=self._config.num_attention_heads // layer.num_key_value_heads,
                head_dim=layer.head_dim,
                is_plain=self._config.attn_logit_softcapping is None and layer.layer_type not in self._batch.attn_bias,
            )
        return self._masks[key]

    def bias(self, layer: LayerConfig, kv: LayerKV, *, pruned: bool) -> Array | None:
        bias = self._batch.attn_bias.get(layer.layer_type)
        if bias is None:
            return None
        key = id(bias), kv.first_slot, pruned  # layer types may share an array
        if key not in self._biases:
            if pruned:  # the same columns of every sequence: with a bias all have the same length
                bias = bias[:, :, self._batch.column[self._outputs.rows[: self._outputs.cu_seqlens[1]]]]
            self._biases[key] = self._ops.bias(bias[..., kv.first_slot :])
        return self._biases[key]

    def prune_to_outputs(self, x: Array) -> Array:
        return self._ops.take(x, self._output_rows)

    def _key_range(self, layer: LayerConfig) -> tuple[Int32, Int32]:
        if layer.layer_type not in self._batch.attn_bias:
            return key_range(self._config, layer, self._batch.queries)
        begin = np.zeros_like(self._batch.slots)  # a ready-made mask replaces the layer's own
        return begin, np.full_like(begin, self._batch.attn_bias[layer.layer_type].shape[-1])

    def _pruned(self, array: Array, pruned: bool) -> Array:
        return array[self._outputs.rows] if pruned else array
