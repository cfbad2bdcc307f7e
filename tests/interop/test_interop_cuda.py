"""The functions over arrays of a GPU, on the fake one: CuPy's, those that speak its interface, and torch's."""

from __future__ import annotations

import re
import types
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

import gemma_cuda
from gemma_cuda.errors import DeviceError, InputError
from gemma_cuda.interop import attention_run
from tests.support.fake_cuda import Device, DeviceArray, Machine
from tests.support.gpu_arrays import OnGpu, on_gpu
from tests.support.interop_cases import to_torch

Array = np.ndarray[Any, Any]


def half(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(ml_dtypes.bfloat16)


CALLS: dict[str, tuple[list[tuple[int, ...]], dict[str, Any]]] = {
    "BSHD": ([(2, 5, 4, 64), (2, 9, 2, 64)], {"causal": True, "sliding_window": 4, "softcap": 3.0}),
    "BHSD of one": ([(1, 4, 5, 64), (1, 2, 9, 64)], {"causal": True, "layout": "BHSD"}),
    "SHD": ([(7, 2, 64), (9, 1, 64)], {"layout": "SHD", "cu_seqlens_q": [0, 2, 7], "cu_seqlens_k": [0, 4, 9]}),
    "blocks": ([(1, 6, 2, 64), (1, 6, 1, 64)], {"causal": True, "block_ids": [0, 0, 0, -1, 1, 1]}),
}


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("name", CALLS)
def test_cupy_arrays_run_where_they_are(machine: Machine, name: str, index: int) -> None:
    (q_shape, k_shape), options = CALLS[name]
    host = [half(*q_shape), half(*k_shape, seed=1), half(*k_shape, seed=2)]
    given = [on_gpu(machine, x, index) for x in host]
    o, lse = gemma_cuda.attention(*given, **options, return_lse=True)
    assert isinstance(o, DeviceArray) and o.device.id == lse.device.id == index
    assert all(instance.startswith("attention<bf16, 64") for instance in machine.launched)
    expected, expected_lse = gemma_cuda.attention(*host, **options, return_lse=True, device="emulator")
    with Device(machine, index):
        assert np.array_equal(o.get(), expected) and np.array_equal(lse.get(), expected_lse)


def test_bias_and_out(machine: Machine) -> None:
    host = [half(1, 5, 2, 64), half(1, 9, 1, 64), half(1, 9, 1, 64), half(1, 9)]
    q, k, v, bias = (on_gpu(machine, x) for x in host)
    out = on_gpu(machine, np.zeros_like(host[0]))
    assert gemma_cuda.attention(q, k, v, attn_bias=bias, out=out) is out
    expected = gemma_cuda.attention(*host[:3], attn_bias=host[3], device="emulator")
    assert np.array_equal(out.get(), expected)


def test_layers(machine: Machine) -> None:
    x, up, weight = half(3, 96), half(3, 96, seed=1), half(96, seed=2)
    placed = [on_gpu(machine, array) for array in (x, up, weight)]
    y = gemma_cuda.rms_norm(placed[0], placed[2], plus_one=True)
    assert np.array_equal(y.get(), gemma_cuda.rms_norm(x, weight, plus_one=True, device="emulator"))
    assert np.array_equal(gemma_cuda.geglu(*placed[:2]).get(), gemma_cuda.geglu(x, up, device="emulator"))
    tables = [table.astype(np.float32) for table in (np.cos(np.ones((3, 32))), np.sin(np.ones((3, 32))))]
    cos, sin, packed = (on_gpu(machine, array) for array in (*tables, half(3, 192)))
    caches = [on_gpu(machine, half(4, 1, 64)) for _ in range(2)]
    slots = on_gpu(machine, np.array([3, 0, 1], np.int32))
    options: dict[str, Any] = {"heads": 1}
    q = gemma_cuda.qk_norm_rope(packed, cos=cos, sin=sin, k_cache=caches[0], v_cache=caches[1], slots=slots, **options)
    own = [half(4, 1, 64) for _ in range(2)]
    expected = gemma_cuda.qk_norm_rope(
        half(3, 192), cos=tables[0], sin=tables[1], k_cache=own[0], v_cache=own[1], slots=np.array([3, 0, 1], np.int32),
        device="emulator", **options,
    )  # fmt: skip
    assert np.array_equal(q.get(), expected)
    assert all(np.array_equal(cache.get(), mine) for cache, mine in zip(caches, own, strict=True))


def test_what_the_caller_just_wrote_may_be_passed_for_a_constant(machine: Machine) -> None:
    """A kernel of the caller's own may have made the weights, and nothing tells its end but the end of it all."""
    x, weight = on_gpu(machine, half(3, 96)), on_gpu(machine, half(96))
    gemma_cuda.rms_norm(x, weight)
    assert machine.overlaps == []
    gemma_cuda.geglu(x, x)
    assert machine.overlaps == [True]


def test_arrays_that_speak_the_interface(machine: Machine) -> None:
    host = half(1, 3, 1, 64)
    holder = types.SimpleNamespace(__cuda_array_interface__={}, array=on_gpu(machine, host), shape=host.shape)
    o = gemma_cuda.attention(holder, holder, holder)
    assert isinstance(o, DeviceArray)
    assert np.array_equal(o.get(), gemma_cuda.attention(host, host, host, device="emulator"))


def test_torch_tensors_run_on_torchs_stream(torch_on_gpu: Machine) -> None:
    host = [half(2, 5, 4, 64), half(2, 9, 2, 64), half(2, 9, 2, 64)]
    tensors = [to_torch(x).as_subclass(OnGpu) for x in host]
    o = gemma_cuda.attention(*tensors, causal=True)
    assert o.dtype == torch.bfloat16
    null, *_, own = torch_on_gpu.streams
    assert not null.queue and [work.name for work in own.queue] == torch_on_gpu.launched
    own.synchronize()
    expected = to_torch(gemma_cuda.attention(*host, causal=True, device="emulator"))
    assert torch.equal(o.as_subclass(torch.Tensor), expected)


def test_captured_graphs_need_a_plan_and_keep_it(torch_on_gpu: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = [to_torch(half(1, n, 1, 64)).as_subclass(OnGpu) for n in (3, 11, 11)]
    torch_on_gpu.is_capturing = True
    with pytest.raises(
        DeviceError, match=r"captured and the plan of this mask is not on the GPU yet.*call attention once"
    ):
        gemma_cuda.attention(*tensors, causal=True)
    torch_on_gpu.is_capturing = False
    gemma_cuda.attention(*tensors, causal=True)
    own = torch_on_gpu.streams[-1]
    own.synchronize()
    torch_on_gpu.is_capturing = True
    kept: list[Any] = []
    monkeypatch.setattr(attention_run, "_captured", kept)
    gemma_cuda.attention(*tensors, causal=True)
    assert len(kept) == 1
    assert [work.name.partition("<")[0] for work in own.queue] == ["attention"]  # no copy to the GPU, only the kernel


def test_many_masks_do_not_pile_up(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_run, "_MOST_PLANS", 4)
    q = on_gpu(machine, half(1, 1, 1, 64))
    for n in range(1, 12):
        k = on_gpu(machine, half(1, n, 1, 64, seed=n))
        o = gemma_cuda.attention(q, k, k)
        assert len(attention_run._plans) <= 4
    expected = gemma_cuda.attention(half(1, 1, 1, 64), *[half(1, 11, 1, 64, seed=11)] * 2, device="emulator")
    assert np.array_equal(o.get(), expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k": 1}, "attention: k is on cuda:1, q on cuda:0"),
        ({"k": "host"}, "attention: k is of NumPy, q of CuPy; bring all arrays of one library"),
        (
            {"device": "emulator"},
            "attention: device is 'emulator', but the arrays are on cuda:0: expected None, 'cuda'",
        ),
        ({"device": "cuda:1"}, "attention: device is 'cuda:1', but the arrays are on cuda:0"),
        ({"dim": 80}, "attention: D is 80, kernels take 64, 128, 256; move the arrays to the CPU"),
    ],
)
def test_refuses(machine: Machine, changes: dict[str, Any], message: str) -> None:
    host = half(1, 3, 1, changes.get("dim", 64))
    q, k, v = (on_gpu(machine, host) for _ in range(3))
    k = {None: k, 1: on_gpu(machine, host, 1), "host": host}[changes.get("k")]
    with pytest.raises(InputError, match=re.escape(message)):
        gemma_cuda.attention(q, k, v, device=changes.get("device"))
    assert not machine.launched
