"""The directory of what can be made again, and writing files so that a reader never sees half of one."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from . import private_directory
from .errors import GemmaError


def cache_directory() -> Path:
    """The directory that `wanted_cache` names, or one that ends with this process, after a warning. Not created here.

    The latter where there is no home directory or others can change what lies in it: code in a cache is run. Raises
    GemmaError, with what to do, for a GEMMA_CUDA_CACHE of which that is true.
    """
    try:
        directory = wanted_cache()
        private_directory.check(directory)
    except GemmaError as error:
        if os.environ.get("GEMMA_CUDA_CACHE"):
            raise
        return private_directory.temporary(str(error))
    return directory


def wanted_cache() -> Path:
    """$GEMMA_CUDA_CACHE, else gemma-cuda in $XDG_CACHE_HOME, else ~/.cache/gemma-cuda: an absolute path.

    Raises GemmaError for a GEMMA_CUDA_CACHE that is relative, and where there is no home directory.
    """
    own, base = os.environ.get("GEMMA_CUDA_CACHE"), os.environ.get("XDG_CACHE_HOME")
    if not own and base and Path(base).is_absolute():  # a relative one is to be ignored
        return Path(base) / "gemma-cuda"
    try:
        directory = Path(own or "~/.cache/gemma-cuda").expanduser()
    except RuntimeError:  # no home directory is known
        directory = Path()
    if directory.is_absolute():
        return directory
    if own:
        raise GemmaError(
            f"GEMMA_CUDA_CACHE is {own!r}, expected an absolute path or one in a user's home directory (~/)"
        )
    raise GemmaError("there is no home directory for a cache; set GEMMA_CUDA_CACHE")


@contextmanager
def atomic_path(target: str | Path) -> Iterator[Path]:
    """A temporary path beside `target`, renamed to it when the block ends well and removed when it does not."""
    target = Path(target)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}.partial")
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
