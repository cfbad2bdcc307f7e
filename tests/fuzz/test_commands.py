"""`gemma-cuda` with arguments and environments that nobody means well with: exit codes 0 and 2, and one line for 2.

Options are the parser's own. Paths to write lie in the test's folder; numbers are small where they are valid, so that
no example is long.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemma_cuda.cli import main
from gemma_cuda.cli.command import build_parser
from tests.support.command import write_tiny
from tests.support.fuzz import examples

# What makes a command short, and gives it what it requires; a drawn option takes the place of its value here.
BASES: dict[str, dict[str, str]] = {
    "prefill": {"--model": "tiny", "--device": "numpy", "--prompt": "ab"},
    "generate": {"--model": "tiny", "--device": "numpy", "--prompt": "ab", "--max-new-tokens": "2"},
    "score": {"--model": "tiny", "--device": "numpy", "--prompt": "abc"},
    "info": {},
    "kernels": {"--model": "gemma-3-270m", "--dtype": "float32", "--arch": "sm_90a"},
    "compile": {"--model": "gemma-3-270m", "--dtype": "float32", "--arch": "sm_90a"},
    "bench": {"--device": "emulator", "--shapes": "gemma-3-270m", "--tokens": "1"},
    "mask": {"--tokens": "64"},
}
COMMANDS = [name for name, base in BASES.items() for _ in range(6 if "--prompt" in base else 1)]
POSITIONALS = {"info": "tiny", "bench": "rms_norm", "mask": "gemma-3-4b"}
ENVIRONMENT = ("GEMMA_CUDA_CACHE", "GEMMA_CUDA_NVRTC", "GEMMA_CUDA_CUBLASLT", "GEMMA_CUDA_TRACEBACK", "CXX",
               "XDG_CACHE_HOME", "HOME", "OMP_NUM_THREADS", "COLUMNS", "LANG")  # fmt: skip
MODELS = ("tiny", "nan", "infinite", "gemma-3-4b", "missing", "folder", "text", "folder/none", "a/b")
BAD_TEXTS = (
    "",
    " ",
    "--",
    "-",
    "\x1b[31mred",
    "\x9b",
    "\u202e",
    "a\nb",
    "a\0b",
    "\udcff",
    "\ud800",
    "a" * 5000,
    "$x{$",
)
BAD_NUMBERS = ("-1", "1.5", "nan", "inf", "1_0", "+1", " 1", "1 ", "²", "٣", "9" * 5000, "-" + "9" * 5000, "1e400",
               "1e-320", "0x1", "9" * 18, "1,,2", ",", "1:", ":", "2:1", "0:9", "1:2:3")  # fmt: skip
FILES = ("folder", "folder/none/x", "text", "latin", "new", "new.png", "new.svg", "new.pdf", "b" * 300)

# No "/" and "~": a name that is drawn must not lead out of the folder.
texts = st.sampled_from(BAD_TEXTS) | st.text(st.characters(exclude_characters="/~"), max_size=6)
numbers = st.sampled_from(BAD_NUMBERS) | st.integers(-3, 3).map(str) | st.floats(-2, 2).map(repr)
files = st.sampled_from((*FILES, *MODELS))
NUMBERS = ("--top", "--max-new-tokens", "--temperature", "--top-p", "--seed", "--input-ids", "--tokens", "--layer",
           "--image", "--seconds")  # fmt: skip
PATHS = ("--model", "--prompt-file", "--save", "--json", "--plot", "--out")


@dataclass
class Call:
    """A command line in the making, as hypothesis shows it."""

    command: str
    options: dict[str, str] = field(default_factory=dict)
    flags: list[str] = field(default_factory=list)
    again: list[str] = field(default_factory=list)
    positional: str | None = None

    @property
    def words(self) -> list[str]:
        given_values = [f"{name}={value}" for name, value in self.options.items()]
        ends = [] if self.positional is None else ["--", self.positional]
        return [self.command, *given_values, *self.flags, *self.again, *ends]


def options_of(command: str) -> list[argparse.Action]:
    (commands,) = (a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction))
    return [action for action in commands.choices[command]._actions if action.option_strings]


def values(name: str) -> st.SearchStrategy[str]:
    """Of this option, mostly of the kind that it takes."""
    if name == "--arch":
        return texts  # a number names an architecture, for which all kernels are compiled
    kind = numbers if name in NUMBERS else files if name in PATHS else texts
    return st.one_of(kind, kind, texts, numbers, files)


@st.composite
def calls(draw: st.DrawFn) -> Call:
    """One option or positional with any value, beside flags and what the command requires."""
    command = draw(st.sampled_from(COMMANDS))
    call = Call(command, dict(BASES[command]), positional=POSITIONALS.get(command))
    if command == "generate" and draw(st.booleans()):
        call.options["--temperature"] = "1"
    options = options_of(command)
    call.flags = draw(st.lists(st.sampled_from([a.option_strings[-1] for a in options if a.nargs == 0]), max_size=1))
    taking = [action for action in options if action.nargs != 0]
    which = draw(st.sampled_from([*taking, None]))
    if which is None:
        call.positional = draw(st.sampled_from(MODELS) | texts) if call.positional else None
    else:
        name = which.option_strings[-1]
        if name in ("--input-ids", "--prompt-file"):
            del call.options["--prompt"]
        call.options[name] = draw(values(name))
    if draw(st.integers(0, 19)) == 0:
        call.again.append(f"--{draw(texts)}")
    return call


environments = st.dictionaries(
    st.sampled_from(ENVIRONMENT),
    st.sampled_from([text for text in (*BAD_TEXTS, *BAD_NUMBERS) if "\0" not in text and "\ud800" not in text])
    | st.sampled_from(("text", "folder", "g++ '", '"', "cat", "true")),
    min_size=1,
    max_size=2,
)
ORDINARY = [
    Call(name, BASES[name], positional=POSITIONALS.get(name)) for name in ("prefill", "info", "kernels", "bench")
]


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A working directory with models and files of several kinds."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_tiny(folder / "tiny", tokenizer=True)
        write_tiny(folder / "nan", lambda a: a * np.float32("nan"), tokenizer=True)
        write_tiny(folder / "infinite", lambda a: a + np.float32("inf"), tokenizer=True)
        (folder / "folder").mkdir()
        (folder / "text").write_text("abc")
        (folder / "latin").write_bytes(b"caf\xe9")
        yield folder


@contextmanager
def surroundings(folder: Path, environment: dict[str, str]) -> Iterator[tuple[io.BytesIO, io.BytesIO]]:
    """(stdout, stderr) of a command in that folder and environment, with an empty standard input."""
    out, err = io.BytesIO(), io.BytesIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, value in {"HF_HUB_OFFLINE": "1", **environment}.items():
            patch.setenv(name, value)
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
        patch.setattr(sys, "stdout", stdout := io.TextIOWrapper(out, "utf-8"))
        patch.setattr(sys, "stderr", stderr := io.TextIOWrapper(err, "utf-8", errors="backslashreplace"))
        yield out, err
        stdout.flush()
        stderr.flush()


def refuse(constant: str) -> Any:
    raise AssertionError(f"{constant} is not JSON")


TEMPORARY = "gemma-cuda: warning: what is compiled is not kept after this process: "  # no home, no cache
UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]")


@examples(200)
@given(call=calls())
def test_commands_end_with_0_or_with_2_and_one_line(call: Call, folder: Path) -> None:
    check(call, {}, folder)


@examples(15)
@given(call=st.sampled_from(ORDINARY), environment=environments)
def test_environments_end_with_0_or_with_2_and_one_line(call: Call, environment: dict[str, str], folder: Path) -> None:
    check(call, environment, folder)


def check(call: Call, environment: dict[str, str], folder: Path) -> None:
    """Runs the command; AssertionError for other ends than a good one and an error in one line."""
    with surroundings(folder, environment) as (stdout, stderr):
        try:
            code = main(call.words)
        except SystemExit as stopped:
            assert isinstance(stopped.code, int)
            code = stopped.code
        sys.stdout.flush()
        sys.stderr.flush()
        out, err = stdout.getvalue().decode(), stderr.getvalue().decode()
    assert code in (0, 2), err
    assert not UNSAFE.search(err)
    if environment.get("GEMMA_CUDA_TRACEBACK") != "1":
        assert "Traceback" not in err and "Warning" not in err
    errors = [line for line in err.splitlines() if ": error: " in line]
    if code == 2:
        assert len(errors) == 1 and err.endswith(f"{errors[0]}\n") and len(errors[0]) < 1200
        assert err.startswith((errors[0], "usage: ", "Traceback"))
    elif call.command == "generate" and "--help" not in call.flags:
        assert not errors
    else:
        assert all(line.startswith(TEMPORARY) for line in err.splitlines())
        if "--json" in call.flags and "--help" not in call.flags:
            json.loads(out, parse_constant=refuse)
    assert set(os.listdir(folder)) >= {"tiny", "nan", "infinite", "folder", "text", "latin"}
