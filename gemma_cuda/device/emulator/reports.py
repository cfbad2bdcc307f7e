"""What the runtime reports of a launch, in words: places in machine code become lines of source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import KernelError
from . import host_compiler
from .kernel_variables import DEVICE_VARIABLE


@dataclass(frozen=True)
class _Place:
    """Where in a kernel's source something happened."""

    line: str  # "rms_norm.cu:57": the innermost place in a .cu file
    words: str  # the same with the header it is in, or the call it comes from


def _place(library: Path, place: int) -> _Place:
    """The source of a return address."""
    found = host_compiler.frames(library, place)
    if not found:
        return _Place("", f"offset {place:#x}")
    line = next(frame for frame in found if frame.path.endswith(".cu"))
    words = line.name
    if found[0] != line:
        words += f" (in {found[0].name})"
    if found[-1] != line:
        words += f" (called at {found[-1].name})"
    return _Place(line.name, words)


def kernel_error(instance: str, library: Path, names: Sequence[str], report: dict[str, Any]) -> KernelError:
    """The exception for a report of the runtime. names: of the kernel's parameters and of its file's variables."""
    places = [_place(library, place) for place in report["places"]]
    # Messages name arguments as {arg0} and places as {0}.
    text = report["message"].format(
        *(place.words for place in places), **{f"arg{i}": _argument(i, name) for i, name in enumerate(names)}
    )
    block = tuple(report["block"])
    return KernelError(
        f"{report['kind']} in {instance}, block {block}: {text}",
        kind=report["kind"],
        kernel=instance,
        source=places[0].line if places else "",
        block=block,
        threads=tuple(report["threads"]),
        primitive=report["primitive"],
        address=report["address"],
    )


def _argument(position: int, name: str) -> str:
    return name if name.startswith(DEVICE_VARIABLE) else f"argument {position} ({name})"


def raise_divergence(
    instance: str, library: Path, names: Sequence[str], unlike_calls: Sequence[dict[str, Any]]
) -> None:
    """Raises KernelError where threads met in one barrier or mma but came from different places in the source.

    One place may have become several in the machine code; only the source tells.
    """
    for report in unlike_calls:
        a, b = (host_compiler.frames(library, place) for place in report["places"])
        # The innermost line is always known; the calls around it may be lost to inlining in one of the two.
        if a and b and (a[0] != b[0] or (len(a) == len(b) and a != b)):
            raise kernel_error(instance, library, names, report)
