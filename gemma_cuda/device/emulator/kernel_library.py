"""Kernel libraries of this process, loaded from an in-memory copy of a file that was verified."""

from __future__ import annotations

import itertools
import os
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

from ...errors import DeviceError
from .. import product_cache

_libraries: dict[Path, Any] = {}
_loading = threading.Lock()
_count = itertools.count(1)


def load(runtime: ModuleType, path: Path) -> Any:
    """The library in a file of the cache, loaded once; None if the file is damaged. Raises DeviceError."""
    library = _libraries.get(path)
    if library is not None:
        return library
    with _loading:
        if path not in _libraries:
            content = product_cache.read(path)
            if content is None:
                return None
            try:
                _libraries[path] = _from_memory(runtime, path, content)
            except RuntimeError as error:
                raise DeviceError(f"a compiled kernel cannot be loaded: {error}") from error
        return _libraries[path]


def _from_memory(runtime: ModuleType, path: Path, content: bytes) -> Any:
    """A library from its bytes, independent of later changes of the file."""
    try:
        descriptor = os.memfd_create(path.name[:200])
        with open(descriptor, "wb") as copy:
            copy.write(content)
            copy.flush()
            return runtime.Library(_new_name(descriptor))
    except (OSError, RuntimeError):  # no /proc, or a system that runs no code from such memory
        return runtime.Library(os.fsencode(path))


def _new_name(descriptor: int) -> str:
    """A path of an open file that no earlier call has given: the loader takes one path for one library, for ever.

    Descriptors are reused; empty and "." path components encode a number that is not.
    """
    spelt = "".join("./" if bit == "1" else "/" for bit in f"{next(_count):b}")
    return f"/proc/self/fd/{spelt}{descriptor}"
