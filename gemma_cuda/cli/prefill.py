"""`gemma-cuda prefill`: the main job. One pass over a prompt, timed, with the most probable next tokens."""

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..host.files import atomic_path
from . import common
from .parser import name, whole_from

if TYPE_CHECKING:  # `gemma-cuda doctor` imports this module and must run without NumPy
    from numpy.typing import NDArray

    from .. import Gemma, PrefillOutput


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
            for token, probability in top_tokens(logits, arguments.top)
        ],
    }
    if arguments.save is not None:
        metadata = {name: report[name] for name in ("model", "device", "dtype")}
        _save(Path(arguments.save), gemma, out, ids, metadata)
        report["saved"] = arguments.save
    if arguments.json:
        common.print_json(report)
    else:
        _print(report)
    return 0


def top_tokens(logits: "NDArray[Any]", count: int) -> list[tuple[int, float]]:
    """The `count` most probable (id, probability) of logits [V], best first, ties by id; softmax in float64.

    Raises CheckpointError where a logit is NaN or infinity.
    """
    import numpy as np

    from ..engine.sampling import require_finite

    values = logits.astype(np.float64)
    require_finite(float(values.max()))
    weights = np.exp(values - values.max())
    probabilities = weights / weights.sum()
    order = np.argsort(-probabilities, kind="stable")[:count]
    return [(int(index), float(probabilities[index])) for index in order]


def _save(path: Path, gemma: "Gemma", out: "PrefillOutput", input_ids: list[int], metadata: dict[str, str]) -> None:
    """Write `path`: input_ids [S], logits [1, keep, V], last_hidden_state [1, keep, E], layers.N.k, .v [1, KH, S, D].

    A layer that reads another's K and V has none of its own in the file. The file appears under its name only when it
    is complete. Raises InputError where it cannot be written.
    """
    import numpy as np
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    tensors = {
        "input_ids": np.asarray(input_ids, dtype=np.int64),
        "logits": gemma.to_host(out.logits),
        "last_hidden_state": gemma.to_host(out.last_hidden_state),
    }
    for index, pair in enumerate(out.past_key_values):
        if pair is not None:
            tensors[f"layers.{index}.k"], tensors[f"layers.{index}.v"] = (gemma.to_host(side) for side in pair)
    try:
        with atomic_path(path) as partial:
            save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, partial, metadata)
    except (OSError, SafetensorError) as error:
        raise InputError(f"--save {path}: cannot be written ({error})") from error


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
