"""Where a tokenizer comes from: a HuggingFace directory or a GGUF vocabulary, read into a backend and its settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import TokenizerError
from ..formats.bounded_files import CHAT_TEMPLATE, TOKENIZER_CONFIG, kind_of, read_json_object, read_text
from ..formats.fields import shown_json
from ..printable import shown_line
from .bpe_vocabulary import (
    FLAGS,
    SPACE,
    BpeVocabulary,
    add_tokens,
    build_backend,
    check_counts,
    library_errors,
)
from .sentencepiece_file import read_sentencepiece_model
from .tokenizer_json import load_tokenizer_json

if TYPE_CHECKING:
    import tokenizers

    from ..formats.gguf_vocabulary import GgufVocabulary


# What HuggingFace's GemmaTokenizer assumes where no file names them.
DEFAULT_TOKENS = {
    "pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>", "mask_token": "<mask>",
}  # fmt: skip


@dataclass(frozen=True)
class TokenizerSettings:
    """What a tokenizer needs besides its vocabulary. add_bos and add_eos are None where no file says."""

    source: str  # file or directory, for messages
    special_tokens: dict[str, str]  # bos_token, eos_token, image_token, ...: the token
    add_bos: bool | None = None
    add_eos: bool | None = None
    chat_template: str | None = None


def read_directory(directory: Path) -> tuple[tokenizers.Tokenizer, TokenizerSettings]:
    """Backend and settings from tokenizer.json, or else tokenizer.model, and the files that configure them."""
    config_path = directory / "tokenizer_config.json"
    config = read_json_object(config_path, TOKENIZER_CONFIG, TokenizerError) if _exists(config_path) else {}
    settings = _directory_settings(directory, config, str(config_path))
    json_path, model_path = directory / "tokenizer.json", directory / "tokenizer.model"
    if _exists(json_path):
        backend = load_tokenizer_json(json_path)
        settings = _with_post_processor(settings, backend)
    elif _exists(model_path):
        backend = build_backend(read_sentencepiece_model(model_path))
    else:
        raise TokenizerError(f"{directory}: has neither tokenizer.json nor tokenizer.model")
    _add_declared_tokens(backend, config, str(config_path))
    _hide_named_tokens(backend, settings)
    return backend, settings


def read_gguf(vocabulary: GgufVocabulary) -> tuple[tokenizers.Tokenizer, TokenizerSettings]:
    """Backend and settings from the metadata of a GGUF file."""
    tokens = _gguf_tokens(vocabulary)
    ids = {"bos": vocabulary.bos_id, "eos": vocabulary.eos_id, "pad": vocabulary.pad_id, "unk": vocabulary.unk_id}
    for name, i in ids.items():
        if i is not None and not 0 <= i < len(tokens):
            raise TokenizerError(f"{vocabulary.source}: {name} is token {i}, the vocabulary has {len(tokens)}")
    special_tokens = {f"{name}_token": tokens[i] for name, i in ids.items() if i is not None}
    if vocabulary.types is None:
        raise TokenizerError(f"{vocabulary.source}: tokenizer.ggml.token_type is missing")
    backend = build_backend(
        BpeVocabulary(
            source=vocabulary.source,
            tokens=tokens,
            types=vocabulary.types,
            scores=vocabulary.scores,
            merges=_gguf_merges(vocabulary),
            unk_token=special_tokens.get("unk_token"),
        )
    )
    # Gemma 4 files set add_bos_token, but HuggingFace's tokenizer adds none: its chat template writes <bos>.
    add_bos = False if vocabulary.model == "gemma4" else vocabulary.add_bos
    template = vocabulary.chat_template or None
    return backend, TokenizerSettings(
        vocabulary.source, DEFAULT_TOKENS | special_tokens, add_bos, vocabulary.add_eos, template
    )


def _directory_settings(directory: Path, config: Mapping[str, Any], where: str) -> TokenizerSettings:
    """Settings from tokenizer_config.json and chat_template.jinja, the latter's template first."""
    special_tokens = dict(DEFAULT_TOKENS)
    for name, value in config.items():
        content = value.get("content") if isinstance(value, dict) else value
        if name.endswith("_token") and isinstance(content, str):
            special_tokens[name] = content
    flags = {name: config.get(name) for name in ("add_bos_token", "add_eos_token")}
    for name, flag in flags.items():
        if flag is not None and not isinstance(flag, bool):
            raise TokenizerError(f"{where}: {name} is {shown_json(flag)}, expected true or false")
    if any(name in config for name in flags):  # as HuggingFace: naming one of them sets both
        flags = {name: bool(flag) for name, flag in flags.items()}
    jinja_path = directory / "chat_template.jinja"
    if _exists(jinja_path):
        template: str | None = read_text(jinja_path, CHAT_TEMPLATE, TokenizerError)
    else:
        template = _config_template(config.get("chat_template"), where)
    return TokenizerSettings(str(directory), special_tokens, flags["add_bos_token"], flags["add_eos_token"], template)


