"""What a KV cache holds, so that a test can tell whether a call has left it as it was."""

from __future__ import annotations

from typing import Any

import numpy as np

from gemma_cuda import KVCache


def state(cache: KVCache) -> dict[str, Any]:
    """All that a caller can see of a cache, its bytes among it, and whether any are left behind its tokens."""
    return {
        "rows": (cache.starts.tolist(), cache.ends.tolist(), [list(row) for row in cache.spans]),
        "first_slots": [None if stored is None else stored.first_slot for stored in cache.layers],
        "memory": id(cache.memory),
        "bytes": [None if pair is None else tuple(_bytes(cache, x) for x in pair) for pair in cache],
        "rest": cache.lease is None and any(_rest(cache, x) for x in cache.layers if x is not None),
    }


def _bytes(cache: KVCache, array: Any) -> tuple[str, bytes]:
    values = np.array(cache.memory.to_host(array), order="C")
    if cache.lease is not None:  # memory outside its tokens belongs to no sequence
        outside = np.arange(values.shape[2])
        hidden = (outside < cache.starts[:, None]) | (outside >= cache.ends[:, None])
        values[np.broadcast_to(hidden[:, None], values.shape[:3])] = 0
    return values.dtype.name, values.tobytes()


def _rest(cache: KVCache, stored: Any) -> bool:
    behind = cache.seq_length - stored.first_slot
    return any(bool(np.any(np.array(cache.memory.to_host(x))[:, behind:])) for x in (stored.k, stored.v))
