"""Other libraries with counterparts of our kernels, where they are installed."""

from __future__ import annotations

import functools
import importlib
import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from .case import Case
from .timing import Timing, repeats_for, timed

if TYPE_CHECKING:
    from ..device.cuda.device import Cuda
    from ..device.protocol import Array, Device

_MODULES = {
    "torch": ("torch",),
    "flex": ("torch.nn.attention.flex_attention",),
    # FlashAttention-4, -3 and -2 are packages of their own; where there are several, the newest.
    "flash-attn": ("flash_attn.cute", "flash_attn_interface", "flash_attn"),
    "flashinfer": ("flashinfer",),
}
_NEEDED = {"flash-attn": "flash_attn_func", "flashinfer": "single_prefill_with_kv_cache"}
_DEVICE = "cuda"
Call = Callable[[], Any]


def absent(name: str, cuda: Cuda) -> str | None:
    """Why a peer cannot be measured here; None if it can."""
    if name == "cublas":
        from ..device.cuda.cublaslt import GemmPlans
        from ..errors import GemmaError

        try:
            GemmPlans(cuda).close()
        except GemmaError as error:
            return str(error)
        return None
    try:
        module_of(name)
    except ImportError as error:
        return str(error)
    return None if torch_on_gpu(cuda.index) is not None else "torch sees no GPU"


def module_of(name: str) -> Any:
    """The module of a peer in torch. Raises ImportError with the reason for each that could be it."""
    reasons = []
    for module_name in _MODULES[name]:
        try:
            module = importlib.import_module(module_name)
            getattr(module, _NEEDED.get(name, "__name__"))  # flash_attn alone may be no more than the folder of cute
            return module
        except Exception as error:  # what a half-installed package raises is its own affair
            reasons.append(why(error))
    raise ImportError("; ".join(dict.fromkeys(reasons)))


def version_of(name: str) -> str:
    """Which module of which version a peer in torch is."""
    module = module_of(name)
    version = getattr(module, "__version__", None)
    return module.__name__ if version is None else f"{module.__name__} {version}"


def why(error: Exception) -> str:
    """An error of another library on one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def torch_on_gpu(index: int) -> Any:
    """The module, with that GPU as its current one; None where it is not installed or sees no GPU."""
    try:
        torch: Any = importlib.import_module("torch")
    except ImportError:
        return None
    if not torch.cuda.is_available():
        return None
    torch.cuda.set_device(index)
    return torch


def torch_timing(*calls: Call) -> Timing:
    """Of one of these calls on torch's current GPU: as one CUDA graph, or one by one where they cannot be captured."""
    torch: Any = importlib.import_module("torch")

    def run(repeats: int = 1) -> None:
        for call in calls * repeats:
            call()

    torch.cuda.synchronize()  # inputs were made on another stream
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.synchronize()

    def captured(repeats: int) -> Call:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run(repeats)
        replay: Call = graph.replay
        return replay

    def times_of(replay: Call, rounds: int) -> list[float]:
        """As of Cuda.graph_times."""
        events = [torch.cuda.Event(enable_timing=True) for _ in range(rounds + 1)]
        replay()
        events[0].record()
        for event in events[1:]:
            replay()
            event.record()
        events[-1].synchronize()
        return [float(begin.elapsed_time(end)) for begin, end in itertools.pairwise(events)]

    try:
        replay, is_graph = captured(1), True
    except RuntimeError:
        torch.cuda.synchronize()
        replay, is_graph = run, False
    repeats = repeats_for(min(times_of(replay, 2)))
    if repeats > 1 and is_graph:
        replay = captured(repeats)
    elif repeats > 1:
        replay = functools.partial(run, repeats)
    return timed(lambda rounds: times_of(replay, rounds), len(calls) * repeats, is_graph=is_graph)


def cublas_call(cuda: Cuda) -> Callable[[Case], Callable[[Device, dict[str, Any]], Array] | None]:
    """Of a case of `linear` the same product by cuBLASLt, its algorithm the fastest of those that it proposes."""
    from ..device.cuda.cublaslt import GemmPlans

    gemms, dtype = GemmPlans(cuda), np.dtype(ml_dtypes.bfloat16)

    def of(case: Case) -> Callable[[Device, dict[str, Any]], Array] | None:
        if case.op != "linear":
            return None
        m, n, k = (case.params[name] for name in ("tokens", "columns", "depth"))
        plan = gemms.tune(m, n, k, dtype)

        def run(device: Device, given: dict[str, Any]) -> Array:
            out = device.empty((m, n), dtype)
            if device is cuda:
                gemms.run(plan, out, given["x"], given["weight"])
            return out

        return run

    return of


