"""`KernelOps`: the operations of a model as kernels of one device."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from ..config import ModelConfig, RopeConfig
from ..device.protocol import Array, Device
from ..errors import DeviceError, InputError, OutOfMemoryError
from ..model.rope import Rope, cos_sin
from ..precision import BFLOAT16
from .attention import attend
from .attention_plan import HEAD_DIMS, AttentionPlan, Int32, plan_attention
from .embed import embed
from .geglu import geglu
from .gemm import BlasGemm, DryRunGemm, Gemm, GemmByRows, KernelGemm, LibraryGemm
from .logits import argmax
from .logits import softcap as cap_logits
from .qk_norm_rope import qk_norm_rope
from .rms_norm import add_norm, rms_norm

if TYPE_CHECKING:
    from ..device.dry_run import DryRunDevice

GEMMS = ("auto", "library", "kernel")
_FEWEST_ANGLES, _MOST_ANGLES = 1024, 1 << 17  # positions of a rotary table on the device


class KernelOps:
    """`model.ops.Ops` in bfloat16 on a device; gemm: the matrix-product backend."""

    precision = BFLOAT16
    takes_stored_tables = False
    hidden_dtype: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)

    def __init__(self, device: Device, gemm: Gemm) -> None:
        self.device, self.memory, self.gemm = device, device, gemm
        self._angles: dict[tuple[RopeConfig, int], tuple[Array, Array]] = {}

    def embed(self, ids: Array, table: Array, *, scale: float, **features: Array) -> Array:
        ids = self.index(ids) if isinstance(ids, np.ndarray) else ids
        return embed(ids, table, scale=scale, device=self.device, **features)

    def linear(self, x: Array, weight: Array) -> Array:
        return self.gemm.product(x, weight, self.hidden_dtype)

    def gated(self, x: Array, weight: Array) -> Array:
        return self.gemm.gated(x, weight)

    def geglu(self, gate: Array, up: Array) -> Array:
        return geglu(gate, up, device=self.device)

    def for_dry_run(self, device: DryRunDevice) -> tuple[KernelOps, DryRunGemm]:
        """The same ops on a DryRunDevice, and the DryRunGemm that notes the shapes of their cuBLASLt products."""
        noted = DryRunGemm(device)
        by_kernel = KernelGemm(device)
        gemm: Gemm = noted
        if isinstance(self.gemm, KernelGemm):
            gemm = by_kernel
        elif isinstance(self.gemm, GemmByRows):
            gemm = GemmByRows(by_kernel, noted)
        return KernelOps(device, gemm), noted

    def tune(self, shapes: Iterable[tuple[int, int, int, np.dtype[Any]]]) -> None:
        """Finds the library's fastest algorithm for products [M, N] over K to a dtype, where it is not known yet."""
        library = self.gemm.many if isinstance(self.gemm, GemmByRows) else self.gemm
        if isinstance(library, LibraryGemm):
            for shape in shapes:
                library.tune(*shape)

    def rms_norm(self, x: Array, weight: Array | None, *, eps: float, plus_one: bool = False) -> Array:
        return rms_norm(x, weight, eps=eps, plus_one=plus_one, device=self.device)

    def add_norm(self, residual: Array, branch: Array, **options: Any) -> tuple[Array, Array]:
        return add_norm(residual, branch, device=self.device, **options)

    def qk_norm_rope(self, x: Array, **options: Any) -> Array:
        return qk_norm_rope(x, device=self.device, **options)

    def rope(self, rope: RopeConfig, head_dim: int, position_ids: NDArray[np.int64]) -> Rope:
        most = int(position_ids.max(initial=0)) + 1
        if most > _MOST_ANGLES:
            cos, sin = cos_sin(rope, head_dim, position_ids, self.precision)
            return Rope(self.device.from_host(cos), self.device.from_host(sin))
        return Rope(*self.angles(rope, head_dim, most), self.index(position_ids))

    def angles(self, rope: RopeConfig, head_dim: int, positions: int) -> tuple[Array, Array]:
        """(cos, sin) [P, D/2] on the device of the positions 0 : P, P at least `positions`; kept for the next call."""
        known = self._angles.get((rope, head_dim))
        if known is None or len(known[0]) < positions:
            cos, sin = cos_sin(rope, head_dim, np.arange(_table_length(positions)), self.precision)
            for table in known or ():
                self.device.retire(table)
            known = self._angles[rope, head_dim] = self.device.from_host(cos), self.device.from_host(sin)
        return known

    def angle_bytes(self, head_dim: int, positions: int) -> int:
        """What `angles` takes."""
        return 4 * head_dim * _table_length(positions)

    def mask(
        self, key_begin: Int32, key_end: Int32, cu_seqlens: Int32, *, group: int, head_dim: int, is_plain: bool
    ) -> AttentionPlan:
        return plan_attention(
            key_begin, key_end, cu_seqlens, group=group, head_dim=head_dim, is_plain=is_plain, device=self.device
        )

    def attend(self, q: Array, k: Array, v: Array, *, mask: AttentionPlan, **options: Any) -> Array:
        return attend(mask, q, k, v, device=self.device, **options)

    def argmax(self, logits: Array) -> int:
        return int(self.device.to_host(argmax(logits, device=self.device))[0])

    def take(self, x: Array, rows: Array) -> Array:
        return embed(rows, x, scale=1.0, device=self.device)

    def index(self, rows: NDArray[Any]) -> Array:
        return self.device.from_host(rows.astype(np.int32))

    def bias(self, bias: NDArray[Any]) -> Array:
        return self.device.from_host(bias.astype(np.float32))

    def logits(self, hidden: Array, weight: Array, *, softcap: float | None) -> Array:
        z = self.gemm.product(hidden, weight, np.dtype(np.float32))
        return z if softcap is None else cap_logits(z, softcap, device=self.device)

    def from_host(self, x: NDArray[Any]) -> Array:
        return self.device.from_host(x.astype(self.hidden_dtype))

    def as_hidden(self, x: NDArray[Any]) -> Array:
        return self.device.from_host(x)

    def to_host(self, x: Array) -> NDArray[Any]:
        return np.asarray(self.device.to_host(x))

    def require_memory(self, need: int, what: str) -> None:
        """OutOfMemoryError, with both figures, if `need` bytes for `what` are not free on the device."""
        free = self.device.free_bytes()
        if need > free:
            raise OutOfMemoryError(f"{what}: needs {need / 1e9:.1f} GB, {free / 1e9:.1f} GB free on {self.device.name}")

    def upload_matrix(self, weight: NDArray[np.float32]) -> Array:
        return self.gemm.upload(weight)

    def upload_norm(self, weight: NDArray[np.float32]) -> Array:
        return self.device.from_host(weight.astype(self.hidden_dtype))

    def upload_table(self, table: NDArray[np.float32], matrix: Array | None) -> Array:
        is_the_same = matrix is not None and matrix.dtype == self.hidden_dtype
        return matrix if is_the_same else self.device.from_host(table.astype(self.hidden_dtype))


