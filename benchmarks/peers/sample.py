"""A seeded sample of a test's parameters, drawn before the tests are made: FlashAttention's are some 400,000."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from typing import Any

import pytest

from benchmarks.peers.refusals import REFUSALS
from benchmarks.peers.setting import Setting

_TRIES = 200  # draws per test that is wanted


# Queries × keys of the largest test that is drawn: another one takes minutes, on our side or theirs.
_LARGEST = {"numpy": 1 << 19, "emulator": 1 << 16}


def thin_out(test: Any, node: str, setting: Setting) -> None:
    """Leaves about setting.sample of a test's combinations of parameters, one in ten of which we are known to refuse.

    The ids stay those that the test has in full.
    """
    marks = [mark for mark in getattr(test, "pytestmark", []) if mark.name == "parametrize"]
    if not marks or any(mark.kwargs for mark in marks):
        return
    axes = [_axis(*mark.args) for mark in marks]
    total = math.prod(len(rows) for _, rows in axes)
    if total <= setting.sample:
        return
    draw = random.Random(f"{setting.seed} {node}")
    kept: dict[str, list[Any]] = {}
    refused, allowed = max(1, setting.sample // 10), setting.sample
    for _ in range(_TRIES * setting.sample):
        chosen = [draw.choice(rows) for _, rows in axes]
        name, values = "-".join(name for name, _ in chosen), [value for _, row in chosen for value in row]
        parameters = dict(zip((name for names, _ in axes for name in names), values, strict=True))
        if name in kept or _size(parameters) > _LARGEST[setting.device]:
            continue
        if any(refusal.covers(setting.suite, setting.device, node, parameters) for refusal in REFUSALS):
            if refused == 0:
                continue
            refused -= 1
        else:
            allowed -= 1
        kept[name] = values
        if allowed == 0:
            break
    names = [name for names, _ in axes for name in names]
    rest = [mark for mark in test.pytestmark if mark.name != "parametrize"]
    rows = [pytest.param(*values, id=name) for name, values in sorted(kept.items())]
    test.pytestmark = [*rest, pytest.mark.parametrize(names, rows).mark]


def _axis(names: str | list[str], rows: Any) -> tuple[list[str], list[tuple[str, list[Any]]]]:
    """Names of one parametrize mark, and its rows with the ids that pytest gives them."""
    words = [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)
    values = [list(row) if len(words) > 1 else [row] for row in rows]
    ids = ["-".join(_id(*pair, i) for pair in zip(words, row, strict=True)) for i, row in enumerate(values)]
    return words, list(zip(ids, values, strict=True))


def _id(name: str, value: Any, index: int) -> str:
    if value is None or isinstance(value, (bool, int, float, str)):
        return str(value)
    own = getattr(value, "__name__", None)  # of functions and classes
    return own if isinstance(own, str) else f"{name}{index}"


def _size(parameters: Mapping[str, Any]) -> int:
    lengths = [value for name, value in parameters.items() if name.startswith("seqlen") and isinstance(value, int)]
    lengths = [length for length in lengths if not isinstance(length, bool)]
    return math.prod(lengths) if len(lengths) > 1 else math.prod(lengths) ** 2
