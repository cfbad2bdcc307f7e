"""`gemma-cuda info MODEL`: what a checkpoint is, and what it will need, from its header alone."""

import argparse
import dataclasses
from itertools import groupby
from typing import TYPE_CHECKING, Any

from . import common
from .parser import name

if TYPE_CHECKING:
    from ..config import ModelConfig

_ITEM_BYTES = {"float32": 4, "bfloat16": 2}


def add_parser(commands: common.Commands) -> None:
    parser = commands.add_parser(
        "info",
        help="configuration, layer pattern, parameters, memory; the weights are not loaded",
        description="What a checkpoint is: configuration, layer pattern, parameters, bytes of weights and of KV cache. "
        "Reads the header only.",
    )
    parser.add_argument("model", type=name, metavar="MODEL", help=common.MODEL_HELP)
    parser.add_argument("--json", action="store_true", help="print one JSON object with the whole configuration")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    checkpoint = common.open_checkpoint(arguments.model)
    config = checkpoint.config
    parameters = config.parameter_count()
    report: dict[str, Any] = {
        "model": arguments.model,
        "path": str(checkpoint.path),
        "generation": config.generation,
        "parameters": parameters,
        "layer_pattern": layer_pattern([layer.layer_type for layer in config.layers]),
        "weights_bytes_on_disk": sum(map(checkpoint.nbytes, checkpoint.names())),
        "weights_bytes": {dtype: parameters * size for dtype, size in _ITEM_BYTES.items()},
        "kv_bytes_per_1k_tokens": {
            dtype: 1000 * config.kv_bytes_per_token(size) for dtype, size in _ITEM_BYTES.items()
        },
        "config": dataclasses.asdict(config),
    }
    if arguments.json:
        common.print_json(report)
    else:
        _print(report, config)
    return 0


def layer_pattern(layer_types: list[str]) -> str:
    """The repeated block of local (L, sliding) and global (G, full) layers, such as `5L:1G`, and how many of each."""
    letters = ["G" if layer_type == "full_attention" else "L" for layer_type in layer_types]
    # The last block may be cut: 26 layers of 5L:1G end in 2L.
    period = next(p for p in range(1, len(letters) + 1) if letters[p:] == letters[:-p])
    block = ":".join(f"{len(list(run))}{letter}" for letter, run in groupby(letters[:period]))
    return f"{block} ({letters.count('L')} local, {letters.count('G')} global)"


def _print(report: dict[str, Any], config: "ModelConfig") -> None:
    kind = config.model_type if config.composite is None else f"{config.model_type} of {config.composite}"
    heads = sorted({(layer.head_dim, layer.num_key_value_heads) for layer in config.layers})
    windows = sorted({layer.sliding_window for layer in config.layers if layer.sliding_window is not None})
    rows = {
        "model": report["model"],
        "path": report["path"],
        "type": f"Gemma {report['generation']} ({kind})",
        "parameters": f"{report['parameters']:,}",
        "layers": f"{config.num_hidden_layers}, {report['layer_pattern']}",
        "sliding window": ", ".join(map(str, windows)) or "none",
        "hidden size": config.hidden_size,
        "MLP": ", ".join(map(str, sorted({layer.intermediate_size for layer in config.layers}))),
        "query heads": config.num_attention_heads,
        "KV heads": ", ".join(f"{count} of size {size}" for size, count in heads),
        "vocabulary": f"{config.vocab_size:,}",
        "context": f"{config.max_position_embeddings:,} tokens",
        "weights": f"{_mib(report['weights_bytes_on_disk'])} on disk, {_per_dtype(report['weights_bytes'])}",
        "KV per 1k tokens": f"{_per_dtype(report['kv_bytes_per_1k_tokens'])}",
    }
    if config.num_experts:
        rows["experts"] = f"{config.top_k_experts} of {config.num_experts}, of size {config.moe_intermediate_size}"
    for label, value in rows.items():
        print(f"{label:<17} {common.escaped_line(value)}")


def _per_dtype(counts: dict[str, int]) -> str:
    return ", ".join(f"{_mib(count)} in {dtype}" for dtype, count in counts.items())


def _mib(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB"
