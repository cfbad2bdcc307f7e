"""Whole models on a GPU (pytest --gpu real) against NumPy; test_model_cuda.py has the bits, on a fake one."""

from __future__ import annotations

import functools
import importlib
import warnings
from typing import Any

import pytest

import gemma_cuda
from gemma_cuda.device.cuda.device import Cuda
from gemma_cuda.errors import DeviceError
from tests.support.compare import assert_within_rule
from tests.support.hf_models import build
from tests.support.kernel_models import GRAPHS, MODELS, SIZE, assert_obeys_the_rule, load, numpy_model, text
from tests.support.parity import is_capped

pytestmark = pytest.mark.gpu(only=True)


GEMMS = ("kernel", "library", "auto")


def on_gpu(name: str, gemm: str) -> gemma_cuda.Gemma:
    """The model; skips the test where its products are to be the library's and there is none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # of "auto": kernels/linear.cu does them all
            return load(name, Cuda(), gemm=gemm)
    except DeviceError as error:
        if gemm != "library":
            raise
        pytest.skip(str(error))


def assert_same_logits(model: gemma_cuda.Gemma, y: Any, other: gemma_cuda.Gemma, expected: Any) -> None:
    assert model.to_host(y.logits).tobytes() == other.to_host(expected.logits).tobytes()


@pytest.mark.parametrize("name", MODELS)
def test_launches_one_by_one_obey_the_rule(name: str) -> None:
    assert_obeys_the_rule(load(name, Cuda(), gemm="kernel"), name)


def test_products_by_the_library_obey_the_rule() -> None:
    assert_obeys_the_rule(on_gpu("gemma3_text", "library"), "gemma3_text")


@pytest.mark.parametrize("gemm", GEMMS)
@pytest.mark.parametrize("name", MODELS)
def test_a_graph_gives_the_bits_of_its_launches_one_by_one(name: str, gemm: str) -> None:
    graph, single = (on_gpu(name, gemm) for _ in range(2))
    graph.warmup(**GRAPHS)
    single.warmup(**GRAPHS, graphs=False)
    outputs = graph.prefill(**text(name)), single.prefill(**text(name))
    assert_same_logits(graph, outputs[0], single, outputs[1])
    r, b = (numpy_model(name, dtype).prefill(**text(name)).logits for dtype in ("float64", "bfloat16"))
    capped = is_capped(build(name, SIZE))
    assert_within_rule(graph.to_host(outputs[0].logits), r, b, dtype="bfloat16", softcap=capped)


@pytest.mark.parametrize("gemm", GEMMS)
def test_chunks_ragged_rows_and_decoding_obey_the_rule(gemm: str) -> None:
    name = "gemma2"
    ids = build(name, SIZE).ids()[0].tolist()
    steps = ([ids[:70], ids[:50]], [ids[70:90], ids[50:101]], [[5], [7]], [[9], [3]])
    models = graph, single = [on_gpu(name, gemm) for _ in range(2)]
    graph.warmup(**GRAPHS)
    single.warmup(**GRAPHS, graphs=False)
    rule = functools.partial(assert_within_rule, dtype="bfloat16", softcap=is_capped(build(name, SIZE)))
    caches: list[Any] = [None, None]
    rows: list[list[int]] = [[], []]
    for chunk in steps:
        outputs = [m.prefill(chunk, past_key_values=cache) for m, cache in zip(models, caches, strict=True)]
        caches = [y.past_key_values for y in outputs]
        assert_same_logits(graph, outputs[0], single, outputs[1])
        rows = [row + more for row, more in zip(rows, chunk, strict=True)]
        logits = graph.to_host(outputs[0].logits)
        for i, row in enumerate(rows):
            r, b = (numpy_model(name, dtype).prefill(row).logits[0] for dtype in ("float64", "bfloat16"))
            rule(logits[i], r, b, what=f"row {i} of {len(row)} tokens")


def test_embeddings_on_the_gpu_give_the_bits_of_ids_on_any_stream() -> None:
    stream, cuda = importlib.import_module("cupy").cuda.Stream, Cuda()
    model = load("gemma3_text", cuda, gemm="kernel")
    model.warmup(**GRAPHS)
    ids = build("gemma3_text", SIZE).ids()[0, :60]
    expected = model.to_host(model.prefill(ids).logits).tobytes()
    embeds = cuda.from_host(model.embed(ids))
    cuda.synchronize()
    outputs = []
    for _ in range(3):
        with stream(non_blocking=True):
            outputs.append(model.to_host(model.prefill_hidden(embeds).logits).tobytes())
            model.prefill(ids[:30])  # which nobody waits for
    assert outputs == [expected] * 3
