"""Gemma 3's own vocabulary, from the demo weights."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import pytest
import sentencepiece
from hypothesis import given, settings

from gemma_cuda.formats.demo_weights import demo_weights
from gemma_cuda.formats.gguf_file import GgufFile
from gemma_cuda.text import bpe_vocabulary
from gemma_cuda.text.bpe_vocabulary import merges_from_scores
from gemma_cuda.text.tokenizer import Tokenizer
from tests.support.paths import TESTS
from tests.support.tokenizer_models import CONTROL, SPACE, Pieces, any_text, without

pytestmark = pytest.mark.real_weights

# SHA-256 of the 514 906 merges of Gemma 3's published tokenizer.json, each as "left right", joined by newlines.
PUBLISHED_MERGES = "ea437aa17955e79c2e3820a1c137eb52daaf703a5ed6190f680614a218176ca4"


@dataclass
class Gemma3:
    """The tokenizer of the GGUF file and the merges it was made with, and the same vocabulary as tokenizer.model."""

    gguf: Tokenizer
    merges: list[tuple[str, str]]
    model: Tokenizer
    sentencepiece: sentencepiece.SentencePieceProcessor


@pytest.fixture(scope="module")
def gemma3(tmp_path_factory: pytest.TempPathFactory) -> Gemma3:
    made: list[list[tuple[str, str]]] = []

    def remember(*arguments: Any) -> list[tuple[str, str]]:
        made.append(merges_from_scores(*arguments))
        return made[-1]

    vocabulary = GgufFile(demo_weights()).vocabulary()
    assert vocabulary is not None and vocabulary.scores is not None and vocabulary.types is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bpe_vocabulary, "merges_from_scores", remember)
        gguf = Tokenizer.from_gguf(vocabulary)
    # Google's vocabulary: runs of spaces as U+2581, and all but four of the tokens that match in text user-defined.
    tokens = [token.decode().replace(" ", SPACE) for token in vocabulary.tokens.all()]
    types = [2 if token == "<unk>" else 3 if token in CONTROL else 4 if kind == 3 else kind
             for token, kind in zip(tokens, vocabulary.types.tolist(), strict=True)]  # fmt: skip
    scores = [
        0.0 if kind in (2, 3, 4) else score for score, kind in zip(vocabulary.scores.tolist(), types, strict=True)
    ]
    model = Pieces(tokens, scores, types).model_file()
    directory = tmp_path_factory.mktemp("gemma3")
    (directory / "tokenizer.model").write_bytes(model)
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    return Gemma3(gguf, made[0], Tokenizer.from_directory(directory), processor)


def test_the_merges_are_the_published_ones(gemma3: Gemma3) -> None:
    lines = "\n".join(f"{left} {right}" for left, right in gemma3.merges)
    assert len(gemma3.merges) == 514_906
    assert hashlib.sha256(lines.encode()).hexdigest() == PUBLISHED_MERGES


def test_known_ids(gemma3: Gemma3) -> None:
    for tokenizer in (gemma3.gguf, gemma3.model):
        assert (tokenizer.vocab_size, tokenizer.bos_token_id, tokenizer.eos_token_id) == (262_144, 2, 1)
        ids = [2, 9259, 139, 12392, 108, 105, 236781, 167, 138]
        assert tokenizer.encode("Hello   world\n\n<start_of_turn>x" + " " * 33) == ids


@settings(max_examples=400)
@given(text=any_text)
def test_ids_of_any_text_are_sentencepieces(gemma3: Gemma3, text: str) -> None:
    text = without(text, *CONTROL, SPACE)
    expected = gemma3.sentencepiece.encode(text)
    assert gemma3.gguf.encode(text, add_special_tokens=False) == expected
    assert gemma3.model.encode(text, add_special_tokens=False) == expected
    assert gemma3.gguf.decode(expected, skip_special_tokens=False) == text


def test_ids_of_source_code_and_of_runs_are_sentencepieces(gemma3: Gemma3) -> None:
    texts = [path.read_text() for path in sorted(TESTS.rglob("*.py"))]
    texts += [f"a{c * n}b" for c in " \n\t" for n in range(100)]
    for text in texts:
        text = without(text, *CONTROL, SPACE)
        expected = gemma3.sentencepiece.encode(text)
        assert gemma3.gguf.encode(text, add_special_tokens=False) == expected
        assert gemma3.gguf.decode(expected, skip_special_tokens=False) == text
