"""tokenizer.json: parsed and examined here, so that the library gets nothing whose cost nobody can bound.

The library has no limits: 30 nested Replace steps that double their text take 4 kB of file and 2^30 times any text's
memory, and a failed allocation ends the process. So text may grow by a known, small factor only, and steps with a
regular expression, which no Gemma tokenizer has, are refused: how long one takes depends on the text.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from ..errors import TokenizerError
from ..formats.bounded_files import TOKENIZER_JSON, read_json_object
from ..formats.fields import shown_json
from .bpe_vocabulary import FLAGS, add_tokens, check_vocabulary, library_errors

if TYPE_CHECKING:
    import tokenizers

_MAX_STEPS, _MAX_DEPTH = 32, 4
_MAX_GROWTH = 64  # of a text's characters, by all steps of one kind together
_MAX_FRAME = 64  # tokens that a post-processor puts around a text
# What each kind of step may be, and by what it can multiply characters. None: see `_growth`.
_STEPS: dict[str, dict[str, int | None]] = {
    "normalizer": {
        "Replace": None, "Prepend": None, "Lowercase": 3, "NFC": 3, "NFD": 4, "NFKC": 18, "NFKD": 18, "Strip": 1,
        "StripAccents": 1, "Nmt": 1, "BertNormalizer": 12, "ByteLevel": 4,
    },
    "pre_tokenizer": {
        "Split": None, "Metaspace": 2, "ByteLevel": 8, "Whitespace": 1, "WhitespaceSplit": 1, "Punctuation": 1,
        "Digits": 1, "BertPreTokenizer": 1, "CharDelimiterSplit": 1, "UnicodeScripts": 1,
    },
    "decoder": {
        "Replace": None, "ByteFallback": 1, "Fuse": 1, "Metaspace": 1, "Strip": 1, "ByteLevel": 1, "BPEDecoder": 2,
        "WordPiece": 2, "CTC": 2,
    },
    "post_processor": {"TemplateProcessing": None, "ByteLevel": 1, "BertProcessing": 1, "RobertaProcessing": 1},
}  # fmt: skip
_INNER = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers", "decoder": "decoders",
          "post_processor": "processors"}  # fmt: skip
_Fail = Callable[[str], NoReturn]


def load_tokenizer_json(path: Path) -> tokenizers.Tokenizer:
    """The tokenizer in a tokenizer.json, without truncation and padding; TokenizerError naming the file and the step.

    Refused are files and vocabularies over their budget, models other than BPE and WordLevel, random dropout, regular
    expressions, and steps that together can multiply a text by more than 64.
    """
    from tokenizers import Tokenizer as Backend

    source = str(path)
    root = read_json_object(path, TOKENIZER_JSON, TokenizerError)
    frame = {kind: root.get(kind) for kind in _STEPS}
    for kind, component in frame.items():
        _check_steps(source, kind, component)
    model = _model(source, root.get("model"))
    empty = {"type": "BPE", "vocab": {}, "merges": []}
    text = json.dumps({"version": "1.0", "added_tokens": [], "model": empty} | frame)
    added = _added_tokens(source, root.get("added_tokens"))
    with library_errors(source):
        backend = Backend.from_str(text)
        backend.model = model
    add_tokens(source, backend, added, "added")
    if backend.get_vocab_size() == 0:
        raise TokenizerError(f"{source}: the vocabulary is empty")
    return backend


def _check_steps(source: str, kind: str, component: object) -> None:
    def fail(problem: str) -> NoReturn:
        raise TokenizerError(f"{source}: {kind}: {problem}")

    growth = 1
    for number, step in enumerate(_leaves(kind, component, fail, depth=0)):
        if number == _MAX_STEPS:
            fail(f"more than {_MAX_STEPS} steps")
        name = step["type"]
        if name not in _STEPS[kind]:
            fail(f"a step of type {shown_json(name)}, which no Gemma tokenizer has")
        growth *= _STEPS[kind][name] or _growth(step, fail)
    if growth > _MAX_GROWTH:
        fail(f"its steps can multiply the characters of a text by {shown_json(growth)}, expected at most {_MAX_GROWTH}")


def _leaves(kind: str, component: object, fail: _Fail, *, depth: int) -> Iterator[Mapping[str, Any]]:
    """Every step that is no sequence of others, in order."""
    if component is None and depth == 0:
        return
    if not isinstance(component, dict) or not isinstance(component.get("type"), str):
        fail(f"{shown_json(component)}, expected a step with a type")
    if component["type"] != "Sequence":
        yield component
        return
    inner = component.get(_INNER[kind])
    if not isinstance(inner, list) or depth == _MAX_DEPTH:
        fail(f"a Sequence without {_INNER[kind]}, or more than {_MAX_DEPTH} of them in each other")
    for step in inner:
        yield from _leaves(kind, step, fail, depth=depth + 1)


def _growth(step: Mapping[str, Any], fail: _Fail) -> int:
    """By what the step can multiply a text's characters."""
    name = step["type"]
    if name == "TemplateProcessing":
        declared = step.get("special_tokens")
        pieces = [step.get("single"), step.get("pair"), declared]
        if any(len(piece) > _MAX_FRAME for piece in pieces if isinstance(piece, list | dict)):
            fail(f"more than {_MAX_FRAME} tokens around a text")
        specials = declared.values() if isinstance(declared, dict) else ()
        ids = [special.get("ids") for special in specials if isinstance(special, dict)]
        if any(len(some) > 1 for some in ids if isinstance(some, list)):
            fail("several ids for a special token")
        return 1
    if name == "Prepend":
        return 1 + len(_text(step.get("prepend"), fail))
    pattern = step.get("pattern")
    if not isinstance(pattern, dict) or list(pattern) != ["String"]:
        fail(f"{name} by a pattern other than a String, which no Gemma tokenizer has: its time cannot be bounded")
    find = _text(pattern["String"], fail)
    if not find:
        fail(f"{name} by an empty pattern")
    return 1 if name == "Split" else max(1, math.ceil(len(_text(step.get("content"), fail)) / len(find)))


