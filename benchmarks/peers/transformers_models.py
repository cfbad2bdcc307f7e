"""attn_implementation "gemma_cuda" wherever a model of Transformers would take sdpa, for Transformers' own tests."""

from __future__ import annotations

import unittest
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from transformers import PreTrainedModel, testing_utils, utils
from transformers.models.auto import modeling_auto


def install(is_ours: bool) -> None:
    """Registers ours and has it take sdpa's place, asked for or by default; eager stays what it is compared with."""
    torch.set_num_threads(1)
    _stand_in(testing_utils, ("require_", ""), lambda name: unittest.skip(f"Transformers has no {name}"))
    _stand_in(modeling_auto, ("", "_MAPPING_NAMES"), lambda name: {})
    _stand_in(utils, ("is_", "_available"), lambda name: lambda *_: False)
    if not is_ours:
        return
    from gemma_cuda.interop.transformers import register

    register()
    choose: Any = PreTrainedModel.get_correct_attn_implementation

    def ours_for_sdpa(self: PreTrainedModel, *arguments: Any, **options: Any) -> str:
        chosen: str = choose(self, *arguments, **options)
        return "gemma_cuda" if chosen == "sdpa" else chosen

    PreTrainedModel.get_correct_attn_implementation = ours_for_sdpa  # type: ignore[method-assign]


def _stand_in(module: ModuleType, ends: tuple[str, str], value: Callable[[str], Any]) -> None:
    """Gives a module the names that an older checkout's tests import and this Transformers has no more."""
    known = getattr(module, "__getattr__", None)

    def missing(name: str) -> Any:
        if known is not None:
            return known(name)
        if name.startswith(ends[0]) and name.endswith(ends[1]):
            return value(name)
        raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")

    module.__getattr__ = missing  # type: ignore[method-assign]
