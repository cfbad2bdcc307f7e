"""Reports of the emulator's runtime as KernelError: return addresses become source lines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import KernelError
from . import host_compiler
from .kernel_variables import DEVICE_VARIABLE


@dataclass(frozen=True)
class SourceLocation:
    """A location in a kernel's source."""

    line: str  # "rms_norm.cu:57": the innermost frame in a .cu file
    words: str  # the same, with the frame in a header or the calling frame


def _location(library: Path, address: int) -> SourceLocation:
    """The source location of a return address."""
    found = host_compiler.frames(library, address)
    if not found:
        return SourceLocation("", f"offset {address:#x}")
    line = next(frame for frame in found if frame.path.endswith(".cu"))
    words = line.name
    if found[0] != line:
        words += f" (in {found[0].name})"
    if found[-1] != line:
        words += f" (called at {found[-1].name})"
    return SourceLocation(line.name, words)


def kernel_error(instance: str, library: Path, names: Sequence[str], report: dict[str, Any]) -> KernelError:
    """The exception for a report. names: of the kernel's parameters, then of its file's variables."""
    locations = [_location(library, address) for address in report["places"]]
    # Messages name arguments as {arg0} and locations as {0}.
    text = report["message"].format(
        *(location.words for location in locations), **{f"arg{i}": _argument(i, name) for i, name in enumerate(names)}
    )
    block = tuple(report["block"])
    return KernelError(
        f"{report['kind']} in {instance}, block {block}: {text}",
        kind=report["kind"], kernel=instance, source=locations[0].line if locations else "", block=block,
        threads=tuple(report["threads"]), primitive=report["primitive"], address=report["address"],
    )  # fmt: skip


def _argument(position: int, name: str) -> str:
    return name if name.startswith(DEVICE_VARIABLE) else f"argument {position} ({name})"


def raise_divergence(
    instance: str, library: Path, names: Sequence[str], unlike_calls: Sequence[dict[str, Any]]
) -> None:
    """Raises KernelError where threads met in one barrier or mma from different source locations.

    Different return addresses prove nothing: the compiler may duplicate one call.
    """
    for report in unlike_calls:
        a, b = (host_compiler.frames(library, address) for address in report["places"])
        # The innermost line is always known; inlining may lose the calling frames of one of the two.
        if a and b and (a[0] != b[0] or (len(a) == len(b) and a != b)):
            raise kernel_error(instance, library, names, report)
