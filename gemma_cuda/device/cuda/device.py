"""An NVIDIA GPU through CuPy."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import DeviceError, LaunchError, OutOfMemoryError
from .. import sources
from ..arena import Arena
from ..arguments import Parameter, check_count, check_dimensions, check_pointer, pack_scalar
from ..dry_run import Launch
from ..protocol import Argument, Array
from .compile import CompiledKernel, architecture_of, compile_kernel, compile_kernels
from .errors import Reporting
from .launch_plan import CapturedPlan, LaunchPlan, PreparedLaunch, Startable, Use
from .staging import Pinned, Staging

if TYPE_CHECKING:
    import cupy

DEFAULT_SHARED_BYTES = 48 * 1024
"""What a block may have without asking for more, kernel by kernel."""
_FIRST_WITH_OVERLAP = (9, 0)
_STAGED_BYTES = 16 * 2**20  # of a block of pinned memory


@dataclass
class _Kernel:
    """A kernel that is loaded on the GPU. raw keeps it loaded; shared_bytes: of a block, that it may have by now."""

    compiled: CompiledKernel
    raw: cupy.RawKernel
    most_threads: int | None
    shared_bytes: int = DEFAULT_SHARED_BYTES


class _Place:
    """Stands for the use of a place in an arena."""

    def __init__(self, memory: Array) -> None:
        self._memory = memory


class Cuda:
    """A device that runs kernels on one GPU, on the caller's current CuPy stream.

    index: of the GPU among those visible. wait: wait for each kernel, so that what it does wrong is reported at its
    launch. overlap: let kernels that allow it start while the one before them ends, from sm_90 on. kernels: directory
    of .cu files, cache: of cubins (None: the package's own, the user's).
    A kernel is compiled and loaded at its first launch; before a stream is captured, launch once what it will launch.
    Raises DeviceError where there is no such GPU or something is not installed.
    """

    name = "cuda"

    def __init__(
        self,
        index: int = 0,
        *,
        wait: bool = False,
        overlap: bool = True,
        kernels: Path | None = None,
        cache: Path | None = None,
    ) -> None:
        _require()
        import cupy

        self.index, self.wait, self.overlap = index, wait, overlap
        self._kernels, self._cache = kernels, cache
        self._loaded: dict[str, _Kernel] = {}
        self.last = ""  # what was launched last
        self._reporting = Reporting(self)
        self._plan: LaunchPlan | None = None
        self._arena: tuple[Arena, Array] | None = None
        self._staging: Staging | None = None
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

    @classmethod
    def named(cls, name: str, **options: Any) -> Cuda:
        """The device "cuda" (the first GPU) or "cuda:1" stands for; raises DeviceError for any other name."""
        match = re.fullmatch(r"cuda(?::(\d+))?", name)
        if match is None:
            raise DeviceError(f"device is {name!r}, expected 'cuda' or a GPU's index as in 'cuda:1'")
        return cls(int(match[1] or 0), **options)

    def empty(self, shape: Sequence[int], dtype: Any) -> Array:
        """Array of the given shape whose values are not defined; raises OutOfMemoryError."""
        import cupy

        if self._arena is not None:
            return self._in_arena(*self._arena, tuple(shape), np.dtype(dtype))
        with self._gpu:
            try:
                return cupy.empty(tuple(shape), dtype)
            except cupy.cuda.memory.OutOfMemoryError as error:
                size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
                free, total = self._gpu.mem_info
                raise OutOfMemoryError(
                    f"cuda:{self.index}: {size:,} bytes asked for, {free:,} of {total:,} are free"
                ) from error

    def _in_arena(self, arena: Arena, memory: Array, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        import cupy

        size = math.prod(shape) * dtype.itemsize
        begin = arena.take(size)
        owner = _Place(memory)
        arena.give_with(owner, begin)  # every view of the array holds it
        place = cupy.cuda.UnownedMemory(memory.data.ptr + begin, size, owner, self.index)
        return cupy.ndarray(shape, dtype, cupy.cuda.MemoryPointer(place, 0))

    def zeros(self, shape: Sequence[int], dtype: Any) -> Array:
        """Array of zeros, as of the current stream; raises OutOfMemoryError."""
        array = self.empty(shape, dtype)
        self.fill(array, 0)
        return array

    def fill(self, array: Array, byte: int) -> None:
        """Sets each byte of a contiguous array, as of the current stream; 0xFF makes NaN of every float type."""
        self._check_not_recording("fill")
        with self._gpu, self._reporting:
            array.data.memset_async(byte, array.nbytes)

    def copy(self, target: Array, source: Array) -> None:
        """Copies source to target in the current stream; as many rows of as many bytes, each row contiguous."""
        import cupy

        self._check_not_recording("copy")
        runtime = cupy.cuda.runtime
        row = source.nbytes // max(len(source), 1)
        pitches = [array.strides[0] if len(array) > 1 else row for array in (target, source)]
        to, of, kind = target.data.ptr, source.data.ptr, runtime.memcpyDeviceToDevice
        with self._gpu, self._reporting:
            if pitches == [row, row]:
                runtime.memcpyAsync(to, of, source.nbytes, kind, self.stream)
            else:
                runtime.memcpy2DAsync(to, pitches[0], of, pitches[1], row, len(source), kind, self.stream)

    def retire(self, array: Array) -> None:
        """Keeps an array, which the caller drops, until what was launched by now is done.

        CuPy gives memory again in the order of the stream that it was allocated on; other streams are not asked.
        """
        event = self.mark(None)  # which drops what is done by now
        self._retired.append((event, array))

    def free_bytes(self) -> int:
        """What the GPU has free, and CuPy's pool holds unused."""
        import cupy

        with self._gpu:
            return int(self._gpu.mem_info[0]) + int(cupy.get_default_memory_pool().free_bytes())

    def release(self) -> None:
        """Gives what CuPy's pool holds unused back to the GPU, for other libraries."""
        import cupy

        with self._gpu:
            cupy.get_default_memory_pool().free_all_blocks()

    def from_host(self, array: Array) -> Array:
        """Contiguous copy on the GPU, same shape and dtype; the host's array may be changed at once."""
        self._check_not_recording("from_host")
        copy = self.empty(array.shape, array.dtype)
        if array.size:
            self.write(copy, array)
        return copy

    def write(self, target: Array, source: Array) -> None:
        """Starts copying an array of the host, which may be changed at once, to a contiguous one of its size.

        It is copied to pinned memory first: whether CUDA has read other memory when it returns is not defined.
        """
        self._check_not_recording("write")
        if self._staging is None:
            self._staging = Staging(self, _STAGED_BYTES)
        self._staging.upload(target, np.require(source, requirements="C"))

    def to_host(self, array: Array) -> Array:
        """NumPy copy of what the kernels launched so far on the current stream leave in `array`."""
        self._check_not_recording("to_host")
        bits = array.view(np.uint16) if array.dtype.name == "bfloat16" else array  # CuPy copies what it knows
        with self._gpu, self._reporting:
            values: Array = bits.get()
        return values.view(array.dtype)

    def address(self, array: Array) -> int:
        """Where the array's first element lies in the GPU's memory."""
        return int(array.data.ptr)

    def is_capturing(self) -> bool:
        """Whether what is launched on the current stream is captured into a CUDA graph."""
        import cupy

        with self._gpu:
            return bool(cupy.cuda.runtime.streamIsCapturing(cupy.cuda.get_current_stream().ptr))

    def synchronize(self, *, all_streams: bool = False) -> None:
        """Waits for the kernels on the current stream, or on all of the GPU; KernelError if one of them failed."""
        import cupy

        self._check_not_recording("synchronize")
        with self._gpu, self._reporting:
            (self._gpu if all_streams else cupy.cuda.get_current_stream()).synchronize()

    def mark(self, event: cupy.cuda.Event | None) -> cupy.cuda.Event:
        """The event (None: a new one), which now stands for what is on the current stream by now."""
        import cupy

        self._check_not_recording("mark")
        with self._gpu, self._reporting:
            if self._retired:
                self._retired = [(done, array) for done, array in self._retired if not done.done]
            event = cupy.cuda.Event(disable_timing=True) if event is None else event
            event.record(cupy.cuda.get_current_stream())
        return event

    def wait_for(self, event: cupy.cuda.Event) -> None:
        """Lets what comes next on the current stream wait for what the event stands for by now."""
        import cupy

        self._check_not_recording("wait_for")
        with self._gpu, self._reporting:
            cupy.cuda.get_current_stream().wait_event(event)

    @property
    def stream(self) -> int:
        """The current stream of this GPU, as CUDA's libraries take it."""
        import cupy

        with self._gpu:  # each GPU has its own
            return int(cupy.cuda.get_current_stream().ptr)

    def current(self) -> AbstractContextManager[object]:
        """`with cuda.current():` makes this GPU the one that CUDA's libraries use."""
        return self._gpu

    def graph_times(self, plans: Sequence[CapturedPlan]) -> list[float]:
        """Milliseconds that each of these plans takes, started one after another on the current stream; waits for them.

        The first one is started once before them, uncounted: while the GPU is at it the host gets ahead, and stays
        ahead where a graph takes longer than its start. Then no time of the host lies between two events.
        """
        import cupy

        self._check_not_recording("graph_times")
        with self._gpu, self._reporting:
            stream = cupy.cuda.get_current_stream()
            events = [cupy.cuda.Event() for _ in range(len(plans) + 1)]
            plans[0].graph.launch()
            events[0].record(stream)
            for plan, event in zip(plans, events[1:], strict=True):
                plan.graph.launch()
                event.record(stream)
            events[-1].synchronize()
            return [float(cupy.cuda.get_elapsed_time(*pair)) for pair in itertools.pairwise(events)]

    def launch(
        self,
        instance: str,
        grid: Sequence[int],
        block: Sequence[int],
        shared_bytes: int,
        args: Sequence[Argument],
        *,
        overlap: bool = False,
    ) -> None:
        """Starts one kernel instance on the current stream; see Device.launch. Before sm_90, overlap changes nothing.

        Arrays may be dropped once this returns: their memory is used again only by what comes later in their stream.
        Raises LaunchError before anything runs. What a kernel does wrong is a KernelError of whoever waits for it next.
        """
        grid_dim, block_dim = check_dimensions(instance, grid, block, shared_bytes, self.shared_bytes)
        overlap = overlap and self.overlap and self.compute_capability >= _FIRST_WITH_OVERLAP
        with self._gpu:
            kernel = self._load(instance)
            most = kernel.most_threads
            if most is not None and block_dim[0] * block_dim[1] * block_dim[2] > most:
                raise LaunchError(
                    f"{instance}: the block is {block_dim}, the kernel's launch bounds allow {most} threads"
                )
            parameters = kernel.compiled.parameters
            values = self._pack(instance, parameters, args)
            self._allow_shared_memory(kernel, shared_bytes)
            given, resources = [_facts(value) for value in args], kernel.compiled.resources
            prepared = PreparedLaunch(
                instance, kernel.raw.kernel.ptr, grid_dim, block_dim, shared_bytes, values, overlap=overlap,
                module=kernel.raw,
                describe=lambda: (
                    f"grid {grid_dim}, block {block_dim}, {shared_bytes} bytes of shared memory, {resources}, "
                    f"arguments {_words(parameters, given)}"
                ),
            )  # fmt: skip
            pointers = zip(parameters, args, values, strict=True)
            self.submit(
                instance, prepared,
                (Use.of(p.name, a, int.from_bytes(v, "little")) for p, a, v in pointers if _is_used(a)),
            )  # fmt: skip

    def load(self, launches: Sequence[Launch]) -> None:
        """Compiles what is not in the cache, on all processors at once, and loads it all."""
        instances = [launch.instance for launch in launches]
        compile_kernels(instances, self.architecture, kernels=self._kernels, cache=self._cache)
        with self._gpu:
            for launch in launches:
                self._allow_shared_memory(self._load(launch.instance), launch.shared_bytes)

    def submit(self, name: str, step: Callable[[int], None], uses: Iterable[Use]) -> None:
        """step(stream) starts something on the GPU: now, on the current stream, or when the plan is run.

        uses: every address that it takes.
        """
        if self._plan is not None:
            self._plan.add(name, step, uses)
            return
        with self._gpu:
            step(self.stream)
            self.last = name
            if self.wait:
                self.synchronize()

    @contextmanager
    def recording(self, arena: Arena, memory: Array) -> Iterator[LaunchPlan]:
        """Within it launches go to the plan instead of the GPU, and arrays lie in `memory`, where the arena says.

        memory: uint8, of the arena's size; the plan uses it whenever it runs. Whatever else the launches use, the plan
        holds from then on. What would run at once (copies, fills, waits) raises DeviceError.
        """
        self._check_not_recording("recording")
        self._plan, self._arena = LaunchPlan(arena, memory), (arena, memory)
        try:
            yield self._plan
        finally:
            self._plan = self._arena = None

    def _check_not_recording(self, what: str) -> None:
        if self._plan is not None:
            raise DeviceError(f"{what} while a plan is recorded: it would run now, and not when the plan does")

    def start(self, plan: Startable) -> None:
        """Starts a plan's launches on the current stream."""
        self._check_not_recording("start")
        with self._gpu:
            plan.start(self.stream)
            self.last = "a plan"
            if self.wait:
                self.synchronize()

    def capture(self, plan: Startable) -> CapturedPlan:
        """The plan as a CUDA graph, which `launch_graph` starts as a whole. It holds the plan.

        Run it once before: at their first launch libraries load what cannot be loaded during a capture.
        """
        import cupy

        self._check_not_recording("capture")
        with self._gpu, self._reporting, cupy.cuda.Stream(non_blocking=True) as stream:
            stream.begin_capture()
            try:
                plan.start(stream.ptr)
            finally:
                graph = stream.end_capture()
        return CapturedPlan(graph, plan)

    def launch_graph(self, captured: CapturedPlan) -> None:
        """Starts a captured plan on the current stream."""
        self._check_not_recording("launch_graph")
        with self._gpu, self._reporting:
            captured.graph.launch()
            self.last = "a graph"
            if self.wait:
                self.synchronize()

    def pinned(self, size: int) -> Pinned:
        """`size` bytes of the host's memory that the GPU can read by itself."""
        import cupy

        with self._gpu, self._reporting:
            owner = cupy.cuda.alloc_pinned_memory(size)
        return Pinned(np.frombuffer(owner, np.uint8, size), owner)

    def upload(self, target: Array, source: Pinned, size: int, begin: int = 0, offset: int = 0) -> None:
        """Starts copying `size` pinned bytes from byte `offset` on, to byte `begin` on of a contiguous array.

        source.wait() waits until the host may change them. DeviceError while somebody captures the current stream.
        """
        import cupy

        self._check_not_recording("upload")
        if self.is_capturing():
            raise DeviceError(
                "a CUDA graph is being captured: it would copy what lies there at its replay; place all arrays before"
            )
        to_device = cupy.cuda.runtime.memcpyHostToDevice
        with self._gpu, self._reporting:
            to, of = target.data.ptr + begin, source.data.ctypes.data + offset
            cupy.cuda.runtime.memcpyAsync(to, of, size, to_device, self.stream)
            source.is_read_until(self.mark(None).synchronize)

    def _load(self, instance: str) -> _Kernel:
        import cupy

        found = self._loaded.get(instance)
        if found is None:
            compiled = compile_kernel(instance, self.architecture, kernels=self._kernels, cache=self._cache)
            try:
                raw = cupy.RawModule(path=str(compiled.cubin)).get_function(compiled.lowered_name)
            except cupy.cuda.driver.CUDADriverError as error:
                raise DeviceError(
                    f"{instance}: the driver cannot load what {compiled.compiler} made for {self.architecture}: {error}"
                ) from error
            most_threads = sources.most_threads(instance, sources.find_kernel(instance, self._kernels))
            found = self._loaded[instance] = _Kernel(compiled, raw, most_threads)
        return found

    def _pack(self, instance: str, parameters: Sequence[Parameter], args: Sequence[Argument]) -> list[bytes]:
        """The bytes of each argument as the kernel's signature wants them."""
        import cupy

        check_count(instance, parameters, args)
        packed = []
        for position, (parameter, value) in enumerate(zip(parameters, args, strict=True)):
            if isinstance(value, cupy.ndarray):
                check_pointer(instance, position, parameter, value.dtype, read_only=False)
                self._check_array(instance, position, parameter, value)
                packed.append(int(value.data.ptr).to_bytes(8, "little"))
            elif parameter.kind == "pointer":
                if value is not None:
                    raise LaunchError(
                        f"{instance}: argument {position} ({parameter.name}) is {type(value).__module__}."
                        f"{type(value).__name__}, the kernel wants an array of {parameter.type} on the GPU"
                    )
                packed.append(bytes(8))
            else:
                packed.append(pack_scalar(instance, position, parameter, value))
        return packed

    def _check_array(self, instance: str, position: int, parameter: Parameter, array: cupy.ndarray) -> None:
        if array.device.id != self.index:
            there, here = f"cuda:{array.device.id}", f"cuda:{self.index}"
            raise LaunchError(f"{instance}: argument {position} ({parameter.name}) is on {there}, not on {here}")
        # Kernels take the strides of other axes as numbers, that of the last one never.
        if array.size > 1 and array.shape[-1] > 1 and array.strides[-1] != array.dtype.itemsize:
            raise LaunchError(
                f"{instance}: argument {position} ({parameter.name}) is a view whose last axis is not contiguous"
            )

    def _allow_shared_memory(self, kernel: _Kernel, shared_bytes: int) -> None:
        static = kernel.compiled.resources.static_shared_bytes
        if static + shared_bytes > self.shared_bytes:
            raise LaunchError(
                f"{kernel.compiled.instance}: {static} bytes of static and {shared_bytes} bytes of dynamic shared "
                f"memory, a block has {self.shared_bytes}"
            )
        if static + shared_bytes > kernel.shared_bytes:
            kernel.raw.max_dynamic_shared_size_bytes = shared_bytes
            kernel.shared_bytes = static + shared_bytes


