"""Whole models on the CUDA device, on a fake GPU: the bits of the emulator, launched one by one and as graphs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gemma_cuda
from gemma_cuda.device.cuda import Cuda
from gemma_cuda.device.emulator import Emulator
from tests.fake_cuda import Machine
from tests.hf_models import build
from tests.test_model_emulator import MODELS, SIZE, prompt


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine(Emulator())
    machine.install(monkeypatch)
    return machine


def load(name: str, device: Any, **options: Any) -> gemma_cuda.Gemma:
    return gemma_cuda.Gemma.from_pretrained(build(name, SIZE).path, device=device, **options)


def assert_same_bits(gpu: gemma_cuda.Gemma, y: Any, expected: Any) -> None:
    assert gpu.to_host(y.logits).tobytes() == expected.logits.tobytes()
    assert gpu.to_host(y.last_hidden_state).tobytes() == expected.last_hidden_state.tobytes()
    for ours, theirs in zip(y.past_key_values, expected.past_key_values, strict=True):
        for side in range(2):
            assert gpu.to_host(ours[side]).tobytes() == np.ascontiguousarray(theirs[side]).tobytes()


@pytest.mark.parametrize("name", MODELS)
def test_models_give_the_bits_of_the_emulator(name: str, machine: Machine) -> None:
    gpu, emulator = (load(name, device, gemm="kernel") for device in (Cuda(), Emulator()))
    assert_same_bits(gpu, gpu.prefill(**prompt(name)), emulator.prefill(**prompt(name)))
    assert gpu.fingerprint == emulator.fingerprint


GRAPHS = {"lengths": (8, 64, 160), "kv_rows": 3, "kv_capacity": 400}


def text(name: str) -> dict[str, Any]:
    """A prompt's arguments without logits_to_keep: of the last token, as graphs serve it."""
    return {key: value for key, value in prompt(name).items() if key != "logits_to_keep"}


@pytest.mark.parametrize("name", MODELS)
def test_graphs_give_the_bits_of_launches_one_by_one(name: str, machine: Machine) -> None:
    gpu, emulator = (load(name, device, gemm="kernel") for device in (Cuda(), Emulator()))
    gpu.warmup(**GRAPHS)
    launched = len(machine.launched)
    y = gpu.prefill(**text(name))
    assert machine.graphs_launched == 1 and len(machine.launched) == launched
    assert_same_bits(gpu, y, emulator.prefill(**text(name)))
    gpu.warmup(**GRAPHS, graphs=False)
    assert_same_bits(gpu, gpu.prefill(**text(name)), emulator.prefill(**text(name)))
    assert machine.graphs_launched == 1
