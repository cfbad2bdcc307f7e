"""`gemma-cuda prefill`: the main job. One pass over a prompt, timed, with the most probable next tokens."""

import argparse
import time
from pathlib import Path
from typing import Any

from . import common
from .parser import name, whole_from


def add_parser(commands: common.Commands) -> None:
    parser = commands.add_parser(
        "prefill",
        help="run a prompt through the model: timing and the most probable next tokens",
        description="Run a prompt through the model once: which device runs, timing, the most probable next tokens.",
    )
    common.add_model_options(parser)
    common.add_prompt_options(parser, ids=True)
    parser.add_argument(
        "--top", type=whole_from(1, 1 << 20), default=5, metavar="N", help="next tokens to show (default: %(default)s)"
    )
    parser.add_argument(
        "--save",
        type=name,
        metavar="FILE",
        help="write input_ids, logits and last_hidden_state of the last position, and every layer's K and V "
        "(layers.N.k, layers.N.v) as safetensors",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from . import result  # NumPy: `gemma-cuda doctor` must run without it

    given = common.given_ids(arguments)
    if arguments.save is not None:
        common.check_replaced("--save", Path(arguments.save))
    loaded = common.load_model(arguments)
    gemma = loaded.gemma
    ids = gemma.tokenizer.encode(given) if isinstance(given, str) else given

    common.warm_up(loaded, len(ids))
    start = time.perf_counter()
    out = gemma.prefill(ids)
    logits = gemma.to_host(out.logits)[0, -1]  # waits for a GPU
    seconds = time.perf_counter() - start

    report = common.describe(arguments, loaded) | {
        "tokens": len(ids),
        "input_ids": ids,
        "prefill_seconds": round(seconds, 4),
        "tokens_per_second": round(len(ids) / seconds, 2),
        "top": [
            {"id": token, "text": common.token_text(gemma, token), "probability": probability}
            for token, probability in result.top_tokens(logits, arguments.top)
        ],
    }
    if arguments.save is not None:
        metadata = {name: report[name] for name in ("model", "device", "dtype")}
        result.save_prefill(Path(arguments.save), gemma, out, ids, metadata)
        report["saved"] = arguments.save
    if arguments.json:
        common.print_json(report)
    else:
        _print(report)
    return 0


def _print(report: dict[str, Any]) -> None:
    common.print_description(report)
    speed = f"{report['prefill_seconds']:.3f} s, {report['tokens_per_second']:.1f} tokens/s"
    if report["device"] == "emulator":
        speed = f"{report['prefill_seconds']:.3f} s of emulation, which says nothing of a GPU"
    common.print_row("prefill", f"{report['tokens']} tokens in {speed}")
    print("next token")
    for row in report["top"]:
        print(f"  {row['probability']:7.2%}  {row['id']:>6}  {common.shown(row['text'])}".rstrip())
    if "saved" in report:
        common.print_row("saved", report["saved"])
