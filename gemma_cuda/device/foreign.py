"""The caller's arrays: views of them for kernels and the reference, and memory for results in kind."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import cache
from typing import Any, Protocol

import ml_dtypes
import numpy as np

from ..arguments import integers, shown
from ..errors import GemmaError, InputError, OutOfMemoryError
from .protocol import Array, Device, is_device

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
# Ops whose kernels declare parameters constant. The caller's own kernels may have just written what it passes there, so
# these launches start when all before them has ended.
_WITH_CONSTANTS = ("rms_norm", "qk_norm_rope")


class Caller(Protocol):
    """The library and the place that the arrays of one call come from."""

    library: str
    place: str  # "cpu" or "cuda:0"

    def view(self, x: Any) -> Array:
        """The memory of x as a NumPy array, or as a CuPy one if it lies on a GPU."""

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
        """Memory for a result, as the caller's library allocates it."""

    def stream(self) -> AbstractContextManager[Any]:
        """Inside, CuPy works on the caller's current stream."""


class NumPy:
    """NumPy's arrays and those of any library that speaks DLPack on the CPU; results are NumPy's."""

    library, place = "NumPy", "cpu"

    def view(self, x: Any) -> Array:
        array = x if isinstance(x, np.ndarray) else _exchanged(x)
        if isinstance(array, np.ma.MaskedArray) and np.ma.is_masked(array):
            raise InputError("an array is masked, and its hidden elements would count: fill them")
        if not array.dtype.isnative:
            raise InputError(f"an array is {array.dtype.str}: its bytes are in another order than this machine's")
        return array

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
        with _enough_memory(shape, dtype):
            return np.empty(shape, dtype)

    def stream(self) -> AbstractContextManager[Any]:
        return nullcontext()


class CuPy:
    """CuPy's arrays, and those with `__cuda_array_interface__` or DLPack on a GPU; results are CuPy's."""

    library = "CuPy"

    def __init__(self, index: int) -> None:
        self.index, self.place = index, f"cuda:{index}"

    def view(self, x: Any) -> Array:
        import cupy

        if isinstance(x, cupy.ndarray):
            return x
        return cupy.asarray(x) if hasattr(x, "__cuda_array_interface__") else cupy.from_dlpack(x)

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
        import cupy

        return cupy.empty(shape, dtype)

    def stream(self) -> AbstractContextManager[Any]:
        import cupy

        return cupy.cuda.Device(self.index)


class Torch:
    """Tensors of one device; results are tensors in the memory of torch's allocator."""

    library = "torch"

    def __init__(self, device: Any) -> None:
        self.device, self.place = device, "cpu" if device.type == "cpu" else f"cuda:{device.index}"

    def view(self, x: Any) -> Array:
        import torch

        tensor = x.detach().resolve_neg()
        bits = tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor  # neither side exchanges bfloat16
        if self.place == "cpu":
            array = bits.numpy()
        else:
            import cupy

            array = cupy.from_dlpack(bits)
        return array.view(BFLOAT16) if bits is not tensor else array

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
        import torch

        with _enough_memory(shape, dtype):
            return torch.empty(shape, dtype=getattr(torch, dtype.name), device=self.device)

    def stream(self) -> AbstractContextManager[Any]:
        if self.place == "cpu":
            return nullcontext()
        import cupy
        import torch

        both = ExitStack()
        both.enter_context(cupy.cuda.Device(self.device.index))
        both.enter_context(cupy.cuda.ExternalStream(torch.cuda.current_stream(self.device).cuda_stream))
        return both


def _exchanged(x: Any) -> Array:
    try:
        return np.from_dlpack(x)
    except Exception as error:  # of whatever a stranger's __dlpack__ raises
        raise InputError(f"{shown(x)} cannot be taken by DLPack: {error}") from error


