"""What CUDA says of kernels that failed, in our words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...errors import KernelError

if TYPE_CHECKING:
    from .device import Cuda


class Reporting:
    """`with reporting:` turns what CUDA reports of kernels launched before into a KernelError."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is None:
            return
        import cupy

        if isinstance(error, cupy.cuda.runtime.CUDARuntimeError):
            hint = "" if self._cuda.wait else "; it, or one launched before it: Cuda(wait=True) tells which"
            raise KernelError(
                f"{error} after {self._cuda.last or 'no launch'}{hint}",
                kind="CUDA error",
                kernel=self._cuda.last,
                source="",
                block=(0, 0, 0),
                threads=(),
                primitive="",
                address=0,
            ) from error
