"""Arguments of any type for every public function: a result, or one error of this package in the caller's words."""

from __future__ import annotations

import functools
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import gemma_cuda
from gemma_cuda.device.emulator.device import Emulator
from gemma_cuda.engine.graphs import WarmupSizes
from gemma_cuda.errors import GemmaError
from gemma_cuda.formats.gguf_vocabulary import GgufVocabulary
from gemma_cuda.interop import torch as torch_ops
from gemma_cuda.interop import transformers as for_transformers
from gemma_cuda.text.tokenizer import Tokenizer
from tests.support.fuzz import examples
from tests.support.fuzz.hostile import EVERY, anything, is_large
from tests.support.hf_models import build
from tests.support.tokenizer_models import USER_DEFINED, Pieces, train

E = 96  # hidden_size of the models
Call = tuple[Callable[..., Any], dict[str, Callable[[], Any]]]


@functools.cache
def model(name: str = "gemma3") -> gemma_cuda.Gemma:
    loaded = gemma_cuda.Gemma.from_pretrained(build(name).path, device="numpy")
    loaded.__dict__["tokenizer"] = tokenizer()
    return loaded


@functools.cache
def vocabulary() -> GgufVocabulary:
    return Pieces.of(train(), USER_DEFINED).gguf(chat_template="{{ messages }}")


@functools.cache
def tokenizer() -> Tokenizer:
    return Tokenizer.from_gguf(vocabulary())


@functools.cache
def saved_cache() -> Path:
    path = Path(tempfile.mkdtemp(), "cache.safetensors")
    cache().save(path)
    return path


def cache() -> gemma_cuda.KVCache:
    return model().prefill([1, 2, 3]).past_key_values


def ids() -> list[int]:
    return [1, 2, 3]


def floats(*shape: int) -> Callable[[], Any]:
    return lambda: np.ones(shape, np.float32)


def tensors(*shape: int) -> Callable[[], torch.Tensor]:
    return lambda: torch.ones(shape)


def integers(*values: int) -> Callable[[], Any]:
    return lambda: np.array(values, np.int32)


def just(value: Any) -> Callable[[], Any]:
    return lambda: value


def from_cache(method: str) -> Callable[..., Any]:
    return lambda **given: getattr(cache(), method)(**given)


