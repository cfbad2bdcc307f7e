"""SVG written as text: shapes on a light sheet that reads the same on a light and on a dark page."""

from __future__ import annotations

import textwrap
from html import escape

INK, FAINT, SHEET = "#1f2328", "#59636e", "#ffffff"
BLUE, GREEN, AMBER, RED, GREY = "#cdebff", "#c9f5d3", "#fff2a8", "#ffd1cc", "#eff2f5"
_SANS = "-apple-system, 'Segoe UI', 'DejaVu Sans', Helvetica, Arial, sans-serif"
_MONO = "ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', monospace"
_ANCHORS = {"left": "start", "middle": "middle", "right": "end"}


class Sheet:
    """A drawing of width × height pixels; y grows downwards."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self._shapes: list[str] = []
        self._size, self._title = (width, height), title

    def text(
        self, x: float, y: float, words: str, *, at: str = "left", size: int = 13, mono: bool = False,
        bold: bool = False, fill: str = INK,
    ) -> None:  # fmt: skip
        """Words on the line whose base is y."""
        style = "" if size == 13 else f' font-size="{size}"'
        style += "" if at == "left" else f' text-anchor="{_ANCHORS[at]}"'
        style += "" if fill == INK else f' fill="{fill}"'
        style += ' class="m"' if mono else ""
        style += ' font-weight="600"' if bold else ""
        self._shapes.append(f'<text x="{x:g}" y="{y:g}"{style}>{escape(words, quote=False)}</text>')

    def paragraph(self, x: float, y: float, words: str, *, columns: int = 134) -> None:
        """Small text in lines of up to so many characters, the first on y."""
        for i, line in enumerate(textwrap.wrap(words, columns, break_on_hyphens=False)):
            self.text(x, y + 18 * i, line, size=12)

    def box(
        self, x: float, y: float, width: float, height: float, *, fill: str = SHEET, words: str = "",
        mono: bool = False, size: int = 13, round_by: int = 3,
    ) -> None:  # fmt: skip
        """A rectangle, with words in its middle."""
        self._shapes.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{round_by}" fill="{fill}" '
            f'stroke="{FAINT}"/>'
        )
        if words:
            self.text(x + width / 2, y + height / 2 + 0.36 * size, words, at="middle", size=size, mono=mono)

    def arrow(self, x: float, y: float, to_x: float, to_y: float) -> None:
        self._shapes.append(
            f'<line x1="{x:g}" y1="{y:g}" x2="{to_x:g}" y2="{to_y:g}" stroke="{INK}" marker-end="url(#tip)"/>'
        )

    def line(self, x: float, y: float, to_x: float, to_y: float, *, fill: str = FAINT) -> None:
        self._shapes.append(f'<line x1="{x:g}" y1="{y:g}" x2="{to_x:g}" y2="{to_y:g}" stroke="{fill}"/>')

    def __str__(self) -> str:
        width, height = self._size
        head = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
            f'font-family="{_SANS}" font-size="13" fill="{INK}" role="img">',
            f"<title>{escape(self._title)}</title>",
            f"<style>.m {{ font-family: {_MONO} }}</style>",
            f'<marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
            f'<path d="M0 0L8 4L0 8z" fill="{INK}"/></marker>',
            f'<rect width="{width}" height="{height}" rx="6" fill="{SHEET}" stroke="#d1d9e0"/>',
        ]
        return "\n".join([*head, *self._shapes, "</svg>", ""])
