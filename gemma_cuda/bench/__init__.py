"""Times of kernels and of prefills on a GPU, beside what the GPU could do at best and beside other libraries."""

# Here, where the command's parser finds them without importing NumPy.
OPS = ("rms_norm", "add_norm", "qk_norm_rope", "geglu", "embed", "linear", "linear_geglu", "attention", "softcap",
       "top_k")  # fmt: skip
PEERS = ("cublas", "torch", "flex", "flash-attn", "flashinfer")
