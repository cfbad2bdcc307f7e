"""Compiled and measured products on disk: read only if no other user can have written them and no bit has changed."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from ..errors import DeviceError
from ..host import private_directory
from ..host.files import atomic_path

_MOST_BYTES = 1 << 28  # of a file; precompiled headers have ten million
_MARK = b"\nsha256 "
_SEAL_BYTES = len(_MARK) + 64 + 1
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_T = TypeVar("_T")


class ProductCache:
    """A directory of products, and a temporary one of this process for products that cannot be written there.

    Any number of processes may share it: files appear, and are replaced, as a whole. Raises GemmaError where other
    users can change the directory.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory.absolute()
        private_directory.check(self.directory)

    def directories(self) -> Iterator[Path]:
        """The directories that may hold a product, in order."""
        private_directory.check(self.directory)  # it may have been created since
        yield self.directory
        yield from private_directory.temporary_if_made()

    def find(self, name: str) -> Path | None:
        """The undamaged file of this name; None without one."""
        paths = (directory / name for directory in self.directories())
        return next((path for path in paths if read(path) is not None), None)

    def keep(self, write: Callable[[Path], _T]) -> _T:
        """The result of `write`, called with the directory or, where that cannot be written, with the temporary one.

        Raises DeviceError, naming the directory, where it is full.
        """
        try:
            private_directory.make(self.directory)
            return write(self.directory)
        except OSError as error:
            _raise_if_full(self.directory, error)
            reason = f"{self.directory} cannot be written ({error.strerror or error})"
        directory = private_directory.temporary(reason)
        try:
            return write(directory)
        except OSError as error:
            raise DeviceError(f"{reason}, nor can {directory} ({error.strerror or error})") from error


def read(path: Path) -> bytes | None:
    """The content of a file that `write` made under this name; None for any other file."""
    data = read_private(path)
    if data is None or len(data) < _SEAL_BYTES:
        return None
    content = data[:-_SEAL_BYTES]
    return content if data[-_SEAL_BYTES:] == _seal(path.name, content) else None


def write(path: Path, content: bytes) -> Path:
    """The path, after writing the content and its digest there.

    Readers of ELF files and of precompiled headers ignore the digest at the end. It covers the file's name, so that one
    entry does not pass for another.
    """
    write_private(path, content + _seal(path.name, content))
    return path


def read_json(path: Path) -> dict[str, Any] | None:
    """The fields of a file that `write_json` made under this name; None for any other file."""
    data = read_private(path)
    try:
        fields = json.loads(data or b"")
        digest = fields.pop("digest")
        return fields if digest == _json_digest(path.name, fields) else None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def write_json(path: Path, fields: Mapping[str, Any]) -> None:
    """Writes fields and their digest, as JSON."""
    text = json.dumps({**fields, "digest": _json_digest(path.name, fields)}, indent=1)
    write_private(path, text.encode())


def read_private(path: Path) -> bytes | None:
    """Content of a regular file, no link, that only this user and root can write; None for any other."""
    try:
        # Opened once, so that the file checked is the file read. Opening a FIFO must not wait for its writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            is_taken = stat.S_ISREG(status.st_mode) and private_directory.is_own(status)
            return file.read() if is_taken and status.st_size <= _MOST_BYTES else None
    except OSError:
        return None


def write_private(path: Path, content: bytes) -> None:
    """Writes a file as a whole, without write permission for other users whatever the umask."""
    if path.is_symlink() or (path.exists() and not path.is_file() and not path.is_dir()):
        path.unlink(missing_ok=True)  # a link or FIFO that this user put here
    with atomic_path(path, mode=0o644) as temporary:
        temporary.write_bytes(content)


def _raise_if_full(directory: Path, error: OSError) -> None:
    """Raises DeviceError if a disk, or a quota or limit of this user, has no room for a file."""
    if error.errno in _NO_ROOM:
        raise DeviceError(
            f"{directory} has no room for what was compiled ({os.strerror(error.errno)}); set GEMMA_CUDA_CACHE to a "
            "directory with more"
        ) from error


def _seal(name: str, content: bytes) -> bytes:
    sha = hashlib.sha256(name.encode() + b"\n")
    sha.update(content)
    return _MARK + sha.hexdigest().encode() + b"\n"


def _json_digest(name: str, fields: Mapping[str, Any]) -> str:
    return hashlib.sha256(f"{name}\n{json.dumps(fields, sort_keys=True)}".encode()).hexdigest()
