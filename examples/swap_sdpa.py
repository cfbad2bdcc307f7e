import torch
import torch.nn.functional as F

import gemma_cuda
from gemma_cuda.interop.torch import scaled_dot_product_attention

q, k, v = (torch.randn(1, heads, 100, 64) for heads in (8, 2, 2))
theirs = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
ours = scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
print(torch.allclose(ours, theirs, atol=1e-5))  # True

# Not in SDPA: a window, a softcap and image spans, without a mask in memory.
spans = torch.tensor([-1] * 20 + [0] * 30 + [-1] * 50)
o = gemma_cuda.attention(q, k, v, layout="BHSD", causal=True, sliding_window=32, softcap=50.0, block_ids=spans)
print(o.shape)  # torch.Size([1, 8, 100, 64])
