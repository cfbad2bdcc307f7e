"""Runs one command: its parser, what it may not leave behind, errors to lines and exit codes."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from threading import Event
from types import FrameType
from typing import Any, TextIO

from ..errors import GemmaError
from ..printable import reason
from . import bench, compile, doctor, generate, info, kernels, mask, prefill, score, streams
from .parser import Parser

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

exit codes: 0 done, 2 an error of the caller's or the machine's, in one line on stderr, 70 an error of gemma-cuda's own
(GEMMA_CUDA_TRACEBACK=1 shows where), 130 interrupted, 141 nobody reads the output any longer
"""

EXIT_ERROR, EXIT_BUG, EXIT_INTERRUPTED, EXIT_BROKEN_PIPE = 2, 70, 130, 141
TRACEBACK_VARIABLE = "GEMMA_CUDA_TRACEBACK"
_interrupted = Event()  # by Ctrl-C, of which an import makes errors of other classes


def build_parser() -> argparse.ArgumentParser:
    """The parser of `gemma-cuda`; each sub-command stores its function as `run`."""
    parser = Parser(
        prog="gemma-cuda",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in (prefill, generate, score, info, doctor, kernels, compile, bench, mask):
        module.add_parser(commands)
    return parser


def run_process() -> int:
    """The command of sys.argv: the same as `run`, with the signals and closed streams of a process of our own."""
    streams.reserve_descriptors()
    sys.unraisablehook = _unraisable
    takes_interrupts = signal.getsignal(signal.SIGINT) is not signal.SIG_IGN
    if takes_interrupts:
        signal.signal(signal.SIGINT, _interrupt)
    try:
        return run(sys.argv[1:])
    finally:
        if takes_interrupts:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # the interpreter's own end has tracebacks for Ctrl-C


def run(argv: Sequence[str]) -> int:
    """One command; its exit code. What its error was is said in a line on stderr. SystemExit as argparse raises it."""
    is_closed = sys.stdout is None
    with streams.guarded(), _quiet_libraries():
        try:
            if is_closed:
                raise streams.OutputError("standard output is closed; >/dev/null is for output that nobody needs")
            try:
                arguments = build_parser().parse_args(argv)
                code: int = arguments.run(arguments)
            finally:
                sys.stdout.flush()
            return code
        except KeyboardInterrupt:
            return EXIT_INTERRUPTED
        except Exception as error:
            return EXIT_INTERRUPTED if _interrupted.is_set() else _report(error)


def _report(error: Exception) -> int:
    """Says what the error is; the exit code for it."""
    if isinstance(error, BrokenPipeError | streams.OutputError):
        streams.give_up_output()
    if isinstance(error, BrokenPipeError):
        return EXIT_BROKEN_PIPE
    if os.environ.get(TRACEBACK_VARIABLE) == "1":
        traceback.print_exception(error)
    words = _words(error)
    if words is not None:
        streams.say("error", words)
        return EXIT_ERROR
    streams.say(
        "bug", f"{type(error).__name__}: {error} (please report it, with what {TRACEBACK_VARIABLE}=1 shows besides)"
    )
    return EXIT_BUG


def _words(error: Exception) -> str | None:
    """An error of the caller's or the machine's in words; None for one of ours."""
    if isinstance(error, GemmaError):
        return str(error)
    if isinstance(error, MemoryError):
        return f"out of memory: {error}" if str(error) else "out of memory"
    if isinstance(error, RecursionError):
        return f"an argument or a file is nested too deeply ({error})"
    if isinstance(error, ImportError):
        return f"{error}; `gemma-cuda doctor` says what to install"
    if isinstance(error, OSError):
        words = reason(error) or type(error).__name__
        return words if error.filename is None else f"{os.fsdecode(error.filename)}: {words}"
    is_thread = isinstance(error, RuntimeError) and str(error) == "can't start new thread"
    return "the system allows no more threads" if is_thread else None


@contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Warnings of this package become lines; those of NumPy and other libraries, in warnings and logs, go nowhere."""
    unread = logging.NullHandler()  # without any handler, Python prints what libraries log
    logging.getLogger().addHandler(unread)
    try:
        with warnings.catch_warnings():
            warnings.resetwarnings()
            warnings.simplefilter("ignore")
            # NumPy's "overflow encountered in multiply" comes under our modules' names, too.
            ours = r"(?!.*encountered in )"
            warnings.filterwarnings("default", ours, category=RuntimeWarning, module=r"gemma_cuda\.")
            warnings.showwarning = _show
            yield
    finally:
        logging.getLogger().removeHandler(unread)


def _show(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, file: TextIO | None = None,
    line: str | None = None,
) -> None:  # fmt: skip
    streams.say("warning", str(message))


def _interrupt(number: int, frame: FrameType | None) -> None:
    _interrupted.set()
    raise KeyboardInterrupt


def _unraisable(unraisable: Any) -> None:
    """What is raised where no caller is: Ctrl-C comes again where there is one; the rest only shows on request."""
    if isinstance(unraisable.exc_value, KeyboardInterrupt):
        with suppress(ValueError):
            signal.raise_signal(signal.SIGINT)
    elif os.environ.get(TRACEBACK_VARIABLE) == "1":
        sys.__unraisablehook__(unraisable)
