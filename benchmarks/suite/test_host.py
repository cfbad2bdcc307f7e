"""Times of what runs on the host, comparable between commits: make bench-host

`--benchmark-autosave` keeps a run under .benchmarks/, `--benchmark-compare` sets the next one beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gemma_cuda
from benchmarks import host_time
from gemma_cuda.device.dry_run import DryRunDevice
from gemma_cuda.engine.batch import Prompt, make_batch
from gemma_cuda.formats.checkpoint import open_checkpoint
from gemma_cuda.formats.hub import resolve
from gemma_cuda.model.masks import key_range
from gemma_cuda.ops.attention_plan import plan_attention
from gemma_cuda.ops.instances import launches, published

MODEL = "gemma-3-270m-q4_k_m"
TEXT = "def fibonacci(n):\n    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)\n" * 40
Benchmark = Callable[..., Any]


@pytest.fixture(scope="module")
def gemma() -> gemma_cuda.Gemma:
    return gemma_cuda.Gemma.from_pretrained(MODEL, device="numpy")


def test_open_a_checkpoint(benchmark: Benchmark) -> None:
    assert benchmark(lambda: open_checkpoint(resolve(MODEL)).config.num_hidden_layers) == 18


@pytest.mark.parametrize("name", ["layers.0.mlp.gate_proj.weight", "layers.0.mlp.down_proj.weight"])
def test_decode_a_matrix(benchmark: Benchmark, name: str) -> None:
    checkpoint = open_checkpoint(resolve(MODEL))
    out = np.full(checkpoint.shape(name), np.nan, np.float32)
    benchmark(checkpoint.read_into, name, out)
    assert np.isfinite(out).all()


def test_load_a_model(benchmark: Any) -> None:
    load = lambda: gemma_cuda.Gemma.from_pretrained(MODEL, device="numpy")  # noqa: E731
    assert benchmark.pedantic(load, rounds=5).dtype == "float32"


def test_encode_text(benchmark: Benchmark, gemma: gemma_cuda.Gemma) -> None:
    assert len(benchmark(gemma.tokenizer.encode, TEXT)) > 500


@pytest.mark.parametrize("tokens", [1, 128, 512])
def test_prefill_on_numpy(benchmark: Benchmark, gemma: gemma_cuda.Gemma, tokens: int) -> None:
    ids = np.random.default_rng(tokens).integers(10, 200_000, tokens)
    assert np.isfinite(benchmark(lambda: gemma.prefill(ids).logits)).all()


def test_decode_on_numpy(benchmark: Benchmark, gemma: gemma_cuda.Gemma) -> None:
    cache = gemma.prefill(TEXT).past_key_values
    assert benchmark(lambda: gemma.prefill([7], past_key_values=cache.copy()).logits.shape) == (1, 1, 262144)


@pytest.mark.parametrize("tokens", [128, 8192])
def test_batch_masks_and_attention_plan(benchmark: Benchmark, tokens: int) -> None:
    config, ids = published()["gemma-3-4b"], np.zeros((1, tokens), np.int64)

    def prepare() -> int:
        batch = make_batch(config, Prompt(ids))
        begin, end = key_range(config, config.layers[0], batch.queries)
        return plan_attention(
            begin, end, batch.cu_seqlens, group=2, head_dim=256, is_plain=True, device=DryRunDevice(232448)
        ).tokens

    assert benchmark(prepare) == tokens


def test_choose_every_launch_of_a_model(benchmark: Benchmark) -> None:
    config = published()["gemma-2-2b"]
    assert len(benchmark(lambda: launches([config], ["bfloat16"], shared_bytes=232448))) > 10


@pytest.mark.parametrize("tokens", host_time.LENGTHS)
def test_the_hosts_part_of_a_prefill_on_a_gpu(
    benchmark: Benchmark, monkeypatch: pytest.MonkeyPatch, tokens: int
) -> None:
    machine, model = host_time.prepared(monkeypatch)
    machine.is_idle = True
    ids = np.random.default_rng(0).integers(3, model.config.vocab_size, tokens)
    assert benchmark(lambda: model.prefill(ids).logits.shape)[:2] == (1, 1)