def take(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, whose iterator is run for some steps."""
    return lambda **given: [token for token, _ in zip(function(**given), range(3), strict=False)]


QKV = {name: floats(1, 4, 2, 8) for name in "qkv"}
FLASH = {name: tensors(1, 4, 2, 8) for name in "qkv"}
PACKED = {name: tensors(4, 2, 8) for name in "qkv"} | {
    name: lambda: torch.tensor([0, 1, 4], dtype=torch.int32) for name in ("cu_seqlens_q", "cu_seqlens_k")
}
LENGTHS = {name: just(3) for name in ("max_seqlen_q", "max_seqlen_k")}
MASKED: dict[str, Any] = dict.fromkeys(
    (
        *("scale", "causal", "sliding_window", "softcap", "attn_bias", "block_ids", "q_offset", "cu_seqlens_q"),
        *("cu_seqlens_k", "max_seqlen_q", "max_seqlen_k", "return_lse", "layout", "out", "device"),
    )
)
ROPE = {"x": floats(3, 4 * 8), "heads": just(2), "cos": floats(3, 4), "sin": floats(3, 4)}
ROPE |= {"k_cache": floats(3, 1, 8), "v_cache": floats(3, 1, 8)}
PREFILL = (
    *("inputs_embeds", "attention_mask", "position_ids", "token_type_ids", "mm_token_type_ids", "attn_bias"),
    *("past_key_values", "logits_to_keep", "output_hidden_states", "trim_sliding", "layer_hook"),
)
MESSAGES = [{"role": "user", "content": "the fox"}]
# Name -> (function, the arguments of a call that works, names of further arguments).
CALLS: dict[str, tuple[Callable[..., Any], dict[str, Callable[[], Any]], tuple[str, ...]]] = {
    "attention": (gemma_cuda.attention, QKV, tuple(MASKED)),
    "attention of torch": (gemma_cuda.attention, FLASH, tuple(MASKED)),
    "rms_norm": (gemma_cuda.rms_norm, {"x": floats(3, 8)}, ("weight", "eps", "plus_one", "out", "device")),
    "geglu": (gemma_cuda.geglu, {"gate": floats(3, 8), "up": floats(3, 8)}, ("out", "device")),
    "qk_norm_rope": (
        gemma_cuda.qk_norm_rope,
        ROPE,
        (*("eps", "q_weight", "k_weight", "plus_one", "v_norm", "slots", "positions", "pairs", "k_eq_v", "device"),),
    ),
    "torch attention": (torch_ops.attention, FLASH, ("scale", "causal", "sliding_window", "attn_bias", "layout")),
    "torch rms_norm": (torch_ops.rms_norm, {"x": tensors(3, 8)}, ("weight", "eps", "plus_one", "out", "device")),
    "torch geglu": (torch_ops.geglu, {"gate": tensors(3, 8), "up": tensors(3, 8)}, ("out", "device")),
    "scaled_dot_product_attention": (
        torch_ops.scaled_dot_product_attention,
        {name: tensors(1, 2, 4, 8) for name in ("query", "key", "value")},
        ("attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa"),
    ),
    "flash_attn_func": (
        torch_ops.flash_attn_func,
        FLASH,
        ("dropout_p", "softmax_scale", "causal", "window_size", "softcap", "alibi_slopes", "return_attn_probs"),
    ),
    "flash_attn_varlen_func": (torch_ops.flash_attn_varlen_func, PACKED | LENGTHS, ("window_size", "softcap")),
    "transformers.register": (for_transformers.register, {"name": just("gemma_cuda_fuzz")}, ("device",)),
    "Gemma.from_pretrained": (
        gemma_cuda.Gemma.from_pretrained,
        {"name": lambda: build("gemma3").path, "device": just("numpy")},
        ("dtype", "gemm", "progress"),
    ),
    "Gemma.from_checkpoint": (
        gemma_cuda.Gemma.from_checkpoint,
        {"checkpoint": lambda: gemma_cuda.open_checkpoint(build("gemma3").path), "device": just("numpy")},
        ("dtype", "gemm", "progress"),
    ),
    "Gemma.warmup": (
        WarmupSizes.of,
        {"lengths": just([16]), "batch_size": just(1), "kv_rows": just(2), "kv_capacity": just(32)},
        (),
    ),
    "Gemma.prefill": (model().prefill, {"input_ids": ids}, PREFILL),
    "Gemma.prefill of embeddings": (model().prefill, {"inputs_embeds": floats(1, 3, E)}, PREFILL[1:]),
    "Gemma.prefill over a cache": (
        lambda **given: model().prefill(**{"past_key_values": cache()} | given),
        {"input_ids": ids},
        PREFILL,
    ),
    "Gemma.prefill_hidden": (model().prefill_hidden, {"inputs_embeds": floats(1, 3, E)}, ("attention_mask",)),
    "Gemma.embed": (model().embed, {"input_ids": ids}, ()),
    "Gemma.token_types": (model().token_types, {"input_ids": ids}, ()),
    "Gemma.expand_image_tokens": (model().expand_image_tokens, {"input_ids": ids, "counts": just([])}, ()),
    "Gemma.merge_features": (
        model().merge_features,
        {"inputs_embeds": floats(1, 3, E), "features": floats(0, E), "input_ids": just([ids()])},
        ("token_type",),
    ),
    "Gemma.project_image_features": (model().project_image_features, {"tower_output": floats(1, 4, 8)}, ()),
    "Gemma.generate": (
        model().generate,
        {"prompt": ids, "max_new_tokens": just(2)},
        ("temperature", "top_p", "seed", "on_token"),
    ),
    "Gemma.generate_ids": (
        take(model().generate_ids),
        {"input_ids": ids, "max_new_tokens": just(2)},
        ("temperature", "top_p", "seed"),
    ),
    "Gemma.score": (model().score, {"input_ids": ids}, ()),
    "Gemma.to_host": (model().to_host, {"array": floats(2)}, ()),
    "KVCache.crop": (from_cache("crop"), {"length": just(2)}, ()),
    "KVCache.reserve": (from_cache("reserve"), {"slots": just(4)}, ()),
    "KVCache.to_transformers": (from_cache("to_transformers"), {}, ("config",)),
    "KVCache.load": (gemma_cuda.KVCache.load, {"path": saved_cache}, ()),
    "KVCache.from_transformers": (
        gemma_cuda.KVCache.from_transformers,
        {"cache": lambda: cache().to_transformers(), "gemma": model},
        (),
    ),
    "Tokenizer.encode": (tokenizer().encode, {"text": just("the fox")}, ("add_special_tokens",)),
    "Tokenizer.decode": (tokenizer().decode, {"ids": ids}, ("skip_special_tokens",)),
    "Tokenizer.token_id": (tokenizer().token_id, {"token": just("<bos>")}, ()),
    "Tokenizer.apply_chat_template": (
        tokenizer().apply_chat_template,
        {"messages": just(MESSAGES)},
        ("add_generation_prompt",),
    ),
    "Tokenizer.stream": (tokenizer().stream, {}, ("skip_special_tokens",)),
    "Tokenizer.from_gguf": (Tokenizer.from_gguf, {"vocabulary": vocabulary}, ()),
    "Tokenizer.stream.push": (lambda token_id: tokenizer().stream().push(token_id), {"token_id": just(5)}, ()),
    "Tokenizer.from_pretrained": (Tokenizer.from_pretrained, {"source": lambda: build("gemma3").path}, ()),
    "open_checkpoint": (gemma_cuda.open_checkpoint, {"path": lambda: build("gemma3").path}, ()),
    "GemmaConfig.from_file": (gemma_cuda.GemmaConfig.from_file, {"path": lambda: build("gemma3").path}, ()),
    "GemmaConfig.from_dict": (
        gemma_cuda.GemmaConfig.from_dict,
        {"d": just({"model_type": "gemma"}), "source": just("a dictionary")},
        (),
    ),
    "Emulator": (
        Emulator,
        {"checked": just(True)},
        ("schedule", "seed", "workers", "approx", "mma", "kernels", "cache", "shared_bytes"),
    ),
}
# A number that large means so much work, and the right answer is to do it.
COUNTS = {"max_new_tokens", "slots"}
# What the caller's own functions raise is the caller's.
CALLBACKS = {"on_token", "progress", "layer_hook"}


@pytest.mark.parametrize("name", CALLS)
@examples(25)
@given(data=st.data())
def test_any_argument(name: str, data: st.DataObject) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check(CALLS[name][0], drawn_arguments(name, data))


@pytest.mark.slow
@pytest.mark.parametrize("name", CALLS)
def test_every_value_in_the_place_of_every_argument(name: str) -> None:
    function, required, optional = CALLS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for argument in (*required, *optional):
            for make in EVERY:
                check(function, {other: of() for other, of in required.items()} | {argument: fitting(argument, make())})


def check(function: Callable[..., Any], arguments: dict[str, Any]) -> None:
    """Fails unless the call gives a result, or an error of this package with a message of one printable text."""
    try:
        function(**arguments)
    except GemmaError as error:
        message = str(error)
        assert 0 < len(message) < 1500 and message.replace("\n", "").isprintable(), message


def fitting(argument: str, value: Any) -> Any:
    """The value; None for one that would be right, and then be a lot of work or the caller's own error."""
    if (argument in COUNTS and is_large(value)) or (argument in CALLBACKS and callable(value)):
        return None
    return value


def drawn_arguments(name: str, data: st.DataObject) -> dict[str, Any]:
    """The arguments of a call that works, one or two of them replaced."""
    _, required, optional = CALLS[name]
    arguments = {argument: make() for argument, make in required.items()}
    names = [*required, *optional]
    for argument in data.draw(st.lists(st.sampled_from(names), min_size=1, max_size=2, unique=True)):
        arguments[argument] = fitting(argument, data.draw(anything(), label=argument))
    return arguments
