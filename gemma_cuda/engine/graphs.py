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
from ..device.cuda.device import Cuda
from ..device.dry_run import DryRunDevice, Launch
from ..errors import InputError
from ..model.decoder import Decoder
from ..model.kv_cache import KVCache
from ..ops.kernel_ops import KernelOps
from ..precision import Array
from .batch import Batch, text_batch
from .bucket import Bucket, RopeTables
from .kv_pool import KVPool, Lease

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


class PrefillGraphs:
    """Buckets of one model on one GPU, over one arena and one pool of KV caches.

    The arguments are those of `Gemma.warmup`, checked. Raises OutOfMemoryError before caches, tables or activations are
    allocated.
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
        config, dtype = decoder.config, self._ops.hidden_dtype
        ropes = {(layer.rope, layer.head_dim) for layer in config.layers}
        rising = sorted(set(lengths))
        self.buckets = [
            Bucket(decoder, tokens, shorter + 1, batch_size, kv_capacity, cuda.shared_bytes)
            for shorter, tokens in zip([0, *rising], rising, strict=False)
        ]
        blocks = [cuda.from_host(bucket.empty_block) for bucket in self.buckets]
        positions = kv_capacity + config.position_offset
        pool = KVPool(config, DryRunDevice(cuda.shared_bytes), kv_rows, kv_capacity, dtype)
        arena_bytes, launches, products = self._measure(blocks, ropes, positions, pool)
        table_bytes = sum(self._ops.angle_bytes(head_dim, positions) for _, head_dim in ropes)
        feature_bytes = rising[-1] * config.hidden_size * dtype.itemsize
        self._ops.require_memory(
            KVPool.nbytes(config, kv_rows, kv_capacity, dtype.itemsize) + arena_bytes + table_bytes + feature_bytes,
            f"KV caches of {kv_rows} x {kv_capacity} tokens and the activations",
        )
        cuda.load(launches)
        if tune:
            self._ops.tune(products)
        self.pool = KVPool(config, cuda, kv_rows, kv_capacity, dtype)
        tables = {rope: self._ops.angles(*rope, positions) for rope in ropes}
        self._positions = min(len(cos) for cos, _ in tables.values())
        self._features = cuda.empty((rising[-1], config.hidden_size), dtype)
        cuda.upload(self._features, np.zeros(config.hidden_size, dtype))  # the first copy allocates
        self._arena = cuda.empty((arena_bytes,), np.uint8)
        for bucket, block in zip(self.buckets, blocks, strict=True):
            bucket.block = block
            with cuda.recording(Arena(arena_bytes), self._arena) as bucket.plan:
                outputs = bucket.launch_all(decoder, bucket.fields.of(block), self._features, tables, self.pool)
            bucket.outputs = [(outputs[0][:b], outputs[1][:b]) for b in range(1, batch_size + 1)]
            if graphs:
                cuda.launch_plan(bucket.plan)
                cuda.synchronize()
                bucket.graph = cuda.capture(bucket.plan)
        largest = max(bucket.fields.size for bucket in self.buckets)
        self._stages = [cuda.pinned(largest * 4) for _ in range(_STAGES)]
        self._next = 0
        self._described: dict[tuple[int, ...], NDArray[np.int32]] = {}

    def _measure(
        self, blocks: Sequence[Array], ropes: set[tuple[RopeConfig, int]], positions: int, pool: KVPool
    ) -> tuple[int, list[Launch], set[tuple[Any, ...]]]:
        """(bytes of the arena, launches of our kernels, shapes of products) of all buckets, without a GPU's help."""
        most = 0
        launches: dict[str, Launch] = {}
        products: set[tuple[Any, ...]] = set()
        recorder = DryRunDevice(self._cuda.shared_bytes)
        tables: RopeTables = {
            (rope, dim): (recorder.empty((positions, dim // 2), np.float32),) * 2 for rope, dim in ropes
        }
        features = recorder.empty((self.buckets[-1].tokens, self._decoder.config.hidden_size), self._ops.hidden_dtype)
        for bucket, block in zip(self.buckets, blocks, strict=True):
            arena = Arena()
            recorder = DryRunDevice(self._cuda.shared_bytes, arena)
            ops, noted = self._ops.for_dry_run(recorder)
            decoder = Decoder(self._decoder.config, self._decoder.weights, ops)
            bucket.launch_all(decoder, bucket.fields.of(block), features, tables, pool)
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

    def serves(self, batch: Batch, cache: KVCache) -> Bucket | None:
        """The bucket that can run this batch over this cache, if one can."""
        lease = cache.lease
        if not isinstance(lease, Lease) or lease.pool is not self.pool or batch.attn_bias:
            return None
        if int(batch.slots.max()) >= self.pool.capacity:
            return None
        if batch.inputs_embeds is not None and batch.batch_size * batch.seq_len > len(self._features):
            return None
        if int(batch.position_ids.max()) >= self._positions:
            return None
        return self.bucket(len(batch.row), batch.batch_size)

    def run(self, bucket: Bucket, batch: Batch, ids: NDArray[np.int64] | None, cache: KVCache) -> tuple[Array, Array]:
        """(hidden [B, 1, E], logits [B, 1, V]) of each prompt's last token, new arrays; K and V go to the cache, which
        the caller extends.

        ids [N], all of the vocabulary; None where the batch has only embeddings.
        """
        assert isinstance(cache.lease, Lease)
        if batch.inputs_embeds is not None:
            embeds = batch.inputs_embeds.reshape(-1, self._features.shape[1])
            if isinstance(embeds, np.ndarray):
                self._cuda.upload(self._features, embeds.astype(self._features.dtype, copy=False))
            else:
                self._cuda.copy(self._features[: len(embeds)], embeds)
        self._start(bucket, bucket.describe(batch, cache.lease.first), () if ids is None else ids)
        return self._outputs(bucket, batch.batch_size)

    def run_text(self, ids: NDArray[np.integer[Any]], cache: KVCache) -> tuple[Array, Array] | None:
        """As `run`, for the next tokens [S] of one prompt without images; None if no bucket serves it.

        What the block holds besides ids depends on few numbers, and is kept for the next prompt of the same ones.
        """
        lease, tokens = cache.lease, len(ids)
        if not isinstance(lease, Lease) or lease.pool is not self.pool or lease.count != 1:
            return None
        begin, end = int(cache.starts[0]), int(cache.ends[0])
        if end > begin and self._decoder.config.bidirectional == "text":
            return None  # which the caller refuses
        bucket = self.bucket(tokens, 1)
        if bucket is None or end + tokens > self.pool.capacity:
            return None
        key = tokens, begin, end, lease.first
        block = self._described.get(key)
        if block is None:
            block = bucket.describe(text_batch(self._decoder.config, tokens, begin, end), lease.first)
            if len(self._described) >= _MOST_DESCRIBED:
                self._described.pop(next(iter(self._described)))
            self._described[key] = block
        self._start(bucket, block, ids)
        outputs = self._outputs(bucket, 1)
        cache.ends = np.array([end + tokens], np.int32)
        return outputs

    def _start(self, bucket: Bucket, block: NDArray[np.int32], ids: Sequence[int] | NDArray[Any]) -> None:
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


def checked_sizes(
    lengths: Sequence[int], batch_size: int, kv_rows: int, kv_capacity: int | None
) -> tuple[list[int], int, int, int]:
    """The arguments of `Gemma.warmup`, kv_capacity as what None stands for; InputError where they make no sense."""
    given = arguments.integers("warmup: lengths", lengths)
    if given.ndim != 1 or given.size == 0 or given.min() < 1:
        raise InputError(
            f"warmup: lengths is {arguments.shown(lengths)}, expected numbers of tokens such as [16, 128, 1024]"
        )
    tokens = [int(n) for n in given]
    batch_size = arguments.integer("warmup: batch_size", batch_size, least=1)
    kv_rows = arguments.integer("warmup: kv_rows", kv_rows, least=1)
    if batch_size > kv_rows or batch_size > min(tokens):
        raise InputError(
            f"warmup: batch_size {batch_size} is more than kv_rows {kv_rows} or than the shortest of lengths, "
            f"{min(tokens)}"
        )
    capacity = 2 * max(tokens) if kv_capacity is None else arguments.integer("warmup: kv_capacity", kv_capacity)
    if capacity < max(tokens):
        raise InputError(f"warmup: kv_capacity {capacity} is less than the longest of lengths, {max(tokens)}")
    return tokens, batch_size, kv_rows, capacity
