"""The argument parser of `gemma-cuda` and its option types: whole numbers, numbers, names, each within its range."""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from .streams import one_line

_WHOLE = re.compile(r"-?[0-9]+", re.ASCII)
_MOST_DIGITS = 20
_NUMBER = re.compile(r"-?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?", re.ASCII)
_GPU = re.compile(r"cuda:([0-9]{1,3})", re.ASCII)
MOST_TOKENS = 1 << 18  # of a prompt, in `mask` and `bench`: the longest context of a Gemma


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line without control characters, and whose options are given once."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **options})
        for name in (None, "store"):
            self.register("action", name, _Once)

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(2, f"{self.prog}: error: {one_line(message)}\n")

    def _print_message(self, message: str, file: Any = None) -> None:
        (file or sys.stderr).write(message)  # argparse's own ignores a full disk

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        # Python 3.11 and 3.12 drop the value of `--name=--` and continue with an empty list.
        if action.option_strings and action.nargs is None and arg_strings == ["--"]:
            raise argparse.ArgumentError(action, "expected one argument")
        return super()._get_values(action, arg_strings)


class _Once(argparse.Action):
    """Stores a value; refuses a repeated option, of which argparse would silently take the last."""

    _is_given = False

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        if option is not None and self._is_given:
            raise argparse.ArgumentError(self, "is given twice")
        self._is_given = True
        setattr(namespace, self.dest, values)


def whole(text: str, least: int, most: int) -> int:
    """The whole number in ASCII digits; ArgumentTypeError for other texts and outside [least, most]."""
    expected = f"expected a whole number from {least} to {most}"
    if not _WHOLE.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number, {expected}")
    if len(text) > _MOST_DIGITS or not least <= (value := int(text)) <= most:
        raise argparse.ArgumentTypeError(f"{text} is out of range, {expected}")
    return value


def whole_from(least: int, most: int) -> Callable[[str], int]:
    """`whole` as an option type."""
    return lambda text: whole(text, least, most)


def number_where(is_valid: Callable[[float], bool], expected: str) -> Callable[[str], float]:
    """The option type of finite decimal numbers that satisfy `is_valid`; expected: their description."""

    def number(text: str) -> float:
        value = float(text) if _NUMBER.fullmatch(text) else math.nan
        if not (math.isfinite(value) and is_valid(value)):
            raise argparse.ArgumentTypeError(f"{text!r} is not {expected}")
        return value

    return number


def name(text: str) -> str:
    """A text that is not blank."""
    if not text.strip():
        raise argparse.ArgumentTypeError("is empty")
    return text


def path(text: str) -> Path:
    """A path that is not blank."""
    return Path(name(text))


def device(text: str) -> str:
    """A device's name; only the form cuda:N is checked here, all else by `choose_device`."""
    if text.startswith("cuda:") and not _GPU.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r} names no GPU, expected an index as in cuda:1")
    return name(text)
