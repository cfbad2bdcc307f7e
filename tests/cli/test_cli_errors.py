"""What a command does with closed streams, full disks, Ctrl-C, odd values and odd texts: one line, no traceback."""

from __future__ import annotations

import argparse
import io
import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gemma_cuda import Gemma
from gemma_cuda.bench import tables
from gemma_cuda.cli import common, parser, streams
from gemma_cuda.device.emulator import host_compiler
from gemma_cuda.engine.sampling import Sampler
from gemma_cuda.errors import DeviceError, InputError
from tests.support.command import ROOT, error_of, run, run_json, usage_error_of, write_tiny

INTERRUPTED_IMPORT = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
class Interrupting:
    def find_spec(self, name, path, target=None):
        if name == {name!r}:
            try:
                signal.raise_signal(signal.SIGINT)
            except KeyboardInterrupt:
                raise ImportError("what a C extension makes of it") from None
sys.meta_path.insert(0, Interrupting())
from gemma_cuda.cli import main
sys.argv = ["gemma-cuda", *{words!r}]
sys.exit(main())
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_tiny(tmp_path_factory.mktemp("tiny"))


def in_a_shell(redirections: str, *words: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of the command with these redirections."""
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {redirections}', "sh", sys.executable, "-m", "gemma_cuda", *words],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def test_closed_streams_are_no_traceback(tiny: str) -> None:
    code, out, err = in_a_shell(">&-", "info", tiny)
    assert (code, out) == (2, "")
    assert err == "gemma-cuda: error: standard output is closed; >/dev/null is for output that nobody needs\n"
    code, out, err = in_a_shell("<&- 2>&-", "prefill", "--model", tiny, "--device", "numpy", "--input-ids", "2,5")
    assert (code, err) == (0, "") and out.startswith("model ")
    code, out, err = in_a_shell("<&-", "prefill", "--model", tiny, "--prompt-file", "-")
    assert (code, out, err) == (2, "", "gemma-cuda: error: --prompt-file -: standard input is closed\n")


def is_full() -> bool:
    try:
        return stat.S_ISCHR(os.stat("/dev/full").st_mode)
    except OSError:
        return False


@pytest.mark.skipif(not is_full(), reason="there is no /dev/full")
@pytest.mark.parametrize("words", [("mask", "gemma-3-270m", "--tokens", "64"), ("score", "--help")], ids=" ".join)
def test_a_full_disk_is_one_line_though_it_shows_at_the_end(words: tuple[str, ...]) -> None:
    message = "gemma-cuda: error: standard output: No space left on device\n"
    assert in_a_shell(">/dev/full", *words) == (2, "", message)


@pytest.mark.parametrize("name", ["gemma_cuda.cli.command", "numpy"])
def test_ctrl_c_while_modules_are_imported(name: str, tiny: str) -> None:
    words = ["prefill", "--model", tiny, "--device", "numpy", "--input-ids", "2"]
    code = INTERRUPTED_IMPORT.format(name=name, words=words)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=False, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError("Unable to allocate 9 GiB"), "out of memory: Unable to allocate 9 GiB"),
        (MemoryError(), "out of memory"),
        (RecursionError("too deep"), "an argument or a file is nested too deeply (too deep)"),
        (OSError(13, "Permission denied", "/a\x1b[31m"), r"/a\x1b[31m: Permission denied"),
        (OSError("odd"), "odd"),
        (ModuleNotFoundError("No module named 'numpy'"), "No module named 'numpy'; `gemma-cuda doctor` says what"),
        (RuntimeError("can't start new thread"), "the system allows no more threads"),
    ],
)
def test_what_the_machine_refuses_is_one_line(
    error: Exception, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(arguments: argparse.Namespace) -> None:
        raise error

    monkeypatch.setattr(common, "load_model", fails)
    assert error_of(capsys, "prefill", "--input-ids", "2").startswith(message)


NOT_WHOLE = ["1.5", "nan", "1_000", " 5", "5 ", "+5", "²", "٣", "", "1e3", "0x10", "--"]


@pytest.mark.parametrize("text", [*NOT_WHOLE, "-1", "9" * 5000, "-" + "9" * 5000])
def test_whole_numbers_are_ascii_digits_within_their_range(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (
        ("prefill", "--prompt", "a", f"--top={text}"),
        ("generate", "--prompt", "a", f"--max-new-tokens={text}"),
        ("generate", "--prompt", "a", f"--seed={text}"),
        ("mask", "gemma-3-4b", f"--tokens={text}"),
        ("mask", "gemma-3-4b", f"--layer={text}"),
    ):
        assert words[-1].split("=")[0] in usage_error_of(capsys, *words)
    bench = ("bench", "rms_norm", "--device", "emulator", "--shapes", "gemma-3-270m")
    if text not in (" 5", "5 "):  # spaces beside commas
        assert "ber" in error_of(capsys, *bench, f"--tokens=1,{text}")
    assert "expected tokens such as 40:296" in error_of(capsys, "mask", "gemma-3-4b", f"--image=0:{text}")


@pytest.mark.parametrize("text", ["nan", "inf", "1e400", "-1", "", " 1", "1_0", "+1", "²", "--", "0x1p3"])
def test_numbers_are_finite_decimals_within_their_range(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    for option in ("--temperature", "--top-p"):
        assert option in usage_error_of(capsys, "generate", "--prompt", "a", f"{option}={text}")
    assert "--seconds" in usage_error_of(capsys, "bench", f"--seconds={text}")


def test_numbers_that_are_in_range() -> None:
    number = parser.number_where(lambda value: value >= 0, "")
    assert [number(text) for text in ("0", "-0.0", ".5", "5.", "1e-3", "1E+2")] == [0, 0, 0.5, 5, 1e-3, 100]
    assert [parser.whole(text, -1, 9) for text in ("-1", "007", "9")] == [-1, 7, 9]


@pytest.mark.parametrize(
    "words",
    [
        ("prefill", "--prompt", "a", "--top", "3", "--top", "4"),
        ("prefill", "--prompt", "a", "--model", " "),
        ("prefill", "--prompt", "a", "--save="),
        ("prefill", "--prompt", "a", "--device", "cuda:" + "9" * 5000),
        ("prefill", "--prompt", "a", "--device", "cuda:²"),
        ("bench", "--json="),
        ("info", ""),
        ("info", "a", "--\x1b[31m"),
    ],
)
def test_usage_that_says_nothing_or_too_much(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert len(usage_error_of(capsys, *words)) < 1200


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("prefill", "--input-ids", "9" * 5000), "is not a token id, expected numbers such as"),
        (("generate", "--prompt", "a", "--top-p", "0.5"), "--top-p 0.5 is for sampling"),
        (("bench", "--device", "emulator", "--seconds", "1"), "--seconds is for times"),
        (("prefill", "--prompt", "a\udcff"), "--prompt: not UTF-8 text (byte 1)"),
        (("prefill", "--prompt", "\ud800"), "--prompt: "),
        (("prefill", "--prompt-file", "a\0b"), r"--prompt-file a\x00b: embedded null"),
        (("prefill", "--prompt-file", "."), "--prompt-file .: Is a directory"),
        (("prefill", "--prompt", "a", "--save", "a\0b"), r"--save a\x00b: "),
        (("prefill", "--prompt", "a", "--save", "b" * 300), "--save bbb"),
        (("bench", "--json", "none/x"), "--json none/x: the directory none does not exist"),
        (("bench", "--plot", "x"), "--plot x: expected a name that ends in .png or .svg"),
        (("kernels", "--arch", "sm_²"), "--arch sm_²: expected an architecture such as sm_90a"),
        (("bench", "\x1b]0;title\x07"), r"bench \x1b]0;title\x07: expected some of"),
    ],
)
def test_other_mistakes_are_one_line(
    words: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert message in error_of(capsys, *words)
    assert list(tmp_path.iterdir()) == []


def test_a_prompt_has_a_limit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(common, "_MOST_PROMPT_BYTES", 1 << 20)
    endless = tmp_path / "endless"
    os.mkfifo(endless)
    with subprocess.Popen(["sh", "-c", 'yes > "$0"', str(endless)], stderr=subprocess.DEVNULL):
        message = error_of(capsys, "prefill", "--prompt-file", str(endless))
    assert message == f"--prompt-file {endless}: a prompt may have 1 MiB, this has more"


@pytest.mark.parametrize("value", [" ", '"', "g++ '", "''"])
def test_a_compiler_that_is_no_command(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", value)
    if value == " ":
        assert host_compiler.compiler() == ["g++"]
        return
    with pytest.raises(DeviceError, match="device 'emulator' compiles kernels with"):
        host_compiler.compiler()


def test_weights_that_are_no_numbers_are_an_error_without_warnings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes: list[Callable[[Any], Any]] = [lambda a: a * np.float32("nan"), lambda a: a + np.float32("inf")]
    for change in changes:
        folder = write_tiny(tmp_path, change)
        for words in (("prefill",), ("score",), ("score", "--json")):
            message = error_of(capsys, *words, "--model", folder, "--device", "numpy", "--input-ids", "2,5,7")
            assert "NaN" in message


def test_json_is_json_whatever_is_in_it(tiny: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    def refuse(constant: str) -> None:
        pytest.fail(f"{constant} is not JSON")

    value = {"a": [float("nan"), (float("-inf"), 1.5)], "b": "\udcff\x9b\U0001f600é"}
    text = common.json_text(value)
    assert text.isascii()
    assert json.loads(text, parse_constant=refuse) == {"a": [None, [None, 1.5]], "b": value["b"]}
    folder = tmp_path / "e\u0301\U0001f600\x1b"
    folder.symlink_to(tiny)
    assert run_json(capsys, "info", str(folder))["model"] == str(folder)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_no_control_characters(tiny: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = "a\x1b[31m\x9b\u202eb\tc\n\U0001f468\u200d\U0001f469"
    monkeypatch.setattr(Gemma, "generate", lambda self, ids, *, on_token, **options: on_token(text) or text)
    monkeypatch.setattr("gemma_cuda.text.tokenizer.Tokenizer.encode", lambda *a, **k: [2])
    folder = tmp_path / "\x1b[31m\nred"
    folder.symlink_to(write_tiny(tmp_path / "model", tokenizer=True))
    words = ("generate", "--model", str(folder), "--device", "numpy", "--prompt", "a")
    for stream, expected in (
        (Terminal(), "a\\x1b[31m\\x9b\\u202eb\tc\n\U0001f468\u200d\U0001f469\n"),
        (io.StringIO(), text + "\n"),
    ):
        monkeypatch.setattr(sys, "stdout", stream)
        monkeypatch.setattr(sys, "stderr", messages := io.StringIO())
        assert run(*words) == 0
        assert stream.getvalue() == expected
        assert r"\x1b[31m\nred" in messages.getvalue() and messages.getvalue().count("\n") == 4


def test_a_long_message_keeps_its_ends() -> None:
    line = streams.one_line(f"begin {'x' * 9999}\n end")
    assert line.startswith("begin xxx") and line.endswith("xxx end") and len(line) == 1005


def test_the_callers_streams_are_his_again(tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stream)
    assert run("info", tiny) == 0
    assert sys.stdout is stream


def test_a_title_is_no_formula(tmp_path: Path) -> None:
    row = {"tokens": 1, "median_ms": 1.0, "floor_ms": 1.0, "peers": {}, "model": r"$\nonsense{$"}
    tables.plot_prefills([row], tmp_path / "plot.svg")
    assert r"$\nonsense{$" in (tmp_path / "plot.svg").read_text()


def test_a_temperature_near_zero_takes_the_likeliest_tokens() -> None:
    sampler = Sampler(temperature=1e-320, seed=0)
    assert {sampler.sample(np.array([0.0, 2.0, 2.0, 1.0], np.float32)) for _ in range(20)} == {1, 2}


def test_a_library_name_that_is_not_utf8_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from gemma_cuda.device.cuda import nvrtc

    monkeypatch.setenv(nvrtc.LIBRARY_VARIABLE, "\udcff")
    with pytest.raises(DeviceError, match=nvrtc.LIBRARY_VARIABLE):
        nvrtc._bindings.__wrapped__()


def test_check_destination_names_the_option(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^--save .*: is a directory"):
        common.check_destination("--save", tmp_path)
    common.check_picture("--plot", tmp_path / "a.PNG")
