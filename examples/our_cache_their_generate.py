"""Prefill here, generation in Transformers: our KV cache goes over, and generate() goes on.

The weights are random and small, so that this runs anywhere; with a real model only the directory differs.
"""

import tempfile

import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

import gemma_cuda
from gemma_cuda.interop.transformers import register

register()
config = Gemma3TextConfig(
    vocab_size=100, hidden_size=64, intermediate_size=128, num_hidden_layers=7, num_attention_heads=4,
    num_key_value_heads=2, head_dim=32, sliding_window=8, pad_token_id=0, eos_token_id=1, bos_token_id=2,
)  # fmt: skip
torch.manual_seed(0)
with tempfile.TemporaryDirectory() as directory:
    Gemma3ForCausalLM(config).save_pretrained(directory)
    model = Gemma3ForCausalLM.from_pretrained(directory, attn_implementation="gemma_cuda").eval()
    gemma = gemma_cuda.Gemma.from_pretrained(directory)

    prompt = torch.randint(3, 100, (1, 40))
    out = gemma.prefill(prompt[:, :-1].numpy())  # all but the last token, which generate() feeds itself
    cache = out.past_key_values.to_transformers(model.config)
    options = {"max_new_tokens": 8, "do_sample": False, "attention_mask": torch.ones_like(prompt)}
    handed_over = model.generate(prompt, past_key_values=cache, **options)
    alone = model.generate(prompt, **options)
print("the same tokens:", torch.equal(handed_over, alone))
