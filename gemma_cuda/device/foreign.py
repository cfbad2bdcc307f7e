"""Arrays of NumPy, torch, CuPy and other libraries: views without a copy, and results from the same allocator."""

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
# Ops whose kernels read constant parameters before `grid_dependency_wait`. A kernel of the caller may still be writing
# these arrays, so launches of these ops do not overlap the launch before them.
_WITH_CONSTANTS = ("rms_norm", "qk_norm_rope")


class ArrayLibrary(Protocol):
    """The library and the device of the arrays of one call."""

    name: str
    device: str  # "cpu" or "cuda:0"

    def view(self, x: Any) -> Array:
        """The memory of x as a NumPy array, or as a CuPy one if it lies on a GPU."""

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
        """An uninitialized array of this library, from its own allocator."""

    def stream(self) -> AbstractContextManager[Any]:
        """A context in which CuPy's current stream is the library's current stream."""


class NumPy:
    """NumPy's arrays, and arrays with DLPack on the CPU; results are NumPy's."""

    name, device = "NumPy", "cpu"

    def view(self, x: Any) -> Array:
        array = x if isinstance(x, np.ndarray) else _from_dlpack(x)
        if isinstance(array, np.ma.MaskedArray) and np.ma.is_masked(array):
            raise InputError("an array is masked, and its hidden elements would count: fill them")
        if not array.dtype.isnative:
            raise InputError(f"an array is {array.dtype.str}: its bytes are in another order than this machine's")
        return array

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
        with _raise_out_of_memory(shape, dtype):
            return np.empty(shape, dtype)

    def stream(self) -> AbstractContextManager[Any]:
        return nullcontext()


class CuPy:
    """CuPy's arrays, and those with `__cuda_array_interface__` or DLPack on a GPU; results are CuPy's."""

    name = "CuPy"

    def __init__(self, index: int) -> None:
        self.index, self.device = index, f"cuda:{index}"

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

    name = "torch"

    def __init__(self, device: Any) -> None:
        self.torch_device, self.device = device, "cpu" if device.type == "cpu" else f"cuda:{device.index}"

    def view(self, x: Any) -> Array:
        import torch

        tensor = x.detach().resolve_neg()
        bits = tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor  # NumPy and DLPack lack bfloat16
        if self.device == "cpu":
            array = bits.numpy()
        else:
            import cupy

            array = cupy.from_dlpack(bits)
        return array.view(BFLOAT16) if bits is not tensor else array

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
        import torch

        with _raise_out_of_memory(shape, dtype):
            return torch.empty(shape, dtype=getattr(torch, dtype.name), device=self.torch_device)

    def stream(self) -> AbstractContextManager[Any]:
        if self.device == "cpu":
            return nullcontext()
        import cupy
        import torch

        both = ExitStack()
        both.enter_context(cupy.cuda.Device(self.torch_device.index))
        both.enter_context(cupy.cuda.ExternalStream(torch.cuda.current_stream(self.torch_device).cuda_stream))
        return both


def _from_dlpack(x: Any) -> Array:
    try:
        return np.from_dlpack(x)
    except Exception as error:  # any that a third-party __dlpack__ raises
        raise InputError(f"{shown(x)} cannot be taken by DLPack: {error}") from error


