"""What `compile` and `kernels` share: which models, dtypes and architectures are meant."""

import argparse
from collections.abc import Iterable
from typing import TYPE_CHECKING

from ..errors import InputError
from . import common

if TYPE_CHECKING:
    from ..config import GemmaConfig
    from ..device.recorder import Launch

DTYPES = ("bfloat16", "float16", "float32")  # those of ops.checks, without importing NumPy for a parser


def add_options(parser: argparse.ArgumentParser, *, default_architectures: str) -> None:
    """Add --model, --arch, --dtype and --attn-bias; each may be given several times."""
    parser.add_argument(
        "--model",
        action="append",
        metavar="MODEL",
        help=f"a published size such as gemma-3-1b, {common.MODEL_HELP} (default: every published size)",
    )
    parser.add_argument(
        "--arch", action="append", metavar="ARCH", help=f"such as sm_90a (default: {default_architectures})"
    )
    parser.add_argument("--dtype", action="append", choices=DTYPES, help="of weights and activations (default: all)")
    parser.add_argument(
        "--attn-bias", action="append", choices=DTYPES, help="also for an attn_bias of this dtype (default: for none)"
    )


def chosen_launches(arguments: argparse.Namespace, architectures: Iterable[str]) -> "dict[str, list[Launch]]":
    """The launches of what is asked for on each architecture; on one that is not known, those of the smallest."""
    from ..device.compile import SHARED_BYTES
    from ..ops.instances import launches

    chosen, dtypes, biases = list(configs(arguments.model)), arguments.dtype or DTYPES, arguments.attn_bias or ()
    shared_bytes = {name: SHARED_BYTES.get(name, min(SHARED_BYTES.values())) for name in architectures}
    return {name: launches(chosen, dtypes, shared_bytes=size, attn_bias=biases) for name, size in shared_bytes.items()}


def chosen_architectures(arguments: argparse.Namespace, default: Iterable[str]) -> list[str]:
    """--arch, each once; raises InputError for what is no architecture."""
    chosen = list(dict.fromkeys(arguments.arch or default))
    for name in chosen:
        if not name.startswith("sm_"):
            raise InputError(f"--arch {name}: expected an architecture such as sm_90a")
    return chosen


def configs(models: list[str] | None) -> "Iterable[GemmaConfig]":
    """Of each published size or checkpoint; of every published size for None."""
    from ..ops.instances import published

    sizes = published()
    if models is None:
        return sizes.values()
    return [sizes[model] if model in sizes else _config_of_checkpoint(model) for model in models]


def _config_of_checkpoint(model: str) -> "GemmaConfig":
    from ..checkpoint import open_checkpoint
    from ..hub import resolve

    with common.progress_bar("fetching") as progress:
        return open_checkpoint(resolve(model, progress=progress)).config
