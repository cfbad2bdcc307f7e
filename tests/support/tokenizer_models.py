"""A small SentencePiece model with Gemma's settings, in every form that a Gemma tokenizer comes in, and its oracles."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import tokenizers
from hypothesis import strategies as st
from transformers.models.gemma.tokenization_gemma import GemmaTokenizer
from transformers.tokenization_utils_base import generate_merges

from gemma_cuda.formats.gguf_vocabulary import GgufVocabulary, StringArray
from gemma_cuda.text.tokenizer import Tokenizer

SPACE = "\u2581"
CONTROL = ["<pad>", "<eos>", "<bos>", "<unk>"]
TAGS = ["<mask>", "[multimodal]", "<unused0>", "<start_of_turn>", "<end_of_turn>", "<b>", "</b>", "<start_of_image>"]
RUNS = [c * n for c in ("\n", SPACE) for n in range(2, 9)] + ["\n", "\t", "\t\t"]
USER_DEFINED = (*TAGS, *RUNS)
SPECIAL = {*CONTROL, "<mask>", "<start_of_turn>", "<end_of_turn>", "<start_of_image>"}

CORPUS = """\
def fibonacci(n):    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)
The quick brown fox jumps over the lazy dog. The dog was not amused, the fox was; and then they ate 1234567 plums.
In the beginning there was the token, and the token was with the model, and the model was the token's.
Le cœur a ses raisons que la raison ne connaît point. L'été dernier, nous avons mangé des pêches à Besançon.
Über allen Gipfeln ist Ruh, in allen Wipfeln spürest du kaum einen Hauch; die Vögelein schweigen im Walde.
Все счастливые семьи похожи друг на друга, каждая несчастливая семья несчастлива по-своему.
吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。猫は猫である。
天地玄黃，宇宙洪荒。日月盈昃，辰宿列張。天地玄黃，宇宙洪荒。
بسم الله الرحمن الرحيم، الحمد لله رب العالمين. السلام عليكم ورحمة الله وبركاته
בראשית ברא אלהים את השמים ואת הארץ. והארץ היתה תהו ובהו
सभी मनुष्य जन्म से स्वतंत्र तथा मर्यादा और अधिकारों में समान होते हैं। सभी मनुष्य समान हैं।
for (int i = 0; i < n; ++i) { sum += x[i] * y[i]; } // dot product, dot product, dot product
""".splitlines()


AWKWARD = [
    *USER_DEFINED, *CONTROL, SPACE, " ", "  ", " " * 9, " " * 33, "\n" * 11, "\t\t\t", "\r\n", "\0", "\x7f", "\x85",
    "\xa0", "\u3000", "\u200b", "\ufeff", "\ufffd", "\ufffe", "e\u0301", "\u0301", "\u0300\u0327", "ﬁ", "İ", "ß",
    "\u200d", "\ufe0f", "👨‍👩‍👧‍👦", "🧑🏽‍🚀", "🇩🇪", "1\ufe0f\u20e3", "漢字", "猫である", "한국어", "ไทย", "بِسْمِ", "שלום",
    "\u202e", "हिन्दी", "\U00012000", "\U0010ffff", "<0x41>", "<0x0A>", "<bos", "bos>", "<start_of_turn", "the", " the",
    "fibonacci", "12345", "x[i] * y[i]",
]  # fmt: skip
any_text = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"])),
    st.lists(st.one_of(st.sampled_from(AWKWARD), st.text(st.characters(codec="utf-8"), max_size=3))).map("".join),
    st.sampled_from(CORPUS).flatmap(lambda line: st.integers(0, len(line)).map(lambda i: line[i:] + line[:i])),
)


def without(text: str, *parts: str) -> str:
    """The text with every occurrence of the parts removed, those that removing brings together included."""
    while any(part in text for part in parts):
        for part in parts:
            text = text.replace(part, "")
    return text


def train(user_defined: Sequence[str] = USER_DEFINED, **options: str) -> bytes:
    """A serialised BPE model with byte fallback, no dummy prefix and spaces kept, as Gemma's; or with other options."""
    model = io.BytesIO()
    as_gemma = {"model_type": "bpe", "normalization_rule_name": "identity"}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS * 3),
        model_writer=model,
        vocab_size=1200,
        hard_vocab_limit=False,
        byte_fallback=True,
        character_coverage=0.99,
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        user_defined_symbols=list(user_defined),
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        pad_piece="<pad>",
        eos_piece="<eos>",
        bos_piece="<bos>",
        num_threads=1,
        minloglevel=2,
        **(as_gemma | options),
    )
    return model.getvalue()


