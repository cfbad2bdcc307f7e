"""Time to the first token of whole models: ours beside Transformers, where it goes, and what it cannot fall below."""

from __future__ import annotations

import importlib
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np

from ..config import GemmaConfig
from ..device import DeviceChoice
from ..device.cuda import Cuda
from ..errors import GemmaError, InputError
from ..gemma import Gemma
from ..ops.instances import published, text_fields
from ..ops.kernel_ops import kernel_ops, missing_kernels
from ..weights import LayerWeights, Weights
from .measure import Ceilings, ceilings, noise
from .peers import torch_on_gpu

TOKENS = (16, 64, 128, 512, 1024, 2048, 4096, 8192)
_ROUNDS = 15
Row = dict[str, Any]


def random_gemma(config: GemmaConfig, cuda: Cuda, *, gemm: str = "auto") -> Gemma:
    """A model of that architecture with random weights that are drawn on the GPU, without a tokenizer.

    Raises DeviceError for what has no kernels, OutOfMemoryError.
    """
    if (lacks := missing_kernels(config)) is not None:
        raise InputError(f"--random: {lacks}")
    ops = kernel_ops(cuda, gemm)
    width, heads = config.hidden_size, config.num_attention_heads
    parameters = config.vocab_size * width + sum(rows * depth for rows, depth in _matrices(config))
    ops.require_memory(2 * parameters, "random weights")

    def matrix(rows: int, depth: int) -> Any:
        return noise(cuda, rows + depth, (rows, depth), scale=depth**-0.5)

    def norm(size: int = width) -> Any:
        return noise(cuda, size, (size,), scale=0.1)

    layers = []
    for layer in config.layers:
        dim, inner, kv_heads = layer.head_dim, layer.intermediate_size, layer.num_key_value_heads
        post, qk = (norm() if config.post_norms else None), (norm(dim) if config.has_qk_norm else None)
        layers.append(
            LayerWeights(
                input_norm=norm(), qkv=matrix((heads + 2 * kv_heads) * dim, width), q_norm=qk, k_norm=qk,
                o_proj=matrix(width, heads * dim), post_attention_norm=post, pre_mlp_norm=norm(),
                gate_up=matrix(2 * inner, width), down=matrix(width, inner), post_mlp_norm=post, layer_scalar=1.0,
                per_layer=None, moe=None,
            )
        )  # fmt: skip
    table = matrix(config.vocab_size, width)
    weights = Weights(table, table, tuple(layers), norm(), None, None, None, None, None)
    return Gemma(config, weights, ops, None, DeviceChoice("cuda", "it was given", None))


def least(config: GemmaConfig, tokens: int) -> tuple[float, float]:
    """(bytes, operations) that every prefill to the last token's logits takes: weights, K and V once; the products.

    Of the last layer only K and V are needed for all tokens.
    """
    size, operations = 0.0, 0.0
    for i, layer in enumerate(config.layers):
        queries = 1 if i == len(config.layers) - 1 else tokens
        dim, heads, kv = layer.head_dim, config.num_attention_heads, layer.num_key_value_heads
        width, inner = config.hidden_size, layer.intermediate_size
        keys = np.arange(1, tokens + 1) if layer.sliding_window is None else _window(tokens, layer.sliding_window)
        own, of_all = 2 * heads * dim * width + 3 * inner * width, 2 * kv * dim * width
        size += 2 * (own + of_all) + 2 * tokens * 2 * kv * dim
        operations += 2 * (queries * own + tokens * of_all) + 4 * dim * heads * float(keys[-queries:].sum())
    size += 2 * config.vocab_size * config.hidden_size
    operations += 2 * config.vocab_size * config.hidden_size
    return size, operations


def run_random(
    cuda: Cuda,
    names: Sequence[str],
    tokens: Sequence[int],
    *,
    seconds: float,
    compiled: bool = True,
    save: Callable[[Row], None] = lambda result: None,
) -> Row:
    """{gpu, ceilings, rows} of random models of published sizes.

    compiled: also time what torch.compile makes of the peer, which takes minutes. save: called after each model.
    """
    top, end = ceilings(cuda), time.monotonic() + seconds
    rows: list[Row] = []
    result = {"gpu": cuda.gpu_name, "ceilings": asdict(top), "rows": rows}
    for i, name in enumerate(names):
        share = (end - time.monotonic()) / (len(names) - i)
        peers = transformers_prefills(text_fields(name), compiled=compiled)
        rows += measure(cuda, random_gemma(published()[name], cuda), name, tokens, top, seconds=share, peers=peers)
        save(result)
    return result


def run_checkpoint(cuda: Cuda, model: str, tokens: Sequence[int], *, seconds: float) -> Row:
    """{ceilings, rows} of a checkpoint, without peers: those are compared on random weights."""
    top, gemma = ceilings(cuda), Gemma.from_pretrained(model, device=cuda)
    rows = measure(cuda, gemma, model, tokens, top, seconds=seconds, peers={})
    return {"gpu": cuda.gpu_name, "ceilings": asdict(top), "rows": rows}


