"""A whole prefill as one CUDA graph: recorded once per length, replayed for every prompt that fits.

A bucket is a number of tokens. Its launches read everything that differs between prompts (ids, positions, cache rows,
key ranges, the blocks of attention) from one block of int32 in the GPU's memory, so a prefill is one copy to there and
one graph launch; embeddings that are given take a copy of their own. Rows that a shorter prompt leaves over go through
the products and norms like the others, but no row of ours reads them: attention has no block for them, and their K and
V are not kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import arguments
from ..config import RopeConfig
from ..device.arena import Arena
from ..device.cuda import Cuda
from ..device.dry_run import DryRunDevice, Launch
from ..errors import InputError
from ..model.decoder import Decoder
from ..model.kv_cache import KVCache
from ..model.multimodal import embeddable
from ..ops.kernel_ops import KernelOps
from ..precision import Array
from .batch import Batch
from .bucket import Bucket, RopeTables
from .kv_pool import KVPool, Lease

_MOST_BLOCKS = 256
_STAGES = 3  # blocks of pinned memory: the host fills one while the GPU still reads another


@dataclass(frozen=True)
class BucketReport:
    """A prepared length. A shorter prompt costs as much as one of `tokens`; `shortest` takes this bucket, too.

    launches: of kernels and products in one prefill. launches_per_layer: of an inner layer; the last one has four more,
    so that most of its work is done for the output tokens only.
    """

    tokens: int
    shortest: int
    launches: int
    launches_per_layer: int


@dataclass(frozen=True)
class WarmupSizes:
    """The sizes of `Gemma.warmup`, checked."""

    lengths: list[int]  # rising
    batch_size: int
    kv_rows: int
    kv_capacity: int

    @classmethod
    def of(cls, lengths: Sequence[int], batch_size: int, kv_rows: int, kv_capacity: int | None) -> WarmupSizes:
        """InputError where they make no sense; kv_capacity None is twice the longest length."""
        given = arguments.integers("warmup: lengths", lengths)
        if given.ndim != 1 or given.size == 0 or given.min() < 1:
            raise InputError(
                f"warmup: lengths is {arguments.shown(lengths)}, expected numbers of tokens such as [16, 128, 1024]"
            )
        tokens = sorted({int(n) for n in given})
        batch_size = arguments.integer("warmup: batch_size", batch_size, least=1)
        kv_rows = arguments.integer("warmup: kv_rows", kv_rows, least=1)
        if batch_size > kv_rows or batch_size > tokens[0]:
            raise InputError(
                f"warmup: batch_size {batch_size} is more than kv_rows {kv_rows} or than the shortest of lengths, "
                f"{tokens[0]}"
            )
        capacity = 2 * tokens[-1] if kv_capacity is None else arguments.integer("warmup: kv_capacity", kv_capacity)
        if capacity < tokens[-1]:
            raise InputError(f"warmup: kv_capacity {capacity} is less than the longest of lengths, {tokens[-1]}")
        return cls(tokens, batch_size, kv_rows, capacity)


class GraphExecutor:
    """Replays a forward pass that was recorded: buckets of one model on one GPU, over one arena and one pool of caches.

    Raises OutOfMemoryError before caches, tables or activations are allocated.
    """

    def __init__(
        self, decoder: Decoder, ops: KernelOps, cuda: Cuda, sizes: WarmupSizes, *, graphs: bool, tune: bool
    ) -> None:
        self._decoder, self._cuda, self._ops = decoder, cuda, ops
        config, dtype, kv_capacity = decoder.config, ops.hidden_dtype, sizes.kv_capacity
        ropes = {(layer.rope, layer.head_dim) for layer in config.layers}
        longest = sizes.lengths[-1]
        self.buckets = [
            Bucket(decoder, tokens, shorter + 1, sizes.batch_size, kv_capacity, cuda.shared_bytes)
            for shorter, tokens in zip([0, *sizes.lengths], sizes.lengths, strict=False)
        ]
        blocks = [cuda.from_host(bucket.empty_block) for bucket in self.buckets]
        positions = kv_capacity + config.position_offset
        pool = KVPool(config, DryRunDevice(cuda.shared_bytes), sizes.kv_rows, kv_capacity, dtype)
        arena_bytes, launches, products = self._measure(blocks, ropes, positions, pool)
        table_bytes = sum(self._ops.angle_bytes(head_dim, positions) for _, head_dim in ropes)
        feature_bytes = longest * config.hidden_size * dtype.itemsize
        cache_bytes = KVPool.nbytes(config, sizes.kv_rows, kv_capacity, dtype.itemsize)
        ops.require_memory(
            cache_bytes + arena_bytes + table_bytes + feature_bytes,
            f"KV caches of {sizes.kv_rows} x {kv_capacity} tokens and the activations",
        )
        cuda.load(launches)
        if tune:
            self._ops.tune(products)
        self.pool = KVPool(config, cuda, sizes.kv_rows, kv_capacity, dtype)
        tables = {rope: self._ops.angles(*rope, positions) for rope in ropes}
        self._positions = min(len(cos) for cos, _ in tables.values())
        self._features = cuda.empty((longest, config.hidden_size), dtype)
        cuda.upload(self._features, np.zeros(config.hidden_size, dtype))  # the first copy allocates
        self._arena = cuda.empty((arena_bytes,), np.uint8)
        for bucket, block in zip(self.buckets, blocks, strict=True):
            bucket.block = block
            with cuda.recording(Arena(arena_bytes), self._arena) as bucket.plan:
                outputs = bucket.launch_all(decoder, ops, bucket.fields.of(block), self._features, tables, self.pool)
            bucket.outputs = [(outputs[0][:b], outputs[1][:b]) for b in range(1, sizes.batch_size + 1)]
            if graphs:
                cuda.launch_plan(bucket.plan)
                cuda.synchronize()
                bucket.graph = cuda.capture(bucket.plan)
        largest = max(bucket.fields.size for bucket in self.buckets)
        self._stages = [cuda.pinned(largest * 4) for _ in range(_STAGES)]
        self._next = 0
        self._blocks: dict[tuple[int, ...], NDArray[np.int32]] = {}

    def _measure(
        self, blocks: Sequence[Array], ropes: set[tuple[RopeConfig, int]], positions: int, pool: KVPool
    ) -> tuple[int, list[Launch], set[tuple[Any, ...]]]:
        """(bytes of the arena, launches of our kernels, shapes of products) of all buckets, without a GPU's help."""
        most = 0
        launches: dict[str, Launch] = {}
        products: set[tuple[Any, ...]] = set()
        dry_run = DryRunDevice(self._cuda.shared_bytes)
        tables: RopeTables = {
            (rope, dim): (dry_run.empty((positions, dim // 2), np.float32),) * 2 for rope, dim in ropes
        }
        features = dry_run.empty((self.buckets[-1].tokens, self._decoder.config.hidden_size), self._ops.hidden_dtype)
        for bucket, block in zip(self.buckets, blocks, strict=True):
            arena = Arena()
            dry_run = DryRunDevice(self._cuda.shared_bytes, arena)
            ops, noted = self._ops.for_dry_run(dry_run)
            decoder = Decoder(self._decoder.config, self._decoder.weights, ops)
            bucket.launch_all(decoder, ops, bucket.fields.of(block), features, tables, pool)
            most = max(most, arena.peak)
            launches.update({launch.instance: launch for launch in dry_run.launches})
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

    def holds(self, cache: KVCache) -> bool:
        """Whether the cache lies in this executor's pool, which only its model fills."""
        return isinstance(cache.lease, Lease) and cache.lease.pool is self.pool

    def run(self, batch: Batch, cache: KVCache) -> tuple[Array, Array] | None:
        """(hidden [B, 1, E], logits [B, 1, V]) of each prompt's last token, new arrays; None if no bucket serves it.

        K and V go to the cache, which the caller extends.
        """
        if not self.holds(cache) or batch.attn_bias or batch.end > self.pool.capacity:
            return None
        if batch.inputs_embeds is not None and batch.batch_size * batch.seq_len > len(self._features):
            return None
        if batch.text_key is None and int(batch.position_ids.max()) >= self._positions:
            return None
        bucket = self.bucket(len(batch.sequence), batch.batch_size)
        if bucket is None:
            return None
        if batch.inputs_embeds is not None:
            self._copy_features(batch.inputs_embeds)
        ids = () if batch.input_ids is None else embeddable(self._decoder.config, batch.input_ids)
        assert isinstance(cache.lease, Lease)
        self._start(bucket, self._block(bucket, batch, cache.lease.first), ids)
        return self._outputs(bucket, batch.batch_size)

    def _copy_features(self, embeds: Any) -> None:
        embeds = embeds.reshape(-1, self._features.shape[1])
        if isinstance(embeds, np.ndarray):
            self._cuda.upload(self._features, embeds.astype(self._features.dtype, copy=False))
        else:
            self._cuda.copy(self._features[: len(embeds)], embeds)

    def _block(self, bucket: Bucket, batch: Batch, pool_entry: int) -> NDArray[np.int32]:
        """The block of a batch but for its ids; the one of plain text is kept for the next prompt of the same sizes."""
        if batch.text_key is None:
            return bucket.describe(batch, pool_entry)
        key = *batch.text_key, pool_entry
        block = self._blocks.get(key)
        if block is None:
            block = bucket.describe(batch, pool_entry)
            if len(self._blocks) >= _MOST_BLOCKS:
                self._blocks.pop(next(iter(self._blocks)))
            self._blocks[key] = block
        return block

    def _start(self, bucket: Bucket, block: NDArray[np.int32], ids: tuple[()] | NDArray[Any]) -> None:
        stage = self._next
        self._next = (stage + 1) % _STAGES
        pinned = self._stages[stage]
        pinned.wait()
        staged = pinned.data.view(np.int32)[: len(block)]
        staged[:] = block
        staged[: len(ids)] = ids  # the first of the fields
        self._cuda.upload_pinned(bucket.block, pinned, 4 * len(block))
        if bucket.graph is not None:
            self._cuda.launch_graph(bucket.graph)
        else:
            self._cuda.launch_plan(bucket.plan)

    def _outputs(self, bucket: Bucket, batch_size: int) -> tuple[Array, Array]:
        """Copies, since the next prefill writes to the same memory."""
        copies = []
        for rows in bucket.outputs[batch_size - 1]:
            copy = self._cuda.empty((batch_size, 1, rows.shape[1]), rows.dtype)
            self._cuda.copy(copy, rows)
            copies.append(copy)
        return copies[0], copies[1]
