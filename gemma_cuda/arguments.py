"""Checks of the arguments of public functions: each returns the checked value or raises InputError, or `error`.

Any object may be passed. `name` is the argument's name in the message.
"""

from __future__ import annotations

import math
import operator
import os
import reprlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .errors import GemmaError, InputError, OutOfMemoryError
from .printable import shown_line

Kind = type[GemmaError]
_LONGEST_NAME = 255  # bytes of a file's name on the usual file systems
_LONGEST_SHOWN = 80  # characters of a value in a message


def integer(
    name: str,
    value: Any,
    *,
    least: int | None = None,
    most: int | None = None,
    otherwise: str = "",
    error: Kind = InputError,
) -> int:
    """An integer of Python, NumPy or any library as int; a bool or a float is an error.

    otherwise: end of the message, such as " or None".
    """
    given: int | None = None
    if not isinstance(value, bool | np.bool_):
        try:
            given = operator.index(value)
        except Exception:  # __index__ of an unknown class may raise anything
            given = None
    if given is None or (least is not None and given < least) or (most is not None and given > most):
        raise error(f"{name} is {shown(value)}, expected an integer{_bounds(least, most)}{otherwise}")
    return given


def number(
    name: str,
    value: Any,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    otherwise: str = "",
    error: Kind = InputError,
) -> float:
    """A finite real number of Python, NumPy or any library as float; a bool or a text is an error.

    otherwise: end of the message, such as ", or None for no cap".
    """
    given = _real(value)
    is_inside = (
        given is not None
        and (least is None or given >= least)
        and (above is None or given > above)
        and (most is None or given <= most)
    )
    if given is None or not is_inside:
        expected = (
            "a positive number" if above == 0 and most is None else f"a finite number{_bounds(least, most, above)}"
        )
        raise error(f"{name} is {shown(value)}, expected {expected}{otherwise}")
    return given


def flag(name: str, value: Any) -> bool:
    """True or False of Python or NumPy, or an integer 0 or 1, as bool."""
    if isinstance(value, bool | np.bool_) or (isinstance(value, int | np.integer) and value in (0, 1)):
        return bool(value)
    raise InputError(f"{name} is {shown(value)}, expected True or False")


def text(name: str, value: Any) -> str:
    """The value if it is a str."""
    if isinstance(value, str):
        return value
    raise InputError(f"{name} is {shown(value)}, expected a text (str)")


def choice(name: str, value: Any, choices: Iterable[str], *, error: Kind = InputError) -> str:
    """The value if it is one of `choices`."""
    allowed = tuple(choices)
    if isinstance(value, str) and value in allowed:
        return value
    raise error(f"{name} is {shown(value)}, expected one of {', '.join(allowed)}")


def path(name: str, value: Any, *, error: Kind = InputError) -> Path:
    """A str or os.PathLike as Path; an error too for a name that no file system takes."""
    try:
        given = os.fspath(value)
    except Exception:
        given = None
    if not isinstance(given, str):
        raise error(f"{name} is {shown(value)}, expected a path (str or os.PathLike)")
    try:
        encoded = os.fsencode(given)
    except UnicodeEncodeError as cause:
        raise error(f"{name} is {shown(given)}, which no file can be called") from cause
    if b"\0" in encoded or max(map(len, encoded.split(b"/"))) > _LONGEST_NAME:
        why = "holds a NUL" if b"\0" in encoded else f"has a part of more than {_LONGEST_NAME} bytes"
        raise error(f"{name} {why}: {shown(given)}")
    return Path(given)


def function(name: str, value: Any, *, error: Kind = InputError) -> Any:
    """The value if it can be called or is None."""
    if value is None or callable(value):
        return value
    raise error(f"{name} is {shown(value)}, expected a function or None")


def host_array(name: str, value: Any, *, error: Kind = InputError) -> np.ndarray[Any, Any]:
    """An array of any library, or nested sequences of numbers, as a NumPy array of the same values.

    An array on a GPU is copied. Objects, texts, dates, records and masked elements are errors; all else about dtype and
    shape is left to the caller.
    """
    try:
        array = np.asarray(_on_host(name, value, error))
    except GemmaError:
        raise
    except MemoryError as cause:
        raise OutOfMemoryError(f"{name}: {shown(value)} does not fit memory") from cause
    except Exception as cause:  # __array__ or __getitem__ of an unknown class may raise anything
        raise error(f"{name} cannot be taken as an array: {shown(value)} ({_first_line(cause)})") from cause
    if array.dtype.kind in "OSUMmV" and not _is_small_float(array.dtype):
        raise error(f"{name} is {shown(value)}, expected an array of numbers")
    return array


