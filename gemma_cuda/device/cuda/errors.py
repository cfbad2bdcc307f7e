"""Failures of kernels, which CUDA reports at a later call, as KernelError."""

from __future__ import annotations

from collections.abc import Callable

from ...errors import KernelError


class raise_cuda_errors:
    """`with raise_cuda_errors(...):` raises KernelError for a CUDA runtime error inside.

    last_launch: gives the name of the last launch, "" before the first. hint: end of the message.
    """

    def __init__(self, last_launch: Callable[[], str], hint: str) -> None:
        self._last_launch, self._hint = last_launch, hint

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is None:
            return
        import cupy

        if isinstance(error, cupy.cuda.runtime.CUDARuntimeError):
            kernel = self._last_launch()
            raise KernelError(
                f"{error} after {kernel or 'no launch'}{self._hint}",
                kind="CUDA error", kernel=kernel, source="", block=(0, 0, 0), threads=(), primitive="", address=0,
            ) from error  # fmt: skip
