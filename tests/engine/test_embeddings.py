"""Input embeddings of any library, on the CPU and on a fake GPU: the bits of NumPy's."""

from __future__ import annotations

import re
import sys
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from gemma_cuda.device.cuda.device import Cuda
from gemma_cuda.errors import InputError
from tests.support.fake_cuda import Machine
from tests.support.gpu_arrays import OnGpu, on_gpu
from tests.support.hf_models import build
from tests.support.interop_cases import to_torch
from tests.support.kernel_models import GRAPHS, SIZE, assert_same_bits, emulator_model, load

NAME = "gemma3_text"
MASK = np.arange(30) >= [[0], [12]]


def rows() -> np.ndarray[Any, Any]:
    """bfloat16 [2, 30, E]; padding is NaN."""
    ids = build(NAME, SIZE).ids()[0]
    embeds = np.stack([emulator_model(NAME).embed(ids[:30]), emulator_model(NAME).embed(ids[30:60])])
    embeds[~MASK] = np.nan
    return embeds


@pytest.mark.parametrize("graphs", [True, False])
def test_arrays_of_the_gpu(machine: Machine, graphs: bool) -> None:
    gpu = load(NAME, Cuda(), gemm="kernel")
    if graphs:
        gpu.warmup(**GRAPHS)
    placed = on_gpu(machine, rows())
    y = gpu.prefill(inputs_embeds=placed, attention_mask=MASK)
    expected = emulator_model(NAME).prefill(inputs_embeds=rows(), attention_mask=MASK)
    assert_same_bits(gpu, y, expected)
    assert placed.get().tobytes() == rows().tobytes()  # prefill writes into a copy
    one = on_gpu(machine, rows()[0])
    assert_same_bits(gpu, gpu.prefill_hidden(one), emulator_model(NAME).prefill_hidden(rows()[0]))
    assert machine.graphs_launched == (2 if graphs else 0)
    wide = np.full((2, 90, SIZE.hidden_size), np.nan, ml_dtypes.bfloat16)  # more rows than any graph has tokens
    wide[:, :30] = rows()
    mask = np.zeros((2, 90), bool)
    mask[:, :30] = MASK
    y = gpu.prefill(inputs_embeds=on_gpu(machine, wide), attention_mask=mask)
    assert gpu.to_host(y.logits).tobytes() == expected.logits.tobytes()
    assert machine.graphs_launched == (2 if graphs else 0)


def test_torchs_tensors_are_read_on_torchs_stream(torch_on_gpu: Machine) -> None:
    gpu = load(NAME, Cuda(), gemm="kernel")
    before = len(torch_on_gpu.launched)
    y = gpu.prefill(inputs_embeds=to_torch(rows()).as_subclass(OnGpu), attention_mask=MASK)
    null, *_, torchs = torch_on_gpu.streams
    assert not null.queue
    queued = [work.name for work in torchs.queue if work.name in torch_on_gpu.launched]
    assert queued == torch_on_gpu.launched[before:] and len(queued) > 10
    torchs.synchronize()
    assert_same_bits(gpu, y, emulator_model(NAME).prefill(inputs_embeds=rows(), attention_mask=MASK))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_torchs_tensors_on_the_cpu(dtype: torch.dtype) -> None:
    model = emulator_model(NAME)
    y = model.prefill(inputs_embeds=to_torch(rows()).to(dtype), attention_mask=MASK)
    assert y.logits.tobytes() == model.prefill(inputs_embeds=rows(), attention_mask=MASK).logits.tobytes()


def test_a_model_on_the_cpu_refuses_tensors_of_a_gpu_without_cupy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(InputError, match="inputs_embeds is on cuda:0, the model on the CPU"):
        emulator_model(NAME).prefill(inputs_embeds=to_torch(rows()).as_subclass(OnGpu))


def test_refuses(machine: Machine) -> None:
    gpu, embeds = load(NAME, Cuda(), gemm="kernel"), rows()
    for model, given, message in (
        (gpu, on_gpu(machine, embeds, 1), "inputs_embeds is on cuda:1, the model on cuda:0"),
        (emulator_model(NAME), on_gpu(machine, embeds), "inputs_embeds is on cuda:0, the model on the CPU"),
        (gpu, on_gpu(machine, embeds.astype(np.float32)), "inputs_embeds is float32 on the GPU, expected bfloat16"),
        (gpu, on_gpu(machine, embeds)[:, ::2], "inputs_embeds is not contiguous, as it has to be on the GPU"),
        (gpu, on_gpu(machine, embeds)[..., :8], f"expected [B, S, E] with E = {SIZE.hidden_size}"),
        (gpu, to_torch(embeds).float().requires_grad_(), "inputs_embeds requires gradients"),
        (gpu, np.float32(1), "inputs_embeds is np.float32(1.0), expected an array"),
    ):
        with pytest.raises(InputError, match=re.escape(message)):
            model.prefill(inputs_embeds=given)
    assert not machine.launched
    assert embeds.dtype == ml_dtypes.bfloat16
