"""Gemma 2 under Transformers with its softcap and windows: SDPA refuses the softcap, gemma_cuda takes it.

The weights are random and small, so that this runs anywhere; with a real model only from_pretrained differs.
"""

import torch
from transformers import Gemma2Config, Gemma2ForCausalLM

from gemma_cuda.interop.transformers import register

register()
config = Gemma2Config(
    vocab_size=100, hidden_size=64, intermediate_size=128, num_hidden_layers=8, num_attention_heads=4,
    num_key_value_heads=2, head_dim=32, sliding_window=16, attn_logit_softcapping=50.0,
    pad_token_id=0, eos_token_id=1, bos_token_id=2,
)  # fmt: skip
torch.manual_seed(0)
model = Gemma2ForCausalLM(config).eval()  # or from_pretrained("google/gemma-2-2b", attn_implementation="gemma_cuda")

prompts = torch.randint(3, 100, (2, 40))
mask = torch.ones_like(prompts)
mask[1, :9] = 0  # the second prompt is shorter, and padded on the left
texts = {}
for implementation in ("eager", "gemma_cuda"):
    model.set_attn_implementation(implementation)
    texts[implementation] = model.generate(prompts, attention_mask=mask, max_new_tokens=8, do_sample=False)
print("the same tokens:", torch.equal(texts["eager"], texts["gemma_cuda"]))
