"""A Hypothesis strategy of values of every type, right and wrong ones, as arguments."""

from __future__ import annotations

import array
import datetime
import decimal
import fractions
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import ml_dtypes
import numpy as np
import torch
from hypothesis import strategies as st


class Raises:
    """Whatever it is asked, it raises."""

    def _refuse(self, *_: Any) -> NoReturn:
        raise ZeroDivisionError("asked")

    __len__ = __iter__ = __getitem__ = __bool__ = __index__ = __float__ = __array__ = __eq__ = _refuse
    __str__ = __fspath__ = __dlpack__ = __dlpack_device__ = __call__ = __hash__ = _refuse

    def __repr__(self) -> str:
        return "Raises()"  # for Hypothesis, which shows it


class Claims:
    """Looks like an array by its attributes, and is none."""

    shape, dtype, ndim, device, size = (2, 3), np.dtype(np.float32), 2, "cpu", 6


class Integer:
    """An index, which operator.index takes."""

    def __index__(self) -> int:
        return 1


def _same(value: Any) -> Any:
    return value


def _recursive() -> list[Any]:
    own: list[Any] = []
    own.append(own)
    return own


def _generator() -> Iterator[int]:
    yield from (1, 2)


def _masked() -> Any:
    return np.ma.MaskedArray([1, 2, 3], mask=[False, True, False])


def _requires_grad() -> torch.Tensor:
    return torch.ones(2, 3, requires_grad=True)


NUMBERS: tuple[Any, ...] = (
    *(0, 1, 2, 3, -1, -2, 2**31, -(2**31), 2**63, 2**64, -(2**63) - 1, 10**400),
    *(0.0, -0.0, 1.0, 1.5, -1.5, 1e-320, 1e308, float("inf"), float("-inf"), float("nan")),
    *(True, False, 1j, complex("nan"), decimal.Decimal("1.5"), decimal.Decimal("NaN"), fractions.Fraction(1, 3)),
    *(np.int8(-1), np.uint64(2**64 - 1), np.float16("inf"), np.float32("nan"), np.bool_(True), np.complex64(1j)),
    *(ml_dtypes.bfloat16(1), np.datetime64("2020-01-01"), np.timedelta64(1, "s"), datetime.date(2020, 1, 1)),
)
TEXTS: tuple[Any, ...] = (
    *("", " ", "a", "1", "\u00b2", "\u0661", "nan", "auto", "numpy", "BSHD", "\0", "\x1b[31mred", "\ud800", "x" * 1000),
    *(
        "../" * 30,
        "/dev/zero",
        "/proc/self/mem",
        "~nobody/x",
        "%s%n",
        "{0.__class__}",
        "\n",
        "é",
        b"",
        b"\xff",
        b"a\0b",
    ),
)
MAKERS: tuple[Callable[[], Any], ...] = (
    *(object, Raises, Claims, Integer, _recursive, _generator, _masked, _requires_grad, dict, list, set, tuple),
    *(lambda: [[]], lambda: [[1], [2, 3]], lambda: [None], lambda: ["a"], lambda: [1, "a"], lambda: [[1, 2], 3]),
    *(
        lambda: [1.5],
        lambda: [2**70],
        lambda: {1: 2},
        lambda: {"full_attention": None},
        lambda: {1, 2},
        lambda: range(3),
    ),
    *(lambda: [True], lambda: [[[1]]], lambda: [object()], lambda: [Raises()], lambda: [float("nan")], lambda: (1, 2)),
    *(lambda: bytearray(b"ab"), lambda: memoryview(b"ab"), lambda: memoryview(b"abcd").cast("B", (2, 2))),
    *(lambda: array.array("i", [1, 2]), lambda: slice(None), lambda: ..., lambda: len, lambda: int, lambda: np.float32),
    *(lambda: Path("a\0b"), lambda: Path("x" * 5000), lambda: Path("/dev/null"), lambda: Exception("e"), lambda: None),
    *(lambda: np.zeros(()), lambda: np.zeros(0), lambda: np.zeros((0, 3)), lambda: np.zeros((1,) * 12)),
    *(lambda: np.ones(3, ">i4"), lambda: np.ones(3, "O"), lambda: np.array(["a"]), lambda: np.ones(2, "complex64")),
    *(lambda: np.zeros(2, "datetime64[s]"), lambda: np.zeros(2, [("a", int)]), lambda: np.array([b"a"])),
    *(lambda: np.matrix([[1, 2]]), lambda: np.ones((4, 4))[::-2], lambda: np.full(3, np.nan), lambda: np.array(None)),
    *(lambda: np.ones(3, np.uint64) * np.uint64(2**63), lambda: np.broadcast_to(np.float32(1), (3, 2**40))),
    *(lambda: np.ones((2, 3), ml_dtypes.float8_e4m3fn), lambda: np.ones((2, 3), bool), lambda: np.longdouble(1)),
    *(
        lambda: torch.ones(2, 3),
        lambda: torch.ones(2, 3, device="meta"),
        lambda: torch.tensor(1),
        lambda: torch.tensor([]),
    ),
    *(lambda: torch.eye(2).to_sparse(), lambda: torch.nested.nested_tensor([torch.ones(1), torch.ones(2)])),
    *(
        lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
        lambda: torch.ones(2, 3).to(torch.complex64),
    ),
    *(
        lambda: torch.ones(2, 3).conj(),
        lambda: torch.ones(2, 3).expand(2, 3),
        lambda: torch.ones(2, 3, dtype=torch.bfloat16),
    ),
    *(lambda: torch.float32, lambda: torch.device("cpu"), lambda: np.random.default_rng(0), lambda: lambda *a: a),
)


EVERY: tuple[Callable[[], Any], ...] = (*(functools.partial(_same, value) for value in (*NUMBERS, *TEXTS)), *MAKERS)
"""A maker of each of these values."""


@st.composite
def anything(draw: st.DrawFn) -> Any:
    """A value of any type; made anew each time."""
    kind = draw(st.integers(0, 9))
    if kind < 2:
        return draw(st.sampled_from(NUMBERS))
    if kind < 3:
        return draw(st.sampled_from(TEXTS))
    if kind < 8:
        return draw(st.sampled_from(MAKERS))()
    if kind < 9:
        shape = tuple(draw(st.lists(st.integers(0, 4), max_size=4)))
        dtype = draw(st.sampled_from(["float32", "int64", "bool", "float16", "uint8", ml_dtypes.bfloat16]))
        return np.full(shape, draw(st.sampled_from([0, 1, 2, 7])), dtype)
    leaf = st.sampled_from([*NUMBERS, *TEXTS, None])
    return draw(st.recursive(leaf, lambda inner: st.lists(inner, max_size=3), max_leaves=5))


def is_large(value: Any) -> bool:
    """Whether a value is a number of more than a few."""
    try:
        return bool(abs(value) > 8)
    except Exception:
        return False
