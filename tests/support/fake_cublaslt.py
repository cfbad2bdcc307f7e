"""nvmath.bindings.cublasLt for tests, on the fake GPU of fake_cuda.py: what device/cuda/cublaslt.py asks of it.

It is as strict as the library: handles must be alive and of the kind that is wanted, attributes of the right size,
matrices must fit together and lie in memory of the GPU, an algorithm must be one for this product, with room for its
workspace and pointers as aligned as it needs. A launch is a product in float32 that waits in its stream.
"""

from __future__ import annotations

import ctypes
import enum
import itertools
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from tests.support.fake_cuda import Machine
from tests.support.fake_streams import Allocation, Stream, Work

HostArray = np.ndarray[Any, Any]

ALGORITHM = np.dtype([("data_", "<u8", (8,))])
RESULT = np.dtype(
    [
        ("algo", ALGORITHM),
        ("workspace_size", "<u8"),
        ("state", "<i4"),
        ("waves_count", "<f4"),
        ("reserved", "<i4", (4,)),
    ]
)
TYPES: dict[int, Any] = {0: np.float32, 2: np.float16, 14: ml_dtypes.bfloat16}
COMPUTE_32F, REAL_32F, TRANSPOSE, REDUCE_IN_COMPUTE_TYPE = 68, 0, 1, 2
VERSION = 130100


def hide_nvmath(patch: pytest.MonkeyPatch) -> None:
    """From now on nvmath-python is not installed."""
    for name in ("nvmath", "nvmath.bindings", "nvmath.bindings.cublasLt"):
        patch.setitem(sys.modules, name, None)


class Status(enum.IntEnum):
    """cublasStatus_t."""

    NOT_INITIALIZED = 1
    INVALID_VALUE = 7
    EXECUTION_FAILED = 13
    NOT_SUPPORTED = 15


class MatmulDescAttribute(enum.IntEnum):
    """The one that is used."""

    TRANSA = 3


class MatmulPreferenceAttribute(enum.IntEnum):
    """Those that are used."""

    MAX_WORKSPACE_BYTES = 1
    REDUCTION_SCHEME_MASK = 3
    MIN_ALIGNMENT_A_BYTES = 5
    MIN_ALIGNMENT_B_BYTES = 6
    MIN_ALIGNMENT_C_BYTES = 7
    MIN_ALIGNMENT_D_BYTES = 8


DESC_DTYPES: dict[int, Any] = {MatmulDescAttribute.TRANSA: np.int32}
PREFERENCE_DTYPES: dict[int, Any] = {
    attribute: np.uint64 if attribute == MatmulPreferenceAttribute.MAX_WORKSPACE_BYTES else np.uint32
    for attribute in MatmulPreferenceAttribute
}


class cuBLASLtError(Exception):
    """What the bindings raise for a status."""

    def __init__(self, status: Status, why: str) -> None:
        super().__init__(f"CUBLAS_STATUS_{status.name} ({status.value}): {why}")


@dataclass(frozen=True)
class Algorithm:
    """What the library may run. milliseconds: of a launch; reduces_in: cublasLtReductionScheme_t, 0 for none."""

    number: int
    milliseconds: float
    workspace: int = 0
    alignment: int = 2
    reduces_in: int = 0

    def packed(self) -> HostArray:
        value = np.zeros(1, ALGORITHM)
        value["data_"][0, 0] = self.number
        return value


# In the order of the library's guesses, which is not that of their speed.
ALGORITHMS = (
    Algorithm(10, 3.0),
    Algorithm(11, 2.0, workspace=4 << 20, alignment=16),
    Algorithm(12, 0.5, reduces_in=4),  # rounds parts of sums to the dtype of the result
    Algorithm(13, 1.0, workspace=16 << 20, alignment=16, reduces_in=2),
    Algorithm(14, 0.25, alignment=128),
    Algorithm(15, 0.125, workspace=64 << 20),
)


@dataclass
class Layout:
    """cublasLtMatrixLayout_t: column-major."""

    type: int
    rows: int
    columns: int
    stride: int

    def view(self, machine: Machine, pointer: int) -> tuple[Allocation, HostArray]:
        """The matrix [columns, rows], as rows of memory."""
        dtype = np.dtype(TYPES[self.type])
        allocation, memory = machine.pointed_to(pointer, "uint8")
        size = ((self.columns - 1) * self.stride + self.rows) * dtype.itemsize
        if memory.nbytes < size:
            raise LookupError(f"the matrix takes {size} bytes, {memory.nbytes} are left in its allocation")
        strides = (self.stride * dtype.itemsize, dtype.itemsize)
        values = memory[:size].view(dtype)
        return allocation, np.lib.stride_tricks.as_strided(values, (self.columns, self.rows), strides)


@dataclass
class Operation:
    """cublasLtMatmulDesc_t."""

    attributes: dict[int, int] = field(default_factory=dict)