@dataclass(frozen=True)
class Pieces:
    """n pieces as SentencePiece itself reports them; it does not say which are user-defined, the caller does."""

    tokens: list[str]
    scores: list[float]
    types: list[int]

    @classmethod
    def of(cls, model: bytes, user_defined: Sequence[str]) -> Pieces:
        processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        tokens = [processor.IdToPiece(i) for i in range(len(processor))]
        scores = [processor.GetScore(i) for i in range(len(processor))]
        types = [
            2 if processor.IsUnknown(i) else 3 if processor.IsControl(i) else 6 if processor.IsByte(i)
            else 4 if token in user_defined else 1
            for i, token in enumerate(tokens)
        ]  # fmt: skip
        return cls(tokens, scores, types)

    def model_file(self) -> bytes:
        """The pieces as a `tokenizer.model` with Gemma's settings, serialised by hand."""
        pieces = b"".join(
            _message(
                1, _message(1, token.encode()) + b"\x15" + struct.pack("<f", score) + b"\x18" + bytes([piece_type])
            )
            for token, score, piece_type in zip(self.tokens, self.scores, self.types, strict=True)
        )
        # TrainerSpec: model_type BPE, byte_fallback, and the ids of unk, bos, eos and pad.
        trainer = b"\x18\x02" + b"\x98\x02\x01" + b"\xc0\x02\x03" + b"\xc8\x02\x02" + b"\xd0\x02\x01" + b"\xd8\x02\x00"
        # NormalizerSpec: no dummy prefix, whitespace kept, spaces escaped.
        normalizer = _message(1, b"identity") + b"\x18\x00\x20\x00\x28\x01"
        return pieces + _message(2, trainer) + _message(3, normalizer)

    def huggingface(self) -> GemmaTokenizer:
        """Transformers' tokenizer, converted by the rules of its GemmaConverter, which wrote the published files."""
        tokens = self.tokens
        if "\t" not in tokens:
            tokens = ["\t" if token == "<0x09>" else token for token in tokens]
        ids = {token: i for i, token in enumerate(tokens)}
        merges = generate_merges(ids, dict(zip(tokens, self.scores, strict=True)))
        tokenizer = GemmaTokenizer(vocab=ids, merges=merges, add_bos_token=True)
        tokenizer.add_tokens(
            [
                tokenizers.AddedToken(token, normalized=False, special=token in SPECIAL)
                for token, piece_type in zip(self.tokens, self.types, strict=True)
                if piece_type in (2, 3, 4)
            ]
        )
        return tokenizer

    def gguf(self, **changes: Any) -> GgufVocabulary:
        """The vocabulary as llama.cpp's converter writes it: spaces spelled out, look-alikes control, scores lost."""
        tokens = [" " * len(token) if len(token) > 1 and not token.strip(SPACE) else token for token in self.tokens]
        control = {*CONTROL, "<mask>", "<unused0>", "<start_of_turn>", "<end_of_turn>"}
        types = [3 if token in control else t for token, t in zip(self.tokens, self.types, strict=True)]
        scores = [-1000.0 if t in (3, 4) else score for score, t in zip(self.scores, types, strict=True)]
        vocabulary = GgufVocabulary(
            source="model.gguf",
            model="llama",
            tokens=string_array([token.encode() for token in tokens]),
            scores=np.array(scores, np.float32),
            types=np.array(types, np.int32),
            merges=None,
            bos_id=2,
            eos_id=1,
            pad_id=0,
            unk_id=3,
            eot_ids=(),
            add_bos=True,
            add_eos=False,
            add_space_prefix=False,
            chat_template=None,
        )
        return replace(vocabulary, **changes)


class Sources:
    """One vocabulary as tokenizer.json, tokenizer.model and GGUF, with SentencePiece and Transformers as oracles."""

    def __init__(self, directory: Path) -> None:
        self.model = train()
        self.pieces = Pieces.of(self.model, USER_DEFINED)
        self.sentencepiece = sentencepiece.SentencePieceProcessor(model_proto=self.model)
        self.huggingface = self.pieces.huggingface()
        self.json_directory, self.model_directory = directory / "json", directory / "model"
        self.huggingface.save_pretrained(self.json_directory)
        self.model_directory.mkdir()
        (self.model_directory / "tokenizer.model").write_bytes(self.model)
        self.tokenizers = {
            "tokenizer.json": Tokenizer.from_directory(self.json_directory),
            "tokenizer.model": Tokenizer.from_directory(self.model_directory),
            "gguf": Tokenizer.from_gguf(self.pieces.gguf()),
        }


def _message(field: int, content: bytes) -> bytes:
    """A length-delimited protobuf field of fewer than 2^14 bytes."""
    n = len(content)
    return bytes([field << 3 | 2]) + (bytes([n]) if n < 128 else bytes([n & 127 | 128, n >> 7])) + content


def string_array(strings: Sequence[bytes]) -> StringArray:
    lengths = np.array([len(s) for s in strings], np.int64)
    ends = np.cumsum(lengths)
    return StringArray(b"".join(strings), ends - lengths, ends)


def write_config(directory: Path, **config: Any) -> Path:
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory
