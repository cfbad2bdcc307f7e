"""Bindings of cuBLASLt: nvmath-python's low-level ones or, without them, ctypes over a library that is found."""

from __future__ import annotations

import ctypes
import enum
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

LIBRARY_VARIABLE = "GEMMA_CUDA_CUBLASLT"
"""Environment variable: path of the libcublasLt to use instead of those that are found."""

_NAMES = ("libcublasLt.so.13", "libcublasLt.so.12")  # the values below are the same in both
# Its directories in wheels: NVIDIA's for CUDA 13 and 12, and torch's.
_IN_PACKAGES = ("nvidia/cu13/lib", "nvidia/cublas/lib", "torch/lib")
_IN_TOOLKITS = ("lib64", "lib", "targets/x86_64-linux/lib", "targets/sbsa-linux/lib")


def bindings(reasons: list[str]) -> Iterator[tuple[str, Any]]:
    """(name, bindings) of each candidate, best first, with the functions of nvmath.bindings.cublasLt that we use.

    reasons: gets a line for each that is missing or does not load.
    """
    chosen = os.environ.get(LIBRARY_VARIABLE)
    if not chosen:
        try:
            from nvmath.bindings import cublasLt
        except ImportError as error:
            reasons.append(f"nvmath-python: {error}")
        else:
            yield "nvmath-python", cublasLt
    for name in [chosen] if chosen else libraries():
        try:
            yield name, CtypesBindings(ctypes.CDLL(name))
        # AttributeError: of a function that it lacks; ValueError: the loader's message repeats a name that is not UTF-8
        except (OSError, AttributeError, ValueError) as error:
            reasons.append(str(error) if name in str(error) else f"{name}: {error}")


def libraries() -> Iterator[str]:
    """Paths of libcublasLt in packages and toolkits, then its bare name for the loader; the newest version first."""
    packages = [Path(entry or ".") / place for entry in sys.path for place in _IN_PACKAGES]
    roots = [os.environ.get(name) for name in ("CUDA_HOME", "CUDA_PATH", "CONDA_PREFIX")]
    toolkits = [Path(root) / place for root in [*roots, "/usr/local/cuda"] if root for place in _IN_TOOLKITS]
    for name in _NAMES:
        yield from (str(folder / name) for folder in [*packages, *toolkits] if (folder / name).is_file())
        yield name


class CublasLtError(Exception):
    """A status that is not success."""


class MatmulDescAttribute(enum.IntEnum):
    """cublasLtMatmulDescAttributes_t, as far as it is used."""

    TRANSA = 3


class MatmulPreferenceAttribute(enum.IntEnum):
    """cublasLtMatmulPreferenceAttributes_t, as far as it is used."""

    MAX_WORKSPACE_BYTES = 1
    REDUCTION_SCHEME_MASK = 3
    MIN_ALIGNMENT_A_BYTES = 5
    MIN_ALIGNMENT_B_BYTES = 6
    MIN_ALIGNMENT_C_BYTES = 7
    MIN_ALIGNMENT_D_BYTES = 8


_INT, _SIZE, _POINTER = ctypes.c_int, ctypes.c_size_t, ctypes.c_void_p
_FOUR_LAYOUTS = (_POINTER,) * 4
_PARAMETERS: dict[str, tuple[Any, ...]] = {
    "cublasLtCreate": (_POINTER,),
    "cublasLtDestroy": (_POINTER,),
    "cublasLtMatmulDescCreate": (_POINTER, _INT, _INT),
    "cublasLtMatmulDescDestroy": (_POINTER,),
    "cublasLtMatmulDescSetAttribute": (_POINTER, _INT, _POINTER, _SIZE),
    "cublasLtMatrixLayoutCreate": (_POINTER, _INT, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_int64),
    "cublasLtMatrixLayoutDestroy": (_POINTER,),
    "cublasLtMatmulPreferenceCreate": (_POINTER,),
    "cublasLtMatmulPreferenceDestroy": (_POINTER,),
    "cublasLtMatmulPreferenceSetAttribute": (_POINTER, _INT, _POINTER, _SIZE),
    "cublasLtMatmulAlgoGetHeuristic": (_POINTER, _POINTER, *_FOUR_LAYOUTS, _POINTER, _INT, _POINTER, _POINTER),
    "cublasLtMatmulAlgoCheck": (_POINTER, _POINTER, *_FOUR_LAYOUTS, _POINTER, _POINTER),
    "cublasLtMatmul": (*(_POINTER,) * 14, _SIZE, _POINTER),
}
"""Parameters of functions that return a cublasStatus_t. A Create function returns its object through the first."""


