"""Multimodal Gemma 3 under Transformers: the tokens of an image see one another, and no dense mask says so.

The weights are random and small, so that this runs anywhere; with a real model only from_pretrained differs.
"""

import torch
from transformers import Gemma3Config, Gemma3ForConditionalGeneration, Gemma3TextConfig, SiglipVisionConfig

from gemma_cuda.interop.transformers import register

register()
IMAGE, BEGIN, END = 99, 97, 98  # ids of the placeholder and of the marks around an image
text = Gemma3TextConfig(
    vocab_size=100, hidden_size=64, intermediate_size=128, num_hidden_layers=7, num_attention_heads=4,
    num_key_value_heads=2, head_dim=32, sliding_window=8, pad_token_id=0, eos_token_id=1, bos_token_id=2,
)  # fmt: skip
vision = SiglipVisionConfig(
    hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=4
)
config = Gemma3Config(
    text_config=text.to_dict(), vision_config=vision.to_dict(), mm_tokens_per_image=16,
    image_token_index=IMAGE, boi_token_index=BEGIN, eoi_token_index=END,
)  # fmt: skip
torch.manual_seed(0)
model = Gemma3ForConditionalGeneration(config).eval()

prompt = torch.tensor([[2, 10, 11, BEGIN, *[IMAGE] * 16, END, 12, 13, 14]])
inputs = {
    "input_ids": prompt,
    "token_type_ids": (prompt == IMAGE).long(),
    "pixel_values": torch.randn(1, 3, 32, 32),
}
logits = {}
for implementation in ("eager", "gemma_cuda"):
    model.set_attn_implementation(implementation)
    with torch.no_grad():
        logits[implementation] = model(**inputs).logits
error = (logits["eager"] - logits["gemma_cuda"]).abs().max() / logits["eager"].abs().max()
print("the same logits:", bool(error < 1e-5))