def _table_length(positions: int) -> int:
    return 1 << max(positions - 1, _FEWEST_ANGLES - 1).bit_length()


def kernel_ops(device: Device, gemm: str) -> KernelOps:
    """KernelOps on a device.

    gemm: "library" (cuBLASLt, BLAS on the emulator), "kernel" (kernels/linear.cu), or "auto": the library, on CUDA for
    products of more than 64 rows, and for none, with a RuntimeWarning, where there is no cuBLASLt. Raises InputError
    for another, DeviceError for "library" where there is none.
    """
    if gemm not in GEMMS:
        raise InputError(f"gemm is {gemm!r}, expected one of {', '.join(GEMMS)}")
    if gemm == "kernel":
        return KernelOps(device, KernelGemm(device))
    if device.name == "emulator":
        return KernelOps(device, BlasGemm(device))
    from ..device.cuda.device import Cuda

    assert isinstance(device, Cuda)
    if gemm == "library":
        return KernelOps(device, LibraryGemm(device))
    by_kernel = KernelGemm(device)
    try:
        return KernelOps(device, GemmByRows(by_kernel, LibraryGemm(device)))
    except DeviceError as error:
        warnings.warn(
            f"kernels/linear.cu does all products, those of long prompts, too, which are cuBLASLt's else: {error}. "
            "gemm='kernel' asks for it without this warning",
            RuntimeWarning,
            stacklevel=2,
        )
        return KernelOps(device, by_kernel)


def missing_kernels(config: ModelConfig) -> str | None:
    """What this model needs and no kernel does, in words; None if nothing is missing."""
    if config.generation == 4:
        return "there are no kernels for Gemma 4 yet"
    for i, layer in enumerate(config.layers):
        if layer.head_dim not in HEAD_DIMS:
            return f"layer {i} has head_dim {layer.head_dim}, kernels have {', '.join(map(str, HEAD_DIMS))}"
    return None
