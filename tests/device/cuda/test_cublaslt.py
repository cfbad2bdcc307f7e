"""Products by cuBLASLt on a fake GPU: what reaches the library, what is kept, what is refused in which words."""

from __future__ import annotations

import ctypes
import gc
import importlib.metadata
import inspect
import json
import os
import re
import subprocess
import sys
import threading
import types
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from gemma_cuda.device import product_cache
from gemma_cuda.device.cuda import cublaslt, cublaslt_bindings, cublaslt_handles
from gemma_cuda.device.cuda.algorithm_cache import ALGORITHM_BYTES, FORMAT, AlgorithmCache, Entry
from gemma_cuda.device.cuda.cublaslt import GemmPlan, GemmPlans
from gemma_cuda.device.cuda.device import Cuda
from gemma_cuda.device.emulator.device import Emulator
from gemma_cuda.errors import DeviceError, LaunchError
from tests.support import fake_cublaslt
from tests.support.compare import DTYPES
from tests.support.emulated import HALF_DTYPES, values
from tests.support.fake_cublaslt import ALGORITHMS, Algorithm, CublasLt
from tests.support.fake_cuda import Machine
from tests.support.fake_streams import CUDARuntimeError
from tests.support.paths import ROOT, TESTS


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine(Emulator(workers=2), gpus=2)
    machine.install(monkeypatch)
    return machine


