"""Files of a model besides its weights (JSON, templates, vocabularies), read within a budget of bytes and JSON values.

A downloaded directory is untrusted: a name in it may lead to a FIFO or a device, which never end, or to a file that
takes many times its size to parse.
"""

from __future__ import annotations

import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..errors import GemmaError
from ..printable import reason, shown_line
from .fields import shown_json

_MIB = 1 << 20


@dataclass(frozen=True)
class Budget:
    """The most that one kind of file may have: bytes and, in JSON, values (lists, objects and their members)."""

    bytes: int
    values: int = 0


CONFIG = Budget(_MIB, 1 << 17)  # config.json, generation_config.json: some thousand bytes
INDEX = Budget(16 * _MIB, 1 << 20)  # *.index.json and headers of safetensors: 0.1 MB for the largest Gemma
TOKENIZER_CONFIG = Budget(16 * _MIB, 1 << 20)  # Gemma 3's has 1.2 MB
TOKENIZER_JSON = Budget(64 * _MIB, 4 << 20)  # Gemma 3's has 33 MB and 1.9 million values
TOKENIZER_MODEL = Budget(16 * _MIB)  # Gemma 3's has 4.7 MB
CHAT_TEMPLATE = Budget(_MIB)  # Gemma 4's has 17 kB


def kind_of(path: Path, error: type[GemmaError]) -> Literal["file", "directory", "other", "absent"]:
    """The kind of file at `path`, links followed; `error` for an impossible name or a directory without permission."""
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return "absent"
    except (OSError, ValueError) as problem:  # ValueError: a NUL byte or an unpaired surrogate
        raise error(f"{shown_line(str(path))}: {reason(problem)}") from problem
    return "file" if stat.S_ISREG(mode) else "directory" if stat.S_ISDIR(mode) else "other"


def require_file_or_directory(path: Path, error: type[GemmaError]) -> Literal["file", "directory"]:
    """The kind of file at `path`; `error` for any other kind."""
    kind = kind_of(path, error)
    if kind in ("file", "directory"):
        return kind
    raise error(f"{path}: " + ("no such file or directory" if kind == "absent" else "not a regular file"))


def read_bytes(path: Path, budget: Budget, error: type[GemmaError]) -> bytes:
    """All bytes of the regular file at `path`; `error` naming another kind, an unreadable or a too large file."""
    try:
        # Without waiting for the other end of a FIFO, which is refused like every device: it need not end.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise error(f"{path}: not a regular file")
            data = file.read(budget.bytes + 1) if status.st_size <= budget.bytes else b""
    except FileNotFoundError as problem:
        raise error(f"{path}: no such file") from problem
    except (OSError, ValueError) as problem:
        raise error(f"{path}: cannot be read: {reason(problem)}") from problem
    if status.st_size > budget.bytes or len(data) > budget.bytes:
        size = max(status.st_size, len(data))
        raise error(f"{path}: {size} bytes; a file of this kind may have at most {budget.bytes}")
    return data


def read_text(path: Path, budget: Budget, error: type[GemmaError]) -> str:
    """The UTF-8 text of a file, line ends as "\\n"; `error` as `read_bytes` has it, and for other encodings."""
    try:
        text = read_bytes(path, budget, error).decode("utf-8")
    except UnicodeDecodeError as problem:
        raise error(f"{path}: not UTF-8 at byte {problem.start}") from problem
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_json_object(path: Path, budget: Budget, error: type[GemmaError], *, unique: bool = False) -> dict[str, Any]:
    """The JSON object in a file; `error` as `read_bytes` and `parse_json_object` have it."""
    return parse_json_object(read_bytes(path, budget, error), str(path), budget, error, unique=unique)


def parse_json_object(
    data: bytes, what: str, budget: Budget, error: type[GemmaError], *, unique: bool = False
) -> dict[str, Any]:
    """The JSON object in `data`; `error`, beginning with `what`, for other data and for more values than the budget.

    unique: repeated keys are an error too. Values are counted before parsing, by the commas and brackets. Parsing takes
    at most 200 bytes of memory per value and 12 per byte of text: a list of empty lists takes 24 times its text.
    """
    values = data.count(b",") + data.count(b"[") + data.count(b"{")
    if values > budget.values:
        raise error(f"{what}: some {values} values; a file of this kind may have at most {budget.values}")

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) < len(pairs):
            seen: set[str] = set()
            repeated = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise error(f"{what}: lists '{shown_line(repeated)}' twice")
        return result

    try:
        value = json.loads(data, object_pairs_hook=once if unique else None)
    except error:
        raise
    except (ValueError, RecursionError) as problem:  # ValueError: no JSON, no UTF-8, an integer of 5,000 digits
        raise error(f"{what}: cannot be read as JSON: {shown_line(str(problem))}") from problem
    if not isinstance(value, dict):
        raise error(f"{what}: holds {shown_json(value)}, expected an object")
    return value
