"""Calls of `gemma_cuda.attention` for tests: every pair of factors meets in some call; beside each an oracle in torch.

The oracle is a dense mask, built element by element from its definition, and torch's own operations in float64.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import torch

from gemma_cuda.precision import BFLOAT16, FLOAT16, FLOAT32, Precision
from gemma_cuda.reference.attention import attention as reference
from tests.support.compare import DTYPES
from tests.support.pairwise import Values

Array = np.ndarray[Any, Any]
ROUNDING: dict[str, Precision] = {"float32": FLOAT32, "bfloat16": BFLOAT16, "float16": FLOAT16}

FACTORS: dict[str, tuple[Any, ...]] = {
    "queries": (0, 1, 5, 67),
    "keys": (0, 1, 5, 67, 130),
    "batch": (1, 3),
    "heads": ((1, 1), (4, 1), (2, 3)),  # of a group, KV heads
    "head_dim": (64, 80, 256),
    "layout": ("BSHD", "BHSD", "SHD"),
    "memory": ("contiguous", "strided", "off by one", "last axis apart"),
    "dtype": ("float32", "bfloat16", "float16"),
    "library": ("numpy", "torch"),
    "causal": (False, True),
    "sliding_window": (None, 1, 7, 1000),
    "blocks": (None, "one row", "all rows"),
    "logit": ("plain", "cap 2", "bias", "bias of rows", "bias of heads", "cap 2 bias"),
    "q_offset": (None, 0, "each"),
    "out": (None, "fresh", "q", "k"),
    "device": (None, "emulator"),
}


def to_torch(x: Any) -> Any:
    """The tensor that shares the memory of a NumPy array; anything else as it is."""
    if not isinstance(x, np.ndarray):
        return x
    if x.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(x.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(x)


def visible(queries: int, keys: int, offset: int, causal: bool, window: int | None, ids: Array | None) -> Array:
    """bool [queries, keys], by the definition in the docstring of `gemma_cuda.attention`."""
    seen = np.zeros((queries, keys), bool)
    for i in range(queries):
        p = offset + i
        for t in range(keys):
            future = t <= p if causal else (window is None or t - p < window)
            if ids is not None and 0 <= p < keys and t > p and ids[p] >= 0 and ids[t] == ids[p]:
                future = True
            seen[i, t] = future and (window is None or t > p - window)
    return seen


def dense(
    q: Array, k: Array, v: Array, seen: Array, bias: Array | None, scale: float, softcap: float | None
) -> tuple[Array, Array]:
    """(o [S, H, D], lse [S, H]) float64 of one sequence q [S, H, D], k, v [T, KH, D], all float64, by torch."""
    group = q.shape[1] // k.shape[1]
    tq, tk, tv = (torch.from_numpy(np.ascontiguousarray(x)).transpose(0, 1) for x in (q, k, v))
    tk, tv = (x.repeat_interleave(group, 0) for x in (tk, tv))
    scores = tq @ tk.transpose(1, 2) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if bias is not None:
        scores = scores + torch.from_numpy(np.ascontiguousarray(bias))
    scores = scores.masked_fill(~torch.from_numpy(seen), -torch.inf)
    lse = torch.logsumexp(scores, -1) if scores.shape[-1] else torch.full(scores.shape[:-1], -torch.inf)
    weights = torch.exp(scores - lse.clamp_min(-1e30)[..., None])
    return (weights @ tv).transpose(0, 1).numpy(), lse.transpose(0, 1).numpy()


def spans(keys: int, rng: np.random.Generator) -> Array:
    """int64 [keys]: runs of one id and text (-1) between some of them."""
    ids, t, block = np.full(keys, -1), int(rng.integers(0, 3)), 0
    while t < keys:
        length = int(rng.integers(1, 20))
        ids[t : t + length], block = block, block + int(rng.integers(1, 3))
        t += length + int(rng.integers(0, 4))
    return ids


def placed(array: Array, memory: str) -> Array:
    """The same values, laid out in memory as named."""
    if memory == "strided":
        room = np.zeros((*array.shape[:-1], array.shape[-1] + 8), array.dtype)
        room[..., : array.shape[-1]] = array
        return room[..., : array.shape[-1]]
    if memory == "off by one":
        room = np.zeros(array.size + 1, array.dtype)
        room[1:] = array.reshape(-1)
        return room[1:].reshape(array.shape)
    if memory == "last axis apart":
        room = np.zeros((*array.shape, 2), array.dtype)
        room[..., 0] = array
        return room[..., 0]
    return array


def runnable(values: Values) -> Values:
    """The case with what no call can be replaced: see IMPOSSIBLE."""
    if values["q_offset"] is not None and values["keys"] < values["queries"]:
        values["q_offset"] = 0
    if values["out"] == "k" and (values["queries"] != values["keys"] or values["heads"][0] != 1):
        values["out"] = "q"
    if values["device"] == "emulator":
        values["dtype"] = "bfloat16" if values["dtype"] == "float32" else values["dtype"]
        values["head_dim"] = 64 if values["head_dim"] == 80 else values["head_dim"]
    return values


def impossible(a: str, x: Any, b: str, y: Any) -> bool:
    """Whether no call can hold both values.

    An offset needs keys for all queries, k takes a result of its own shape only, kernels
    take neither float32 nor head_dim 80.
    """
    pair = {a: x, b: y}
    return (
        (pair.get("q_offset") == "each" and (pair.get("queries") == 67 and pair.get("keys") in (0, 1, 5)))
        or (pair.get("out") == "k" and pair.get("heads", (1, 1))[0] != 1)
        or (pair.get("out") == "k" and pair.get("keys") == 130)
        or (pair.get("device") == "emulator" and (pair.get("dtype") == "float32" or pair.get("head_dim") == 80))
    )


class Call:
    """Arguments of one call in NumPy, and what must come of it; the sequences of layout SHD differ in length."""

    def __init__(self, values: Values, seed: int) -> None:
        self.values, rng = values, np.random.default_rng(seed)
        self.dtype = DTYPES[values["dtype"]]
        self.is_packed = values["layout"] == "SHD"
        batch, (group, kv_heads), d = values["batch"], values["heads"], values["head_dim"]
        lengths = [(values["queries"], values["keys"])] * batch
        if self.is_packed:
            same = values["out"] == "k"
            lengths = [(int(rng.integers(0, s + 1)), int(rng.integers(0, t + 1))) for s, t in lengths]
            lengths = [(s, s if same else max(t, s) if values["q_offset"] is not None else t) for s, t in lengths]
        self.lengths = lengths
        draw = lambda n, h, gain: (gain * rng.standard_normal((n, h, d))).astype(self.dtype)  # noqa: E731
        self.sequences = [
            (draw(s, group * kv_heads, 2), draw(t, kv_heads, 1), draw(t, kv_heads, 1)) for s, t in lengths
        ]
        offset = values["q_offset"]
        each = [int(rng.integers(0, max(t - s, 0) + 1)) for s, t in lengths]
        self.offsets = [
            t - s if offset is None else 0 if offset == 0 else o for (s, t), o in zip(lengths, each, strict=True)
        ]
        one = spans(values["keys"], rng)
        self.ids: list[Array | None] = [None] * batch
        if values["blocks"] is not None:
            shared = values["blocks"] == "one row" and not self.is_packed
            self.ids = [one if shared else spans(t, rng) for _, t in lengths]
        self.softcap = 2.0 if "cap" in values["logit"] else None
        self.scale = float(rng.uniform(0.5, 1.5)) * d**-0.5
        self.bias: Array | None = None
        if "bias" in values["logit"]:
            full = (group * kv_heads, *(sum(x) if self.is_packed else x[0] for x in zip(*lengths, strict=True)))
            each_row = () if self.is_packed else (batch,)
            shapes = {"bias": (*each_row, *full), "bias of rows": (*each_row, 1, 1, full[2]), "bias of heads": full}
            shape = shapes.get(values["logit"], full[1:])
            self.bias = rng.standard_normal(shape).astype(np.float32 if rng.random() < 0.5 else self.dtype)
            self.bias[rng.random(shape) < 0.2] = -np.inf

    def arguments(self) -> dict[str, Any]:
        """The arguments in NumPy, q, k and v as the case lays them out."""
        values, layout = self.values, self.values["layout"]
        join = np.concatenate if self.is_packed else np.stack
        arrays = {}
        for i, name in enumerate("qkv"):
            array = join([sequence[i] for sequence in self.sequences])
            array = array.transpose(0, 2, 1, 3) if layout == "BHSD" else array
            arrays[name] = placed(np.ascontiguousarray(array), values["memory"])
        options: dict[str, Any] = {
            "scale": self.scale, "causal": values["causal"], "sliding_window": values["sliding_window"],
            "softcap": self.softcap, "attn_bias": self.bias, "layout": layout, "device": values["device"],
        }  # fmt: skip
        if values["q_offset"] is not None:
            options["q_offset"] = 0 if values["q_offset"] == 0 else self.offsets
        if values["blocks"] is not None:
            options["block_ids"] = self.ids[0] if values["blocks"] == "one row" else join(self.ids)
            if self.is_packed:
                options["block_ids"] = np.concatenate(self.ids)
        if self.is_packed:
            for i, name in enumerate("qk"):
                cuts = np.cumsum([0, *(pair[i] for pair in self.lengths)])
                options[f"cu_seqlens_{name}"] = cuts.astype(np.int32)
        return arrays | options

    def expected(self) -> tuple[Array, Array, Array]:
        """(o, o with every rounding point in the dtype, lse) float64, in the layout of the call."""
        parts: list[tuple[Array, Array, Array]] = []
        for b, (q, k, v) in enumerate(self.sequences):
            s, t = self.lengths[b]
            window = self.values["sliding_window"]
            seen = visible(s, t, self.offsets[b], self.values["causal"], window, self.ids[b])
            bias = None
            if self.bias is not None:
                bias = self._bias_of(b, q.shape[1]).astype(np.float64)
            exact = [x.astype(np.float64) for x in (q, k, v)]
            o, lse = dense(*exact, seen, bias, self.scale, self.softcap)
            parts.append((o, self._rounded(q, k, v, seen, bias), lse))
        join = np.concatenate if self.is_packed else np.stack
        o, b, lse = (join([part[i] for part in parts]) for i in range(3))
        if self.values["layout"] == "BHSD":
            o, b = (x.transpose(0, 2, 1, 3) for x in (o, b))
        return o, b, np.swapaxes(lse, -1, -2)

    def _bias_of(self, b: int, heads: int) -> Array:
        """[H, S, T] of sequence b."""
        assert self.bias is not None
        if not self.is_packed:
            return np.broadcast_to(self.bias, (len(self.lengths), heads, *self.lengths[b]))[b]
        cuts = np.cumsum([(0, 0), *self.lengths], axis=0)
        queries, keys = (slice(*cuts[b : b + 2, i]) for i in (0, 1))
        return np.broadcast_to(self.bias, (heads, *cuts[-1]))[:, queries, keys]

    def _rounded(self, q: Array, k: Array, v: Array, seen: Array, bias: Array | None) -> Array:
        precision = ROUNDING[self.values["dtype"]]
        begin = np.where(seen.any(1), seen.argmax(1), 0) if seen.size else np.zeros(len(q), int)
        end = begin + seen.sum(1)
        q, k, v = (x.astype(precision.compute) for x in (q, k, v))
        return reference(
            q, k[None], v[None], key_begin=begin.astype(np.int32), key_end=end.astype(np.int32),
            cu_seqlens=np.array([0, len(q)], np.int32), scale=self.scale, softcap=self.softcap,
            bias=None if bias is None else bias[None].astype(precision.compute), precision=precision,
        )  # fmt: skip
