"""gemma_cuda.arguments: what becomes of each kind of value, and in which words the rest is refused."""

from __future__ import annotations

import decimal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from gemma_cuda import arguments
from gemma_cuda.errors import CacheError, InputError
from tests.support.fuzz.hostile import Integer
from tests.support.fuzz.hostile import Raises as Printable


class Raises(Printable):
    def __repr__(self) -> str:
        raise ZeroDivisionError


def refused(check: Callable[..., Any], value: Any, message: str, **options: Any) -> None:
    with pytest.raises(InputError) as info:
        check("n", value, **options)
    assert str(info.value) == message


@pytest.mark.parametrize("value", [3, np.int8(3), np.uint64(3), np.array(3), torch.tensor(3)])
def test_an_integer_is_of_any_library(value: Any) -> None:
    given = arguments.integer("n", value, least=3, most=3)
    assert given == 3 and type(given) is int
    assert arguments.integer("n", Integer()) == 1


def test_what_is_no_integer_is_refused() -> None:
    for value, shown in ((1.0, "1.0"), (True, "True"), ("1", "'1'"), (None, "None"), (Raises(), "a Raises")):
        refused(arguments.integer, value, f"n is {shown}, expected an integer")
    refused(arguments.integer, -1, "n is -1, expected an integer of at least 0", least=0)
    refused(arguments.integer, 9, "n is 9, expected an integer from 0 to 8", least=0, most=8)
    refused(arguments.integer, np.ones(2), "n is a ndarray of float64 [2], expected an integer")
    refused(arguments.integer, 1 << 5000, "n is an integer of 5001 bits, expected an integer of at most 1", most=1)
    with pytest.raises(CacheError):
        arguments.integer("n", None, error=CacheError)


@pytest.mark.parametrize("value", [2, 2.0, np.float16(2), ml_dtypes.bfloat16(2), decimal.Decimal(2), torch.tensor(2.0)])
def test_a_number_is_of_any_library(value: Any) -> None:
    given = arguments.number("x", value, above=0, most=2)
    assert given == 2 and type(given) is float


def test_what_is_no_number_is_refused() -> None:
    for value in (
        float("nan"),
        float("inf"),
        10**400,
        "1",
        True,
        1j,
        np.ones(1),
        np.timedelta64(1, "s"),
        None,
        Raises(),
    ):
        with pytest.raises(InputError, match=r"^n is .*, expected a finite number$"):
            arguments.number("n", value)
    refused(arguments.number, 0, "n is 0, expected a positive number, or None", above=0, otherwise=", or None")
    refused(arguments.number, 2.5, "n is 2.5, expected a finite number above 0 and up to 1", above=0, most=1)


def test_flags_choices_texts_and_functions() -> None:
    assert arguments.flag("f", np.bool_(True)) is True and arguments.flag("f", 0) is False
    for value in (2, None, "yes", np.ones(2), Raises()):
        with pytest.raises(InputError, match="expected True or False"):
            arguments.flag("f", value)
    assert arguments.choice("c", "a", ("a", "b")) == "a"
    for value in ("c", ["a"], None, Raises()):
        with pytest.raises(InputError, match="expected one of a, b"):
            arguments.choice("c", value, ("a", "b"))
    with pytest.raises(InputError, match=r"t is b'a', expected a text"):
        arguments.text("t", b"a")
    assert arguments.function("h", None) is None and arguments.function("h", len) is len
    with pytest.raises(InputError, match="h is 3, expected a function or None"):
        arguments.function("h", 3)


def test_paths() -> None:
    assert arguments.path("p", "a/b") == arguments.path("p", Path("a/b")) == Path("a/b")
    assert arguments.path("p", "a\udcff") == Path("a\udcff")  # a name that is not UTF-8, as os.fsdecode gives it
    refused(arguments.path, b"a", "n is b'a', expected a path (str or os.PathLike)")
    refused(arguments.path, "a\0b", r"n holds a NUL: 'a\x00b'")
    refused(arguments.path, "\ud800", r"n is '\ud800', which no file can be called")
    with pytest.raises(InputError, match="n has a part of more than 255 bytes: 'a/xxx"):
        arguments.path("n", "a/" + "x" * 256)


@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
def test_arrays_of_any_library() -> None:
    expected = np.array([[1, 2], [3, 4]])
    for value in (
        *([[1, 2], [3, 4]], (range(1, 3), [3, 4]), expected.astype(">i2"), np.matrix(expected), torch.tensor(expected)),
        *(torch.tensor(expected, dtype=torch.float32, requires_grad=True), torch.tensor(expected).to(torch.bfloat16)),
        *(np.ma.MaskedArray(expected), memoryview(expected), np.asfortranarray(expected)),
    ):
        given = arguments.host_array("x", value)
        assert type(given) is np.ndarray and (given == expected).all()
    ones = arguments.integers("x", torch.ones(2, dtype=torch.int8))
    assert ones.dtype == np.int64 and ones.tolist() == [1, 1]
    assert arguments.integers("x", []).shape == (0,)


@pytest.mark.parametrize(
    "value",
    [
        *("12", b"12", {1, 2}, {1: 2}, [[1], [2, 3]], ["a"], [None], object(), Raises(), [Raises()], np.array(None)),
        *(np.ma.MaskedArray([1, 2], mask=[0, 1]), np.zeros(2, "M8[s]"), np.zeros(2, [("a", int)]), np.array(["a"])),
        *(torch.eye(2).to_sparse(), torch.ones(2, device="meta")),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_array_of_numbers(value: Any) -> None:
    with pytest.raises(InputError, match=r"^x "):
        arguments.host_array("x", value)


def test_integers_that_are_none() -> None:
    refused(arguments.integers, [1.5], "n is float64, expected integers")
    refused(arguments.integers, [True], "n is bool, expected integers")
    refused(arguments.integers, np.array([2**63], np.uint64), f"n holds {2**63}, which is beyond 64 bits")


def test_what_is_shown_is_one_short_printable_line() -> None:
    own: list[Any] = []
    own.append(own)
    for value in ("\x1b[31m\n" * 50, own, [1] * 10_000, {"a": "b" * 500}, Raises(), np.ones((3,) * 9), type, "\u202e"):
        assert arguments.shown(value).isprintable() and len(arguments.shown(value)) <= 80
    assert arguments.shown([1] * 100) == "[1, 1, 1, 1, 1, 1, ...]"
    assert arguments.shown("\x1b[31m") == r"'\x1b[31m'"
