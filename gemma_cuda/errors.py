"""Every error this package raises on purpose. One hierarchy, so that callers can catch `GemmaError`."""

from .printable import printable


class GemmaError(Exception):
    """Base of all errors raised by gemma_cuda. No message holds a character that a terminal would obey."""

    def __init__(self, *args: object) -> None:
        super().__init__(*(printable(arg) if isinstance(arg, str) else arg for arg in args))


class ConfigError(GemmaError, ValueError):
    """A model configuration lacks a value, contradicts itself or describes an unsupported model."""


class CheckpointError(GemmaError, ValueError):
    """A weights file is missing, truncated, corrupt, or holds a tensor of the wrong name, shape or dtype."""


class TokenizerError(GemmaError, ValueError):
    """A tokenizer file is missing or corrupt, or text cannot be turned into ids (or back)."""


class InputError(GemmaError, ValueError):
    """An argument of a public call has the wrong value, shape or dtype."""


class CacheError(InputError):
    """A KV cache does not fit the model, or the requested continuation."""


class DeviceError(GemmaError, RuntimeError):
    """A device or backend cannot be used on this machine; the message names the missing part."""


class OutOfMemoryError(GemmaError, MemoryError):
    """The model or a request needs more memory than is free; the message gives both figures."""


class DownloadError(GemmaError, OSError):
    """Weights could not be fetched: offline, gated, or absent."""


class LaunchError(GemmaError, ValueError):
    """A kernel cannot be launched as asked: unknown instance, wrong arguments, impossible grid or shared memory."""


class KernelError(GemmaError, RuntimeError):
    """A kernel did something that CUDA leaves undefined; found by the emulator.

    kind: "data race", "out of bounds", "uninitialized read", ...; kernel: the instance; source: "file:line" of the
    access or call; block: (x, y, z); threads: linear ids in the block; primitive: name of the collective or access, or
    ""; address: of the memory accessed, or 0.
    """

    def __init__(
        self,
        message: str,
        *,
        kind: str,
        kernel: str,
        source: str,
        block: tuple[int, int, int],
        threads: tuple[int, ...],
        primitive: str,
        address: int,
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.kernel = kernel
        self.source = source
        self.block = block
        self.threads = threads
        self.primitive = primitive
        self.address = address