def _text(value: object, fail: _Fail) -> str:
    if not isinstance(value, str):
        fail(f"{shown_json(value)}, expected text")
    return value


def _model(source: str, model: object) -> Any:
    """The library's model, made of examined parts instead of being parsed again: as fast as its own parser."""
    from tokenizers import models

    kind = model.get("type") if isinstance(model, dict) else None
    if not isinstance(model, dict) or kind not in ("BPE", "WordLevel"):
        raise TokenizerError(f"{source}: model: its type is {shown_json(kind)}, Gemma's tokenizers are BPE")
    vocab = model.get("vocab")
    if not isinstance(vocab, dict) or not set(map(type, vocab.values())) <= {int}:
        raise TokenizerError(f"{source}: model: vocab is not an object of tokens and their ids")
    merges = _merges(source, model.get("merges")) if kind == "BPE" else []
    check_vocabulary(source, vocab, len(merges))
    with library_errors(source):
        if kind == "WordLevel":
            return models.WordLevel(vocab, model.get("unk_token"))
        names = ("unk_token", "continuing_subword_prefix", "end_of_word_suffix")
        flags = ("fuse_unk", "byte_fallback", "ignore_merges")
        for name in flags:
            if not isinstance(model.get(name), bool | None):
                raise TokenizerError(f"{source}: model: {name} is {shown_json(model[name])}, expected true or false")
        if model.get("dropout") not in (None, 0, 0.0):
            raise TokenizerError(f"{source}: model: dropout is {shown_json(model['dropout'])}: the ids would be random")
        options = {name: bool(model.get(name)) for name in flags}
        options |= {name: model[name] for name in names if model.get(name) is not None}
        return models.BPE(vocab, merges, **options)


def _merges(source: str, merges: object) -> list[tuple[str, str]]:
    """Pairs, from lists of two or, as files before 2024 have them, from "left right"."""
    if not isinstance(merges, list):
        raise TokenizerError(f"{source}: model: merges is {shown_json(merges)}, expected a list")
    if set(map(type, merges)) == {str}:
        merges = [merge.split(" ") for merge in merges]
    pairs = [tuple(merge) for merge in merges if type(merge) is list and len(merge) == 2]
    if len(pairs) != len(merges) or not all(type(left) is str is type(right) for left, right in pairs):
        raise TokenizerError(f"{source}: model: merges holds something else than pairs of tokens")
    return pairs


def _added_tokens(source: str, added: object) -> dict[int, tokenizers.AddedToken]:
    """id -> token."""
    from tokenizers import AddedToken

    found: dict[int, tokenizers.AddedToken] = {}
    for entry in added if isinstance(added, list) else () if added is None else (added,):
        if not isinstance(entry, dict):
            raise TokenizerError(f"{source}: added_tokens holds {shown_json(entry)}, expected tokens")
        i, content = entry.get("id"), entry.get("content")
        if type(i) is not int or not isinstance(content, str) or i in found:
            raise TokenizerError(
                f"{source}: added_tokens: {shown_json(content)} has no id of its own ({shown_json(i)})"
            )
        with library_errors(source):
            found[i] = AddedToken(content, **{flag: entry.get(flag) is True for flag in FLAGS})
    return found
