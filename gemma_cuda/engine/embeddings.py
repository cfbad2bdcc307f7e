"""Input embeddings as the caller has them: of any library, on the CPU or on the model's GPU."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from .. import arguments
from ..config import ModelConfig
from ..device.foreign import common_library
from ..device.protocol import Array
from ..errors import InputError
from ..model.kv_storage import Memory

_NAME = "inputs_embeds"


def stream_of(value: Any, memory: Memory) -> AbstractContextManager[Any]:
    """Within it CuPy works on the stream that the library of an array works on, if this is the memory of a GPU."""
    on_gpu = _gpu(memory) is not None and _is_array(value)
    return common_library("prefill", {_NAME: value}).stream() if on_gpu else nullcontext()


def view(value: Any, memory: Memory) -> Array:
    """The caller's embeddings: a NumPy array, or a CuPy one if they lie on the GPU whose memory this is.

    Raises InputError for those on another GPU, or on one while the model is on none.
    """
    if not _is_array(value):
        return arguments.host_array(_NAME, value)
    library = common_library("prefill", {_NAME: value})
    if library.device != "cpu":
        own = "the CPU" if (index := _gpu(memory)) is None else f"cuda:{index}"
        if library.device != own:
            raise InputError(f"{_NAME} is on {library.device}, the model on {own}")
    if library.name == "NumPy":
        return arguments.host_array(_NAME, value)
    try:
        return library.view(value)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"{_NAME}: a {type(value).__name__} cannot be taken: {error}") from error


def check(embeds: Array, config: ModelConfig, ids_shape: tuple[int, int] | None) -> Array:
    """[B, S, E] of embeddings [S, E] or [B, S, E] for ids of that shape; raises InputError.

    On a GPU they are bfloat16 and contiguous.
    """
    given = list(embeds.shape)
    embeds = embeds[None] if embeds.ndim == 2 else embeds
    if embeds.ndim != 3 or embeds.shape[-1] != config.hidden_size:
        raise InputError(f"{_NAME} is {given}, expected [B, S, E] with E = {config.hidden_size}")
    if embeds.dtype.kind != "f" and embeds.dtype.name != "bfloat16":
        raise InputError(f"{_NAME} is {embeds.dtype}, expected floating point")
    if not isinstance(embeds, np.ndarray):
        if embeds.dtype.name != "bfloat16":
            raise InputError(f"{_NAME} is {embeds.dtype} on the GPU, expected bfloat16 there")
        if not embeds.flags.c_contiguous:
            raise InputError(f"{_NAME} is not contiguous, as it has to be on the GPU")
    if 0 in embeds.shape[:2]:
        raise InputError(f"{_NAME}: empty prompt; every row needs at least one token")
    if ids_shape is not None and ids_shape != tuple(embeds.shape[:2]):
        raise InputError(f"{_NAME} is {list(embeds.shape)}, input_ids {list(ids_shape)}: [B, S] differ")
    return embeds


def _gpu(memory: Memory) -> int | None:
    """The index of the GPU whose memory it is."""
    return getattr(memory, "index", None)


def _is_array(value: Any) -> bool:
    return not isinstance(value, np.ndarray) and hasattr(value, "dtype")