def torch_call(name: str, case: Case) -> Call | None:
    """A case as a call of a peer in torch, over inputs of its own; None if the peer lacks the op."""
    return _MAKERS[name](importlib.import_module("torch"), case)


def _normal(torch: Any, *shape: int, dtype: str = "bfloat16") -> Any:
    return torch.randn(*shape, device=_DEVICE, dtype=getattr(torch, dtype))


def _torch(torch: Any, case: Case) -> Call | None:
    f, p = torch.nn.functional, case.params
    if case.op == "rms_norm":
        x, weight = _normal(torch, p["tokens"], p["width"]), _normal(torch, p["width"])
        return lambda: f.rms_norm(x, (p["width"],), weight, 1e-6)
    if case.op == "geglu":
        gate, up = _normal(torch, p["tokens"], 2 * p["width"]).chunk(2, dim=1)
        return lambda: f.gelu(gate, approximate="tanh") * up
    if case.op == "linear":
        x, weight = _normal(torch, p["tokens"], p["depth"]), _normal(torch, p["columns"], p["depth"])
        return lambda: f.linear(x, weight)
    if case.op == "top_k":
        z = _normal(torch, 1, p["width"], dtype="float32")
        return lambda: torch.topk(z, p["k"])
    if case.op == "attention" and p["window"] is None and p["softcap"] is None:
        q, k, v = _heads_first(torch, p)
        return lambda: f.scaled_dot_product_attention(
            q, k, v, is_causal=p["causal"], scale=p["scale"], enable_gqa=p["heads"] != p["kv_heads"]
        )
    return None


def _heads_first(torch: Any, p: dict[str, Any]) -> tuple[Any, Any, Any]:
    """q, k, v [B, H, S, D] as views of [B, S, H, D]."""
    sizes = (p["heads"], p["kv_heads"], p["kv_heads"])
    q, k, v = (_normal(torch, p["batch"], p["tokens"], n, p["head_dim"]).transpose(1, 2) for n in sizes)
    return q, k, v


def _flex(torch: Any, case: Case) -> Call | None:
    if case.op != "attention":
        return None
    p = case.params
    q, k, v = _heads_first(torch, p)
    compiled, score, block_mask = _flex_parts(p["tokens"], p["window"], p["causal"], p["softcap"])
    return lambda: compiled(
        q, k, v, score_mod=score, block_mask=block_mask, scale=p["scale"], enable_gqa=p["heads"] != p["kv_heads"]
    )


@functools.lru_cache(maxsize=1)  # a function of its own for each set of inputs would be compiled for each
def _flex_parts(tokens: int, window: int | None, causal: bool, cap: float | None) -> tuple[Any, Any, Any]:
    """flex_attention compiled, and its score_mod and block_mask."""
    torch: Any = importlib.import_module("torch")
    flex: Any = importlib.import_module("torch.nn.attention.flex_attention")

    def mask(b: Any, h: Any, i: Any, j: Any) -> Any:
        return i >= j if window is None else (i >= j) & (i - j < window)

    def score(s: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
        return cap * torch.tanh(s / cap)

    block_mask = flex.create_block_mask(mask, None, None, tokens, tokens, device=_DEVICE) if causal else None
    return torch.compile(flex.flex_attention), None if cap is None else score, block_mask


def _flash_attn(torch: Any, case: Case) -> Call | None:
    if case.op != "attention":
        return None
    p, module = case.params, module_of("flash-attn")
    q, k, v = (x.transpose(1, 2) for x in _heads_first(torch, p))
    anything = None if module.__name__ == "flash_attn.cute" else -1
    window = (anything, anything) if p["window"] is None else (p["window"] - 1, 0)
    options = {"softmax_scale": p["scale"], "causal": p["causal"], "window_size": window}
    return lambda: module.flash_attn_func(q, k, v, softcap=p["softcap"] or 0.0, **options)


def _flashinfer(torch: Any, case: Case) -> Call | None:
    if case.op != "attention" or case.params["batch"] > 1:
        return None
    p, flashinfer = case.params, module_of("flashinfer")
    q, k, v = (x.transpose(1, 2)[0] for x in _heads_first(torch, p))
    window = -1 if p["window"] is None else p["window"] - 1
    options = {"causal": p["causal"], "sm_scale": p["scale"], "window_left": window}
    return lambda: flashinfer.single_prefill_with_kv_cache(q, k, v, logits_soft_cap=p["softcap"], **options)


_MAKERS: dict[str, Callable[[Any, Case], Call | None]] = {
    "torch": _torch, "flex": _flex, "flash-attn": _flash_attn, "flashinfer": _flashinfer,
}  # fmt: skip
