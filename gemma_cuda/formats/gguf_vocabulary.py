"""The tokenizer data of a GGUF file: strings in one buffer, numbers as arrays, ids checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..errors import CheckpointError

_PREFIX = "tokenizer.ggml."
_T = TypeVar("_T")


@dataclass(frozen=True, eq=False, repr=False)  # its repr would be all of the data
class StringArray:
    """`len(self)` byte strings in one buffer: string i is `data[starts[i]:ends[i]]`."""

    data: bytes
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.starts)

    def all(self) -> list[bytes]:
        """Every string, in order: list of n bytes objects (0.1 s for 262 144)."""
        data = self.data
        return [data[a:b] for a, b in zip(self.starts.tolist(), self.ends.tolist(), strict=True)]


@dataclass(frozen=True, eq=False)
class GgufVocabulary:
    """The tokenizer of a GGUF file, n tokens, as the file stores it; `text/tokenizer_sources.py` interprets it."""

    source: str  # file name, for messages
    model: str  # tokenizer.ggml.model: "llama" (SentencePiece with scores), "gemma4" (BPE with merges), ...
    tokens: StringArray  # n UTF-8 strings, with SentencePiece's U+2581 for a space
    scores: NDArray[np.float32] | None  # [n]
    types: NDArray[np.int32] | None  # [n]; 1 normal, 2 unknown, 3 control, 4 user defined, 5 unused, 6 byte
    merges: StringArray | None  # "left right" pairs, best first
    bos_id: int | None
    eos_id: int | None
    pad_id: int | None
    unk_id: int | None
    eot_ids: tuple[int, ...]  # end-of-turn and end-of-message ids, besides eos
    add_bos: bool | None  # None without the key, as the next two
    add_eos: bool | None
    add_space_prefix: bool | None
    chat_template: str | None


def read_vocabulary(source: str, metadata: Mapping[str, object]) -> GgufVocabulary:
    """The vocabulary in GGUF `metadata`; CheckpointError naming `source` and the key of an inconsistent value."""
    fields = _Fields(source, metadata)
    tokens = fields.typed("tokens", StringArray)
    if tokens is None or len(tokens) == 0:
        raise CheckpointError(f"{source}: {_PREFIX}tokens is missing or empty")
    n = len(tokens)
    return GgufVocabulary(
        source=source,
        model=fields.typed("model", str) or "llama",
        tokens=tokens,
        scores=fields.numbers("scores", "f", n, np.float32),
        types=fields.numbers("token_type", "iu", n, np.int32),
        merges=fields.typed("merges", StringArray),
        bos_id=fields.token_id("bos_token_id", n),
        eos_id=fields.token_id("eos_token_id", n),
        pad_id=fields.token_id("padding_token_id", n),
        unk_id=fields.token_id("unknown_token_id", n),
        eot_ids=tuple(
            token_id for key in ("eot_token_id", "eom_token_id") if (token_id := fields.token_id(key, n)) is not None
        ),
        add_bos=fields.typed("add_bos_token", bool),
        add_eos=fields.typed("add_eos_token", bool),
        add_space_prefix=fields.typed("add_space_prefix", bool),
        chat_template=fields.typed("chat_template", str, prefix="tokenizer."),
    )


class _Fields:
    """Typed access to metadata; None where a key is absent."""

    def __init__(self, source: str, metadata: Mapping[str, object]) -> None:
        self.source = source
        self.metadata = metadata

    def typed(self, key: str, kind: type[_T], *, prefix: str = _PREFIX) -> _T | None:
        value = self.metadata.get(prefix + key)
        if value is not None and type(value) is not kind:
            raise CheckpointError(f"{self.source}: {prefix}{key} is not a {kind.__name__}")
        return value

    def numbers(self, key: str, kinds: str, count: int, dtype: Any) -> NDArray[Any] | None:
        """[count] of `dtype`."""
        value = self.typed(key, np.ndarray)
        if value is not None and (value.dtype.kind not in kinds or len(value) != count):
            raise CheckpointError(
                f"{self.source}: {_PREFIX}{key} is {len(value)} values of {value.dtype} for {count} tokens"
            )
        return None if value is None else value.astype(dtype, copy=False)

    def token_id(self, key: str, count: int) -> int | None:
        """An id in [0, count); None also for -1, as some writers spell it."""
        value = self.typed(key, int)
        if value in (None, -1, 0xFFFFFFFF):
            return None
        if not 0 <= value < count:
            raise CheckpointError(f"{self.source}: {_PREFIX}{key} is {value}, the vocabulary has {count} tokens")
        return value
