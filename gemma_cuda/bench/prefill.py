"""Time to the first token of whole models, beside Transformers: per kernel, and the floor that hardware sets."""

from __future__ import annotations

import gc
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np

from ..device import DeviceChoice
from ..device.cuda.device import Cuda
from ..device.cuda.launch_plan import StreamLaunch
from ..errors import InputError
from ..formats.gemma_config import GemmaConfig
from ..formats.hub import resolve
from ..gemma import Gemma
from ..model.weights import LayerWeights, Weights
from ..ops.instances import published, text_fields
from ..ops.kernel_ops import KernelOps, kernel_ops, missing_kernels
from . import transformers_peers
from .measure import Ceilings, ceilings, noise, timed_steps
from .peers import why
from .transformers_peers import Peers

TOKENS = (16, 64, 128, 512, 1024, 2048, 4096, 8192)
_ROUNDS = 15
_PEER_FEWEST, _PEER_SECONDS = 6, 4.0  # times of a peer, the first three not counted
_NO_TIME = "no time was left"
Row = dict[str, Any]
Save = Callable[[Row], None]


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
        keys = np.minimum(np.arange(1, tokens + 1), layer.sliding_window or tokens)
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
    peers: Sequence[str] = transformers_peers.NAMES,
    save: Save = lambda result: None,
) -> Row:
    """{gpu, ceilings, rows, left_out: "model tokens" without time} of random models of published sizes.

    peers: of transformers_peers.NAMES. save: called with the result so far after each row.
    """
    end = time.monotonic() + seconds
    result = _result(cuda, ceilings(cuda))
    for i, name in enumerate(names):
        own_end = time.monotonic() + (end - time.monotonic()) / (len(names) - i)
        make_peers = partial(transformers_peers.of_fields, text_fields(name), peers, device=_gpu(cuda))
        _model(cuda, partial(random_gemma, published()[name], cuda), name, tokens, result, make_peers, own_end, save)
    return result


def run_checkpoint(
    cuda: Cuda,
    model: str,
    tokens: Sequence[int],
    *,
    seconds: float,
    peers: Sequence[str] = transformers_peers.NAMES,
    save: Save = lambda result: None,
) -> Row:
    """The same of a checkpoint, as Gemma.from_pretrained finds it, which Transformers loads too."""
    end, path = time.monotonic() + seconds, resolve(model)
    result = _result(cuda, ceilings(cuda))
    make_peers = partial(transformers_peers.of_checkpoint, path, peers, device=_gpu(cuda))
    _model(cuda, partial(Gemma.from_pretrained, path, device=cuda), model, tokens, result, make_peers, end, save)
    return result


def rehearse(cuda: Cuda, *, peers: Sequence[str] = transformers_peers.NAMES) -> Row:
    """The same on the fake GPU, of a random model as small as can be."""
    layers = {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 64, "vocab_size": 64}
    heads = {"head_dim": 64, "num_attention_heads": 2, "num_key_value_heads": 1}
    fields = {"model_type": "gemma3_text", **layers, **heads}
    result = _result(cuda, ceilings(cuda, copy_bytes=2**12, size=64))
    make_gemma = partial(random_gemma, GemmaConfig.from_dict(fields, source="rehearsal"), cuda)
    make_peers = partial(transformers_peers.of_fields, fields, peers, device=_gpu(cuda))
    end = time.monotonic() + 60
    _model(cuda, make_gemma, "rehearsal", [3], result, make_peers, end, lambda result: None)
    return result


def _gpu(cuda: Cuda) -> str:
    """The GPU as torch names it."""
    return f"cuda:{cuda.index}"


def _result(cuda: Cuda, top: Ceilings) -> Row:
    return {"gpu": cuda.gpu_name, "ceilings": asdict(top), "rows": [], "left_out": []}


