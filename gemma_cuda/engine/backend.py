"""Where a model is put, in which precision, with which ops: the wishes of the caller, granted or refused."""

from __future__ import annotations

import weakref
from contextlib import AbstractContextManager, nullcontext

from .. import arguments
from ..config import ModelConfig
from ..device import DeviceChoice, choose_device, open_device
from ..device.cuda import Cuda
from ..device.cuda.stream_order import StreamOrder
from ..device.protocol import Device, is_device
from ..errors import DeviceError, InputError
from ..formats.checkpoint import Checkpoint
from ..model.kv_storage import Memory
from ..model.ops import Ops
from ..model.weights import weight_elements
from ..ops.kernel_ops import kernel_ops, missing_kernels
from ..precision import BFLOAT16, PRECISIONS, Precision, precision
from ..reference import ReferenceOps


def choose(device: str | Device, dtype: str, config: ModelConfig | None = None) -> tuple[DeviceChoice, Precision]:
    """The device and the precision of a model, as far as they can be told without its configuration (None).

    "auto" takes NumPy for what kernels do not do. InputError for a dtype that the device does not compute in.
    """
    arguments.choice("dtype", dtype, ("auto", *PRECISIONS))
    if not isinstance(device, str):
        if not is_device(device):
            raise InputError(f"device is {arguments.shown(device)}, expected a device or its name")
        chosen = DeviceChoice(device.name, "it was given", None)
    elif device == "auto" and dtype not in ("auto", "bfloat16"):
        chosen = DeviceChoice("numpy", f"kernels do not compute in {dtype}", None)
    else:
        chosen = choose_device(device)
    lacks = None if config is None or chosen.name == "numpy" else missing_kernels(config)
    if lacks is not None:
        if device != "auto":
            raise DeviceError(f"device {chosen.name!r}: {lacks}; use device 'numpy'")
        chosen = DeviceChoice("numpy", "there are no kernels for this model", f"{chosen.reason}, but {lacks}")
    on_kernels = chosen.name != "numpy"
    working = precision("bfloat16" if dtype == "auto" and on_kernels else dtype)
    if on_kernels and working is not BFLOAT16:
        raise InputError(f"dtype is {dtype}, kernels compute in bfloat16; device 'numpy' has the other dtypes")
    return chosen, working


def make_ops(checkpoint: Checkpoint, chosen: DeviceChoice, working: Precision, device: str | Device, gemm: str) -> Ops:
    """The ops of the chosen device, which has room for the weights; device: as the caller gave it."""
    arguments.choice("gemm", gemm, ("auto", "library", "kernel"))
    what = f"the weights of {checkpoint.path.name} in {working.name}"
    if chosen.name == "numpy":
        if gemm != "auto":
            raise InputError(f"gemm is {gemm!r}, but device 'numpy' has no kernels to choose from")
        reference = ReferenceOps(working)
        reference.require_memory(weight_elements(checkpoint, reference) * working.compute.itemsize, what)
        return reference
    ops = kernel_ops(open_device(chosen.name) if isinstance(device, str) else device, gemm)
    ops.require_memory(weight_elements(checkpoint, ops) * ops.gemm.element_bytes, what)
    return ops


def stream_order(memory: Memory, user: object) -> AbstractContextManager[None]:
    """Surrounds each use of a GPU's memory, so that uses on different streams wait for one another.

    A `user` that is dropped waits for its last use: the order in which its memory is given again is that of one stream.
    """
    if not isinstance(memory, Cuda):
        return nullcontext()
    order = StreamOrder(memory)
    weakref.finalize(user, order.wait).atexit = False
    return order
