"""Declarations in the text of a .cu file: `__global__` functions, the namespaces around them, includes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_NOT_CODE = re.compile(r'//[^\n]*|/\*.*?\*/|"(?:[^"\\\n]|\\.)*"', re.DOTALL)
_DIRECTIVE = re.compile(r"^[ \t]*#(?:[^\n]*\\\n)*[^\n]*", re.MULTILINE)
_LANDMARK = re.compile(r"\bnamespace\b\s*(?P<namespace>[\w:]*)\s*\{|(?P<kernel>\b__global__\b)|[{}]")
_ATTRIBUTE = re.compile(r"\b(__launch_bounds__|__maxnreg__|__cluster_dims__|__block_size__|__attribute__)\s*\(")
_INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*(?P<name>"[^"\n]+"|<[^>\n]+>)', re.MULTILINE)


@dataclass(frozen=True)
class Declaration:
    """A `__global__` function that has a body. scope: the namespaces it is in, "a::b", "" without."""

    name: str
    scope: str
    parameters: str
    template_parameters: str | None  # None for a function that is no template
    launch_bounds: str  # what __launch_bounds__ holds, "" without


def includes(text: str) -> list[str]:
    """Names in a file's #include lines, in order, with quotes or brackets: '"utils.cuh"', "<cuda_bf16.h>"."""
    return [match["name"] for match in _INCLUDE.finditer(without_comments(text))]


def without_comments(text: str) -> str:
    """The text with comments replaced by spaces; line numbers and string literals stay."""
    return _NOT_CODE.sub(lambda m: m[0] if m[0][0] == '"' else re.sub(r"[^\n]", " ", m[0]), text)


def declarations(text: str) -> Iterator[Declaration]:
    """The kernels that a file defines, without those from macros and explicit specialisations."""
    code = _DIRECTIVE.sub(_blank, _NOT_CODE.sub(_blank, text))
    scopes: list[str | None] = []  # of each open brace: the namespace, None for any other
    for mark in _LANDMARK.finditer(code):
        if mark[0] == "}":
            if scopes:
                scopes.pop()
        elif mark["kernel"] is None:
            scopes.append(mark["namespace"])
        else:
            found = _declaration(code, mark.start(), mark.end(), "::".join(filter(None, scopes)))
            if found is not None:
                yield found


def _declaration(code: str, begin: int, end: int, scope: str) -> Declaration | None:
    start = max(code.rfind(character, 0, begin) for character in ";{}") + 1
    head, rest = code[start:begin], code[end:]
    bounds = ""
    for text in (head, rest):
        for attribute in _ATTRIBUTE.finditer(text[: _body_or_end(text)]):
            if attribute[1] == "__launch_bounds__":
                bounds = _inside(text, attribute.end() - 1)
    signature = _without_attributes(rest)
    match = re.match(r"[\w\s]*?\b(\w+)\s*\(", signature)
    if match is None:
        return None
    parameters = _inside(signature, match.end() - 1)
    after = signature[match.end() + len(parameters) + 1 :].lstrip()
    if not after.startswith("{"):
        return None
    template = head.rfind("template")
    inside = None if template < 0 else _inside(head, head.index("<", template), "<>")
    return Declaration(match[1], scope, parameters, inside, bounds)


def _body_or_end(text: str) -> int:
    """Index of the body after `__global__` or, in a declaration without one, of its semicolon."""
    return min((at for at in (text.find("{"), text.find(";")) if at >= 0), default=len(text))


def _without_attributes(text: str) -> str:
    """The text without attributes in parentheses between `__global__` and the name."""
    while (match := _ATTRIBUTE.search(text, 0, _body_or_end(text))) is not None:
        inside = _inside(text, match.end() - 1)
        text = text[: match.start()] + text[match.end() + len(inside) + 1 :]
    return text


def _inside(text: str, opening: int, brackets: str = "()") -> str:
    """Text between the bracket at `opening` and its partner. Angle brackets in round ones are comparisons."""
    depth = round_depth = 0
    for i in range(opening, len(text)):
        if brackets != "()" and text[i] in "()":
            round_depth += 1 if text[i] == "(" else -1
        elif round_depth == 0 and text[i] in brackets:
            depth += 1 if text[i] == brackets[0] else -1
            if depth == 0:
                return text[opening + 1 : i]
    return text[opening + 1 :]


def _blank(match: re.Match[str]) -> str:
    return re.sub(r"[^\n]", " ", match[0])
