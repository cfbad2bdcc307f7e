"""Lines of generated pages."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence

WIDTH = 118


def heading(level: int, title: str) -> list[str]:
    return ["", f"{'#' * level} {title}"]


def prose(text: str) -> list[str]:
    """A paragraph, wrapped anew; lines of the text that begin with "- " are items."""
    items: list[str] = []
    for line in textwrap.dedent(text).strip().splitlines():
        if line.startswith("- ") or not items:
            items.append(line)
        else:
            items[-1] = f"{items[-1]} {line.strip()}"
    lines = [""]
    for item in items:
        lines += textwrap.wrap(item, WIDTH, subsequent_indent="  " * item.startswith("- "), break_on_hyphens=False)
    return lines


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return ["", *(f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows))]
