"""What `compile` and `kernels` share: which models, dtypes and architectures are meant."""

import argparse
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from ..errors import InputError
from . import common
from .parser import name

if TYPE_CHECKING:
    from ..config import ModelConfig
    from ..device.dry_run import Launch

_ARCHITECTURE = re.compile(r"sm_[0-9]{1,4}[a-z]?", re.ASCII)
DTYPES = ("bfloat16", "float16", "float32")  # those of ops.checks, without importing NumPy for a parser


def add_options(parser: argparse.ArgumentParser, *, default_architectures: str) -> None:
    """Add --model, --arch, --dtype and --attn-bias; each may be given several times."""
    parser.add_argument(
        "--model",
        action="append",
        type=name,
        metavar="MODEL",
        help=f"a published size such as gemma-3-1b, {common.MODEL_HELP} (default: every published size)",
    )
    parser.add_argument(
        "--arch", action="append", type=name, metavar="ARCH", help=f"such as sm_90a (default: {default_architectures})"
    )
    parser.add_argument("--dtype", action="append", choices=DTYPES, help="of weights and activations (default: all)")
    parser.add_argument(
        "--attn-bias", action="append", choices=DTYPES, help="also for an attn_bias of this dtype (default: for none)"
    )


def chosen_launches(arguments: argparse.Namespace, architectures: Iterable[str]) -> "dict[str, list[Launch]]":
    """The launches of what is asked for on each architecture; on one that is not known, those of the smallest."""
    from ..device.cuda.compile import SHARED_BYTES
    from ..ops.instances import launches

    chosen = list(configs(arguments.model))
    dtypes, biases = dict.fromkeys(arguments.dtype or DTYPES), dict.fromkeys(arguments.attn_bias or ())
    shared_bytes = {arch: SHARED_BYTES.get(arch, min(SHARED_BYTES.values())) for arch in architectures}
    return {arch: launches(chosen, dtypes, shared_bytes=size, attn_bias=biases) for arch, size in shared_bytes.items()}


def chosen_architectures(arguments: argparse.Namespace, default: Iterable[str]) -> list[str]:
    """--arch, each once; raises InputError for what is no architecture."""
    chosen = list(dict.fromkeys(arguments.arch or default))
    for architecture in chosen:
        if not _ARCHITECTURE.fullmatch(architecture):
            raise InputError(f"--arch {architecture}: expected an architecture such as sm_90a")
    return chosen


def configs(models: list[str] | None) -> "Iterable[ModelConfig]":
    """Of each published size or checkpoint; of every published size for None."""
    from ..ops.instances import published

    sizes = published()
    if models is None:
        return sizes.values()
    return [sizes[model] if model in sizes else common.open_checkpoint(model).config for model in models]
