"""The command `gemma-cuda`: one module per sub-command, and here what they share at the edge, errors to exit codes."""

import argparse
import io
import os
import sys
from collections.abc import Sequence

from ..errors import GemmaError
from . import bench, compile, doctor, generate, info, kernels, mask, prefill, score

_DESCRIPTION = "Run Google's Gemma models: the prefill of a prompt, generation, scoring."
_EPILOG = """\
examples:
  gemma-cuda prefill --prompt "def fibonacci(n):"
  gemma-cuda generate --prompt-file prompt.txt --max-new-tokens 64
  gemma-cuda score --prompt "The capital of France is Paris."
  gemma-cuda info gemma-3-270m-q4_k_m
  gemma-cuda doctor
  gemma-cuda kernels --arch sm_90a
  gemma-cuda compile --model gemma-3-1b --arch sm_90a
  gemma-cuda bench attention linear --shapes gemma-2-2b --tokens 128,2048 --vs cublas,torch
  gemma-cuda bench prefill --random gemma-2-2b
  gemma-cuda mask gemma-3-4b --tokens 2048 --image 40:296

exit codes: 0 done, 2 an error of the caller's or the machine's, in one line on stderr, 130 interrupted
"""

EXIT_ERROR, EXIT_INTERRUPTED, EXIT_BROKEN_PIPE = 2, 130, 141


def build_parser() -> argparse.ArgumentParser:
    """The parser of `gemma-cuda`; each sub-command stores its function as `run`."""
    parser = argparse.ArgumentParser(
        prog="gemma-cuda",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in (prefill, generate, score, info, doctor, kernels, compile, bench, mask):
        module.add_parser(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. Errors of this package become one line on stderr."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal that is not UTF-8 must not end a generation
    try:
        try:
            arguments = build_parser().parse_args(argv)
            code: int = arguments.run(arguments)
            return code
        finally:
            sys.stdout.flush()
    except GemmaError as error:
        print(f"gemma-cuda: error: {' '.join(str(error).split())}", file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The interpreter flushes stdout once more at exit; nobody reads it any longer.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