@contextmanager
def _raise_out_of_memory(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Iterator[None]:
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # NumPy's and torch's
        raise OutOfMemoryError(f"a result of {dtype.name} {list(shape)} does not fit memory") from error


_OPTIONAL = frozenset(
    ("attn_bias", "out", "weight", "q_weight", "k_weight", "k_cache", "v_cache", "slots", "positions")
)
_TORCH_DTYPES = ("bfloat16", "float16", "float32", "float64", "bool", "int16", "int32", "int64", "uint8")


def common_library(op: str, arrays: dict[str, Any]) -> ArrayLibrary:
    """The library and device that all arrays (None: not given) share; raises InputError where they differ."""
    first: tuple[str, ArrayLibrary] | None = None
    for name, x in arrays.items():
        if x is None and name in _OPTIONAL:
            continue
        try:
            own = _library(op, name, x)
        except GemmaError:
            raise
        except Exception as error:  # any that a third-party array raises
            raise InputError(f"{op}: {name} is {shown(x)}, which is no array: {error}") from error
        if first is None:
            first = name, own
        elif own.name != first[1].name:
            raise InputError(
                f"{op}: {name} is of {own.name}, {first[0]} of {first[1].name}; bring all arrays of one library"
            )
        elif own.device != first[1].device:
            raise InputError(f"{op}: {name} is on {own.device}, {first[0]} on {first[1].device}")
    assert first is not None
    return first[1]


def _library(op: str, name: str, x: Any) -> ArrayLibrary:
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


def _torch(op: str, name: str, x: Any) -> ArrayLibrary:
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
    """Whether x is an instance of `module.name`; imports nothing: if x is, then its module is loaded already."""
    home = sys.modules.get(module)
    return bool(home is not None and isinstance(x, getattr(home, name)))


def is_torch(x: Any) -> bool:
    """Whether x is a torch.Tensor."""
    return is_of(x, "torch", "Tensor")


def check_memory(op: str, name: str, x: Any) -> None:
    """Raises InputError for a nested or sparse tensor: kernels read one strided block of memory."""
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
    """Whether torch compiles, traces, fakes or vmaps a call on these tensors, so that their values cannot be read."""
    if not _are_torch(arrays):
        return False
    torch: Any = sys.modules["torch"]
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return True
    plain = (torch.Tensor, torch.nn.Parameter)
    if any(isinstance(x, torch.Tensor) and (type(x) not in plain or x.is_meta) for x in arrays):
        return True
    return torch._C._len_torch_dispatch_stack() > 0 or torch._C._functorch.peek_interpreter_stack() is not None


def needs_custom_op(*arrays: Any) -> bool:
    """Whether torch traces, autocasts or differentiates a call on these tensors, which takes a custom op."""
    if is_traced(*arrays):
        return True
    if not _are_torch(arrays):
        return False
    torch: Any = sys.modules["torch"]
    casts = any(torch.is_autocast_enabled(x.device.type) for x in arrays if x is not None)
    return bool(casts or torch.autograd.forward_ad._current_level >= 0)


def is_jax(x: Any) -> bool:
    """Whether x is a jax.Array, a tracer included."""
    return is_of(x, "jax", "Array")


def host_integers(op: str, name: str, x: Any) -> np.ndarray[Any, Any]:
    """int64 NumPy copy of integers of any library and device; raises InputError for other dtypes."""
    return integers(f"{op}: {name}", x)


def device_for(op: str, device: str | Device | None, library: ArrayLibrary) -> Device | None:
    """The Device that runs a call on arrays of `library`; None is the NumPy reference.

    Raises InputError for a device that cannot read these arrays.
    """
    own = library.device
    if device is not None and not isinstance(device, str):
        if not is_device(device):
            raise InputError(f"{op}: device is {shown(device)}, expected None, a name such as 'emulator', or a Device")
        name = device.name
        if (own == "cpu") == (name == "emulator"):
            return device
    else:
        name = device or ("numpy" if own == "cpu" else "cuda")
        if own == "cpu" and name in ("numpy", "emulator"):
            return _emulator() if name == "emulator" else None
        if own != "cpu" and name in ("cuda", own):
            return _cuda(int(own.removeprefix("cuda:")), op not in _WITH_CONSTANTS)
    expected = "'numpy' or 'emulator'" if own == "cpu" else f"'cuda' or {own!r}"
    raise InputError(f"{op}: device is {shown(name)}, but the arrays are on {own}: expected None, {expected}")


@cache
def _emulator() -> Device:
    from .emulator.device import Emulator

    return Emulator()


@cache
def _cuda(index: int, overlap: bool) -> Device:
    from .cuda.device import Cuda

    return Cuda(index, overlap=overlap)


def overlap(a: Array, b: Array) -> bool:
    """Whether the address ranges of a and b, from first to last byte, intersect."""
    spans: list[tuple[int, int]] = []
    for x in (a, b):
        if x.size == 0:
            return False
        reach = [(n - 1) * step for n, step in zip(x.shape, x.strides, strict=True)]
        start = address(x)
        spans.append((start + sum(min(r, 0) for r in reach), start + sum(max(r, 0) for r in reach) + x.dtype.itemsize))
    return spans[0][0] < spans[1][1] and spans[1][0] < spans[0][1]


def broadcast_to(x: Array, shape: tuple[int, ...]) -> Array:
    """A view of x, of NumPy or CuPy, with stride 0 along repeated axes."""
    if isinstance(x, np.ndarray):
        return np.broadcast_to(x, shape)
    import cupy

    return cupy.broadcast_to(x, shape)


def address(x: Array) -> int:
    """The address of the first element of a NumPy or CuPy array."""
    return int(x.ctypes.data) if isinstance(x, np.ndarray) else int(x.data.ptr)
