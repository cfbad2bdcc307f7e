"""A whole prefill as one CUDA graph: recorded once per length, replayed for every prompt that fits.

A bucket is a number of tokens. Its launches read everything that differs between prompts (ids, positions, cache rows,
key ranges, the blocks of attention) from one block of int32 in the GPU's memory, so a prefill is one copy to there and
one graph launch. Rows that a shorter prompt leaves over go through the products and norms like the others, but no row
of ours reads them: attention has no block for them, and their K and V are not kept.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .batch import Batch, make_batch
from .config import GemmaConfig, LayerConfig, RopeConfig
from .device.arena import Arena
from .device.cuda import Cuda
from .device.launch_plan import LaunchPlan
from .device.recorder import Launch, Recorder
from .kv import KVCache, LayerKV
from .kv_pool import KVPool, Lease
from .masks import Int32, key_range
from .model import Decoder, Mask
from .ops.attention_plan import SHORT_ROWS, PlanRoom, Tiling, choose_tiling, plan_of, plan_room, work_tables
from .ops.kernel_ops import KernelOps
from .reference.precision import Array
from .rope import Rope

_MOST_DESCRIBED = 256
_STAGES = 3  # blocks of pinned memory: the host fills one while the GPU still reads another


@dataclass(frozen=True)
class BucketReport:
    """A prepared length. A shorter prompt costs as much as one of `tokens`; `shortest` takes this bucket, too.

    launches: of kernels and products in one prefill. launches_per_layer: of an inner layer; the last one has four more,
    so that most of its work is done for the kept tokens only.
    """

    tokens: int
    shortest: int
    launches: int
    launches_per_layer: int


@dataclass(frozen=True)
class _MaskKind:
    """Layers whose queries see the same keys, in the same tiles."""

    layer_type: str
    head_dim: int
    group: int


class Fields:
    """Named arrays of int32 in one block, each at a multiple of 256 bytes."""

    def __init__(self) -> None:
        self._places: dict[str, tuple[int, tuple[int, ...]]] = {}
        self.size = 0

    def add(self, name: str, *shape: int) -> None:
        self._places[name] = (self.size, shape)
        self.size += -(-int(np.prod(shape)) // 64) * 64

    def of(self, block: Array) -> dict[str, Array]:
        """The arrays in a block [size]."""
        return {
            name: block[begin : begin + int(np.prod(shape))].reshape(shape)
            for name, (begin, shape) in self._places.items()
        }


class StaticStep:
    """The step of every prompt of a bucket: arrays whose contents change from prompt to prompt, at fixed addresses."""

    narrow = True

    def __init__(self, bucket: Bucket, ops: KernelOps, arrays: dict[str, Array]) -> None:
        self._bucket, self._ops, self._arrays = bucket, ops, arrays

    def rope(self, layer: LayerConfig, *, kept: bool) -> Rope:
        cos, sin = self._bucket.angles[layer.rope, layer.head_dim]
        return Rope(cos, sin, self._arrays["kept_positions" if kept else "positions"])

    def slots(self, kv: LayerKV) -> Array:
        return self._arrays["slots"]

    def mask(self, layer: LayerConfig, kv: LayerKV, *, kept: bool) -> Mask:
        kind = self._bucket.kind_of(layer)
        name = self._bucket.name_of(kind, kept)
        begin, end, table = (self._arrays[f"{name}.{part}"] for part in ("begin", "end", "table"))
        return plan_of(
            begin, end, table, self._arrays.get(f"{name}.merges"), self._bucket.rooms[name],
            self._bucket.tiling_of(kind, kept), group=kind.group, head_dim=kind.head_dim, sequences=len(kv.k),
        )  # fmt: skip

    def bias(self, layer: LayerConfig, kv: LayerKV, *, kept: bool) -> None:
        return None

    def take_kept(self, x: Array) -> Array:
        kept: Array = self._ops.take(x, self._arrays["kept"])
        return kept


class Bucket:
    """The launches of prefills of up to `tokens` tokens in up to `batch_size` sequences, of which the last tokens are
    kept."""

    def __init__(
        self,
        decoder: Decoder,
        tokens: int,
        shortest: int,
        batch_size: int,
        capacity: int,
        shared_bytes: int,
        angles: dict[tuple[RopeConfig, int], tuple[Array, Array]],
    ) -> None:
        self.config: GemmaConfig = decoder.config
        self.tokens, self.shortest, self.batch_size = tokens, shortest, batch_size
        self.capacity, self.angles = capacity, angles
        self._shared_bytes = shared_bytes
        self.fields = Fields()
        for name in ("ids", "positions", "slots"):
            self.fields.add(name, tokens)
        for name in ("kept", "kept_positions"):
            self.fields.add(name, batch_size)
        self.kinds: dict[str, tuple[_MaskKind, LayerConfig, bool]] = {}
        self.rooms: dict[str, PlanRoom] = {}
        for i, layer in enumerate(self.config.layers):
            self._add_mask(layer, kept=i >= decoder.last_kv_layer)
        self.plan: LaunchPlan
        self.graph: Any = None
        self.block: Array
        self.outputs: list[tuple[Array, Array]]  # (hidden [b, E], logits [b, V]) of b = 1, 2, ... prompts

    def kind_of(self, layer: LayerConfig) -> _MaskKind:
        group = self.config.num_attention_heads // layer.num_key_value_heads
        return _MaskKind(layer.layer_type, layer.head_dim, group)

    def name_of(self, kind: _MaskKind, kept: bool) -> str:
        return f"{kind.layer_type}.{kind.head_dim}.{kind.group}{'.kept' if kept else ''}"

    def tiling_of(self, kind: _MaskKind, kept: bool) -> Tiling:
        rows = kind.group * (1 if kept else self.tokens)
        is_plain = self.config.attn_logit_softcapping is None
        return choose_tiling(kind.head_dim, rows, self._shared_bytes, is_plain=is_plain)

    def _add_mask(self, layer: LayerConfig, *, kept: bool) -> None:
        kind = self.kind_of(layer)
        name = self.name_of(kind, kept)
        if name in self.kinds:
            return
        self.kinds[name] = kind, layer, kept
        queries = self.batch_size if kept else self.tokens
        keys = min(self.capacity, _most_keys(layer))
        short = kept or self.batch_size > 1 or self.shortest * kind.group <= SHORT_ROWS
        tiling = self.tiling_of(kind, kept)
        room = plan_room(queries, self.batch_size, keys, group=kind.group, tiling=tiling, short=short)
        self.rooms[name] = room
        self.fields.add(f"{name}.begin", queries)
        self.fields.add(f"{name}.end", queries)
        self.fields.add(f"{name}.table", room.blocks, 7)
        if room.merges:
            self.fields.add(f"{name}.merges", room.merges, 5)

    def launch_all(self, decoder: Decoder, arrays: dict[str, Array], pool: KVPool) -> tuple[Array, Array]:
        """(hidden [B, E], logits [B, V]) of the bucket's step, launched on the device of the decoder's ops."""
        assert isinstance(decoder.ops, KernelOps)
        step = StaticStep(self, decoder.ops, arrays)
        hidden = decoder.forward(decoder.embed(arrays["ids"]), None, step, pool.layers, None)
        return hidden, decoder.logits(hidden)

    def empty_block(self) -> NDArray[np.int32]:
        """The block [size] of no tokens at all."""
        block = np.zeros(self.fields.size, np.int32)
        self.fields.of(block)["slots"][:] = -1  # of what is left over nothing is kept
        return block

    def describe(self, batch: Batch, first_row: int) -> NDArray[np.int32]:
        """The block [size] for a batch whose caches are the rows first_row, ... of the pool."""
        block = self.empty_block()
        arrays = self.fields.of(block)
        n, lengths = len(batch.row), batch.cu_seqlens
        arrays["slots"][:n] = (batch.row + first_row) * self.capacity + batch.slots
        arrays["positions"][:n] = batch.position_ids
        kept = lengths[1:] - 1
        arrays["kept"][: len(kept)], arrays["kept_positions"][: len(kept)] = kept, batch.position_ids[kept]
        rows = np.arange(batch.batch_size) + first_row
        ranges: dict[str, tuple[Int32, Int32]] = {}
        for name, (kind, layer, is_kept) in self.kinds.items():
            if kind.layer_type not in ranges:
                ranges[kind.layer_type] = key_range(self.config, layer, batch.queries)
            begin, end = ranges[kind.layer_type]
            sequences = lengths
            if is_kept:
                begin, end, sequences = begin[kept], end[kept], np.arange(len(kept) + 1, dtype=np.int32)
            arrays[f"{name}.begin"][: len(begin)], arrays[f"{name}.end"][: len(end)] = begin, end
            table, merges = work_tables(begin, end, sequences, rows, kind.group, self.tiling_of(kind, is_kept))
            arrays[f"{name}.table"][: len(table)] = table
            if len(merges):
                arrays[f"{name}.merges"][: len(merges)] = merges
        return block


def _most_keys(layer: LayerConfig) -> int:
    """How many keys the queries of a short sequence see at most."""
    return sys.maxsize if layer.sliding_window is None else layer.sliding_window + SHORT_ROWS


class PrefillGraphs:
    """Buckets of one model on one GPU, over one arena and one pool of KV caches.

    lengths: tokens of each bucket. batch_size: most prompts at once. kv_rows, kv_capacity: caches of the pool, and
    tokens of each. graphs: capture them; otherwise the same launches are started one by one, to the same bits.
    Raises OutOfMemoryError before anything is allocated.
    """

    def __init__(
        self,
        decoder: Decoder,
        cuda: Cuda,
        lengths: Sequence[int],
        *,
        batch_size: int,
        kv_rows: int,
        kv_capacity: int,
        graphs: bool,
        tune: bool,
    ) -> None:
        assert isinstance(decoder.ops, KernelOps)
        self._decoder, self._cuda, self._ops = decoder, cuda, decoder.ops
        config = decoder.config
        positions = kv_capacity + config.position_offset
        angles = {
            (layer.rope, layer.head_dim): self._ops.angles(layer.rope, layer.head_dim, positions)
            for layer in config.layers
        }
        self._positions = min(len(cos) for cos, _ in angles.values())
        rising = sorted(set(lengths))
        self.buckets = [
            Bucket(decoder, tokens, shorter + 1, batch_size, kv_capacity, cuda.shared_bytes, angles)
            for shorter, tokens in zip([0, *rising], rising, strict=False)
        ]
        itemsize = self._ops.hidden_dtype.itemsize
        pool_bytes = KVPool.nbytes(config, kv_rows, kv_capacity, itemsize)
        blocks = [cuda.from_host(bucket.empty_block()) for bucket in self.buckets]
        self.pool = KVPool(config, Recorder(cuda.shared_bytes), kv_rows, kv_capacity, self._ops.hidden_dtype)
        self.arena_bytes, launches, products = self._measure(blocks)
        self._ops.require_memory(
            pool_bytes + self.arena_bytes, f"KV caches of {kv_rows} x {kv_capacity} tokens and the activations"
        )
        cuda.load(launches)
        if tune:
            self._ops.tune(products)
        self.pool = KVPool(config, cuda, kv_rows, kv_capacity, self._ops.hidden_dtype)
        memory = cuda.empty((self.arena_bytes,), np.uint8)
        for bucket, block in zip(self.buckets, blocks, strict=True):
            bucket.block = block
            with cuda.recording(Arena(self.arena_bytes), memory) as bucket.plan:
                outputs = bucket.launch_all(decoder, bucket.fields.of(block), self.pool)
            bucket.outputs = [(outputs[0][:b], outputs[1][:b]) for b in range(1, batch_size + 1)]
            if graphs:
                cuda.start(bucket.plan)
                cuda.synchronize()
                bucket.graph = cuda.capture(bucket.plan)
        largest = max(bucket.fields.size for bucket in self.buckets)
        self._stages = [cuda.pinned(largest * 4) for _ in range(_STAGES)]
        self._waits: list[Any] = [None] * _STAGES
        self._next = 0
        self._described: dict[tuple[int, ...], NDArray[np.int32]] = {}

    def _measure(self, blocks: Sequence[Array]) -> tuple[int, list[Launch], set[tuple[Any, ...]]]:
        """(bytes of the arena, launches of our kernels, shapes of products) of all buckets, without a GPU's help."""
        most = 0
        launches: dict[str, Launch] = {}
        products: set[tuple[Any, ...]] = set()
        for bucket, block in zip(self.buckets, blocks, strict=True):
            arena = Arena()
            recorder = Recorder(self._cuda.shared_bytes, arena)
            ops, noted = self._ops.for_recorder(recorder)
            decoder = Decoder(self._decoder.config, self._decoder.weights, ops)
            outputs = bucket.launch_all(decoder, bucket.fields.of(block), self.pool)
            del outputs
            most = max(most, arena.peak)
            launches.update({launch.instance: launch for launch in recorder.launches})
            products.update(noted.shapes)
        return most, list(launches.values()), products

    def report(self) -> list[BucketReport]:
        """What was prepared, shortest first."""
        reports = []
        for bucket in self.buckets:
            layers = [i for i, name in enumerate(bucket.plan.names) if name.startswith("attention<")]
            gaps = np.diff(layers)
            per_layer = max(gaps[:-1] if len(gaps) > 1 else gaps, default=len(bucket.plan))
            reports.append(BucketReport(bucket.tokens, bucket.shortest, len(bucket.plan), int(per_layer)))
        return reports

    def bucket(self, tokens: int, batch_size: int) -> Bucket | None:
        """The smallest that serves so many tokens of so many prompts."""
        return next((b for b in self.buckets if b.tokens >= tokens and b.batch_size >= batch_size), None)

    def cache_for(self, batch_size: int, fingerprint: str, dtype: str) -> KVCache | None:
        """An empty cache of the pool, None while all its rows are in use."""
        return self.pool.take(batch_size, fingerprint, dtype)

    def serves(self, batch: Batch, cache: KVCache) -> Bucket | None:
        """The bucket that can run this batch over this cache, if one can."""
        lease = cache.lease
        if not isinstance(lease, Lease) or lease.pool is not self.pool or batch.attn_bias or batch.input_ids is None:
            return None
        if batch.inputs_embeds is not None or int(batch.slots.max()) >= self.pool.capacity:
            return None
        if int(batch.position_ids.max()) >= self._positions:
            return None
        return self.bucket(len(batch.row), batch.batch_size)

    def run(self, bucket: Bucket, batch: Batch, ids: NDArray[np.int64], cache: KVCache) -> tuple[Array, Array]:
        """(hidden [B, 1, E], logits [B, 1, V]) of each prompt's last token, new arrays; K and V go to the cache."""
        assert isinstance(cache.lease, Lease)
        self._start(bucket, bucket.describe(batch, cache.lease.first), ids)
        cache.extend(batch)
        return self._outputs(bucket, batch.batch_size)

    def run_text(self, ids: NDArray[np.integer[Any]], cache: KVCache) -> tuple[Array, Array] | None:
        """As `run`, for the next tokens [S] of one prompt without images; None if no bucket serves it.

        What the block holds besides ids depends on few numbers, and is kept for the next prompt of the same ones.
        """
        lease, tokens = cache.lease, len(ids)
        if not isinstance(lease, Lease) or lease.pool is not self.pool or lease.count != 1:
            return None
        begin, end = int(cache.starts[0]), int(cache.ends[0])
        bucket = self.bucket(tokens, 1)
        if bucket is None or end + tokens > self.pool.capacity:
            return None
        key = tokens, begin, end, lease.first
        block = self._described.get(key)
        if block is None:
            block = bucket.describe(self._text(ids, cache if end else None), lease.first)
            if len(self._described) >= _MOST_DESCRIBED:
                self._described.pop(next(iter(self._described)))
            self._described[key] = block
        self._start(bucket, block, ids)
        cache.ends = np.array([end + tokens], np.int32)
        return self._outputs(bucket, 1)

    def _text(self, ids: NDArray[np.integer[Any]], past: KVCache | None) -> Batch:
        return make_batch(
            self._decoder.config, input_ids=ids, inputs_embeds=None, attention_mask=None, position_ids=None,
            token_type_ids=None, attn_bias=None, past=past,
        )  # fmt: skip

    def _start(self, bucket: Bucket, block: NDArray[np.int32], ids: NDArray[Any]) -> None:
        stage = self._next
        self._next = (stage + 1) % _STAGES
        if self._waits[stage] is not None:
            self._waits[stage]()
        pinned = self._stages[stage]
        staged = pinned.data.view(np.int32)[: len(block)]
        staged[:] = block
        staged[: len(ids)] = ids  # the first of the fields
        self._waits[stage] = self._cuda.upload(bucket.block, pinned, 4 * len(block))
        if bucket.graph is not None:
            self._cuda.launch_graph(bucket.graph)
        else:
            self._cuda.start(bucket.plan)

    def _outputs(self, bucket: Bucket, batch_size: int) -> tuple[Array, Array]:
        """Copies, since the next prefill writes to the same memory."""
        copies = []
        for rows in bucket.outputs[batch_size - 1]:
            copy = self._cuda.empty((batch_size, 1, rows.shape[1]), rows.dtype)
            self._cuda.copy(copy, rows)
            copies.append(copy)
        return copies[0], copies[1]