def _require() -> None:
    """Raises DeviceError unless CuPy and cuda-bindings are installed."""
    try:
        import cupy  # noqa: F401
        from cuda.bindings import driver  # noqa: F401
    except ImportError as error:
        raise DeviceError(
            f"device 'cuda' needs CuPy and cuda-bindings ({error}): pip install 'gemma-cuda[cuda13]' "
            "(cuda12 for a driver of CUDA 12)"
        ) from error


def _is_used(value: Argument) -> bool:
    """Whether a launch may touch what an argument points to."""
    import cupy

    return isinstance(value, cupy.ndarray) and value.size > 0


def _facts(value: Argument) -> Any:
    """What an error message tells of an argument; it holds no memory of the GPU."""
    if not hasattr(value, "dtype") or not hasattr(value, "data") or isinstance(value, np.generic):
        return value
    return value.dtype.name, tuple(value.shape), value.data.ptr


def _words(parameters: Sequence[Parameter], given: Sequence[Any]) -> str:
    """Arguments for an error message: "x = bfloat16[5, 640] at 0x7f00, E = 640"."""
    return ", ".join(
        f"{parameter.name} = {facts[0]}{list(facts[1])} at {facts[2]:#x}"
        if isinstance(facts, tuple)
        else f"{parameter.name} = {facts!r}"
        for parameter, facts in zip(parameters, given, strict=True)
    )
