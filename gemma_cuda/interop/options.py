"""Options of a call as checked values. What torch records is passed on as it is: its numbers may be symbols."""

from __future__ import annotations

import sys
from typing import Any

from .. import arguments


def flag(op: str, name: str, value: Any) -> bool:
    """The bool of an option; InputError in the op's words for anything else."""
    return bool(value) if _is_recorded() else arguments.flag(f"{op}: {name}", value)


def integer(op: str, name: str, value: Any, *, otherwise: str = "", **bounds: Any) -> int:
    """The int of an option between bounds (least, most)."""
    if _is_recorded():
        return value  # type: ignore[no-any-return]
    return arguments.integer(f"{op}: {name}", value, otherwise=otherwise, **bounds)


def number(op: str, name: str, value: Any, *, otherwise: str = "", **bounds: Any) -> float:
    """The float of an option between bounds (least, above, most)."""
    if _is_recorded():
        return value  # type: ignore[no-any-return]
    return arguments.number(f"{op}: {name}", value, otherwise=otherwise, **bounds)


def _is_recorded() -> bool:
    torch: Any = sys.modules.get("torch")
    return torch is not None and bool(torch.compiler.is_compiling() or torch.jit.is_tracing())
