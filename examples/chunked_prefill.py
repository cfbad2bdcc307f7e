"""A prompt in chunks over a preallocated KV cache, with a window and a softcap, equal to the prompt at once."""

import numpy as np

import gemma_cuda

PROMPT, CHUNK, ROOM, HEADS, KV_HEADS, HEAD_DIM = 100, 32, 128, 4, 2, 64
rng = np.random.default_rng(0)
q, k, v = (rng.standard_normal((1, PROMPT, heads, HEAD_DIM), np.float32) for heads in (HEADS, KV_HEADS, KV_HEADS))
rule = {"causal": True, "sliding_window": 24, "softcap": 30.0}

k_cache, v_cache = (np.zeros((1, ROOM, KV_HEADS, HEAD_DIM), np.float32) for _ in range(2))
parts = []
for start in range(0, PROMPT, CHUNK):
    stop = min(start + CHUNK, PROMPT)
    k_cache[:, start:stop], v_cache[:, start:stop] = k[:, start:stop], v[:, start:stop]
    # q_offset is the key at which the chunk begins; keys after its own queries are not seen.
    parts.append(gemma_cuda.attention(q[:, start:stop], k_cache, v_cache, q_offset=start, **rule))

at_once = gemma_cuda.attention(q, k, v, **rule)
print("chunks equal the whole:", np.allclose(np.concatenate(parts, 1), at_once, atol=1e-5))
