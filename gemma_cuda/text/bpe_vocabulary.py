"""A SentencePiece vocabulary (tokens, scores, types) as the BPE tokenizer that HuggingFace publishes for Gemma.

HuggingFace converts Google's `tokenizer.model` once and publishes the result as `tokenizer.json`; its ids are what its
users get. The rules below give Gemma 3's published file exactly (all 514 906 merges, in order), from what llama.cpp's
converter leaves of Google's vocabulary in a GGUF file:

- Merges are all splits of a token into two tokens, best score first; of equal scores the longer left half first, then
  the longer right half. Control and user-defined tokens score 0 (llama.cpp overwrites that by -1000), so runs of spaces
  join greedily from the left: 33 are a token of 31 and one of 2, as in SentencePiece. Transformers 5.23 orders merges
  by id when it loads a GGUF file or a bare `tokenizer.model` itself, and then splits runs of 32 spaces and more
  otherwise (33 as 16 + 17) than its published tokenizers, which are followed here.
- Unknown, control and user-defined tokens are matched in the text before anything else, leftmost longest, before spaces
  become U+2581. SentencePiece never matches control tokens in text, and sees a typed U+2581 and a space as one run.
- A vocabulary without a tab has its byte token <0x09> spelled as a tab, as in Gemma 1, to take part in merges.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..arguments import shown
from ..errors import TokenizerError

if TYPE_CHECKING:
    import tokenizers

SPACE = "\u2581"  # what a space is written as inside tokens
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # SentencePiece's piece types

# User-defined in Google's model, but special (hidden by skip_special_tokens) for HuggingFace.
_SPECIAL_NAMES = {"<mask>", "<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>"}
# llama.cpp's converter marks these as control by their looks; for HuggingFace they are ordinary text.
_ORDINARY_NAMES = re.compile(r"<2mass>|\[@BOS@\]|<unused\d+>")

FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")  # of an AddedToken

# Budgets. Gemma 3 has 262,145 tokens of at most 31 and together 1.5 million characters, 514,906 merges, 6,414 tokens
# that are matched in the text. All splits of all tokens take some 70 bytes of memory per character.
_MAX_TOKENS, _MAX_TOKEN_LENGTH, _MAX_CHARACTERS, _MAX_MERGES = 1 << 20, 4096, 8 << 20, 4 << 20
_MAX_ADDED, _MAX_ADDED_CHARACTERS = 1 << 16, 1 << 18

_HASH_BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2^64


@dataclass(frozen=True)
class BpeVocabulary:
    """n tokens by id, and what is needed to merge and to match them. `merges`, if given, stands in for `scores`."""

    source: str  # file name, for messages
    tokens: list[str]
    types: NDArray[np.int32]  # [n]
    scores: NDArray[np.float32] | None = None  # [n]
    merges: list[tuple[str, str]] | None = None
    unk_token: str | None = None


def build_backend(vocabulary: BpeVocabulary) -> tokenizers.Tokenizer:
    """The `tokenizers.Tokenizer` of the vocabulary; it adds no BOS. TokenizerError for an inconsistent vocabulary."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    tokens = _with_tab(vocabulary.tokens)
    check_vocabulary(vocabulary.source, tokens, len(vocabulary.merges or ()))
    ids = _ids_by_token(vocabulary.source, tokens)
    if len(vocabulary.types) != len(tokens):
        raise TokenizerError(f"{vocabulary.source}: {len(vocabulary.types)} token types for {len(tokens)} tokens")
    merges = vocabulary.merges
    if merges is None:
        merges = merges_from_scores(tokens, _merge_scores(vocabulary))
    with library_errors(vocabulary.source):
        model = models.BPE(ids, merges, unk_token=vocabulary.unk_token, fuse_unk=True, byte_fallback=True)
        backend = Tokenizer(model)
        backend.normalizer = normalizers.Replace(" ", SPACE)
        backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
        backend.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
        added = _matched_in_text(tokens, vocabulary.types)
        check_added_tokens(vocabulary.source, [token.content for token in added])
        backend.add_tokens(added)
    return backend