@dataclass
class Preference:
    """cublasLtMatmulPreference_t."""

    attributes: dict[int, int] = field(
        default_factory=lambda: (
            {MatmulPreferenceAttribute.REDUCTION_SCHEME_MASK: 7}
            | {MatmulPreferenceAttribute[f"MIN_ALIGNMENT_{matrix}_BYTES"]: 256 for matrix in "ABCD"}
        )
    )


@dataclass
class Handle:
    """cublasLtHandle_t, of the GPU that was current."""

    device: int


class CublasLt:
    """The library on one machine. alive: every handle that is not destroyed; refused: numbers that fail at launch."""

    def __init__(self, machine: Machine, algorithms: tuple[Algorithm, ...] = ALGORITHMS) -> None:
        self.machine, self.algorithms = machine, algorithms
        self.alive: dict[int, object] = {}
        self.launched: list[int] = []
        self.refused: set[int] = set()
        self.version = VERSION
        self.slowdown: Callable[[], float] = lambda: 1.0  # of a launch, at the time when it runs
        self._numbers = itertools.count(0x7000)
        self._workspace_users: dict[int, Stream] = {}

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Makes this what `from nvmath.bindings import cublasLt` finds."""
        functions = {
            name: getattr(self, name)
            for name in ("create", "get_version", "matmul", "matmul_algo_get_heuristic", "matmul_algo_check")
        }
        module = types.ModuleType("nvmath.bindings.cublasLt")
        module.__dict__.update(
            functions,
            cuBLASLtError=cuBLASLtError,
            MatmulDescAttribute=MatmulDescAttribute,
            MatmulPreferenceAttribute=MatmulPreferenceAttribute,
            matmul_algo_dtype=ALGORITHM,
            matmul_heuristic_result_dtype=RESULT,
            get_matmul_desc_attribute_dtype=lambda attribute: DESC_DTYPES[attribute],
            get_matmul_preference_attribute_dtype=lambda attribute: PREFERENCE_DTYPES[attribute],
            destroy=self._destroyer(Handle),
            matmul_desc_create=self._create_operation,
            matmul_desc_destroy=self._destroyer(Operation),
            matmul_desc_set_attribute=self._setter(Operation, DESC_DTYPES),
            matrix_layout_create=self._create_layout,
            matrix_layout_destroy=self._destroyer(Layout),
            matmul_preference_create=lambda: self._new(Preference()),
            matmul_preference_destroy=self._destroyer(Preference),
            matmul_preference_set_attribute=self._setter(Preference, PREFERENCE_DTYPES),
        )
        bindings = types.ModuleType("nvmath.bindings")
        bindings.__dict__["cublasLt"] = module
        nvmath = types.ModuleType("nvmath")
        nvmath.__dict__["bindings"] = bindings
        for name, each in (("nvmath", nvmath), ("nvmath.bindings", bindings), (module.__name__, module)):
            monkeypatch.setitem(sys.modules, name, each)

    def create(self) -> int:
        return self._new(Handle(self.machine.device))

    def get_version(self) -> int:
        return self.version

    def matmul_algo_get_heuristic(
        self, handle: int, operation: int, a: int, b: int, c: int, d: int, preference: int, count: int, results: int,
        found: int,
    ) -> None:  # fmt: skip
        self._check_product(handle, operation, a, b, c, d)
        wanted = self._get(preference, Preference).attributes
        matrices = [MatmulPreferenceAttribute[f"MIN_ALIGNMENT_{matrix}_BYTES"] for matrix in "ABCD"]
        usable = [
            algorithm
            for algorithm in self.algorithms
            if algorithm.workspace <= wanted.get(MatmulPreferenceAttribute.MAX_WORKSPACE_BYTES, 0)
            and algorithm.alignment <= min(wanted[matrix] for matrix in matrices)
            and not algorithm.reduces_in & ~wanted[MatmulPreferenceAttribute.REDUCTION_SCHEME_MASK]
        ][:count]
        if not usable:
            raise cuBLASLtError(Status.NOT_SUPPORTED, "no algorithm")
        memory = np.frombuffer((ctypes.c_char * (count * RESULT.itemsize)).from_address(results), RESULT)
        for result, algorithm in zip(memory, usable, strict=False):
            result["algo"], result["workspace_size"] = algorithm.packed()[0], algorithm.workspace
        ctypes.c_int.from_address(found).value = len(usable)

    def matmul_algo_check(
        self, handle: int, operation: int, a: int, b: int, c: int, d: int, algorithm: int, result: int
    ) -> None:
        self._check_product(handle, operation, a, b, c, d)
        known = self._algorithm(algorithm)
        memory = np.frombuffer((ctypes.c_char * RESULT.itemsize).from_address(result), RESULT)
        memory["workspace_size"] = known.workspace

    def matmul(
        self, handle: int, operation: int, alpha: int, a: int, a_layout: int, b: int, b_layout: int, beta: int, c: int,
        c_layout: int, d: int, d_layout: int, algorithm: int, workspace: int, workspace_bytes: int, stream: int,
    ) -> None:  # fmt: skip
        self._check_product(handle, operation, a_layout, b_layout, c_layout, d_layout)
        factors = [ctypes.c_float.from_address(pointer).value for pointer in (alpha, beta)]
        assert factors == [1.0, 0.0] and c == d, "only out = x · weight is known here"
        known, machine = self._algorithm(algorithm), self.machine
        queue = machine.stream_at(stream)
        if any(pointer % known.alignment for pointer in (a, b, d)):
            raise cuBLASLtError(Status.INVALID_VALUE, "the alignment of a pointer")
        if known.workspace > workspace_bytes or known.number in self.refused:
            raise cuBLASLtError(Status.NOT_SUPPORTED, f"algorithm {known.number}")
        try:
            scratch, room = machine.pointed_to(workspace, "uint8")
            if room.nbytes < workspace_bytes:
                raise LookupError(f"the workspace has {room.nbytes} bytes, not {workspace_bytes}")
            weight_at, weight = self._get(a_layout, Layout).view(machine, a)
            x_at, x = self._get(b_layout, Layout).view(machine, b)
            out_at, out = self._get(d_layout, Layout).view(machine, d)
        except LookupError as error:
            machine.failure = f"matmul: {error}"
            return
        other = self._workspace_users.get(workspace)
        if other is not None and other is not queue and any(work.name == "matmul" for work in other.queue):
            machine.failure = "matmul: two streams use one workspace at the same time"
        self._workspace_users[workspace] = queue

        def run() -> None:
            machine.emulator.note_launch("matmul", [x, weight], [out], stream=machine.running.ptr)
            out[...] = (x.astype(np.float32) @ weight.astype(np.float32).T).astype(out.dtype)
            machine.clock += known.milliseconds * self.slowdown()

        queue.put(Work("matmul", run, [scratch, weight_at, x_at, out_at]))
        self.launched.append(known.number)

    def _check_product(self, handle: int, operation: int, a: int, b: int, c: int, d: int) -> None:
        if self._get(handle, Handle).device != self.machine.device:
            raise cuBLASLtError(Status.NOT_INITIALIZED, "another GPU is current")
        transposed = self._get(operation, Operation).attributes.get(MatmulDescAttribute.TRANSA) == TRANSPOSE
        weight, x, out = (self._get(layout, Layout) for layout in (a, b, d))
        fits = transposed and weight.rows == x.rows and (out.rows, out.columns) == (weight.columns, x.columns)
        if not fits or weight.type != x.type or out.type not in (x.type, REAL_32F) or x.type == REAL_32F or c != d:
            raise cuBLASLtError(Status.INVALID_VALUE, "the matrices do not fit")

    def _algorithm(self, address: int) -> Algorithm:
        data = np.frombuffer((ctypes.c_char * ALGORITHM.itemsize).from_address(address), ALGORITHM)["data_"][0]
        found = [each for each in self.algorithms if each.packed()["data_"][0].tolist() == data.tolist()]
        if not found:
            raise cuBLASLtError(Status.INVALID_VALUE, "not an algorithm of this library")
        return found[0]

    def _create_operation(self, compute_type: int, scale_type: int) -> int:
        if (compute_type, scale_type) != (COMPUTE_32F, REAL_32F):
            raise cuBLASLtError(Status.INVALID_VALUE, "sums are expected in float32")
        return self._new(Operation())

    def _create_layout(self, type: int, rows: int, columns: int, stride: int) -> int:
        if type not in TYPES or min(rows, columns) < 1 or stride < rows:
            raise cuBLASLtError(Status.INVALID_VALUE, f"a layout of {(type, rows, columns, stride)}")
        return self._new(Layout(type, rows, columns, stride))

    def _new(self, thing: object) -> int:
        number = next(self._numbers)
        self.alive[number] = thing
        return number

    def _get(self, number: int, kind: type[Any]) -> Any:
        thing = self.alive.get(number)
        if not isinstance(thing, kind):
            raise cuBLASLtError(Status.INVALID_VALUE, f"{number:#x} is not a living {kind.__name__}")
        return thing

    def _destroyer(self, kind: type[object]) -> Callable[[int], None]:
        def destroy(number: int) -> None:
            self._get(number, kind)
            del self.alive[number]

        return destroy

    def _setter(self, kind: type[Any], dtypes: dict[int, Any]) -> Callable[[int, int, int, int], None]:
        def set_attribute(number: int, attribute: int, address: int, size: int) -> None:
            dtype = np.dtype(dtypes[attribute])
            if size != dtype.itemsize:
                raise cuBLASLtError(
                    Status.INVALID_VALUE, f"attribute {attribute} has {dtype.itemsize} bytes, not {size}"
                )
            data = ctypes.string_at(address, size)
            self._get(number, kind).attributes[attribute] = int(np.frombuffer(data, dtype)[0])

        return set_attribute
