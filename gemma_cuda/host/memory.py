"""Free memory for this process, and the error when it is too little."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

from ..errors import OutOfMemoryError

_MEMINFO, _OWN_CGROUP, _CGROUP_ROOT = Path("/proc/meminfo"), Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def available_memory() -> int:
    """Bytes that can be allocated without swapping: the machine's free memory, or less under a cgroup limit.

    Without either figure (not Linux) the physical memory; without that, no limit.
    """
    return min(_machine_memory(), *_cgroup_memory(), sys.maxsize)


def require_memory(need: int, what: str) -> None:
    """OutOfMemoryError, with both figures, if `need` bytes for `what` are not free."""
    free = available_memory()
    if need > free:
        raise OutOfMemoryError(f"{what}: needs {need / 1e9:.1f} GB, {free / 1e9:.1f} GB free")


def _machine_memory() -> int:
    if (available := _fields(_MEMINFO).get("MemAvailable:")) is not None:
        return available * 1024
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return sys.maxsize


def _cgroup_memory() -> Iterator[int]:
    """Bytes left in each limited cgroup of this process; reclaimable file cache counts as free."""
    for directory, limit_file, usage_file in _cgroups():
        limit, usage = _number(directory / limit_file), _number(directory / usage_file)
        if limit is not None and usage is not None:
            stat = _fields(directory / "memory.stat")
            yield max(0, limit - usage + stat.get("inactive_file", 0) + stat.get("active_file", 0))


def _cgroups() -> Iterator[tuple[Path, str, str]]:
    """Directory, limit file and usage file of this process's memory cgroup and of each one above it (v2, then v1)."""
    for line in _text(_OWN_CGROUP).splitlines():
        _, controllers, name = line.split(":", 2)
        if controllers == "":
            root, files = _CGROUP_ROOT, ("memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            root, files = _CGROUP_ROOT / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            continue
        # In a container the name may be the host's, absent here: then only the root's files say anything.
        own = root / name.lstrip("/")
        for directory in (own, *own.parents):
            yield directory, *files
            if directory == root:
                break


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if text.isdecimal() else None  # "max": no limit


def _fields(path: Path) -> dict[str, int]:
    """First word -> number, of each line."""
    words = (line.split() for line in _text(path).splitlines())
    return {w[0]: int(w[1]) for w in words if len(w) >= 2 and w[1].isdecimal()}