@contextmanager
def _enough_memory(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Iterator[None]:
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # NumPy's and torch's
        raise OutOfMemoryError(f"a result of {dtype.name} {list(shape)} does not fit memory") from error


_OPTIONAL = frozenset(
    ("attn_bias", "out", "weight", "q_weight", "k_weight", "k_cache", "v_cache", "slots", "positions")
)
_TORCH_DTYPES = ("bfloat16", "float16", "float32", "float64", "bool", "int16", "int32", "int64", "uint8")


def caller_of(op: str, arrays: dict[str, Any]) -> Caller:
    """The one Caller that all arrays (None: not given) are of; raises InputError where they differ."""
    first: tuple[str, Caller] | None = None
    for name, x in arrays.items():
        if x is None and name in _OPTIONAL:
            continue
        own = _caller(op, name, x)
        if first is None:
            first = name, own
        elif own.library != first[1].library:
            raise InputError(
                f"{op}: {name} is of {own.library}, {first[0]} of {first[1].library}; bring all arrays of one library"
            )
        elif own.place != first[1].place:
            raise InputError(f"{op}: {name} is on {own.place}, {first[0]} on {first[1].place}")
    assert first is not None
    return first[1]


def _caller(op: str, name: str, x: Any) -> Caller:
    try:
        return _library_of(op, name, x)
    except GemmaError:
        raise
    except Exception as error:  # of whatever a stranger's array raises
        raise InputError(f"{op}: {name} is {shown(x)}, which is no array: {error}") from error


def _library_of(op: str, name: str, x: Any) -> Caller:
    if isinstance(x, np.ndarray):
        return NumPy()
    if is_torch(x):
        return _torch(op, name, x)
    if is_of(x, "cupy", "ndarray"):
        return CuPy(int(x.device.id))
    if hasattr(x, "__dlpack_device__"):
        kind, index = (int(part) for part in x.__dlpack_device__())
        if kind == 1:
            return NumPy()
        if kind == 2:
            return CuPy(index)
        raise InputError(f"{op}: {name} is on a device of DLPack's kind {kind}, expected the CPU (1) or a CUDA GPU (2)")
    if hasattr(x, "__cuda_array_interface__"):
        import cupy

        return CuPy(int(cupy.asarray(x).device.id))
    raise InputError(f"{op}: {name} is {shown(x)}, expected an array of NumPy, torch, CuPy or JAX")


def _torch(op: str, name: str, x: Any) -> Caller:
    check_memory(op, name, x)
    if x.device.type not in ("cpu", "cuda"):
        raise InputError(f"{op}: {name} is on {x.device}, expected a tensor on the CPU or a CUDA GPU")
    if str(x.dtype).removeprefix("torch.") not in _TORCH_DTYPES:
        raise InputError(f"{op}: {name} is {x.dtype}, expected one of {', '.join(_TORCH_DTYPES[:4])}")
    import torch

    if x.requires_grad and torch.is_grad_enabled():
        raise InputError(
            f"{op}: {name} requires gradients and there is no backward pass; call it inside torch.no_grad() or "
            "torch.inference_mode(), or keep torch's own function where you train"
        )
    return Torch(x.device)


def is_of(x: Any, module: str, name: str) -> bool:
    """Whether x is an instance of `module.name`; imports nothing, since whoever has an array has its library."""
    home = sys.modules.get(module)
    return bool(home is not None and isinstance(x, getattr(home, name)))


def is_torch(x: Any) -> bool:
    """Whether x is a torch.Tensor."""
    return is_of(x, "torch", "Tensor")


def check_memory(op: str, name: str, x: Any) -> None:
    """Raises InputError for a tensor whose elements do not lie in one strided block of memory."""
    if x.is_nested:
        raise InputError(
            f"{op}: {name} is a nested tensor; join its parts, torch.cat(x.unbind()), and tell attention their lengths "
            "by cu_seqlens (layout SHD)"
        )
    if x.layout is not sys.modules["torch"].strided:
        raise InputError(f"{op}: {name} is {x.layout}, expected a dense tensor")


def _are_torch(arrays: tuple[Any, ...]) -> bool:
    given = [x for x in arrays if x is not None]
    return bool(given) and all(map(is_torch, given))


def is_traced(*arrays: Any) -> bool:
    """Whether torch records, plans or maps a call on these tensors: then no value of theirs may be asked for."""
    if not _are_torch(arrays):
        return False
    torch: Any = sys.modules["torch"]
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return True
    plain = (torch.Tensor, torch.nn.Parameter)
    if any(isinstance(x, torch.Tensor) and (type(x) not in plain or x.is_meta) for x in arrays):
        return True
    return torch._C._len_torch_dispatch_stack() > 0 or torch._C._functorch.peek_interpreter_stack() is not None


def is_observed(*arrays: Any) -> bool:
    """Whether a call on these tensors is traced, cast or differentiated: then torch has to see a custom op."""
    if is_traced(*arrays):
        return True
    if not _are_torch(arrays):
        return False
    torch: Any = sys.modules["torch"]
    casts = any(torch.is_autocast_enabled(x.device.type) for x in arrays if x is not None)
    return bool(casts or torch.autograd.forward_ad._current_level >= 0)


def is_jax(x: Any) -> bool:
    """Whether x is a jax.Array; those that a transformation traces are."""
    return is_of(x, "jax", "Array")


def to_host(op: str, name: str, x: Any) -> np.ndarray[Any, Any]:
    """int64 NumPy copy of integers wherever they are; raises InputError for anything else."""
    return integers(f"{op}: {name}", x)


def device_for(op: str, device: str | Device | None, caller: Caller) -> Device | None:
    """Where a call on the caller's arrays runs; None: on the NumPy reference. Raises InputError where it cannot."""
    if device is not None and not isinstance(device, str):
        if not is_device(device):
            raise InputError(f"{op}: device is {shown(device)}, expected None, a name such as 'emulator', or a Device")
        name = device.name
        if (caller.place == "cpu") == (name == "emulator"):
            return device
    else:
        name = device or ("numpy" if caller.place == "cpu" else "cuda")
        if caller.place == "cpu" and name in ("numpy", "emulator"):
            return _emulator() if name == "emulator" else None
        if caller.place != "cpu" and name in ("cuda", caller.place):
            return _cuda(int(caller.place.removeprefix("cuda:")), op not in _WITH_CONSTANTS)
    expected = "'numpy' or 'emulator'" if caller.place == "cpu" else f"'cuda' or {caller.place!r}"
    raise InputError(f"{op}: device is {shown(name)}, but the arrays are on {caller.place}: expected None, {expected}")


@cache
def _emulator() -> Device:
    from .emulator.device import Emulator

    return Emulator()


@cache
def _cuda(index: int, overlap: bool) -> Device:
    from .cuda.device import Cuda

    return Cuda(index, overlap=overlap)


def overlap(a: Array, b: Array) -> bool:
    """Whether the bytes from the first to the last of a and of b meet."""
    spans: list[tuple[int, int]] = []
    for x in (a, b):
        if x.size == 0:
            return False
        reach = [(n - 1) * step for n, step in zip(x.shape, x.strides, strict=True)]
        start = address(x)
        spans.append((start + sum(min(r, 0) for r in reach), start + sum(max(r, 0) for r in reach) + x.dtype.itemsize))
    return spans[0][0] < spans[1][1] and spans[1][0] < spans[0][1]


def broadcast_to(x: Array, shape: tuple[int, ...]) -> Array:
    """A view of x that repeats it, in NumPy or CuPy as x is."""
    if isinstance(x, np.ndarray):
        return np.broadcast_to(x, shape)
    import cupy

    return cupy.broadcast_to(x, shape)


def address(x: Array) -> int:
    """Where the first element of a NumPy or CuPy array lies."""
    return int(x.ctypes.data) if isinstance(x, np.ndarray) else int(x.data.ptr)