def integers(name: str, value: Any) -> np.ndarray[Any, Any]:
    """Integers of any library and shape as an int64 array; an empty array may have any dtype of numbers."""
    array = host_array(name, value)
    if array.size and array.dtype.kind not in "iu":
        raise InputError(f"{name} is {array.dtype}, expected integers")
    if array.dtype == np.uint64 and array.size and int(array.max()) >= 1 << 63:
        raise InputError(f"{name} holds {int(array.max())}, which is beyond 64 bits")
    try:
        return array.astype(np.int64)
    except MemoryError as cause:
        raise OutOfMemoryError(f"{name}: {shown(value)} does not fit memory as 64-bit integers") from cause


def has_axes(value: Any) -> bool:
    """Whether the value is a sequence or an array of at least one axis."""
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return True
    axes = _attribute(value, "ndim")
    return isinstance(axes, int) and axes > 0


def shown(value: Any) -> str:
    """A value for a message: one printable line of at most 80 characters; an array by its dtype and shape."""
    kind = f"a {type(value).__name__}"
    shape, dtype = _attribute(value, "shape"), _attribute(value, "dtype")
    if shape is not None and dtype is not None and not isinstance(value, np.generic):
        line = f"{kind} of {_first_line(dtype)} {_first_line(list(shape) if _is_tuple(shape) else shape)}"
    else:
        try:
            line = _REPR.repr(value)
        except Exception:
            line = kind
    return shown_line(line, _LONGEST_SHOWN - len("..."))


class _Repr(reprlib.Repr):
    """A repr that reads only a few elements, and only those of Python's own types."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother = 3, 60, 60

    def repr_instance(self, x: Any, level: int) -> str:
        try:
            described = repr(x)
        except Exception:
            described = ""
        return f"a {type(x).__name__}" if not described or " at 0x" in described else described

    def repr_int(self, x: int, level: int) -> str:
        return repr(x) if x.bit_length() <= 128 else f"an integer of {x.bit_length()} bits"


_REPR = _Repr()


def _real(value: Any) -> float | None:
    if isinstance(value, bool | np.bool_ | str | bytes | bytearray | np.datetime64 | np.timedelta64):
        return None
    if isinstance(value, np.ndarray) and value.ndim:
        return None
    try:
        given = float(value)
    except Exception:
        return None
    return given if math.isfinite(given) else None


def _on_host(name: str, value: Any, error: Kind) -> Any:
    """The value as np.asarray takes it: a tensor's memory as an array, an array on a GPU as a copy."""
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        raise error(
            f"{name} is a masked array with hidden elements; fill them, and say by attention_mask what is padding"
        )
    torch, cupy = sys.modules.get("torch"), sys.modules.get("cupy")
    if torch is not None and isinstance(value, torch.Tensor):
        if value.layout != torch.strided or value.is_quantized or value.device.type not in ("cpu", "cuda"):
            raise error(f"{name} is {shown(value)} on {value.device}, expected a dense tensor on the CPU or a CUDA GPU")
        tensor = value.detach().resolve_conj().resolve_neg().cpu()
        if tensor.dtype == torch.bfloat16:
            import ml_dtypes

            return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        return tensor.numpy()
    if cupy is not None and isinstance(value, cupy.ndarray):
        return value.get()
    if isinstance(value, set | frozenset | Mapping | str | bytes | bytearray):
        raise error(f"{name} is {shown(value)}, expected an array of numbers")
    return value


def _is_small_float(dtype: np.dtype[Any]) -> bool:
    """Whether the dtype is one of ml_dtypes' floats, of kind V for NumPy."""
    return dtype.kind == "V" and dtype.fields is None and dtype.type.__module__.startswith("ml_dtypes")


def _bounds(least: float | None, most: float | None, above: float | None = None) -> str:
    if above is not None:
        return f" above {above:g}" + ("" if most is None else f" and up to {most:g}")
    if least is None:
        return "" if most is None else f" of at most {most}"
    return f" of at least {least}" if most is None else f" from {least} to {most}"


def _attribute(value: Any, name: str) -> Any:
    try:
        return getattr(value, name, None)
    except Exception:
        return None


def _is_tuple(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _first_line(value: Any) -> str:
    try:
        return str(value).partition("\n")[0]
    except Exception:
        return f"a {type(value).__name__}"