@pytest.fixture
def library(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> CublasLt:
    library = CublasLt(machine)
    library.install(monkeypatch)
    return library


@pytest.fixture
def gemms(library: CublasLt, tmp_path: Path) -> GemmPlans:
    return GemmPlans(Cuda(), cache=tmp_path)


def expected(x: Any, weight: Any, out_dtype: Any) -> bytes:
    return (x.astype(np.float32) @ weight.astype(np.float32).T).astype(out_dtype).tobytes()


def number_of(plan: GemmPlan) -> int:
    return int(np.frombuffer(plan.algorithm, np.uint64)[0])


@pytest.mark.parametrize("out", ["same", "float32"])
@pytest.mark.parametrize("dtype", HALF_DTYPES)
def test_a_product_of_rows_that_lie_apart(gemms: GemmPlans, dtype: str, out: str) -> None:
    cuda, out_dtype = Cuda(), DTYPES[dtype if out == "same" else out]
    for m, n, k in ((5, 24, 40), (1, 8, 16), (3, 7, 9)):
        x, weight = values(m, m, k, dtype=dtype), values(n, n, k, dtype=dtype)
        wide = np.full((m, k + 16), np.nan, x.dtype)
        wide[:, 8:-8] = x
        placed, out_rows = cuda.from_host(wide), cuda.from_host(np.full((m, n + 8), -1, out_dtype))
        plan = gemms.plan(m, n, k, x.dtype, out_dtype, ldx=k + 16 if m > 1 else None, ldo=n + 8, alignment=2)
        gemms.run(plan, out_rows[:, :n], placed[:, 8 : 8 + k], cuda.from_host(weight))
        result = cuda.to_host(out_rows)
        assert result[:, :n].tobytes() == expected(x, weight, out_dtype)
        assert (result[:, n:].astype(np.float32) == -1).all()


def test_a_plan_is_made_once_and_launched_by_addresses(gemms: GemmPlans, library: CublasLt, machine: Machine) -> None:
    cuda = Cuda()
    x, weight = values(0, 4, 32, dtype="bfloat16"), values(1, 16, 32, dtype="bfloat16")
    plan = gemms.plan(4, 16, 32, x.dtype)
    alive, memory = len(library.alive), machine.memory_left
    assert gemms.plan(4, 16, 32, ml_dtypes.bfloat16, ml_dtypes.bfloat16, 32, 16) is plan
    placed, placed_weight, out = cuda.from_host(x), cuda.from_host(weight), cuda.empty((4, 16), x.dtype)
    memory -= x.nbytes + weight.nbytes + out.nbytes
    stream = machine.new_stream()
    cuda.synchronize()
    for _ in range(3):
        plan.launch(out.data.ptr, placed.data.ptr, placed_weight.data.ptr, stream.ptr)
    assert [work.name for work in stream.queue] == ["matmul"] * 3  # nobody waited
    assert (len(library.alive), machine.memory_left) == (alive, memory)
    stream.synchronize()
    assert cuda.to_host(out).tobytes() == expected(x, weight, x.dtype)


def test_one_workspace_of_the_size_that_the_gpu_wants(library: CublasLt, machine: Machine, tmp_path: Path) -> None:
    for capability, size in (("80", 8 << 20), ("89", 8 << 20), ("90", 32 << 20), ("120", 32 << 20)):
        machine.capability = capability
        before = machine.memory_left
        gemms = GemmPlans(Cuda(), cache=tmp_path)
        assert before - machine.memory_left == size
        best = min(a.number for a in ALGORITHMS if 16 <= a.workspace >> 20 <= size >> 20) if size > 8 << 20 else 11
        assert number_of(gemms.tune(64, 64, 64, np.float16)) == best
        gemms.close()
        assert machine.memory_left == before
        (next(tmp_path.rglob("*.json"))).unlink()


def test_two_streams_at_once_would_share_the_workspace(gemms: GemmPlans, machine: Machine) -> None:
    """The fake finds it: without that, the test of the documented rule could not fail."""
    cuda = Cuda()
    x, weight, out = (cuda.from_host(np.zeros((4, 16), np.float16)) for _ in range(3))
    plan = gemms.plan(4, 4, 16, np.float16, ldo=16)
    for stream in (machine.new_stream(), machine.new_stream()):
        plan.launch(out.data.ptr, x.data.ptr, weight.data.ptr, stream.ptr)
    with pytest.raises(CUDARuntimeError, match="two streams use one workspace"):
        stream.synchronize()


def test_the_first_guess_honours_alignment_workspace_and_reduction(library: CublasLt, tmp_path: Path) -> None:
    library.algorithms = tuple(reversed(ALGORITHMS))  # all of them faster ones that would break a promise
    gemms = GemmPlans(Cuda(), cache=tmp_path)
    assert number_of(gemms.plan(8, 8, 8, np.float16)) == 13
    assert number_of(gemms.plan(8, 8, 8, np.float16, alignment=128)) == 14
    assert number_of(gemms.plan(8, 8, 8, np.float16, alignment=2)) == 10


def test_the_fastest_algorithm_is_remembered_for_the_next_process(
    library: CublasLt, gemms: GemmPlans, machine: Machine, tmp_path: Path
) -> None:
    memory = machine.memory_left
    assert number_of(gemms.plan(40, 64, 128, np.float16)) == 10
    assert number_of(gemms.tune(40, 64, 128, np.float16)) == 13
    assert machine.memory_left == memory  # nothing of the measurement is kept
    assert set(library.launched) == {10, 11, 13}
    assert number_of(gemms.plan(40, 64, 128, np.float16)) == 13
    assert number_of(gemms.plan(41, 64, 128, np.float16)) == 10
    library.launched.clear()
    later = GemmPlans(Cuda(), cache=tmp_path)
    assert number_of(later.plan(40, 64, 128, np.float16)) == number_of(later.tune(40, 64, 128, np.float16)) == 13
    assert library.launched == []
    (path,) = (tmp_path / "cublaslt").iterdir()
    assert path.name == f"nvidia-fake-9000-80-gb-cublaslt-130100-v{FORMAT}.json"


def test_what_is_measured_comes_from_memory_and_guesses_may_fail(
    library: CublasLt, gemms: GemmPlans, machine: Machine
) -> None:
    library.refused = {13}
    weights: set[int] = set()
    launch = GemmPlan.launch

    def spy(plan: GemmPlan, out: int, x: int, weight: int, stream: int) -> None:
        weights.add(weight)
        launch(plan, out, x, weight, stream)

    GemmPlan.launch = spy  # type: ignore[method-assign]
    try:
        assert number_of(gemms.tune(3, 61, 67, np.float16)) == 11
    finally:
        GemmPlan.launch = launch  # type: ignore[method-assign]
    weight_bytes = 61 * 67 * 2
    assert max(weights) - min(weights) + weight_bytes >= 2 * 64 * 1024  # twice the fake GPU's cache
    assert all(weight % 16 == 0 for weight in weights)


def test_what_is_measured_is_random_to_its_end(machine: Machine) -> None:
    cuda = Cuda()
    noise = cuda.to_host(cublaslt._noise(cuda, (1 << 20) + 500, "bfloat16")).astype(np.float32)
    assert all(0.8 < part.std() < 1.2 for part in (noise, noise[: 1 << 19], noise[-500:]))


def test_a_damaged_or_foreign_file_counts_as_none(library: CublasLt, tmp_path: Path) -> None:
    gemms = GemmPlans(Cuda(), cache=tmp_path)
    gemms.tune(40, 64, 128, np.float16)
    (path,) = (tmp_path / "cublaslt").iterdir()
    good = json.loads(path.read_text())
    ((product, entry),) = good["algorithms"].items()
    damaged = [
        "", "{", "[]", "null", '{"algorithms": 3}', json.dumps({**good, "format": FORMAT + 1}),
        json.dumps({**good, "gpu": "another"}), json.dumps({**good, "algorithms": {product: 7}}),
        *(
            json.dumps({**good, "algorithms": {product: {**entry, **changes}}})
            for changes in ({"algorithm": "zz"}, {"algorithm": "00"}, {"algorithm": None}, {"unknown": 1},
                            {"algorithm": "ff" * ALGORITHM_BYTES})  # the last one is of another library
        ),
    ]  # fmt: skip
    for text, is_sealed in [
        (json_text, sealed) for json_text in damaged for sealed in {False, '"digest"' in json_text}
    ]:
        path.write_text(text)
        if is_sealed:  # damaged before it was written
            fields = json.loads(text)
            del fields["digest"]
            product_cache.write_json(path, fields)
        again = GemmPlans(Cuda(), cache=tmp_path)
        assert number_of(again.plan(40, 64, 128, np.float16)) == 10, text
        assert number_of(again.tune(40, 64, 128, np.float16)) == 13, text
        assert json.loads(path.read_text()) == good, text


def test_an_algorithm_that_needs_more_workspace_than_there_is_is_not_taken(
    library: CublasLt, machine: Machine, tmp_path: Path
) -> None:
    GemmPlans(Cuda(), cache=tmp_path).tune(40, 64, 128, np.float16)
    machine.capability = "80"  # the file is found by the GPU's name
    assert number_of(GemmPlans(Cuda(), cache=tmp_path).plan(40, 64, 128, np.float16)) == 10


def test_another_version_of_the_library_is_measured_anew(library: CublasLt, gemms: GemmPlans, tmp_path: Path) -> None:
    gemms.tune(40, 64, 128, np.float16)
    library.version += 1
    assert number_of(GemmPlans(Cuda(), cache=tmp_path).plan(40, 64, 128, np.float16)) == 10


def test_writers_keep_what_others_wrote(tmp_path: Path) -> None:
    def entry(i: int) -> Entry:
        return Entry(bytes([i]) * ALGORITHM_BYTES, "it was the fastest", 1.0, 2.0, 1.0, 0.5)

    one, two = AlgorithmCache(tmp_path, "GPU", 1), AlgorithmCache(tmp_path, "GPU", 1)
    one.put("a", entry(1))
    two.put("b", entry(2))
    found = [AlgorithmCache(tmp_path, "GPU", 1).get(name) for name in "ab"]
    assert found == [entry(1).algorithm, entry(2).algorithm]
    threads = [
        threading.Thread(target=AlgorithmCache(tmp_path, "GPU", 1).put, args=(str(i), entry(i))) for i in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    after = AlgorithmCache(tmp_path, "GPU", 1)
    assert after.get("a") == entry(1).algorithm
    assert any(after.get(str(i)) == entry(i).algorithm for i in range(8))
    assert [path.name for path in tmp_path.iterdir()] == [after.path.name]


def test_a_cache_that_cannot_be_written_is_done_without(library: CublasLt, tmp_path: Path) -> None:
    (tmp_path / "cublaslt").write_text("a file where a directory should be")
    gemms = GemmPlans(Cuda(), cache=tmp_path)
    assert number_of(gemms.tune(40, 64, 128, np.float16)) == 13
    assert number_of(gemms.plan(40, 64, 128, np.float16)) == 13


def test_what_the_library_holds_is_freed(library: CublasLt, machine: Machine, tmp_path: Path) -> None:
    before = machine.memory_left
    gemms = GemmPlans(Cuda(), cache=tmp_path)
    plans = [gemms.plan(m, 64, 64, np.float16) for m in (1, 2)]
    gemms.tune(2, 64, 64, np.float16)  # replaces the second, which is still held here
    assert library.alive
    del gemms
    gc.collect()
    assert machine.memory_left < before  # the plans can still be launched
    del plans
    gc.collect()
    assert not library.alive and machine.memory_left == before


def test_after_close_nothing_reaches_the_library(library: CublasLt, gemms: GemmPlans) -> None:
    plan = gemms.plan(1, 8, 8, np.float16)
    gemms.tune(1, 8, 8, np.float16)
    gemms.close()
    gemms.close()
    assert not library.alive
    with pytest.raises(LaunchError, match=r"gemm float16 \[1, 8\] · \[8, 8\]ᵀ .*: its GemmPlans is closed"):
        plan.launch(0, 0, 0, 0)
    for make in (gemms.plan, gemms.tune):
        with pytest.raises(LaunchError, match="gemm: this GemmPlans is closed"):
            make(2, 8, 8, np.float16)


def test_plans_are_forgotten_before_they_fill_memory(
    library: CublasLt, gemms: GemmPlans, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gemma_cuda.device.cuda.cublaslt._MOST_PLANS", 3)
    gemms.plan(1, 8, 8, np.float16)
    one = len(library.alive)
    for m in range(2, 9):
        gemms.plan(m, 8, 8, np.float16)
    gc.collect()
    assert len(library.alive) == 1 + 3 * (one - 1)


def test_products_run_on_their_own_gpu(library: CublasLt, machine: Machine, tmp_path: Path) -> None:
    cuda = Cuda(1)
    gemms = GemmPlans(cuda, cache=tmp_path)
    x, weight = values(0, 2, 16, dtype="float16"), values(1, 8, 16, dtype="float16")
    out = cuda.empty((2, 8), x.dtype)
    gemms.run(gemms.plan(2, 8, 16, x.dtype), out, cuda.from_host(x), cuda.from_host(weight))
    assert cuda.to_host(out).tobytes() == expected(x, weight, x.dtype)
    assert machine.device == 0


SIZES: dict[str, Any] = {"m": 4, "n": 8, "k": 16, "dtype": np.float16}
REFUSED: list[tuple[dict[str, Any], str]] = [
    (
        {"dtype": np.float32},
        "float32 [4, 16] · [8, 16]ᵀ to float32, rows 16 and 8 apart, 16-byte alignment: expected bf",
    ),
    ({"out_dtype": ml_dtypes.bfloat16}, "expected bfloat16 or float16, to the same or float32"),
    ({"m": 0}, "expected sizes of 1 and more"),
    ({"ldx": 15}, "rows that do not overlap"),
    ({"ldo": 7}, "rows that do not overlap"),
    ({"alignment": 12}, "an alignment that is a power of two"),
    ({"alignment": 1}, "CUBLAS_STATUS_NOT_SUPPORTED"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_refuses_to_plan(gemms: GemmPlans, library: CublasLt, changes: dict[str, Any], message: str) -> None:
    for make in (gemms.plan, gemms.tune):
        with pytest.raises(LaunchError) as info:
            make(**{**SIZES, **changes})
        assert message in str(info.value) and str(info.value).startswith("gemm ")
        del info  # its traceback holds what was made
    gc.collect()
    assert len(library.alive) == 1  # the handle


ARRAYS: list[tuple[str, Any, str]] = [
    (
        "x",
        np.zeros((4, 24), np.float16),
        "x is float16 [4, 24], rows 24 apart, expected float16 [4, 16], rows 16 apart",
    ),
    ("x", np.zeros((4, 16), np.float32), "x is float32 [4, 16]"),
    ("weight", np.zeros((8, 32), np.float16)[:, :16], "weight is float16 [8, 16], rows 32 apart, expected"),
    ("weight", np.zeros((8, 16), ml_dtypes.bfloat16), "weight is bfloat16 [8, 16], rows 16 apart, expected float16"),
    ("out", np.zeros((4, 8), np.float32), "out is float32 [4, 8], rows 8 apart, expected float16 [4, 8]"),
    ("x", np.zeros((4, 32), np.float16)[:, ::2], "x is float16 [4, 16], rows 32 apart"),
]


@pytest.mark.parametrize(("name", "array", "message"), ARRAYS)
def test_refuses_arrays_that_a_plan_is_not_for(
    gemms: GemmPlans, library: CublasLt, name: str, array: Any, message: str
) -> None:
    cuda, plan = Cuda(), gemms.plan(**SIZES)
    arrays = {"out": np.zeros((4, 8), np.float16), "x": np.zeros((4, 16), np.float16)}
    arrays |= {"weight": np.zeros((8, 16), np.float16), name: array}
    placed = {each: on_gpu(cuda, array) for each, array in arrays.items()}
    with pytest.raises(LaunchError) as info:
        gemms.run(plan, **placed)
    assert message in str(info.value) and library.launched == []


def on_gpu(cuda: Cuda, array: Any) -> Any:
    """The array there, with the strides that it has here."""
    if array.base is None or array.flags.c_contiguous:
        return cuda.from_host(array)
    step = array.strides[1] // array.itemsize
    return cuda.from_host(array.base)[:, : array.shape[1] * step : step]


def test_refuses_rows_that_are_not_contiguous_and_pointers_that_are_not_aligned(gemms: GemmPlans) -> None:
    cuda, plan = Cuda(), gemms.plan(4, 8, 16, np.float16, ldx=32)
    room, weight, out = (cuda.empty(shape, np.float16) for shape in ((4, 32), (8, 16), (4, 8)))
    with pytest.raises(LaunchError, match="the rows of x are not contiguous"):
        gemms.run(plan, out, room[:, ::2], weight)
    with pytest.raises(LaunchError, match="x starts off a multiple of 16 bytes"):
        gemms.run(plan, out, room[:, 1:17], weight)


def test_what_the_library_refuses_is_told_with_the_product(gemms: GemmPlans, library: CublasLt) -> None:
    cuda, plan = Cuda(), gemms.plan(**SIZES)
    library.refused = {10}
    arrays = [cuda.empty(shape, np.float16) for shape in ((4, 8), (4, 16), (8, 16))]
    with pytest.raises(LaunchError) as info:
        gemms.run(plan, *arrays)
    assert str(info.value) == (
        "gemm float16 [4, 16] · [8, 16]ᵀ to float16, rows 16 and 8 apart, 16-byte alignment: "
        "cuBLASLt refuses the launch: CUBLAS_STATUS_NOT_SUPPORTED (15): algorithm 10"
    )


def test_no_algorithm_at_all(library: CublasLt, tmp_path: Path) -> None:
    library.algorithms = (Algorithm(1, 1.0, workspace=1 << 40),)
    with pytest.raises(LaunchError, match="NOT_SUPPORTED"):
        GemmPlans(Cuda(), cache=tmp_path).plan(**SIZES)


def test_what_is_not_installed_is_named(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cublaslt.hide_nvmath(monkeypatch)
    monkeypatch.setattr(cublaslt_bindings, "libraries", lambda: iter(["libcublasLt.so.99"]))
    with pytest.raises(
        DeviceError, match=r"nvmath-python: .*; libcublasLt.so.99: .*: pip install 'gemma-cuda\[cuda13\]'"
    ):
        GemmPlans(Cuda())


def test_a_library_that_does_not_load_or_start_is_told(
    library: CublasLt, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lt = sys.modules["nvmath.bindings.cublasLt"]

    def missing() -> int:
        raise RuntimeError("libcublasLt.so.13 is not found")

    def refused() -> int:
        raise fake_cublaslt.cuBLASLtError(fake_cublaslt.Status.NOT_INITIALIZED, "create")

    create = lt.create
    monkeypatch.setattr(lt, "create", missing)
    with pytest.raises(DeviceError, match=r"nvmath-python: libcublasLt.so.13 is not found\): pip install"):
        GemmPlans(Cuda(), cache=tmp_path)
    monkeypatch.setattr(lt, "create", refused)
    with pytest.raises(DeviceError, match=r"cuBLASLt cannot be used \(nvmath-python: CUBLAS_STATUS_NOT_INITIALIZED"):
        GemmPlans(Cuda(), cache=tmp_path)
    # The next one that is there is taken.
    other = types.SimpleNamespace(**{**vars(lt), "create": create})
    monkeypatch.setattr(cublaslt_handles, "bindings", lambda reasons: iter([("first", lt), ("second", other)]))
    assert GemmPlans(Cuda(), cache=tmp_path).bindings == "second"


def test_the_fake_has_the_names_values_and_types_of_the_real_bindings() -> None:
    """nvmath-python is installed for the tests; none of this touches a GPU."""
    from cuda.bindings import runtime
    from nvmath.bindings import cublas, cublasLt

    for fake, real in (
        (fake_cublaslt.MatmulDescAttribute, cublasLt.MatmulDescAttribute),
        (fake_cublaslt.MatmulPreferenceAttribute, cublasLt.MatmulPreferenceAttribute),
    ):
        assert {member.name: member.value for member in fake} == {member.name: real[member.name] for member in fake}
    for dtypes, real_dtype in (
        (fake_cublaslt.DESC_DTYPES, cublasLt.get_matmul_desc_attribute_dtype),
        (fake_cublaslt.PREFERENCE_DTYPES, cublasLt.get_matmul_preference_attribute_dtype),
    ):
        assert all(np.dtype(real_dtype(attribute)) == np.dtype(dtype) for attribute, dtype in dtypes.items())
    assert cublasLt.matmul_algo_dtype == fake_cublaslt.ALGORITHM
    assert cublasLt.matmul_algo_dtype.itemsize == ALGORITHM_BYTES
    assert cublasLt.matmul_heuristic_result_dtype == fake_cublaslt.RESULT
    assert cublas.ComputeType.COMPUTE_32F == cublaslt_handles.COMPUTE_FLOAT32
    assert cublas.Operation.T == cublaslt_handles.TRANSPOSED
    assert cublasLt.ReductionScheme.COMPUTE_TYPE == cublaslt_handles.REDUCE_IN_FLOAT32
    names = {"bfloat16": "CUDA_R_16BF", "float16": "CUDA_R_16F", "float32": "CUDA_R_32F"}
    types = {name: int(getattr(runtime.cudaDataType, member)) for name, member in names.items()}
    assert types == cublaslt_handles.DATA_TYPES
    assert issubclass(cublasLt.cuBLASLtError, Exception)


def test_ctypes_and_the_fake_agree(library: CublasLt) -> None:
    """On names, values and types; the fake's are compared with nvmath-python's."""
    fake, ours = sys.modules["nvmath.bindings.cublasLt"], cublaslt_bindings.CtypesBindings
    for name in ("MatmulDescAttribute", "MatmulPreferenceAttribute"):
        assert getattr(ours, name).__members__ == getattr(fake, name).__members__
    for attribute in fake.MatmulPreferenceAttribute:
        assert ours.get_matmul_preference_attribute_dtype(attribute) == fake_cublaslt.PREFERENCE_DTYPES[attribute]
    assert ours.get_matmul_desc_attribute_dtype(3) == fake_cublaslt.DESC_DTYPES[3]
    assert ours.matmul_algo_dtype == fake.matmul_algo_dtype
    assert ours.matmul_heuristic_result_dtype == fake.matmul_heuristic_result_dtype


def test_ctypes_passes_as_many_arguments_as_the_library_takes() -> None:
    """By the declarations that nvmath-python ships, of each function that returns a status."""
    declaration = importlib.metadata.distribution("nvmath-python").locate_file("nvmath/bindings/cycublasLt.pxd")
    text = Path(str(declaration)).read_text()
    declared = dict(re.findall(r"^cdef cublasStatus_t (\w+)\((.*?)\) ", text, re.MULTILINE))
    for name, parameters in cublaslt_bindings._PARAMETERS.items():
        kinds = [kind_of(parameter) for parameter in declared[name].split(",")]
        assert kinds == list(parameters), name


def kind_of(parameter: str) -> Any:
    """The ctypes type of a parameter as Cython declares it."""
    kind = parameter.strip().rpartition(" ")[0].removeprefix("const ").strip()
    by_value = {"size_t": ctypes.c_size_t, "uint64_t": ctypes.c_uint64, "int64_t": ctypes.c_int64, "int": ctypes.c_int}
    is_enum = kind in ("cublasComputeType_t", "cudaDataType_t", "cudaDataType") or kind.endswith("Attributes_t")
    return ctypes.c_int if is_enum else by_value.get(kind, ctypes.c_void_p)


def test_where_ctypes_looks_for_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In packages on the path, unpacked or installed, in toolkits, and by name; CUDA 13's before CUDA 12's."""
    there = (
        "site/nvidia/cu13/lib/libcublasLt.so.13", "site/nvidia/cublas/lib/libcublasLt.so.12",
        "other/torch/lib/libcublasLt.so.12", "toolkit/lib64/libcublasLt.so.13",
    )  # fmt: skip
    for path in there:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    for name in ("CUDA_PATH", "CONDA_PREFIX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "toolkit"))
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site"), str(tmp_path / "other")])
    found = [path.removeprefix(f"{tmp_path}/") for path in cublaslt_bindings.libraries()]
    assert [path for path in found if not path.startswith("/usr")] == [
        there[0], there[3], "libcublasLt.so.13", there[1], there[2], "libcublasLt.so.12"
    ]  # fmt: skip


def test_the_fake_has_the_functions_of_the_real_bindings_with_their_parameters(library: CublasLt) -> None:
    fake = sys.modules["nvmath.bindings.cublasLt"]
    declared = real_signatures()
    functions = {name: value for name, value in vars(fake).items() if callable(value) and name in declared}
    assert len(functions) == 16
    for name, function in functions.items():
        assert len(inspect.signature(function).parameters) == declared[name], name
    used = set(
        re.findall(
            r"\b(?:lt|library\.bindings)\.(\w+)", "".join(inspect.getsource(m) for m in (cublaslt, cublaslt_handles))
        )
    )
    assert used <= set(vars(fake)) and {"matmul", "create"} <= used


def real_signatures() -> dict[str, int]:
    """Function of the installed nvmath.bindings.cublasLt -> how many parameters its declaration has."""
    declaration = importlib.metadata.distribution("nvmath-python").locate_file("nvmath/bindings/cublasLt.pxd")
    text = Path(str(declaration)).read_text()
    found = re.findall(r"^cpdef (?:\w+ )?(\w+)\((.*?)\)", text, re.MULTILINE)
    return {name: len([p for p in parameters.split(",") if p]) for name, parameters in found}


@pytest.mark.parametrize("bindings", ["nvmath", "ctypes"])
def test_the_real_bindings_pass_on_what_they_are_given(bindings: str, tmp_path: Path) -> None:
    """nvmath-python itself and ctypes, on a libcublasLt and a libcuda of ours that live in host memory."""
    libraries = {"fake_libcuda.c": "libcuda.so.1", "fake_libcublaslt.c": "nvidia/cu13/lib/libcublasLt.so.13"}
    for source, name in libraries.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        flags = ["-shared", "-fPIC", "-Wall", "-Werror", f"-Wl,-soname,{Path(name).name}"]
        subprocess.run(["cc", *flags, "-o", str(tmp_path / name), str(TESTS / "support" / source)], check=True)
    paths = [str(tmp_path / name) for name in libraries.values()]
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.bound_gemm", bindings, *paths, str(tmp_path / "cache")],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    used, refusal, launched, closed = done.stdout.splitlines()
    assert used == f"{'nvmath-python' if bindings == 'nvmath' else paths[1]} 130100"
    assert refusal.startswith("gemm float16 [1, 8] · [8, 8]ᵀ to float16") and "NOT_SUPPORTED" in refusal
    assert launched.split()[0] == "77" and int(launched.split()[1]) >= 6 and closed == "0"
