"""The cache directory, and files that are written as a whole."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import GemmaError
from . import private_directory


def cache_directory() -> Path:
    """`wanted_cache()`, which is not created here; else, with a warning, a temporary directory of this process.

    The latter without a home directory, or where other users can change its cache, whose code is run. For such a
    GEMMA_CUDA_CACHE it raises GemmaError, with the remedy.
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
    """$GEMMA_CUDA_CACHE (~ expands), else gemma-cuda in $XDG_CACHE_HOME (~ does not), else ~/.cache/gemma-cuda.

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


def check_target(target: str | Path) -> None:
    """Raises OSError where `target` cannot become a regular file; nothing is touched.

    An existing target must be a regular file: renaming would replace a device, FIFO, socket or link by one. Links are
    not followed, so that a link planted in a shared directory has no effect.
    """
    target = Path(target)
    kind = _kind(target)
    if kind not in (None, "a regular file"):
        reason = "; name the file that it leads to" if kind == "a symbolic link" else ""
        raise OSError(errno.EEXIST, f"is {kind}, expected a regular file or nothing{reason}", str(target))
    if not target.parent.is_dir():
        raise OSError(errno.ENOENT, f"the directory {target.parent} does not exist", str(target))
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise OSError(errno.EACCES, f"the directory {target.parent} cannot be written to", str(target))


@contextmanager
def atomic_path(target: str | Path, *, mode: int = 0o666) -> Iterator[Path]:
    """A temporary path beside `target`, renamed to it when the block ends well and removed when it does not.

    The file gets `mode` less the umask, however the block creates it. Raises OSError as `check_target` does.
    """
    target = Path(target)
    check_target(target)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}.partial")
    descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode)
    mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
    os.close(descriptor)
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fchmod(written.fileno(), mode)  # a library may have replaced the file
            os.fsync(written.fileno())
        check_target(target)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _kind(path: Path) -> str | None:
    """Type of the file at the path itself, in words; None for nothing."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return None
    kinds = {
        stat.S_IFREG: "a regular file", stat.S_IFDIR: "a directory", stat.S_IFLNK: "a symbolic link",
        stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device",
    }  # fmt: skip
    return kinds.get(stat.S_IFMT(mode), "no regular file")
