"""Index arithmetic in 32 bits, at each place where a kernel does it in 64.

Most that live are right as they are: rows of partial results of attention, up to first_part + i * part_stride, are
fewer than 2^31, which the op looks after; and row * k of top_k's results is below 65535 * 64. One is not: twice such a
row, an index of partial_softmax, needs 64 bits from 2^30 rows on, whose partial_o has 274 GB; no test has so many.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_WIDE = r"(?:int64_t|long long)"
_NARROW = ("int32_t", "uint32_t")
_INSIDE = r"[^()]*"
for _ in range(3):  # parentheses in parentheses
    _INSIDE = rf"(?:[^()]|\({_INSIDE}\))*"
_OPERAND = rf"(?:static_cast<[^<>]*>\({_INSIDE}\)|\({_INSIDE}\)|[A-Za-z_][\w.]*(?:\[[^\[\]]*\](?:\.\w+)?)?)"
_PRODUCT = re.compile(rf"(?<![\w.)\]>])(?=({_OPERAND}(?: \* (?:{_OPERAND}|\d+))+))")
_DECLARED = re.compile(rf"\b{_WIDE} (\w+(?:, \w+(?=[,;]))*)")
_LOCAL = re.compile(rf"\b{_WIDE}(?= \w+ =)")
_SUBSCRIPT = re.compile(r"\[[^\[\]]*\]")
_CAST = re.compile(rf"(?<=static_cast<){_WIDE}(?=>)")


def index_mutants(text: str) -> Iterator[tuple[int, str, str]]:
    """(position, before, after): types of locals and of casts, and products with a factor of 64 bits."""
    wide = {name for match in _DECLARED.finditer(text) for name in match[1].split(", ")}
    has_wide = re.compile("|".join([rf"static_cast<{_WIDE}>", *(rf"\b{name}\b" for name in sorted(wide))]))
    found: dict[tuple[int, str], None] = {}
    for pattern in (_LOCAL, _CAST):
        for match in pattern.finditer(text):
            found[match.start(), match[0]] = None
    for match in _PRODUCT.finditer(text):
        line = text[text.rfind("\n", 0, match.start()) + 1 : match.start()]
        if "//" not in line and has_wide.search(_SUBSCRIPT.sub("", match[1])):
            found[match.start(), match[1]] = None
    for position, before in sorted(found):
        is_type = re.fullmatch(_WIDE, before) is not None
        for narrow in _NARROW:
            yield position, before, narrow if is_type else f"static_cast<{narrow}>({before})"