def _model(
    cuda: Cuda,
    make_gemma: Callable[[], Gemma],
    name: str,
    tokens: Sequence[int],
    result: Row,
    make_peers: Callable[[], Peers],
    end: float,
    save: Save,
) -> None:
    """Adds a model's rows to the result: ours first, then, in the memory that ours no longer takes, the peers'."""
    top = Ceilings(**result["ceilings"])
    rows: list[Row] = []
    for row in measure(cuda, make_gemma(), name, tokens, top, end=end):
        rows.append(row)
        result["rows"].append(row)
        save(result)
    result["left_out"] += [f"{name} {count}" for count in tokens[len(rows) :]]
    gc.collect()
    cuda.release()
    for _ in beside(rows, make_peers(), end=end):
        save(result)
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def measure(
    cuda: Cuda, gemma: Gemma, name: str, tokens: Sequence[int], top: Ceilings, *, end: float = float("inf")
) -> Iterator[Row]:
    """A row for each number of tokens, begun before `end` of time.monotonic: milliseconds to the logits on the host.

    host_ms: until prefill returns, while the GPU works. kernels_ms: by kernel, of all its launches. floor_ms: as of
    bench.run. peers, absent: empty; see `beside`. vocab_size: of the ids.
    """
    ops = gemma._engine.ops
    assert isinstance(ops, KernelOps)
    report = {bucket.tokens: bucket for bucket in gemma.warmup(lengths=tuple(tokens), kv_rows=2)}
    for count in tokens:
        if time.monotonic() > end:
            break
        vocabulary = gemma.config.vocab_size
        timing = _first_token(gemma, _prompt(vocabulary, count))
        bytes_moved, operations = least(gemma.config, count)
        rate = top.product_flops_per_s
        floor = bytes_moved / top.copy_bytes_per_s if rate is None else max(
            bytes_moved / top.copy_bytes_per_s, operations / rate
        )  # fmt: skip
        yield {
            "model": name,
            "tokens": count,
            "vocab_size": vocabulary,
            **timing,
            "floor_ms": 1e3 * floor,
            "times_floor": timing["median_ms"] / (1e3 * floor),
            "products_by": ops.gemm.name,
            "launches": report[count].launches,
            "launches_per_layer": report[count].launches_per_layer,
            "kernels_ms": _by_kernel(cuda, gemma, count),
            "peers": {},
            "absent": {},
        }


def beside(rows: Sequence[Row], peers: Peers, *, end: float = float("inf")) -> Iterator[None]:
    """Adds to each row peers: name -> milliseconds, or None, and absent: name -> why it is None; yields as it goes."""
    for row in rows:
        row["peers"] |= dict.fromkeys([*peers.prefills, *peers.absent])
        row["absent"] |= peers.absent | dict.fromkeys(peers.prefills, _NO_TIME)
    yield
    for row in rows:
        for name, prefill in peers.prefills.items():
            if time.monotonic() > end:
                return
            try:
                row["peers"][name] = _peer_ms(prefill, _prompt(row["vocab_size"], row["tokens"]))
                del row["absent"][name]
            except Exception as error:  # any error of another library, mostly of memory
                row["absent"][name] = why(error)
            yield


def _matrices(config: GemmaConfig) -> list[tuple[int, int]]:
    width, heads = config.hidden_size, config.num_attention_heads
    return [
        shape
        for layer in config.layers
        for shape in (
            (2 * (heads + layer.num_key_value_heads) * layer.head_dim, width), (3 * layer.intermediate_size, width)
        )
    ]  # fmt: skip


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
    """Milliseconds of all launches of each kernel in one prefill of the kind that ran last.

    They are timed as one graph, in which each layer reads its own weights.
    """
    graphs = gemma._engine.graphs
    bucket = None if graphs is None else graphs.bucket(tokens, 1)
    if bucket is None:
        return {}
    steps: dict[str, list[StreamLaunch]] = defaultdict(list)
    for name, step in zip(bucket.plan.names, bucket.plan.launches, strict=True):
        steps[name.partition("<")[0]].append(step)
    return {name: 1e-3 * timed_steps(cuda, own, enough_s=0.0).median_us for name, own in steps.items()}


def _peer_ms(prefill: Callable[[Any], Any], ids: Any) -> float:
    """The median time to its logits on the host."""
    times: list[float] = []
    begin = time.perf_counter()
    while len(times) < _PEER_FEWEST or (len(times) < _ROUNDS + 3 and time.perf_counter() - begin < _PEER_SECONDS):
        start = time.perf_counter()
        prefill(ids)
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times[3:])


def _prompt(vocabulary: int, tokens: int) -> Any:
    """Random ids [S], the same for everyone."""
    return np.random.default_rng(tokens).integers(3, vocabulary, tokens)