def check_counts(source: str, tokens: int, merges: int = 0) -> None:
    """TokenizerError unless the numbers of tokens and merges are within their budget."""
    if tokens > _MAX_TOKENS or merges > _MAX_MERGES:
        raise TokenizerError(
            f"{source}: {tokens} tokens and {merges} merges, expected at most {_MAX_TOKENS} and {_MAX_MERGES}"
        )


def check_vocabulary(source: str, tokens: Collection[str], merges: int) -> None:
    """TokenizerError unless tokens and merges are within their budget, characters included."""
    check_counts(source, len(tokens), merges)
    longest, total = max(map(len, tokens), default=0), sum(map(len, tokens))
    if longest > _MAX_TOKEN_LENGTH or total > _MAX_CHARACTERS:
        raise TokenizerError(
            f"{source}: tokens of up to {longest} characters, {total} together; expected at most {_MAX_TOKEN_LENGTH} "
            f"and {_MAX_CHARACTERS}"
        )


def check_added_tokens(source: str, contents: Sequence[str]) -> None:
    """TokenizerError unless the tokens that are matched in a text are within their budget."""
    total = sum(map(len, contents))
    if len(contents) > _MAX_ADDED or total > _MAX_ADDED_CHARACTERS:
        raise TokenizerError(
            f"{source}: {len(contents)} tokens of {total} characters to be matched in texts, expected at most "
            f"{_MAX_ADDED} and {_MAX_ADDED_CHARACTERS}"
        )


def merges_from_scores(tokens: Sequence[str], scores: NDArray[np.floating]) -> list[tuple[str, str]]:
    """Every split of a token into two tokens, best first (see the module): list of m pairs.

    tokens: n distinct strings; scores: [n], of the joined token. Gemma's 1.2 million possible splits are looked up by
    hash, all at once: 0.3 s instead of 1 s for a loop. A hash collision (in one of 10^7 such vocabularies) would add a
    pair whose union is no token, which `models.BPE` refuses.
    """
    code_points = np.frombuffer("".join(tokens).encode("utf-32-le"), "<u4").astype(np.uint64)
    lengths = np.fromiter(map(len, tokens), np.int64, len(tokens))
    ends = np.cumsum(lengths)
    starts = ends - lengths
    substring_hash = _SubstringHash(code_points)
    find = _Finder(substring_hash(starts, ends))

    owner = np.repeat(np.arange(len(tokens)), lengths)  # [code points]: the token of each
    cuts = np.flatnonzero(np.arange(len(owner)) != starts[owner])  # positions strictly inside a token
    owner = owner[cuts]
    left = find(substring_hash(starts[owner], cuts))
    found = left >= 0
    cuts, owner, left = cuts[found], owner[found], left[found]
    right = find(substring_hash(cuts, ends[owner]))
    found = right >= 0
    owner, left, right = owner[found], left[found], right[found]

    order = np.lexsort((-lengths[right], -lengths[left], -scores[owner]))
    strings = np.array(tokens, object)
    return list(zip(strings[left[order]].tolist(), strings[right[order]].tolist(), strict=True))


def add_tokens(
    source: str, backend: tokenizers.Tokenizer, tokens: Mapping[int, tokenizers.AddedToken], verb: str
) -> None:
    """Adds tokens by rising id; TokenizerError ("is `verb` as token 5") where the vocabulary has another id for one."""
    check_added_tokens(source, [token.content for token in tokens.values()])
    with library_errors(source):
        backend.add_tokens([tokens[i] for i in sorted(tokens)])
    for i, token in tokens.items():
        if (got := backend.token_to_id(token.content)) != i:
            raise TokenizerError(
                f"{source}: {shown(token.content)} is {verb} as token {i}, the vocabulary makes it {got}"
            )


