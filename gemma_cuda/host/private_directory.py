"""Directories that only this user and root can change, so that code in them may be run."""

from __future__ import annotations

import atexit
import functools
import grp
import os
import pwd
import shutil
import stat
import tempfile
import warnings
from pathlib import Path

from ..errors import GemmaError

_MOST_LINKS = 40
_REMEDY = "set GEMMA_CUDA_CACHE to a directory of your own"


def check(directory: Path) -> None:
    """Raises GemmaError, with the remedy, if other users can change present or future files of a directory."""
    problem = why_unsafe(directory)
    if problem is not None:
        raise GemmaError(f"{directory} cannot be a cache, since code in it is run: {problem}; or {_REMEDY}")


def make(directory: Path) -> None:
    """Creates a directory and its parents, mode 0700, where they are missing. Raises OSError, and as `check` does."""
    for missing in reversed([path for path in (directory, *directory.parents) if not path.exists()]):
        missing.mkdir(mode=0o700, exist_ok=True)
    check(directory)


def why_unsafe(directory: Path) -> str | None:
    """Why other users can change an absolute path or a directory on the way, and the remedy; None if they cannot.

    Links are followed, and are checked like directories. A parent may be writable by others if it is sticky, as /tmp
    is: they cannot replace files of this user. Missing directories are safe.
    """
    left, here, links = list(reversed(directory.parts)), Path("/"), 0
    while left:
        step = here / left.pop()
        if step.name == "..":
            here = here.parent
            continue
        try:
            status = step.lstat()
            target = Path(os.readlink(step)) if stat.S_ISLNK(status.st_mode) else None
        except OSError:
            return None
        problem = _problem(step, status, is_parent=bool(left))
        if problem is not None:
            return problem
        if target is None:
            here = step
        elif links == _MOST_LINKS:
            return f"{step} is one of more than {_MOST_LINKS} links"
        else:
            links += 1
            left += reversed(target.parts)  # an absolute one starts at / again
    return None


def is_own(status: os.stat_result) -> bool:
    """Whether only this user and root can write to a file or directory."""
    return status.st_uid in (0, os.geteuid()) and not _may_others_write(status)


def temporary(reason: str) -> Path:
    """A temporary directory of this process, removed at its end; the first use in a process warns.

    reason: why no lasting directory can be used. Raises GemmaError where a temporary one cannot be made either.
    """
    if not _made:
        warnings.warn(f"what is compiled is not kept after this process: {reason}", RuntimeWarning, stacklevel=2)
    try:
        return _temporary(os.getpid())
    except OSError as error:
        raise GemmaError(f"{reason}, nor can a temporary directory be made: {error.strerror or error}") from error


def temporary_if_made() -> list[Path]:
    """The same directory, if this process has made it."""
    return list(_made.values())


_made: dict[int, Path] = {}


@functools.cache
def _temporary(process: int) -> Path:
    path = Path(tempfile.mkdtemp(prefix="gemma-cuda-"))  # mode 0700
    _made[process] = path
    atexit.register(_remove, path, process)
    return path


def _remove(path: Path, process: int) -> None:
    if os.getpid() == process:  # not at the end of a fork
        shutil.rmtree(path, ignore_errors=True)


def _problem(path: Path, status: os.stat_result, *, is_parent: bool) -> str | None:
    is_trusted = status.st_uid in (0, os.geteuid()) or (is_parent and status.st_uid == _unmapped_owner())
    if not is_trusted:
        return f"{path} belongs to {_user(status.st_uid)}"
    is_sticky = is_parent and stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX
    if stat.S_ISLNK(status.st_mode) or not _may_others_write(status) or is_sticky:
        return None
    others = "everybody" if status.st_mode & stat.S_IWOTH else "its group"
    return f"{path} can be written by {others} (chmod go-w {path})"


def _may_others_write(status: os.stat_result) -> bool:
    is_shared = bool(status.st_mode & stat.S_IWGRP) and not _is_private(status.st_gid, os.geteuid())
    return is_shared or bool(status.st_mode & stat.S_IWOTH)


@functools.cache
def _is_private(gid: int, uid: int) -> bool:
    """Whether a group is the user's private group: its name is the user's, and it has no other members."""
    try:
        user, group = pwd.getpwuid(uid), grp.getgrgid(gid)
    except KeyError:
        return False
    return user.pw_gid == gid and group.gr_name == user.pw_name and set(group.gr_mem) <= {user.pw_name}


@functools.cache
def _unmapped_owner() -> int | None:
    """User id that stands for the host's root in a container where it is not mapped; None where it is mapped.

    It stands for all unmapped users: they are trusted with directories above a cache, never with a cache or its files.
    """
    try:
        known = Path("/proc/self/uid_map").read_text(encoding="ascii").split()
        unknown = int(Path("/proc/sys/kernel/overflowuid").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
    return None if known[:2] == ["0", "0"] else unknown


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"
