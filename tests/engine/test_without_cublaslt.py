"""A GPU without cuBLASLt: kernels/linear.cu does all products, of any number of rows, after one warning."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

from gemma_cuda.bench import peers, prefill, tables
from gemma_cuda.device.cuda.device import Cuda
from gemma_cuda.device.emulator.device import Emulator
from gemma_cuda.errors import DeviceError
from gemma_cuda.ops.geglu import geglu
from gemma_cuda.ops.gemm import KernelGemm
from gemma_cuda.ops.kernel_ops import kernel_ops
from tests.support import fake_gpu
from tests.support.emulated import KernelTestDevice, values
from tests.support.hf_models import build
from tests.support.kernel_models import GRAPHS, SIZE, load
from tests.support.linear_cases import assert_is_product

F32, BF16 = np.dtype(np.float32), values(0, 1, dtype="bfloat16").dtype


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    fake_gpu.install(monkeypatch, has_cublaslt=False)
    return Cuda()


def test_the_default_model_falls_back_with_one_warning(cuda: Cuda) -> None:
    with pytest.warns(RuntimeWarning, match=r"linear.cu does all products.*nvmath-python: .*pip install") as caught:
        model = load("gemma3_text", cuda)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.warmup(**GRAPHS)
        ids = build("gemma3_text", SIZE).ids()[0].tolist()
        assert len(ids) > 100  # more rows than the default has the kernel for
        y = model.prefill(ids)
        expected = load("gemma3_text", Emulator(), gemm="kernel").prefill(ids)
    assert model.to_host(y.logits).tobytes() == expected.logits.tobytes()


def test_who_asks_for_the_library_is_refused(cuda: Cuda) -> None:
    with pytest.raises(DeviceError, match=r"cuBLASLt cannot be used \(nvmath-python: .*\): pip install"):
        kernel_ops(cuda, "library")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert isinstance(kernel_ops(cuda, "kernel").gemm, KernelGemm)


@pytest.mark.filterwarnings("ignore:kernels/linear.cu does all products:RuntimeWarning")
def test_a_prefill_is_timed_and_says_who_multiplied(cuda: Cuda) -> None:
    result = prefill.rehearse(cuda)
    (row,) = result["rows"]
    assert row["products_by"] == "kernels/linear.cu" and row["median_ms"] > 0 and row["kernels_ms"]["linear"] > 0
    assert result["ceilings"]["product_flops_per_s"] is None and row["floor_ms"] > 0
    assert "no product was measured" in tables.ceilings_line(result) and "×" in tables.prefill_line(row)
    why = peers.absent("cublas", cuda)
    assert why is not None and why.startswith("cuBLASLt cannot be used")


def test_with_the_library_it_says_so_too(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_gpu.install(monkeypatch)
    name = kernel_ops(Cuda(), "auto").gemm.name
    assert name == "kernels/linear.cu for up to 64 rows, else cuBLASLt 130100 by nvmath-python"


def multiply(gemm: KernelGemm, rows: int, columns: int, depth: int) -> None:
    """The three ways in which a model uses a product, against the reference and against each other."""
    device: Any = gemm.device
    x, w = values(rows, rows, depth, dtype="bfloat16"), values(1, columns, depth, dtype="bfloat16", scale=0.1)
    placed, weight = device.from_host(x), gemm.upload(w.astype(np.float32))
    y = device.to_host(gemm.product(placed, weight, BF16))
    assert_is_product(x, w, y, "bfloat16", "bfloat16")
    assert_is_product(x, w, device.to_host(gemm.product(placed, weight, F32)), "bfloat16", "float32")
    half = columns // 2
    parts = [device.from_host(np.ascontiguousarray(y[:, begin : begin + half])) for begin in (0, half)]
    expected = device.to_host(geglu(*parts, device=device))
    assert device.to_host(gemm.gated(placed, weight)).tobytes() == expected.tobytes()


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [65, 96, 127, 128, 129, 191, 192, 193, 255, 256, 257, 300])
def test_products_of_many_rows_are_right(rows: int, kernel_test_device: KernelTestDevice) -> None:
    """Under every check; tiles whole and not, K split and not."""
    gemm = KernelGemm(kernel_test_device())
    multiply(gemm, rows, 144, 328)
    multiply(gemm, rows, 64, 64)


@pytest.mark.gpu
@pytest.mark.parametrize(("columns", "depth"), [(1536, 640), (640, 1024), (4096, 640), (640, 2048)])
def test_the_products_of_a_layer_of_gemma_3_270m(
    columns: int, depth: int, kernel_test_device: KernelTestDevice
) -> None:
    """Of a prompt of 257 tokens: each weight is read by three tiles of rows, the last of which has one row."""
    gemm = KernelGemm(kernel_test_device("random", checked=False))
    x = values(0, 257, depth, dtype="bfloat16")
    w = values(1, columns, depth, dtype="bfloat16", scale=0.05)
    placed = gemm.device.from_host(x)
    y = gemm.device.to_host(gemm.product(placed, gemm.upload(w.astype(np.float32)), BF16))
    assert_is_product(x, w, y, "bfloat16", "bfloat16")
