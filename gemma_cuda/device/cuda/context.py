"""One GPU: its properties, CuPy's current stream on it, events, and errors of its kernels."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from ...errors import DeviceError
from ..driver import INSTALL_CUDA
from ..protocol import Array
from .compile import architecture_of
from .errors import raise_cuda_errors
from .launch_plan import LaunchPlan

if TYPE_CHECKING:
    import cupy


class CudaContext:
    """The GPU number `index` of those visible. wait: the host waits for each launch.

    Raises DeviceError where there is no such GPU or a package is not installed.
    """

    def __init__(self, index: int, *, wait: bool) -> None:
        _require_packages()
        import cupy

        self.index, self.wait = index, wait
        self.last = ""  # name of the last launch
        hint = "" if wait else "; it, or one launched before it: Cuda(wait=True) tells which"
        self._raise_cuda_errors = raise_cuda_errors(lambda: self.last, hint)
        self._plan: LaunchPlan | None = None  # that is being recorded
        self._retired: list[tuple[cupy.cuda.Event, Array]] = []
        try:
            count = cupy.cuda.runtime.getDeviceCount()
            if not 0 <= index < count:
                raise DeviceError(f"device 'cuda:{index}' does not exist: {count} GPUs are visible")
            self._gpu = cupy.cuda.Device(index)
            capability = self._gpu.compute_capability
            self.shared_bytes = int(self._gpu.attributes["MaxSharedMemoryPerBlockOptin"])
            properties = cupy.cuda.runtime.getDeviceProperties(index)
        except cupy.cuda.runtime.CUDARuntimeError as error:
            raise DeviceError(f"device 'cuda' cannot be used: {error}") from error
        self.compute_capability = int(capability[:-1]), int(capability[-1])
        self.architecture = architecture_of(self.compute_capability)
        self.gpu_name, self.cache_bytes = properties["name"].decode(), int(properties["l2CacheSize"])

    def current(self) -> AbstractContextManager[object]:
        """`with cuda.current():` makes this GPU the current one of CUDA's libraries."""
        return self._gpu

    @property
    def stream(self) -> int:
        """Handle of the current stream on this GPU."""
        import cupy

        with self._gpu:  # each GPU has its own
            return int(cupy.cuda.get_current_stream().ptr)

    def is_capturing(self) -> bool:
        """Whether launches on the current stream are captured into a CUDA graph."""
        import cupy

        with self._gpu:
            return bool(cupy.cuda.runtime.streamIsCapturing(cupy.cuda.get_current_stream().ptr))

    def synchronize(self, *, all_streams: bool = False) -> None:
        """Waits for the current stream, or for the whole GPU; KernelError if one of its kernels failed."""
        import cupy

        self._check_not_recording("synchronize")
        with self._gpu, self._raise_cuda_errors:
            (self._gpu if all_streams else cupy.cuda.get_current_stream()).synchronize()

    def record_event(self, event: cupy.cuda.Event | None) -> cupy.cuda.Event:
        """The event (None: a new one), recorded at the present end of the current stream."""
        import cupy

        self._check_not_recording("record_event")
        with self._gpu, self._raise_cuda_errors:
            if self._retired:
                self._retired = [(done, array) for done, array in self._retired if not done.done]
            event = cupy.cuda.Event(disable_timing=True) if event is None else event
            event.record(cupy.cuda.get_current_stream())
        return event

    def wait_event(self, event: cupy.cuda.Event) -> None:
        """Makes later work on the current stream wait for the event's last record."""
        import cupy

        self._check_not_recording("wait_event")
        with self._gpu, self._raise_cuda_errors:
            cupy.cuda.get_current_stream().wait_event(event)

    def retire(self, array: Array) -> None:
        """Keeps an array until the work that is on the current stream now is done; the caller drops it.

        CuPy reuses memory in the order of the stream it was allocated on, and does not ask other streams.
        """
        event = self.record_event(None)  # which also drops arrays whose work is done
        self._retired.append((event, array))

    def _check_not_recording(self, operation: str) -> None:
        if self._plan is not None:
            raise DeviceError(f"{operation} while a plan is recorded: it would run now, and not when the plan does")


def _require_packages() -> None:
    """Raises DeviceError unless CuPy and cuda-bindings are installed."""
    try:
        import cupy  # noqa: F401
        from cuda.bindings import driver  # noqa: F401
    except ImportError as error:
        raise DeviceError(f"device 'cuda' needs CuPy and cuda-bindings ({error}): {INSTALL_CUDA}") from error
