"""Running HuggingFace models as references: exactly in float64, with all hidden states and an untrimmed cache."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
import torch
import transformers
from transformers.cache_utils import DynamicCache

torch.set_num_threads(1)
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

Array = np.ndarray[Any, Any]


@contextlib.contextmanager
def rounded_powers() -> Iterator[None]:
    """Inside, number ** float32 tensor, from which RoPE's frequencies come, is correctly rounded.

    The last bit of PyTorch's own float32 power depends on the processor. At position 1000 that bit is worth more than
    all other rounding of a float32 model, so no tolerance could tell it from a mistake.
    """

    def rounded(self: torch.Tensor, base: float) -> torch.Tensor:
        return torch.pow(torch.tensor(base, dtype=torch.float64), self.double()).to(self.dtype)

    with mock.patch.object(torch.Tensor, "__rpow__", rounded):
        yield


def to_float64(model: Any, *, scale_dtype: torch.dtype | None = None) -> Any:
    """Copy of an eager model with float64 parameters, for use inside `exact()`.

    inv_freq stays float32: the float32 frequencies and angles are part of RoPE's definition. The embedding scale is
    sqrt(hidden_size), in float64 or rounded to `scale_dtype`.
    """
    double = copy.deepcopy(model)
    for parameter in double.parameters():
        parameter.data = parameter.data.double()
    for module in double.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if "inv_freq" not in name and buffer.is_floating_point():
                setattr(module, name, buffer.double())
        if hasattr(module, "scalar_embed_scale"):
            scale = torch.tensor(module.scalar_embed_scale, dtype=torch.float64)
            module.embed_scale = scale if scale_dtype is None else scale.to(scale_dtype).double()
    return double


@contextlib.contextmanager
def exact() -> Iterator[None]:
    """Inside, HuggingFace's upcasts to float32 leave float64 alone, and cosines of float32 angles are float64.

    RMSNorm calls .float(), the softmax asks for float32 and RoPE takes float32 cosines whatever the model's dtype is;
    without this a float64 model would be exact to 1e-7 only. The angles themselves stay float32, as RoPE defines them.
    """
    as_float, softmax = torch.Tensor.float, torch.nn.functional.softmax
    cos, sin = torch.Tensor.cos, torch.Tensor.sin

    def keep_double(self: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        return self if self.dtype == torch.float64 else as_float(self, *arguments, **options)

    def softmax_in_own_dtype(x: torch.Tensor, *arguments: Any, dtype: Any = None, **options: Any) -> torch.Tensor:
        return softmax(x, *arguments, dtype=torch.float64 if x.dtype == torch.float64 else dtype, **options)

    with (
        mock.patch.object(torch.Tensor, "float", keep_double),
        mock.patch.object(torch.Tensor, "cos", lambda x: cos(x.double())),
        mock.patch.object(torch.Tensor, "sin", lambda x: sin(x.double())),
        mock.patch.object(torch.nn.functional, "softmax", softmax_in_own_dtype),
    ):
        yield


@dataclass(frozen=True)
class Outputs:
    """What a HuggingFace forward pass gave, as float64 arrays; `cache` holds all T positions of every layer."""

    logits: Array | None
    last_hidden_state: Array
    hidden_states: list[Array]
    cache: DynamicCache

    @property
    def key_values(self) -> list[tuple[Array, Array]]:
        """(k, v) [B, KH, T, D] of the layers that own a cache."""
        return [(_numpy(layer.keys), _numpy(layer.values)) for layer in self.cache.layers]


def _numpy(tensor: torch.Tensor) -> Array:
    return tensor.detach().double().numpy()


def _tensor(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, dict):
        return {key: _tensor(item, dtype) for key, item in value.items()}
    if not isinstance(value, np.ndarray):
        return value
    return torch.from_numpy(np.ascontiguousarray(value)).to(dtype if value.dtype.kind == "f" else torch.int64)


def forward(
    model: Any, input_ids: Array | None = None, *, cache: DynamicCache | None = None, **arguments: Any
) -> Outputs:
    """Outputs of an eager HuggingFace model; NumPy arguments become tensors, floats in the model's dtype.

    A float64 model is run inside `exact()`. The cache is a DynamicCache without a config, which keeps all positions.
    """
    dtype = model.dtype
    cache = DynamicCache() if cache is None else cache
    tensors = {name: _tensor(value, dtype) for name, value in arguments.items()}
    if input_ids is not None:
        tensors["input_ids"] = torch.from_numpy(np.ascontiguousarray(input_ids))
    precision = exact() if dtype == torch.float64 else contextlib.nullcontext()
    with torch.no_grad(), precision:
        out = model(**tensors, past_key_values=cache, use_cache=True, output_hidden_states=True)
    hidden_states = [_numpy(state) for state in out.hidden_states]
    logits = getattr(out, "logits", None)
    return Outputs(None if logits is None else _numpy(logits), hidden_states[-1], hidden_states, cache)
