"""What gemma-cuda bench sets beside ours: that peers do the same job, and that absent and failing ones are named."""

from __future__ import annotations

import functools
import json
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers

from gemma_cuda import Gemma
from gemma_cuda.bench import cases, matrix_cases, measure, peers, prefill, run, tables, transformers_peers
from gemma_cuda.bench.measure import Ceilings
from gemma_cuda.bench.tolerance import violation
from gemma_cuda.bench.transformers_peers import COMPILED, NAMES, Peers
from gemma_cuda.cli import main
from gemma_cuda.device.cuda.device import Cuda
from gemma_cuda.precision import BFLOAT16, FLOAT64, Precision
from gemma_cuda.reference.attention import attention as reference_attention
from tests.support import fake_gpu, hf_models
from tests.support.checkpoints import random_tensors, write_gguf_model

EAGER, SDPA = NAMES[:2]
FIELDS = {
    "model_type": "gemma3_text", "num_hidden_layers": 7, "hidden_size": 64, "intermediate_size": 96, "vocab_size": 80,
    "head_dim": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": 4,
    "layer_types": ["sliding_attention"] * 5 + ["full_attention", "sliding_attention"],
    "rms_norm_eps": 1e-6, "max_position_embeddings": 1024, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1,
}  # fmt: skip


# --- Transformers ---


def as_ours(path: Path, made: Peers, name: str, vocabulary: int) -> str | None:
    """How a peer's logits break the rule against those of our model of that checkpoint."""
    ids = np.random.default_rng(0).integers(3, vocabulary, 30)
    r, b = (
        Gemma.from_pretrained(path, dtype=dtype, device="numpy").prefill(ids).logits[0, -1]
        for dtype in ("float64", "bfloat16")
    )
    return violation(made.prefills[name](ids).numpy(), r, b, dtype="bfloat16")


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile that traces and does not generate code, which would take a minute."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))


@pytest.mark.parametrize("model", ["gemma_mqa", "gemma3_text", "gemma3"])
def test_a_directory_is_the_same_model(model: str, traced: None) -> None:
    path = hf_models.build(model).path
    made = transformers_peers.of_checkpoint(path, device="cpu")
    assert list(made.prefills) == list(NAMES) and not made.absent
    for name in (EAGER, SDPA, EAGER, *((COMPILED,) if model == "gemma3_text" else ())):
        assert as_ours(path, made, name, 140) is None, name
    other = hf_models.build("gemma_mha" if model == "gemma_mqa" else "gemma_mqa").path
    assert as_ours(other, made, EAGER, 140) is not None


@pytest.mark.slow
def test_a_model_without_sdpa_is_compiled_with_its_own_attention(traced: None) -> None:
    path = hf_models.build("gemma2").path
    made = transformers_peers.of_checkpoint(path, device="cpu")
    assert as_ours(path, made, EAGER, 140) is None and as_ours(path, made, COMPILED, 140) is None
    (row,) = rows = [row_of(3)]
    list(prefill.beside(rows, made))
    assert row["peers"][EAGER] > 0 and row["peers"][COMPILED] > 0 and row["peers"][SDPA] is None
    (line,) = tables.absent_lines(rows)
    assert line.startswith("a model, 3 tokens: transformers sdpa is absent: ValueError: Gemma2ForCausalLM does not")


def test_a_gguf_file_is_the_same_model(tmp_path: Path) -> None:
    path, config = tmp_path / "m.gguf", FIELDS | {"head_dim": 256}  # what a GGUF file does not say is as in real ones
    write_gguf_model(path, config, random_tensors(config, seed=1), gguf.GGMLQuantizationType.Q8_0)
    made = transformers_peers.of_checkpoint(path, [EAGER, SDPA], device="cpu")
    assert list(made.prefills) == [EAGER, SDPA]
    assert all(as_ours(path, made, name, 80) is None for name in made.prefills)


def test_a_random_model_is_made_of_the_same_fields() -> None:
    made = transformers_peers.of_fields(FIELDS, [EAGER, SDPA], device="cpu")
    logits = [made.prefills[name](np.array([3, 5, 7])) for name in (EAGER, SDPA)]
    assert logits[0].shape == (80,) and (logits[0] - logits[1]).abs().max() < 0.1


def test_who_cannot_be_made_is_named_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = transformers_peers.of_fields(FIELDS)
    assert made == Peers({}, dict.fromkeys(NAMES, "torch sees no GPU"))
    made = transformers_peers.of_checkpoint(tmp_path, [EAGER], device="cpu")
    assert made.prefills == {} and made.absent[EAGER].startswith("ValueError: Unrecognized model in ")
    made = transformers_peers.of_fields({"model_type": "gemma99"}, device="cpu")
    assert set(made.absent) == set(NAMES) and "gemma99" in made.absent[EAGER]
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert "ModuleNotFoundError: " in transformers_peers.of_fields(FIELDS, device="cpu").absent[SDPA]


def row_of(tokens: int) -> dict[str, Any]:
    return {"model": "a model", "tokens": tokens, "vocab_size": 80, "peers": {}, "absent": {}}


def test_who_fails_or_has_no_time_is_named_with_the_reason() -> None:
    prompts: list[Any] = []

    def works(ids: Any) -> None:
        prompts.append(ids)

    def fails_when_long(ids: Any) -> None:
        if len(ids) > 4:
            raise MemoryError("no room\nfor more")

    rows = [row_of(4), row_of(8)]
    assert len(list(prefill.beside(rows, Peers({"a": works, "b": fails_when_long}, {"c": "not here"})))) == 5
    assert [set(row["peers"]) for row in rows] == [{"a", "b", "c"}] * 2
    assert rows[0]["peers"]["a"] > 0 and rows[1]["peers"]["a"] > 0 and rows[0]["peers"]["b"] > 0
    assert rows[0]["absent"] == {"c": "not here"}
    assert rows[1]["absent"] == {"b": "MemoryError: no room", "c": "not here"} and rows[1]["peers"]["b"] is None
    assert {len(ids) for ids in prompts} == {4, 8} and max(int(ids.max()) for ids in prompts) < 80
    assert list(tables.absent_lines(rows)) == [
        "a model, 4, 8 tokens: c is absent: not here", "a model, 8 tokens: b is absent: MemoryError: no room"
    ]  # fmt: skip
    late = [row_of(4)]
    list(prefill.beside(late, Peers({"a": works}, {}), end=time.monotonic() - 1))
    assert late[0]["absent"] == {"a": "no time was left"} and late[0]["peers"] == {"a": None}


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    for module in (run, prefill):
        monkeypatch.setattr(module, "ceilings", lambda cuda, **sizes: Ceilings(1e12, 1e14, "a library"))
    return fake_gpu.for_bench(monkeypatch)


def test_the_command_sets_them_beside_a_checkpoint(
    cuda: Cuda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = transformers.AutoConfig.for_model(**FIELDS)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    arguments = ["bench", "prefill", "--model", str(tmp_path / "model"), "--tokens", "3"]
    assert main(arguments) == 0
    assert f"tokens: {COMPILED} is absent: torch sees no GPU" in capsys.readouterr().out
    of_checkpoint = transformers_peers.of_checkpoint
    monkeypatch.setattr(
        transformers_peers, "of_checkpoint", lambda path, names, device: of_checkpoint(path, names, device="cpu")
    )
    written, plot = tmp_path / "prefill.json", tmp_path / "prefill.svg"
    assert main([*arguments, "--no-compiled", "--json", str(written), "--plot", str(plot)]) == 0
    printed = capsys.readouterr().out
    assert "transformers eager " in printed and "absent" not in printed and "compiled" not in printed
    (row,) = json.loads(written.read_text())["rows"]
    assert row["absent"] == {} and set(row["peers"]) == {EAGER, SDPA} and min(row["peers"].values()) > 0
    assert "transformers sdpa" in plot.read_text()


# --- attention ---


def naive(q: Any, k: Any, v: Any, scale: float, causal: bool, window: tuple[Any, Any], cap: float) -> Any:
    """o [B, S, H, D] of q [B, S, H, D], k, v [B, S, KH, D]; window: keys to the left and right, None: all."""
    k, v = (x.repeat_interleave(q.shape[2] // k.shape[2], dim=2) for x in (k, v))
    scores = scale * torch.einsum("bihd,bjhd->bhij", q.float(), k.float())
    scores = cap * torch.tanh(scores / cap) if cap else scores
    i, j = torch.arange(q.shape[1])[:, None], torch.arange(q.shape[1])[None]
    left, right = window
    hidden = torch.zeros_like(i + j, dtype=torch.bool) if left is None else j < i - left
    right = 0 if causal else right
    hidden = hidden if right is None else hidden | (j > i + right)
    weights = torch.softmax(scores.masked_fill(hidden, -torch.inf), dim=-1)
    return torch.einsum("bhij,bjhd->bihd", weights, v.float()).to(q.dtype)


def two(
    q: Any, k: Any, v: Any, dropout_p: float = 0.0, softmax_scale: Any = None, causal: bool = False,
    window_size: tuple[int, int] = (-1, -1), softcap: float = 0.0, alibi_slopes: Any = None,
    deterministic: bool = False, return_attn_probs: bool = False, *, block_table: Any = None,
) -> Any:  # fmt: skip
    """flash_attn_func of FlashAttention-2: a window of -1 is none."""
    left, right = (None if n < 0 else n for n in window_size)
    return naive(q, k, v, softmax_scale, causal, (left, right), softcap)


def three(
    q: Any, k: Any, v: Any, softmax_scale: Any = None, causal: bool = False, qv: Any = None, q_descale: Any = None,
    k_descale: Any = None, v_descale: Any = None, window_size: tuple[int, int] = (-1, -1), attention_chunk: int = 0,
    softcap: float = 0.0, num_splits: int = 1, pack_gqa: Any = None, deterministic: bool = False, sm_margin: int = 0,
) -> Any:  # fmt: skip
    """That of FlashAttention-3."""
    return two(q, k, v, 0.0, softmax_scale, causal, window_size, softcap)


def four(
    q: Any, k: Any, v: Any, qv: Any = None, gather_kv_indices: Any = None, softmax_scale: Any = None,
    causal: bool = False, window_size: tuple[Any, Any] = (None, None), learnable_sink: Any = None,
    softcap: float = 0.0, num_splits: int = 1, pack_gqa: Any = None, deterministic: bool = False,
) -> Any:  # fmt: skip
    """That of FlashAttention-4: a window of None is none."""
    assert all(n is None or n >= 0 for n in window_size)
    return naive(q, k, v, softmax_scale, causal, window_size, softcap)


def flashinfer(
    q: Any, k: Any, v: Any, scale_q: Any = None, scale_k: Any = None, scale_v: Any = None, o_dtype: Any = None,
    custom_mask: Any = None, packed_custom_mask: Any = None, causal: bool = False, kv_layout: str = "NHD",
    pos_encoding_mode: str = "NONE", use_fp16_qk_reduction: bool = False, sm_scale: Any = None,
    window_left: int = -1, logits_soft_cap: float | None = None,
) -> Any:  # fmt: skip
    """single_prefill_with_kv_cache, of one sequence."""
    window = (None if window_left < 0 else window_left, None)
    return naive(q[None], k[None], v[None], sm_scale, causal, window, logits_soft_cap or 0.0)[0]


def install(patch: pytest.MonkeyPatch, name: str, function: Callable[..., Any] | None) -> None:
    """A package of that name, with that function as its own name for it."""
    module = types.ModuleType(name)
    if function is not None:
        known = "single_prefill_with_kv_cache" if name == "flashinfer" else "flash_attn_func"
        setattr(module, known, function)
        module.__dict__["__version__"] = "1.2"
    patch.setitem(sys.modules, name, module)


KINDS: dict[str, dict[str, Any]] = {
    "causal": {"causal": True, "window": None, "softcap": None},
    "full": {"causal": False, "window": None, "softcap": None},
    "window": {"causal": True, "window": 5, "softcap": None},
    "softcap": {"causal": True, "window": None, "softcap": 0.5},
}
PEERS: dict[str, tuple[str, Callable[..., Any] | None]] = {
    "torch": ("torch", None),
    "flex": ("flex", None),
    "flash_attn": ("flash-attn", two),
    "flash_attn_interface": ("flash-attn", three),
    "flash_attn.cute": ("flash-attn", four),
    "flashinfer": ("flashinfer", flashinfer),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("module", PEERS)
def test_attention_of_a_peer_is_ours(module: str, kind: str, traced: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the arguments that we give it, as its documentation has them; FlexAttention's own, on the CPU."""
    name, function = PEERS[module]
    if function is not None:
        install(monkeypatch, module, function)
    drawn: list[Any] = []

    def normal(torch: Any, *shape: int, dtype: str = "bfloat16") -> Any:
        generator = torch.Generator().manual_seed(len(drawn))
        drawn.append(torch.randn(*shape, generator=generator).to(getattr(torch, dtype)))
        return drawn[-1]

    monkeypatch.setattr(peers, "_normal", normal)
    monkeypatch.setattr(peers, "_DEVICE", "cpu")
    peers._flex_parts.cache_clear()
    params = {"batch": 1, "tokens": 24, "heads": 4, "kv_heads": 2, "head_dim": 64, "scale": 0.2, **KINDS[kind]}
    call = peers.torch_call(name, matrix_cases._attention_case("", params))
    peers._flex_parts.cache_clear()
    if name == "torch" and kind in ("window", "softcap"):
        assert call is None
        return
    assert call is not None
    y = call()
    y = y[0] if name == "flash-attn" else y if name == "flashinfer" else y[0].transpose(0, 1)
    q, k, v = (x.float().numpy() for x in drawn)
    begin, end = matrix_cases.ranges(params)

    def ours(p: Precision) -> Any:
        return reference_attention(
            *(x.astype(p.compute) for x in (q[0], k, v)), key_begin=begin, key_end=end, scale=0.2, bias=None,
            softcap=params["softcap"], cu_seqlens=np.array([0, 24], np.int32), precision=p,
        )  # fmt: skip

    r, b = ours(FLOAT64), ours(BFLOAT16)
    assert violation(y.float().numpy(), r, b, dtype="bfloat16", softcap=True) is None


def test_flash_attention_is_the_newest_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ImportError, match=r"flash_attn\.cute|flash_attn'.*; .*flash_attn_interface"):
        peers.module_of("flash-attn")
    install(monkeypatch, "flash_attn", None)  # the folder that FlashAttention-4 is in, without FlashAttention-2
    with pytest.raises(ImportError, match="has no attribute 'flash_attn_func'"):
        peers.module_of("flash-attn")
    install(monkeypatch, "flash_attn", two)
    assert peers.version_of("flash-attn") == "flash_attn 1.2"
    install(monkeypatch, "flash_attn_interface", three)
    assert peers.version_of("flash-attn") == "flash_attn_interface 1.2"
    install(monkeypatch, "flash_attn.cute", four)
    assert peers.version_of("flash-attn") == "flash_attn.cute 1.2"


def test_what_a_peer_refuses_is_said_in_its_row(
    cuda: Cuda, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As FlashAttention-4 refuses, by an assertion; the row and the other peers keep their times."""

    def refuses(*arguments: Any, **options: Any) -> Any:
        raise AssertionError("head_dim 256 is not supported\non this GPU")

    install(monkeypatch, "flash_attn.cute", refuses)
    current: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    monkeypatch.setattr(peers, "_DEVICE", "cpu")
    monkeypatch.setattr(peers, "torch_timing", lambda *calls: [call() for call in calls] and measure.Timing(5, 4, 6, 3))
    chosen = cases.chosen(["attention"], ["gemma-3-270m"], [2])
    result = run.run(cuda, chosen, ["torch", "flash-attn", "flashinfer"], is_rehearsal=True)
    assert set(current) == {0}
    assert result["versions"]["flash-attn"] == "flash_attn.cute 1.2" and set(result["absent"]) == {"flashinfer"}
    local, whole = result["rows"]
    assert set(local["peers"]) == set() and whole["peers"]["torch"]["ours_to_peer"] == whole["median_us"] / 5
    for row in (local, whole):
        assert row["refused"] == {"flash-attn": "AssertionError: head_dim 256 is not supported"}
        assert "flash-attn refused (AssertionError: head_dim 256 is not supported)" in tables.timed_line(row)
    assert main(["bench", "attention", "--shapes", "gemma-3-270m", "--tokens", "2", "--vs", "flash-attn"]) == 0
    assert "flash-attn is flash_attn.cute 1.2" in capsys.readouterr().out
