"""`tokenizer.model` files: the pieces of a serialised SentencePiece ModelProto, read without the sentencepiece library.

The library does not tell which pieces are user-defined, and protobuf would be one more dependency for five fields:

    ModelProto       1: repeated SentencePiece   2: TrainerSpec      3: NormalizerSpec
    SentencePiece    1: piece (string)           2: score (float)    3: type (enum, 1 when absent)
    TrainerSpec      3: model_type (enum, 2 = BPE)
    NormalizerSpec   2: precompiled_charsmap (bytes)
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..arguments import shown
from ..errors import TokenizerError
from ..formats.bounded_files import TOKENIZER_MODEL, read_bytes
from .bpe_vocabulary import BYTE, NORMAL, UNKNOWN, BpeVocabulary, check_counts

_VARINT, _LENGTH = 0, 2  # protobuf's wire types
_FIXED = {1: (8, "<q"), 5: (4, "<f")}  # wire type: (bytes, struct code); the only 4-byte field here is a float
_BPE = 2


class _Damaged(Exception):
    """The bytes are not what the format says; the message says where."""


def read_sentencepiece_model(path: Path) -> BpeVocabulary:
    """The vocabulary in a `tokenizer.model` file. TokenizerError if it cannot be read or is not of Gemma's kind."""
    data = read_bytes(path, TOKENIZER_MODEL, TokenizerError)
    try:
        return _parse(data, str(path))
    except (_Damaged, UnicodeDecodeError) as error:
        raise TokenizerError(f"{path}: not a SentencePiece model, or damaged: {error}") from error


def _parse(data: bytes, source: str) -> BpeVocabulary:
    tokens: list[str] = []
    scores: list[float] = []
    types: list[int] = []
    model_type, charsmap = 1, b""
    for number, value in _fields(data, 0, len(data)):
        if number == 1:
            token, score, piece_type = _piece(data, *_span(value))
            tokens.append(token)
            scores.append(score)
            types.append(piece_type)
            check_counts(source, len(tokens))  # an empty piece takes 2 bytes of the file and 100 of memory
        elif number == 2:
            model_type = _varint_field(data, _span(value), 3, default=1)
        elif number == 3:
            charsmap = _bytes_field(data, _span(value), 2)
    if not tokens:
        raise TokenizerError(f"{source}: the vocabulary is empty")
    if model_type != _BPE:
        raise TokenizerError(f"{source}: model_type is {model_type}, Gemma's tokenizers are BPE ({_BPE})")
    if charsmap:
        raise TokenizerError(
            f"{source}: the model rewrites its text (precompiled_charsmap), which no Gemma tokenizer does"
        )
    type_array = np.array(types, np.int32)
    unknown = np.flatnonzero(type_array == UNKNOWN)
    unk_token = tokens[unknown[0]] if len(unknown) else None
    return BpeVocabulary(source, tokens, type_array, np.array(scores, np.float32), unk_token=unk_token)


def _piece(data: bytes, start: int, end: int) -> tuple[str, float, int]:
    token, score, piece_type = "", 0.0, NORMAL
    for number, value in _fields(data, start, end):
        if number == 1:
            first, last = _span(value)
            token = data[first:last].decode("utf-8")
        elif number == 2 and isinstance(value, float):
            score = value
        elif number == 3 and isinstance(value, int):
            piece_type = value
    if not NORMAL <= piece_type <= BYTE:
        raise _Damaged(f"piece {shown(token)} has type {piece_type}")
    return token, score, piece_type


def _varint_field(data: bytes, span: tuple[int, int], wanted: int, *, default: int) -> int:
    values = [value for number, value in _fields(data, *span) if number == wanted]
    return values[-1] if values and isinstance(values[-1], int) else default


def _bytes_field(data: bytes, span: tuple[int, int], wanted: int) -> bytes:
    spans = [_span(value) for number, value in _fields(data, *span) if number == wanted]
    return data[slice(*spans[-1])] if spans else b""


def _span(value: int | float | tuple[int, int]) -> tuple[int, int]:
    if not isinstance(value, tuple):
        raise _Damaged(f"a number stands where a message or string is expected ({value})")
    return value


def _fields(data: bytes, start: int, end: int) -> Iterator[tuple[int, int | float | tuple[int, int]]]:
    """(field number, value) of the message data[start:end]; a message, string or bytes is its (start, end)."""
    while start < end:
        tag, start = _varint(data, start, end)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == _LENGTH:
            length, start = _varint(data, start, end)
            if length > end - start:
                raise _Damaged(f"{length} bytes are announced at byte {start}, {end - start} are left")
            yield number, (start, start + length)
            start += length
        elif wire_type == _VARINT:
            value, start = _varint(data, start, end)
            yield number, value
        elif wire_type in _FIXED:
            size, code = _FIXED[wire_type]
            if size > end - start:
                raise _Damaged(f"cut at byte {end}")
            yield number, struct.unpack_from(code, data, start)[0]
            start += size
        else:
            raise _Damaged(f"wire type {wire_type} before byte {start}")


def _varint(data: bytes, start: int, end: int) -> tuple[int, int]:
    """An unsigned integer of 7 bits a byte, and the position behind it."""
    value = shift = 0
    for position in range(start, min(end, start + 10)):
        byte = data[position]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position + 1
        shift += 7
    raise _Damaged(f"an integer at byte {start} does not end")