def rehearse(cuda: Cuda) -> Row:
    """The same on the fake GPU, of a model as small as can be."""
    layers = {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 64, "vocab_size": 64}
    heads = {"head_dim": 64, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = GemmaConfig.from_dict({"model_type": "gemma3_text", **layers, **heads}, source="rehearsal")
    top = ceilings(cuda, copy_bytes=2**12, size=64)
    rows = measure(cuda, random_gemma(config, cuda), "rehearsal", [3], top, seconds=60, peers={})
    return {"gpu": cuda.gpu_name, "ceilings": asdict(top), "rows": rows}


def measure(
    cuda: Cuda,
    gemma: Gemma,
    name: str,
    tokens: Sequence[int],
    top: Ceilings,
    *,
    seconds: float,
    peers: dict[str, Callable[[Any], Any]],
) -> list[Row]:
    """A row for each number of tokens, until `seconds` are over: milliseconds to the logits on the host.

    host_ms: until prefill returns, while the GPU works. kernels_ms: by kernel, launched one by one. floor_ms: as of
    bench.run. peers: name -> the same of a prompt [S] by another library.
    """
    end = time.monotonic() + seconds
    report = {bucket.tokens: bucket for bucket in gemma.warmup(lengths=tuple(tokens), kv_rows=2)}
    rows: list[Row] = []
    for count in tokens:
        if time.monotonic() > end:
            break
        ids = np.random.default_rng(count).integers(3, gemma.config.vocab_size, count)
        timing = _first_token(gemma, ids)
        bytes_moved, operations = least(gemma.config, count)
        rate = top.product_flops_per_s
        floor = bytes_moved / top.copy_bytes_per_s if rate is None else max(
            bytes_moved / top.copy_bytes_per_s, operations / rate
        )  # fmt: skip
        others = {peer: _peer_ms(call, ids) for peer, call in peers.items()}
        rows.append(
            {
                "model": name,
                "tokens": count,
                **timing,
                "floor_ms": 1e3 * floor,
                "times_floor": timing["median_ms"] / (1e3 * floor),
                "launches": report[count].launches,
                "launches_per_layer": report[count].launches_per_layer,
                "kernels_ms": _by_kernel(cuda, gemma, count),
                "peers": others,
            }
        )
    return rows


def transformers_prefills(
    fields: dict[str, Any], *, device: str = "cuda", compiled: bool = True
) -> dict[str, Callable[[Any], Any]]:
    """Eager, SDPA and, if wanted, compiled SDPA of Transformers for a random model with these fields of a config.json.

    Each takes ids [S] to the last logits [V], float32 on the host. {} where there is no GPU or no Transformers.
    """
    if device == "cuda" and torch_on_gpu() is None:
        return {}
    try:
        torch: Any = importlib.import_module("torch")
        transformers: Any = importlib.import_module("transformers")
        config = transformers.AutoConfig.for_model(**fields)
        with torch.device(device):
            model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    except (ImportError, RuntimeError, ValueError):
        return {}

    def prefill(attention: str, forward: Any) -> Callable[[Any], Any]:
        def run(ids: Any) -> Any:
            model.set_attn_implementation(attention)
            with torch.no_grad():
                inputs = torch.as_tensor(ids, device=device)[None]
                return forward(inputs, logits_to_keep=1, use_cache=True).logits[0, -1].float().cpu()

        return run

    found = {f"transformers {attention}": prefill(attention, model) for attention in ("eager", "sdpa")}
    if compiled:
        found["transformers sdpa compiled"] = prefill("sdpa", torch.compile(model))
    return found


def _matrices(config: GemmaConfig) -> list[tuple[int, int]]:
    width, heads = config.hidden_size, config.num_attention_heads
    return [
        shape
        for layer in config.layers
        for shape in (
            (2 * (heads + layer.num_key_value_heads) * layer.head_dim, width), (3 * layer.intermediate_size, width)
        )
    ]  # fmt: skip


def _window(tokens: int, window: int) -> Any:
    return np.minimum(np.arange(1, tokens + 1), window)


def _first_token(gemma: Gemma, ids: Any) -> Row:
    """median_ms, low_ms, high_ms (10th and 90th percentile) to the logits on the host, and host_ms."""
    whole: list[float] = []
    host: list[float] = []
    for _ in range(_ROUNDS + 2):
        start = time.perf_counter()
        y = gemma.prefill(ids)
        host.append(1e3 * (time.perf_counter() - start))
        gemma.to_host(y.logits)
        whole.append(1e3 * (time.perf_counter() - start))
        del y
    deciles = statistics.quantiles(whole[2:], n=10)
    return {
        "median_ms": statistics.median(whole[2:]), "low_ms": deciles[0], "high_ms": deciles[-1],
        "host_ms": statistics.median(host[2:]),
    }  # fmt: skip


def _by_kernel(cuda: Cuda, gemma: Gemma, tokens: int) -> dict[str, float]:
    """Milliseconds of each kernel in one prefill of the kind that ran last, the median of several."""
    graphs = gemma._graphs
    bucket = None if graphs is None else graphs.bucket(tokens, 1)
    if bucket is None:
        return {}
    works = [partial(step, cuda.stream) for step in bucket.plan.steps]
    rounds = np.median([cuda.timeline(works) for _ in range(5)], axis=0)
    sums: dict[str, float] = defaultdict(float)
    for name, milliseconds in zip(bucket.plan.names, rounds, strict=True):
        sums[name.partition("<")[0]] += float(milliseconds)
    return dict(sums)


def _peer_ms(call: Callable[[Any], Any], ids: Any) -> float | None:
    """The median time to its logits on the host; None where it failed."""
    times: list[float] = []
    try:
        for _ in range(_ROUNDS + 3):
            start = time.perf_counter()
            call(ids)
            times.append(1e3 * (time.perf_counter() - start))
    except (RuntimeError, GemmaError, TypeError, ValueError):
        return None
    return statistics.median(times[3:])