def _exists(path: Path) -> bool:
    return kind_of(path, TokenizerError) != "absent"


def _config_template(value: object, where: str) -> str | None:
    """A template, or the one named default of a list of {"name": ..., "template": ...}."""
    if isinstance(value, list):
        value = next(
            (item.get("template") for item in value if isinstance(item, dict) and item.get("name") == "default"), None
        )
    if value is not None and not isinstance(value, str):
        raise TokenizerError(f"{where}: chat_template is a {type(value).__name__}, expected text")
    return value


def _with_post_processor(settings: TokenizerSettings, backend: tokenizers.Tokenizer) -> TokenizerSettings:
    """Settings whose flags, where tokenizer_config.json leaves them open, say what the tokenizer.json does."""
    if settings.add_bos is not None:
        return settings
    with library_errors(settings.source):
        plain = backend.encode("a", add_special_tokens=False).ids
        framed = backend.encode("a").ids
    before = next((i for i in range(len(framed)) if framed[i : i + len(plain)] == plain), 0)
    return replace(settings, add_bos=before > 0, add_eos=len(framed) > before + len(plain))


def _add_declared_tokens(backend: tokenizers.Tokenizer, config: Mapping[str, Any], where: str) -> None:
    """Adds tokenizer_config.json's added_tokens_decoder: flags, and tokens past the vocabulary (<image_soft_token>)."""
    from tokenizers import AddedToken

    try:
        declared = {
            int(i): AddedToken(token["content"], **{flag: bool(token.get(flag)) for flag in FLAGS})
            for i, token in (config.get("added_tokens_decoder") or {}).items()
        }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise TokenizerError(f"{where}: added_tokens_decoder is damaged: {shown_line(repr(error))}") from error
    add_tokens(where, backend, declared, "declared")


def _hide_named_tokens(backend: tokenizers.Tokenizer, settings: TokenizerSettings) -> None:
    """Makes bos_token and its like special, as HuggingFace's class does: <mask> is not in Gemma's tokenizer.json."""
    from tokenizers import AddedToken

    with library_errors(settings.source):
        named = [token for token in settings.special_tokens.values() if backend.token_to_id(token) is not None]
        backend.add_tokens([AddedToken(token, normalized=False, special=True) for token in named])


def _gguf_tokens(vocabulary: GgufVocabulary) -> list[str]:
    """The tokens by id. Runs of spaces, which llama.cpp's converter spells out, are spelled with U+2581 again."""
    if vocabulary.model not in ("llama", "gemma4"):
        raise TokenizerError(
            f"{vocabulary.source}: tokenizer.ggml.model is {shown_json(vocabulary.model)}; Gemma files have 'llama' or "
            "'gemma4'"
        )
    check_counts(vocabulary.source, len(vocabulary.tokens), 0 if vocabulary.merges is None else len(vocabulary.merges))
    tokens = []
    for i, token in enumerate(vocabulary.tokens.all()):
        try:
            tokens.append(token.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise TokenizerError(f"{vocabulary.source}: token {i} is {shown_line(repr(token))}, not UTF-8") from error
    return [token if token.strip(" ") or not token else SPACE * len(token) for token in tokens]


def _gguf_merges(vocabulary: GgufVocabulary) -> list[tuple[str, str]] | None:
    if vocabulary.merges is None:
        return None
    merges = []
    for i, merge in enumerate(vocabulary.merges.all()):
        left, space, right = merge.decode("utf-8", "replace").partition(" ")
        if not (left and space and right):
            raise TokenizerError(
                f"{vocabulary.source}: merge {i} is {shown_line(repr(merge))}, expected two tokens and a space between"
            )
        merges.append((left, right))
    return merges
