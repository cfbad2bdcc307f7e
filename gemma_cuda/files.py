"""The directory of what can be made again, and writing files so that a reader never sees half of one."""

from __future__ import annotations

import errno
import os
import secrets
import stat
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


def check_target(target: str | Path) -> None:
    """Raises OSError where `target` cannot become a regular file; nothing is touched.

    What is there must be a regular file: a rename would put one in the place of a device, FIFO, socket or link. Links
    are not followed, so that one planted in a shared directory leads nowhere.
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
def atomic_path(target: str | Path) -> Iterator[Path]:
    """A temporary path beside `target`, renamed to it when the block ends well and removed when it does not.

    The file's mode is that of the umask, however the block has made it. OSError as of `check_target`.
    """
    target = Path(target)
    check_target(target)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}.partial")
    descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
    os.close(descriptor)
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fchmod(written.fileno(), mode)  # a library may have put a file of its own here
            os.fsync(written.fileno())
        check_target(target)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _kind(path: Path) -> str | None:
    """What is at the path itself, in words; None for nothing."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return None
    kinds = {
        stat.S_IFREG: "a regular file", stat.S_IFDIR: "a directory", stat.S_IFLNK: "a symbolic link",
        stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device",
    }  # fmt: skip
    return kinds.get(stat.S_IFMT(mode), "no regular file")
