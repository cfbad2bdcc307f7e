"""`gemma-cuda score`: a text's log-probability under the model, token by token."""

import argparse
import math
from typing import Any

from ..errors import CheckpointError
from . import common


def add_parser(commands: common.Commands) -> None:
    parser = commands.add_parser(
        "score",
        help="log-probability of each token of a text, and its perplexity",
        description="The log-probability (natural logarithm) of each token after the first, given those before it.",
    )
    common.add_model_options(parser)
    common.add_prompt_options(parser, ids=True)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    given = common.given_ids(arguments)
    loaded = common.load_model(arguments)
    gemma = loaded.gemma
    ids = gemma.tokenizer.encode(given) if isinstance(given, str) else given
    scores = [float(value) for value in gemma.score(ids)]
    if any(map(math.isnan, scores)):
        raise CheckpointError("the logits are NaN: the weights hold NaN, or values too large for the dtype")
    report = common.describe(arguments, loaded) | {
        "input_ids": ids,
        "tokens": [
            {"id": token, "text": common.token_text(gemma, token), "logprob": score}
            for token, score in zip(ids[1:], scores, strict=True)
        ],
        "logprob": math.fsum(scores),
        "perplexity": perplexity(scores),
    }
    if arguments.json:
        common.print_json(report)
    else:
        _print(report)
    return 0


def perplexity(scores: list[float]) -> float | None:
    """exp of minus the mean log-probability; None where that is beyond float64."""
    try:
        value = math.exp(-math.fsum(scores) / len(scores))
    except OverflowError:
        return None
    return value if math.isfinite(value) else None  # a token of probability 0


def _print(report: dict[str, Any]) -> None:
    common.print_description(report)
    for row in report["tokens"]:
        print(f"{row['logprob']:10.4f}  {row['id']:>6}  {common.quoted(row['text'])}".rstrip())
    common.print_row("total", f"{report['logprob']:.4f} over {len(report['tokens'])} tokens")
    value = report["perplexity"]
    common.print_row("perplexity", "beyond float64" if value is None else f"{value:.4f}")
