"""`gemma-cuda generate`: continue a prompt, streamed to standard output."""

import argparse
import sys
import time

from ..errors import InputError
from . import common
from .parser import number_where, whole_from


def add_parser(commands: common.Commands) -> None:
    parser = commands.add_parser(
        "generate",
        help="continue a prompt, streamed to standard output",
        description="Continue a prompt until the model ends or --max-new-tokens. Text goes to standard output as it "
        "comes, everything else to standard error.",
    )
    common.add_model_options(parser)
    common.add_prompt_options(parser, ids=False)
    parser.add_argument(
        "--chat", action="store_true", help="put the prompt into the model's chat template (instruction-tuned models)"
    )
    parser.add_argument(
        "--max-new-tokens", type=whole_from(0, 1 << 20), default=128, metavar="N", help="(default: %(default)s)"
    )
    parser.add_argument(
        "--temperature",
        type=number_where(lambda t: t >= 0, "a number of at least 0"),
        default=0.0,
        metavar="T",
        help="0 takes the most probable token (default: 0)",
    )
    parser.add_argument(
        "--top-p",
        type=number_where(lambda p: 0 < p <= 1, "a number above 0 and of at most 1"),
        default=1.0,
        metavar="P",
        help="sample from the smallest set that holds P (default: 1)",
    )
    parser.add_argument("--seed", type=whole_from(0, (1 << 63) - 1), metavar="N", help="makes sampling repeatable")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    if arguments.top_p < 1 and arguments.temperature == 0:
        raise InputError(f"--top-p {arguments.top_p} is for sampling, which needs a --temperature above 0")
    prompt = common.read_prompt(arguments)
    loaded = common.load_model(arguments)
    gemma = loaded.gemma
    if arguments.chat:
        prompt = gemma.tokenizer.apply_chat_template([{"role": "user", "content": prompt}])

    ids = gemma.tokenizer.encode(prompt)
    common.warm_up(loaded, len(ids), arguments.max_new_tokens)
    start = time.perf_counter()
    text = gemma.generate(
        ids,
        max_new_tokens=arguments.max_new_tokens,
        temperature=arguments.temperature,
        top_p=arguments.top_p,
        seed=arguments.seed,
        on_token=_write,
    )
    seconds = time.perf_counter() - start
    if not text.endswith("\n"):
        _write("\n")
    common.print_description(common.describe(arguments, loaded), sys.stderr)  # last: not between prompt and completion
    common.print_row("generate", f"{seconds:.2f} s", sys.stderr)
    return 0


def _write(piece: str) -> None:
    sys.stdout.write(piece)
    sys.stdout.flush()
