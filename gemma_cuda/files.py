"""The directory of what can be made again, and writing files so that a reader never sees half of one."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import GemmaError


def cache_directory() -> Path:
    """$GEMMA_CUDA_CACHE, else gemma-cuda in $XDG_CACHE_HOME, else ~/.cache/gemma-cuda. Not created here.

    Raises GemmaError where that needs a home directory and there is none.
    """
    try:
        if own := os.environ.get("GEMMA_CUDA_CACHE"):
            return Path(own).expanduser().absolute()
        if (base := os.environ.get("XDG_CACHE_HOME")) and Path(base).is_absolute():  # a relative one is to be ignored
            return Path(base) / "gemma-cuda"
        return Path.home() / ".cache" / "gemma-cuda"
    except RuntimeError as error:
        raise GemmaError("there is no home directory for a cache; set GEMMA_CUDA_CACHE") from error


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