class CtypesBindings:
    """The names of nvmath.bindings.cublasLt, over a library that ctypes has loaded. Addresses and handles are ints."""

    cuBLASLtError = CublasLtError
    MatmulDescAttribute = MatmulDescAttribute
    MatmulPreferenceAttribute = MatmulPreferenceAttribute
    matmul_algo_dtype = np.dtype([("data_", "<u8", (8,))])
    matmul_heuristic_result_dtype = np.dtype(
        [
            ("algo", matmul_algo_dtype), ("workspace_size", "<u8"), ("state", "<i4"), ("waves_count", "<f4"),
            ("reserved", "<i4", (4,)),
        ]
    )  # fmt: skip

    def __init__(self, library: Any) -> None:
        self._name_of = library.cublasLtGetStatusName
        self._name_of.argtypes, self._name_of.restype = (_INT,), ctypes.c_char_p
        version = library.cublasLtGetVersion
        version.argtypes, version.restype = (), _SIZE
        self.get_version: Callable[[], int] = version
        call = {name: self._checked(library, name) for name in _PARAMETERS}
        self.destroy = call["cublasLtDestroy"]
        self.matmul_desc_destroy = call["cublasLtMatmulDescDestroy"]
        self.matmul_desc_set_attribute = call["cublasLtMatmulDescSetAttribute"]
        self.matrix_layout_destroy = call["cublasLtMatrixLayoutDestroy"]
        self.matmul_preference_destroy = call["cublasLtMatmulPreferenceDestroy"]
        self.matmul_preference_set_attribute = call["cublasLtMatmulPreferenceSetAttribute"]
        self.matmul_algo_get_heuristic = call["cublasLtMatmulAlgoGetHeuristic"]
        self.matmul_algo_check = call["cublasLtMatmulAlgoCheck"]
        self.matmul = call["cublasLtMatmul"]
        self.create = _giving(call["cublasLtCreate"])
        self.matmul_desc_create = _giving(call["cublasLtMatmulDescCreate"])
        self.matrix_layout_create = _giving(call["cublasLtMatrixLayoutCreate"])
        self.matmul_preference_create = _giving(call["cublasLtMatmulPreferenceCreate"])

    @staticmethod
    def get_matmul_desc_attribute_dtype(attribute: int) -> Any:
        """Of the value of an attribute."""
        return np.int32

    @staticmethod
    def get_matmul_preference_attribute_dtype(attribute: int) -> Any:
        """Of the value of an attribute."""
        return np.uint64 if attribute == MatmulPreferenceAttribute.MAX_WORKSPACE_BYTES else np.uint32

    def _checked(self, library: Any, name: str) -> Callable[..., None]:
        """The function, which raises CublasLtError for any status but success."""
        function = getattr(library, name)
        function.argtypes, function.restype = _PARAMETERS[name], _INT

        def call(*arguments: Any) -> None:
            status = function(*arguments)
            if status != 0:
                raise CublasLtError(f"{self._name_of(status).decode()} ({status})")

        return call


def _giving(create: Callable[..., None]) -> Callable[..., int]:
    """A Create function without its output parameter, whose value it returns."""

    def call(*arguments: Any) -> int:
        made = ctypes.c_void_p()
        create(ctypes.addressof(made), *arguments)
        return made.value or 0

    return call