@contextmanager
def library_errors(source: str) -> Iterator[None]:
    """Turns whatever the `tokenizers` library raises into TokenizerError naming `source`."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit, TokenizerError):
        raise
    except BaseException as error:  # a panic in Rust arrives as a direct subclass of BaseException
        raise TokenizerError(f"{source}: {str(error)[:500] or type(error).__name__}") from error


class _SubstringHash:
    """Hashes of substrings of one text, modulo 2^64: (start [k], end [k]) -> uint64 [k], equal for equal substrings."""

    def __init__(self, code_points: NDArray[np.uint64]) -> None:
        count = len(code_points) + 1
        powers = _powers(_HASH_BASE, count)
        self._inverses = _powers(pow(_HASH_BASE, -1, 1 << 64), count)
        self._sums = np.zeros(count, np.uint64)
        np.cumsum((code_points + np.uint64(1)) * powers[:-1], out=self._sums[1:])

    def __call__(self, start: NDArray[np.int64], end: NDArray[np.int64]) -> NDArray[np.uint64]:
        return (self._sums[end] - self._sums[start]) * self._inverses[start]


class _Finder:
    """Index of each value in a given array: values [k] -> int64 [k], -1 where absent."""

    def __init__(self, keys: NDArray[np.uint64]) -> None:
        self._order = np.argsort(keys)
        self._sorted = keys[self._order]

    def __call__(self, values: NDArray[np.uint64]) -> NDArray[np.int64]:
        ascending = np.argsort(values)  # neighbours in the search are then neighbours in memory: four times as fast
        values = values[ascending]
        at = np.minimum(np.searchsorted(self._sorted, values), len(self._sorted) - 1)
        found = np.empty(len(values), np.int64)
        found[ascending] = np.where(self._sorted[at] == values, self._order[at], -1)
        return found


def _powers(base: int, count: int) -> NDArray[np.uint64]:
    factors = np.full(count, base, np.uint64)
    factors[0] = 1
    return np.multiply.accumulate(factors)


def _with_tab(tokens: list[str]) -> list[str]:
    if "\t" in tokens:
        return tokens
    return ["\t" if token == "<0x09>" else token for token in tokens]


def _ids_by_token(source: str, tokens: list[str]) -> dict[str, int]:
    if not tokens:
        raise TokenizerError(f"{source}: the vocabulary is empty")
    ids = {token: i for i, token in enumerate(tokens)}
    if len(ids) != len(tokens):
        first = next(i for i, token in enumerate(tokens) if ids[token] != i)
        raise TokenizerError(f"{source}: tokens {first} and {ids[tokens[first]]} are both {shown(tokens[first])}")
    return ids


def _merge_scores(vocabulary: BpeVocabulary) -> NDArray[np.float32]:
    """[n] float32: the scores, 0 for tokens that are no result of training."""
    scores = vocabulary.scores
    if scores is None:
        raise TokenizerError(f"{vocabulary.source}: the vocabulary has neither scores nor merges")
    if len(scores) != len(vocabulary.tokens):
        raise TokenizerError(f"{vocabulary.source}: {len(scores)} scores for {len(vocabulary.tokens)} tokens")
    if not np.isfinite(scores).all():
        raise TokenizerError(
            f"{vocabulary.source}: the score of token {int(np.argmin(np.isfinite(scores)))} is not finite"
        )
    return np.where(np.isin(vocabulary.types, (CONTROL, USER_DEFINED)), np.float32(0), scores)


def _matched_in_text(tokens: list[str], types: NDArray[np.int32]) -> list[tokenizers.AddedToken]:
    from tokenizers import AddedToken

    added = []
    for i in np.flatnonzero(np.isin(types, (UNKNOWN, CONTROL, USER_DEFINED))).tolist():
        token = tokens[i]
        by_type = types[i] != USER_DEFINED and not _ORDINARY_NAMES.fullmatch(token)
        added.append(AddedToken(token, normalized=False, special=by_type or token in _SPECIAL_NAMES))
    return added
