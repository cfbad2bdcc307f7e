"""What a vision or audio front end hands to the decoder: placeholders in the ids, features in their places."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import arguments
from ..config import ModelConfig
from ..errors import InputError
from ..precision import Array
from .masks import AUDIO, IMAGE, VIDEO
from .ops import Ops
from .weights import Weights

Ids = NDArray[np.int64]


def placeholder_types(config: ModelConfig) -> dict[int, int]:
    """Placeholder token id -> its token type (1 image, 2 video, 3 audio), for those the model has."""
    pairs = ((config.image_token_id, IMAGE), (config.video_token_id, VIDEO), (config.audio_token_id, AUDIO))
    return {token: kind for token, kind in pairs if token is not None and config.composite is not None}


def token_types(config: ModelConfig, input_ids: ArrayLike) -> Ids:
    """token_type_ids, int64 of the shape of input_ids: 0 text, 1 image, 2 video, 3 audio placeholder."""
    ids = arguments.integers("input_ids", input_ids)
    types = np.zeros(ids.shape, np.int64)
    for token, kind in placeholder_types(config).items():
        types[ids == token] = kind
    return types


def embeddable(config: ModelConfig, ids: Ids) -> Ids:
    """ids with placeholders replaced by ids that have an embedding row.

    Pad in Gemma 4, 0 for an id outside the vocabulary before it.
    """
    types = placeholder_types(config)
    if not types or ids.max() < min(types):
        return ids
    placeholder = np.isin(ids, list(types))
    if config.generation == 4:
        return np.where(placeholder, config.pad_token_id, ids)
    return np.where(placeholder & (ids >= config.vocab_size), 0, ids)


def expand_image_tokens(config: ModelConfig, input_ids: Sequence[int], counts: int | Sequence[int]) -> list[int]:
    """The ids with every image marker expanded; counts: soft tokens of each image, in order, or of every image.

    Gemma 3: each boi token becomes "\\n\\n" boi, count x image token, eoi "\\n\\n", joined with the newlines around it.
    Gemma 4: each image token becomes boi, count x image token, eoi. PaliGemma has no markers.
    """
    image, boi, eoi = config.image_token_id, config.boi_token_id, config.eoi_token_id
    if image is None or boi is None or eoi is None:
        raise InputError(f"expand_image_tokens: this {config.model_type} model takes no images with markers")
    marker = image if config.generation == 4 else boi
    ids = _row("input_ids", input_ids)
    found = ids.count(marker)
    each = _row("counts", counts) if arguments.has_axes(counts) else [arguments.integer("counts", counts)] * found
    if len(each) != found:
        raise InputError(f"expand_image_tokens: {found} image markers (id {marker}) in input_ids, {len(each)} counts")
    if any(n < 1 for n in each):
        raise InputError("expand_image_tokens: every image has at least one soft token")
    around = [_NEWLINE + 1] if config.generation == 3 else []
    expanded: list[int] = []
    images = iter(each)
    for token in ids:
        expanded += [*around, boi, *[image] * next(images), eoi, *around] if token == marker else [token]
    return _merge_newlines(expanded) if around else expanded


def _row(name: str, value: Any) -> list[int]:
    given = arguments.integers(name, value)
    if given.ndim != 1:
        raise InputError(f"{name} is {list(given.shape)}, expected integers [n]")
    return [int(i) for i in given]


# Gemma 3's vocabulary has a token for every run of 1 to 31 newlines, id 106 + length; the tokenizer takes the longest.
_NEWLINE, _LONGEST_RUN = 107, 31


def _merge_newlines(ids: list[int]) -> list[int]:
    """ids as the tokenizer gives them for the same text, once newlines were inserted next to newlines."""
    merged: list[int] = []
    newlines = 0
    for token in [*ids, -1]:
        if _NEWLINE <= token < _NEWLINE + _LONGEST_RUN:
            newlines += token - _NEWLINE + 1
            continue
        while newlines > 0:
            merged.append(_NEWLINE - 1 + min(newlines, _LONGEST_RUN))
            newlines -= _LONGEST_RUN
        newlines = 0
        merged.append(token)
    return merged[:-1]


def project_image_features(config: ModelConfig, weights: Weights, ops: Ops, tower_output: ArrayLike) -> Array:
    """Image features [n, tokens, E] that `merge_features` puts into the prompt, from the vision tower's output.

    Gemma 3: tower_output [n, patches, vision] (patches a square), average-pooled to mm_tokens_per_image, normed,
    projected.
    Gemma 4: tower_output [tokens, vision] or [n, tokens, vision], pooled by the tower already; normed without weight,
    projected.
    """
    if weights.projection is None:
        raise InputError("project_image_features: the checkpoint holds no vision projector")
    x: Array = _floats("tower_output", tower_output)
    if x.ndim not in (2, 3) or x.shape[-1] != weights.projection.shape[0]:
        raise InputError(
            f"tower_output is {list(x.shape)}, expected [images, patches, vision] "
            f"with vision = {weights.projection.shape[0]}"
        )
    x = x.astype(ops.precision.compute)
    if config.generation == 3:
        x = _pool(x, config.mm_tokens_per_image or 256)
    normed = ops.rms_norm(x, weights.projection_norm, eps=config.vision_layer_norm_eps or config.rms_norm_eps)
    return ops.linear(normed, weights.projection.T)


def _pool(x: Array, tokens: int) -> Array:
    """Average-pools a square of patches [n, side², vision] to [n, tokens, vision]."""
    if x.ndim != 3:
        raise InputError(f"tower_output is {list(x.shape)}, expected [images, patches, vision]")
    side, target = round(x.shape[1] ** 0.5), round(tokens**0.5)
    if side * side != x.shape[1] or target * target != tokens or side % target:
        raise InputError(
            f"tower_output has {x.shape[1]} patches an image, expected a square that pools to {tokens} tokens"
        )
    step = side // target
    blocks = x.reshape(len(x), target, step, target, step, x.shape[-1])
    return np.asarray(blocks.mean(axis=(2, 4)).reshape(len(x), tokens, x.shape[-1]))


def _floats(name: str, value: ArrayLike) -> Array:
    given = arguments.host_array(name, value)
    if given.dtype.kind != "f" and given.dtype.name != "bfloat16":
        raise InputError(f"{name} is {given.dtype}, expected floating point")
    return given


def merge_features(
    config: ModelConfig, inputs_embeds: ArrayLike, features: ArrayLike, input_ids: ArrayLike, kind: int = IMAGE
) -> Array:
    """inputs_embeds [B, S, E] with its placeholder rows replaced by features [..., E], in order.

    kind: 1 image, 2 video, 3 audio. Features are not scaled. InputError unless there is exactly one feature row per
    placeholder in input_ids [B, S].
    """
    embeds: Array = _floats("inputs_embeds", inputs_embeds)
    rows: Array = _floats("features", features)
    kind = arguments.integer("token_type", kind)
    token: Any = next((t for t, k in placeholder_types(config).items() if k == kind), None)
    if token is None:
        raise InputError(f"merge_features: this {config.model_type} model has no placeholder of type {kind}")
    if embeds.ndim < 2 or embeds.shape[-1] != config.hidden_size:
        raise InputError(f"inputs_embeds is {list(embeds.shape)}, expected [B, S, E] with E = {config.hidden_size}")
    if rows.ndim < 2 or rows.shape[-1] != config.hidden_size:
        raise InputError(f"features is {list(rows.shape)}, expected [..., E] with E = {config.hidden_size}")
    where = arguments.integers("input_ids", input_ids) == token
    if where.shape != embeds.shape[:-1]:
        raise InputError(f"input_ids is {list(where.shape)}, inputs_embeds {list(embeds.shape)}: [B, S] differ")
    rows = rows.reshape(-1, rows.shape[-1])
    if len(rows) != int(where.sum()):
        raise InputError(f"features has {len(rows)} rows, input_ids {int(where.sum())} placeholders (id {token})")
    embeds = embeds.copy()
    embeds[where] = rows.astype(embeds.dtype)
    return embeds
