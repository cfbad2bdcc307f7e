"""Whole models on the kernels: Gemma 1 to 3 on the emulator against float64, and in every schedule the same bits."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

import gemma_cuda
from gemma_cuda.cli import main
from gemma_cuda.device.emulator.device import Emulator
from gemma_cuda.errors import DeviceError, InputError
from tests.support.compare import assert_within_rule, tolerance
from tests.support.hf_models import build
from tests.support.kernel_models import MODELS, SIZE, assert_obeys_the_rule, load, numpy_model, prompt

PROMPTS = (
    "The capital of France is",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return",
    "Once upon a time, there was a",
    "1, 2, 3, 4, 5, 6, 7,",
    "The opposite of hot is",
    "import numpy as",
    "Monday, Tuesday, Wednesday,",
    "To be, or not to be, that is the",
    "The chemical symbol for gold is",
    "Roses are red, violets are",
)


@pytest.mark.parametrize("name", MODELS)
def test_models_obey_the_rule(name: str) -> None:
    assert_obeys_the_rule(load(name, Emulator(checked=True)), name)


@pytest.mark.parametrize("name", ["gemma2", "gemma3"])
def test_every_schedule_gives_the_same_bits(name: str) -> None:
    schedules: list[dict[str, Any]] = [
        {"schedule": "forward"},
        {"schedule": "reverse"},
        {"schedule": "random", "seed": 3},
    ]
    logits = [load(name, Emulator(**s)).prefill(**prompt(name)).logits.tobytes() for s in schedules]
    assert logits[0] == logits[1] == logits[2]


def test_kept_rows_chunks_and_ragged_rows() -> None:
    model = load("gemma3_text", Emulator(checked=True))
    ids = build("gemma3_text", SIZE).ids()[0]
    whole = model.prefill(ids, logits_to_keep=0).logits[0]
    scale = tolerance(
        numpy_model("gemma3_text", "float64").prefill(ids, logits_to_keep=0).logits[0],
        numpy_model("gemma3_text", "bfloat16").prefill(ids, logits_to_keep=0).logits[0],
        dtype="bfloat16",
    )
    assert np.abs(model.prefill(ids).logits[0, -1] - whole[-1]).max() <= scale
    cache = model.prefill(ids[:70]).past_key_values
    assert np.abs(model.prefill(ids[70:], past_key_values=cache).logits[0, -1] - whole[-1]).max() <= scale
    ragged = model.prefill([ids[:31], ids]).logits
    assert np.abs(ragged[0, -1] - whole[30]).max() <= scale and np.abs(ragged[1, -1] - whole[-1]).max() <= scale


def test_a_layer_is_five_launches() -> None:
    launched: list[str] = []
    device = Emulator(observe=lambda launch, counters: launched.append(launch.instance.split("<")[0]))
    model = load("gemma3_text", device)
    model.prefill(build("gemma3_text", SIZE).ids(), logits_to_keep=0)
    layers = model.config.num_hidden_layers
    assert Counter(launched) == {
        "embed": 1, "rms_norm": 1 + 2 * layers, "qk_norm_rope": layers, "attention": layers, "geglu": layers,
    }  # fmt: skip


def test_decoding_goes_on_from_the_cache() -> None:
    ids = build("gemma3_text", SIZE).ids()[0].tolist()[:40]
    model = load("gemma3_text", Emulator())
    cache, token = None, ids
    for _ in range(6):
        out = model.prefill([token], past_key_values=cache)
        cache, ids = out.past_key_values, [*ids, int(out.logits[0, -1].argmax())]
        token = ids[-1:]
    r, b = (numpy_model("gemma3_text", d).prefill(ids[:-1]).logits for d in ("float64", "bfloat16"))
    assert_within_rule(out.logits, r, b, dtype="bfloat16")


def test_refusals() -> None:
    with pytest.raises(DeviceError, match="no kernels for Gemma 4 yet"):
        gemma_cuda.Gemma.from_pretrained(build("gemma4_dense").path, device="emulator")
    with pytest.raises(DeviceError, match=r"head_dim 32, kernels have 64, 128, 256"):
        gemma_cuda.Gemma.from_pretrained(build("gemma2").path, device="emulator")
    with pytest.raises(InputError, match="kernels compute in bfloat16"):
        gemma_cuda.Gemma.from_pretrained(build("gemma2", SIZE).path, device="emulator", dtype="float32")
    with pytest.raises(InputError, match="gemm is 'fast', expected one of auto, library, kernel"):
        gemma_cuda.Gemma.from_pretrained(build("gemma2", SIZE).path, device="emulator", gemm="fast")
    with pytest.raises(InputError, match="device 'numpy' has no kernels to choose from"):
        gemma_cuda.Gemma.from_pretrained(build("gemma2", SIZE).path, device="numpy", gemm="kernel")


@pytest.mark.real_weights
def test_the_command_runs_on_the_emulator(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prefill", "--device", "emulator", "--prompt", "The capital of France is"]) == 0
    printed = capsys.readouterr().out
    assert "emulator, bfloat16" in printed and "tokens/s" not in printed


@pytest.mark.real_weights
def test_real_weights_obey_the_rule_layer_by_layer_and_choose_the_same_tokens() -> None:
    """The same tokens wherever the reference's margin is larger than what the rule allows two logits to move."""
    name = "gemma-3-270m-q4_k_m"
    kernels, exact, rounded = (
        gemma_cuda.Gemma.from_pretrained(name, device=device, dtype=dtype)
        for device, dtype in (("emulator", "auto"), ("numpy", "float32"), ("numpy", "bfloat16"))
    )
    decided = 0
    for text in PROMPTS:
        outputs = [model.prefill(text, output_hidden_states=True) for model in (kernels, exact, rounded)]
        for i, states in enumerate(zip(*(out.hidden_states or () for out in outputs), strict=True)):
            assert_within_rule(*states, dtype="bfloat16", what=f"{text}: hidden_states[{i}]")
        y, r, b = (out.logits[0, -1] for out in outputs)
        assert_within_rule(y, r, b, dtype="bfloat16", what=text)
        second, first = np.sort(r)[-2:]
        if first - second > 2 * tolerance(r, b, dtype="bfloat16"):
            decided += 1
            assert y.argmax() == r.argmax(), text
    assert decided >= 1
