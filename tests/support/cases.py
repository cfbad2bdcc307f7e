"""Every kernel instance that an op can launch, whatever the model: the full products of template arguments.

The norms are not here: their instances follow the hidden size, so the launches of all models stand for them
(gemma_cuda/ops/instances.py).
"""

from __future__ import annotations

from itertools import product

from gemma_cuda.device.cuda.compile import SHARED_BYTES
from gemma_cuda.device.dry_run import Launch
from gemma_cuda.ops.attention_plan import BLOCK_K, HEAD_DIMS, choose_tiling
from gemma_cuda.ops.instances import launches, published
from gemma_cuda.ops.linear import TILINGS

HALF = ("bf16", "half")
BIAS = ("float", *HALF)
POLICIES = ("Plain", "SoftCap", *(f"{policy}<{bias}>" for policy in ("Bias", "SoftCapBias") for bias in BIAS))
EPILOGUES = ("Store", "GeGlu", "Residual", "Store to float", "SoftCap to float")
_FEW_ROWS, _MANY_ROWS = 1, 1 << 20


def every_launch(architecture: str) -> list[Launch]:
    """Each once, with what a block needs on that architecture, sorted by instance."""
    launches = {*attention(SHARED_BYTES[architecture]), *linear(SHARED_BYTES[architecture]), *elementwise()}
    return sorted(launches, key=lambda launch: launch.instance)


def of_published_models(architecture: str) -> list[Launch]:
    biases = ("float32", "bfloat16", "float16")
    return launches(published().values(), shared_bytes=SHARED_BYTES[architecture], attn_bias=biases)


def one_of_each_kind(architecture: str) -> list[Launch]:
    """All without a bias, but of norms that differ in their number of threads only the one with most."""
    kinds: dict[str, Launch] = {}
    without_bias = launches(published().values(), shared_bytes=SHARED_BYTES[architecture])
    for launch in sorted(without_bias, key=lambda launch: launch.threads):
        is_norm = launch.instance.startswith("rms_norm<")
        kinds[launch.instance.rpartition(",")[0] if is_norm else launch.instance] = launch
    return list(kinds.values())


def attention(shared_bytes: int) -> list[Launch]:
    """dtype · D · policy · tilings of a GPU whose blocks have that much shared memory, and the merges."""
    launches = []
    for dtype, head_dim, policy, rows in product(HALF, HEAD_DIMS, POLICIES, (_FEW_ROWS, _MANY_ROWS)):
        tiling = choose_tiling(head_dim, rows, shared_bytes, is_plain=policy == "Plain")
        instance = f"attention<{dtype}, {head_dim}, {tiling.block_q}, {BLOCK_K}, {tiling.pairs}, {policy}>"
        launches.append(Launch(instance, tiling.threads(head_dim), tiling.shared_bytes(head_dim)))
        launches.append(Launch(f"attention_merge<{dtype}, {head_dim}, {tiling.block_q}>", 128, 0))
    return launches


def linear(shared_bytes: int) -> list[Launch]:
    """dtype · epilogue with the dtype of its result · tilings that fit, with the widest stores; narrow ones of some."""
    launches = []
    for dtype, epilogue, tiling in product(HALF, EPILOGUES, TILINGS):
        out, out_bytes = ("float", 4) if epilogue.endswith("float") else (dtype, 2)
        for vector in (1, 16 // out_bytes) if tiling in TILINGS[::4] else (16 // out_bytes,):
            sizes = f"{tiling.block_m}, {tiling.block_n}, {tiling.stages}, {vector}, {epilogue.split()[0]}"
            launch = Launch(f"linear<{dtype}, {out}, {sizes}>", tiling.threads, tiling.shared_bytes(out_bytes))
            if launch.shared_bytes <= shared_bytes:
                launches.append(launch)
    return launches


def elementwise() -> list[Launch]:
    """What has neither a matrix product nor more than a little shared memory."""
    norms = product(HALF, (64, 128, 256, 512), ("Raw", "OnePlus", "Times"), ("false", "true"))
    rows = product(("geglu", "embed"), HALF, (1, 2, 4, 8))
    return [
        *(Launch(f"qk_norm_rope<{', '.join(map(str, arguments))}>", 128, 0) for arguments in norms),
        *(Launch(f"{name}<{dtype}, {vector}>", 256, 0) for name, dtype, vector in rows),
        *(Launch(f"softcap<{vector}>", 256, 0) for vector in (1, 2, 4)),
        *(Launch(f"top_k<{source}>", 512, 256) for source in ("Logits, 1", "Logits, 2", "Logits, 4", "Keys, 1")),
    ]
