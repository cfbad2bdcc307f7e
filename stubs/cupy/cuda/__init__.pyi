from types import TracebackType

from . import driver as driver
from . import memory as memory
from . import runtime as runtime

class Device:
    id: int
    compute_capability: str
    attributes: dict[str, int]
    mem_info: tuple[int, int]
    def __init__(self, device: int) -> None: ...
    def synchronize(self) -> None: ...
    def __enter__(self) -> Device: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

class Stream:
    ptr: int
    def synchronize(self) -> None: ...
    def __enter__(self) -> Stream: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

class ExternalStream(Stream):
    def __init__(self, ptr: int) -> None: ...

class MemoryPointer:
    ptr: int

class Function:
    ptr: int

def get_current_stream() -> Stream: ...
