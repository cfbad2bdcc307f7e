"""Text to HuggingFace's token ids and back, from a tokenizer.json, a tokenizer.model or a GGUF vocabulary.

All three end in one `tokenizers.Tokenizer`, so that encoding and decoding are one code path. Where tokenizer.model and
GGUF leave a choice, `text/bpe_vocabulary.py` follows the tokenizer.json files that HuggingFace publishes for Gemma.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import arguments
from ..arguments import shown
from ..errors import InputError, TokenizerError
from ..formats.bounded_files import require_file_or_directory
from ..formats.gguf_file import GgufFile
from ..formats.gguf_vocabulary import GgufVocabulary
from .bpe_vocabulary import library_errors
from .chat_template import render_chat_template
from .tokenizer_sources import DEFAULT_TOKENS, TokenizerSettings, read_directory, read_gguf

if TYPE_CHECKING:
    import tokenizers

_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")


class Tokenizer:
    """Text to ids and back, with HuggingFace's ids for any Unicode text. Make one with a `from_` method."""

    def __init__(self, backend: tokenizers.Tokenizer, settings: TokenizerSettings) -> None:
        self._backend = backend
        self._settings = settings
        self.vocab_size: int = backend.get_vocab_size()  # with added tokens, as HuggingFace's len(tokenizer)
        self.bos_token_id = self._named_id("bos_token")
        self.eos_token_id = self._named_id("eos_token")
        self.chat_template = settings.chat_template

    @classmethod
    def from_pretrained(cls, source: str | Path | GgufVocabulary) -> Tokenizer:
        """The tokenizer in a directory, in a .gguf file, or of a vocabulary already read from one."""
        if isinstance(source, GgufVocabulary):
            return cls.from_gguf(source)
        path = arguments.path("source", source, error=TokenizerError)
        if require_file_or_directory(path, TokenizerError) == "directory":
            return cls.from_directory(path)
        vocabulary = GgufFile(path).vocabulary()
        if vocabulary is None:
            raise TokenizerError(f"{path}: the file holds no vocabulary")
        return cls.from_gguf(vocabulary)

    @classmethod
    def from_directory(cls, path: str | Path) -> Tokenizer:
        """The tokenizer of a HuggingFace directory: tokenizer.json, or else tokenizer.model.

        tokenizer_config.json and chat_template.jinja beside it are heeded. TokenizerError names the file that is
        missing or damaged.
        """
        return cls(*read_directory(arguments.path("path", path)))

    @classmethod
    def from_gguf(cls, vocabulary: GgufVocabulary) -> Tokenizer:
        """The tokenizer of a GGUF file of Gemma 1 to 4 (`tokenizer.ggml.model` llama or gemma4)."""
        if not isinstance(vocabulary, GgufVocabulary):
            raise InputError(f"vocabulary is {arguments.shown(vocabulary)}, expected that of a GGUF file")
        return cls(*read_gguf(vocabulary))

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`: list of ints. Special tokens written out in the text become those tokens.

        add_special_tokens: begin with BOS (and end with EOS) as the model's files say, with BOS if they do not say;
        never with a second BOS if the text begins with one. InputError if it is no str, TokenizerError for an unpaired
        surrogate in it.
        """
        arguments.text("text", text)
        add_special_tokens = arguments.flag("add_special_tokens", add_special_tokens)
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise TokenizerError(
                f"character {error.start} of the text is {text[error.start]!r}, an unpaired surrogate: not Unicode text"
            ) from error
        with library_errors(self._settings.source):
            ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        if not add_special_tokens:
            return ids
        bos, eos = self.bos_token_id, self.eos_token_id
        if bos is not None and self._settings.add_bos is not False and ids[:1] != [bos]:
            ids.insert(0, bos)
        if eos is not None and self._settings.add_eos:
            ids.append(eos)
        return ids

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        """The text of `ids`, [n] integers. Bytes that are no UTF-8 become U+FFFD.

        Ids past the vocabulary are left out, as HuggingFace does: an embedding matrix may be padded. U+2581 decodes as
        the space that it stands for. InputError for ids that are no integers, or negative.
        """
        return self._decode(_plain_ids(ids), arguments.flag("skip_special_tokens", skip_special_tokens))

    def stream(self, *, skip_special_tokens: bool = True) -> TokenStream:
        """A decoder that is given one id at a time."""
        skipped = arguments.flag("skip_special_tokens", skip_special_tokens)
        return TokenStream(self, skip_special_tokens=skipped)

    def token_id(self, token: str) -> int | None:
        """Id of the token written exactly so ("<end_of_turn>"; spaces as U+2581), or None."""
        with library_errors(self._settings.source):
            found: int | None = self._backend.token_to_id(token)
        return found

    def apply_chat_template(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True) -> str:
        """The prompt for `messages` ([{"role": "user", "content": "..."}, ...]), written by the model's chat template.

        It may begin with <bos>; `encode` adds no second one. TokenizerError if there is no template (a base model) or
        it refuses the messages.
        """
        if self.chat_template is None:
            raise TokenizerError(
                f"{self._settings.source}: there is no chat template, so this is a base model; give it plain text, "
                "or use an instruction-tuned (-it) model"
            )
        return render_chat_template(
            self.chat_template,
            messages,
            add_generation_prompt=add_generation_prompt,
            special_tokens=self._settings.special_tokens,
            source=self._settings.source,
        )

    def _decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        with library_errors(self._settings.source):
            text: str = self._backend.decode(ids, skip_special_tokens=skip_special_tokens)
        return text

    def _named_id(self, name: str) -> int | None:
        """Id of bos_token or eos_token; None if the vocabulary lacks it and no file asks for it."""
        token = self._settings.special_tokens[name]
        found = self.token_id(token)
        if found is None and token != DEFAULT_TOKENS[name]:
            raise TokenizerError(
                f"{self._settings.source}: {name} is {shown(token)}, which the vocabulary does not have"
            )
        return found


class TokenStream:
    """Decodes ids as they come: the pieces together are what `Tokenizer.decode` gives for all ids at once.

    A character outside the vocabulary is several byte tokens; their run is held back until it ends, for only then is it
    known to be UTF-8. Every other token's text does not depend on its neighbours.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special_tokens: bool) -> None:
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._bytes: list[int] = []  # the byte tokens held back

    def push(self, token_id: int) -> str:
        """The text that is certain now that `token_id` has come; "" for a special token or part of a character."""
        (token_id,) = _plain_ids([token_id])
        token = self._tokenizer._backend.id_to_token(token_id)
        if token is not None and _BYTE_TOKEN.fullmatch(token):
            self._bytes.append(token_id)
            return ""
        text = self._tokenizer._decode([token_id], self._skip_special_tokens)
        return self.flush() + text if text else ""  # what is left out does not end a run of bytes

    def flush(self) -> str:
        """The text still held back. Call it once after the last id."""
        held, self._bytes = self._bytes, []
        return self._tokenizer._decode(held, skip_special_tokens=False) if held else ""


def _plain_ids(ids: Iterable[int]) -> list[int]:
    given = arguments.integers("ids", ids if arguments.has_axes(ids) else _listed(ids))
    if given.ndim != 1 or (given.size and not 0 <= given.min() <= given.max() < 1 << 32):
        raise InputError(f"ids is {arguments.shown(ids)}, expected token ids [n]")
    return [int(i) for i in given]


def _listed(ids: Iterable[int]) -> list[int]:
    try:
        return list(ids)
    except Exception as error:  # of whatever a stranger's __iter__ raises
        raise InputError(f"ids is {arguments.shown(ids)}, expected token ids [n]") from error
