"""Random Gemmas of one small size on the kernels: what tests of whole models on the emulator and on CUDA share."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

import gemma_cuda
from gemma_cuda.device.emulator.device import Emulator
from tests.support.compare import assert_within_rule
from tests.support.hf_models import Size, build
from tests.support.parity import is_capped

# hidden_size 64: its square root is the same in every dtype. The prompt is longer than the window and a tile of keys.
SIZE = Size(head_dim=64, global_head_dim=64, hidden_size=64, intermediate_size=96, sliding_window=24, prompt=150)
MODELS = ("gemma_mqa", "gemma_mha", "gemma2", "gemma3_text", "gemma3_text_capped", "gemma3", "paligemma2")
GRAPHS: dict[str, Any] = {"lengths": (2, 64, 160), "batch_size": 2, "kv_rows": 3, "kv_capacity": 400}


@functools.cache
def numpy_model(name: str, dtype: str) -> gemma_cuda.Gemma:
    return gemma_cuda.Gemma.from_pretrained(build(name, SIZE).path, device="numpy", dtype=dtype)


def load(name: str, device: Any, **options: Any) -> gemma_cuda.Gemma:
    return gemma_cuda.Gemma.from_pretrained(build(name, SIZE).path, device=device, **options)


@functools.cache
def emulator_model(name: str) -> gemma_cuda.Gemma:
    return load(name, Emulator(checked=True), gemm="kernel")


def prompt(name: str) -> dict[str, Any]:
    """Arguments of a prefill, with an image (Gemma 3) or a prefix (PaliGemma) that is longer than the window."""
    ids = build(name, SIZE).ids()
    kept: dict[str, Any] = {"input_ids": ids, "logits_to_keep": 0}
    position = np.arange(ids.shape[1])
    if name == "gemma3":
        kept["token_type_ids"] = ((position >= 40) & (position < 80)).astype(np.int64)[None]
    if name == "paligemma2":
        kept["token_type_ids"] = (position >= 90).astype(np.int64)[None]
    return kept


def text(name: str) -> dict[str, Any]:
    """A prompt's arguments without logits_to_keep: of the last token, as graphs serve it."""
    return {key: value for key, value in prompt(name).items() if key != "logits_to_keep"}


def assert_obeys_the_rule(model: gemma_cuda.Gemma, name: str) -> None:
    """Fails unless a whole prefill of `prompt(name)` obeys the rule: logits, hidden states, caches."""
    arguments = prompt(name)
    y = model.prefill(output_hidden_states=True, **arguments)
    r, b = (
        numpy_model(name, dtype).prefill(output_hidden_states=True, **arguments) for dtype in ("float64", "bfloat16")
    )
    rule = functools.partial(assert_within_rule, dtype="bfloat16", softcap=is_capped(build(name, SIZE)))
    rule(model.to_host(y.logits), r.logits, b.logits, what="logits")
    for i, states in enumerate(zip(y.hidden_states or (), r.hidden_states or (), b.hidden_states or (), strict=True)):
        rule(*states, what=f"hidden_states[{i}]")
    for i, (ours, *pairs) in enumerate(zip(y.past_key_values, r.past_key_values, b.past_key_values, strict=True)):
        for what, part, *parts in zip("kv", ours, *pairs, strict=True):
            rule(model.to_host(part), *parts, what=f"cache[{i}].{what}")


def assert_same_bits(gpu: gemma_cuda.Gemma, y: Any, expected: Any) -> None:
    assert gpu.to_host(y.logits).tobytes() == expected.logits.tobytes()
    assert gpu.to_host(y.last_hidden_state).tobytes() == expected.last_hidden_state.tobytes()
    for ours, theirs in zip(y.past_key_values, expected.past_key_values, strict=True):
        for side in range(2):
            assert gpu.to_host(ours[side]).tobytes() == np.ascontiguousarray(theirs[side]).tobytes()
