"""The command line: what it prints, what it writes, and that every mistake is one line on stderr and exit code 2."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import gemma_cuda
from gemma_cuda.cli import common, info, prefill, score
from gemma_cuda.errors import CheckpointError
from tests.support.command import ROOT, TINY_WORDS, error_of, run, run_json, start, write_tiny


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A directory with a random Gemma 3 of 4 layers and without a tokenizer."""
    return write_tiny(tmp_path_factory.mktemp("tiny"))


def test_prefill_prints_the_model_the_device_and_why(tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("prefill", "--model", tiny, "--device", "numpy", "--input-ids", "2,5 7, 9", "--top", "3") == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0].split() == ["model", tiny]
    assert lines[1].split(maxsplit=1) == ["device", "numpy, float32 (it was asked for)"]
    assert lines[3].startswith("prefill     4 tokens in ")
    assert len(lines) == 5 + 3
    assert err == "", "no progress bar where stderr is not a terminal"


def test_prefill_json_holds_everything(tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    report = run_json(capsys, "prefill", "--model", tiny, "--device", "numpy", "--input-ids", "2,5,7", "--top", "4")
    assert list(report) == [
        "model", "device", "device_reason", "warning", "dtype", "load_seconds", "tokens", "input_ids",
        "prefill_seconds", "tokens_per_second", "top",
    ]  # fmt: skip
    assert report["model"] == tiny and report["device"] == "numpy" and report["dtype"] == "float32"
    assert report["tokens"] == 3 and report["input_ids"] == [2, 5, 7] and report["warning"] is None
    assert report["tokens_per_second"] == pytest.approx(3 / report["prefill_seconds"], rel=0.2)
    expected = gemma_cuda.Gemma.from_pretrained(tiny).prefill([2, 5, 7]).logits[0, -1]
    probabilities = np.exp(expected) / np.exp(expected).sum()
    assert [row["id"] for row in report["top"]] == np.argsort(-probabilities)[:4].tolist()
    for row in report["top"]:
        assert row["probability"] == pytest.approx(probabilities[row["id"]], rel=1e-5)
        assert row["text"] is None, "the model has no tokenizer"


def test_dtype_is_passed_on(tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("prefill", "--model", tiny, "--input-ids", "2,5")
    assert run_json(capsys, *words, "--dtype", "float64")["dtype"] == "float64"
    assert run_json(capsys, *words, "--dtype", "bfloat16")["dtype"] == "bfloat16"
    assert "float16" in error_of(capsys, *words, "--dtype", "float16")


def test_save_writes_logits_hidden_state_and_the_cache(
    tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "out.safetensors"
    target.write_bytes(b"an older file, to be replaced")
    report = run_json(capsys, "prefill", "--model", tiny, "--input-ids", "2,5,7", "--save", str(target))
    assert report["saved"] == str(target)
    assert list(tmp_path.iterdir()) == [target]
    tensors = load_file(target)
    layers = {f"layers.{index}.{side}" for index in range(4) for side in "kv"}
    assert set(tensors) == {"input_ids", "logits", "last_hidden_state"} | layers
    out = gemma_cuda.Gemma.from_pretrained(tiny).prefill([2, 5, 7])
    np.testing.assert_array_equal(tensors["input_ids"], [2, 5, 7])
    np.testing.assert_array_equal(tensors["logits"], out.logits)
    np.testing.assert_array_equal(tensors["last_hidden_state"], out.last_hidden_state)
    for index in range(4):
        pair = out.past_key_values[index]
        assert pair is not None
        for side, array in zip("kv", pair, strict=True):
            assert tensors[f"layers.{index}.{side}"].shape == (1, 2, 3, 16)
            np.testing.assert_array_equal(tensors[f"layers.{index}.{side}"], array)
    header = target.read_bytes()[8 : 8 + int.from_bytes(target.read_bytes()[:8], "little")]
    assert json.loads(header)["__metadata__"] == {"model": tiny, "device": "numpy", "dtype": "float32"}


def test_save_that_fails_leaves_nothing(
    tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(tensors: object, path: Path, metadata: object) -> None:
        Path(path).write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.numpy.save_file", full_disk)
    old, new = tmp_path / "old.safetensors", tmp_path / "new.safetensors"
    old.write_bytes(b"kept")
    for target in (old, new):
        words = ("prefill", "--model", tiny, "--input-ids", "2,5", "--save", str(target))
        assert error_of(capsys, *words) == f"--save {target}: cannot be written ([Errno 28] No space left on device)"
    assert list(tmp_path.iterdir()) == [old]
    assert old.read_bytes() == b"kept"


def test_save_is_refused_before_the_model_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(common, "load_model", lambda arguments: pytest.fail("the model was loaded"))
    words = ("prefill", "--input-ids", "2", "--save")
    assert "is a directory" in error_of(capsys, *words, str(tmp_path))
    assert "does not exist" in error_of(capsys, *words, str(tmp_path / "missing" / "out.safetensors"))


def test_score_gives_each_token_and_the_perplexity(tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    report = run_json(capsys, "score", "--model", tiny, "--input-ids", "2,5,7,9")
    logits = gemma_cuda.Gemma.from_pretrained(tiny).prefill([2, 5, 7, 9], logits_to_keep=0).logits[0]
    expected = [float(logits[i, t] - np.log(np.exp(logits[i]).sum())) for i, t in enumerate([5, 7, 9])]
    assert [row["id"] for row in report["tokens"]] == [5, 7, 9]
    assert [row["logprob"] for row in report["tokens"]] == pytest.approx(expected, rel=1e-4)
    assert report["logprob"] == pytest.approx(sum(expected), rel=1e-4)
    assert report["perplexity"] == pytest.approx(math.exp(-sum(expected) / 3), rel=1e-4)
    assert run("score", "--model", tiny, "--input-ids", "2,5,7,9") == 0
    assert f"{report['perplexity']:.4f}" in capsys.readouterr().out
    assert "two tokens" in error_of(capsys, "score", "--model", tiny, "--input-ids", "2")


def test_perplexity_beyond_float64_is_none() -> None:
    assert score.perplexity([-800.0]) is None
    assert score.perplexity([-1.0, -3.0]) == pytest.approx(math.exp(2))


def test_info_reads_no_weights(
    tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from gemma_cuda.formats.stored_tensor import StoredTensor

    monkeypatch.setattr(StoredTensor, "read_into", lambda *a, **k: pytest.fail("a tensor was read"))
    report = run_json(capsys, "info", tiny)
    layer = 32 * 16 * (4 + 2 + 2 + 4) + 3 * 32 * 48 + 4 * 32 + 2 * 16
    assert report["parameters"] == 40 * 32 + 4 * layer + 32
    assert report["weights_bytes_on_disk"] == report["weights_bytes"]["float32"] == 4 * report["parameters"]
    assert report["kv_bytes_per_1k_tokens"] == {"float32": 1000 * 4 * 4 * 64, "bfloat16": 1000 * 4 * 2 * 64}
    assert report["layer_pattern"] == "2L:1G (3 local, 1 global)"
    assert report["config"]["layers"][0]["sliding_window"] == 8
    assert run("info", tiny) == 0
    out = capsys.readouterr().out
    assert f"{report['parameters']:,}" in out and "2L:1G" in out


@pytest.mark.parametrize(
    ("letters", "expected"),
    [
        ("G" * 18, "1G (0 local, 18 global)"),
        ("LG" * 13, "1L:1G (13 local, 13 global)"),
        ("LLLLLG" * 4 + "LL", "5L:1G (22 local, 4 global)"),
        ("LLLLGLG", "4L:1G:1L:1G (5 local, 2 global)"),
        ("L", "1L (1 local, 0 global)"),
    ],
)
def test_layer_pattern(letters: str, expected: str) -> None:
    names = {"L": "sliding_attention", "G": "full_attention"}
    assert info.layer_pattern([names[letter] for letter in letters]) == expected


def test_chat_puts_the_prompt_into_the_template_with_one_bos(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tiny(tmp_path, tokenizer=True)
    prompts: list[Any] = []
    generate = gemma_cuda.Gemma.generate

    def recorded(self: gemma_cuda.Gemma, prompt: Any, **options: Any) -> str:
        prompts.append(prompt)
        return generate(self, prompt, **options)

    monkeypatch.setattr(gemma_cuda.Gemma, "generate", recorded)
    assert run("generate", "--model", str(tmp_path), "--chat", "--prompt", "hi", "--max-new-tokens", "3") == 0
    assert prompts[0] == [2, 4, TINY_WORDS.index("h"), TINY_WORDS.index("i"), 4]
    assert capsys.readouterr().out.endswith("\n")


def test_top_tokens_are_the_most_probable_in_order() -> None:
    logits = np.log(np.array([0.1, 0.2, 0.4, 0.2, 0.1], np.float32))
    top = prefill.top_tokens(logits, 3)
    assert [token for token, _ in top] == [2, 1, 3]
    assert [probability for _, probability in top] == pytest.approx([0.4, 0.2, 0.2], rel=1e-6)
    assert len(prefill.top_tokens(logits, 99)) == 5
    with pytest.raises(CheckpointError, match="logits are not finite"):
        prefill.top_tokens(np.array([0.0, np.nan]), 1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--input-ids", "2,x"), "'x' is not a token id"),
        (("--input-ids", "-3"), "'-3' is not a token id"),
        (("--input-ids", " , "), "--input-ids is empty"),
        (("--input-ids", "2,40"), "40"),
        (("--prompt-file", "/does/not/exist"), "--prompt-file /does/not/exist: No such file or directory"),
        (("--prompt", "hello"), "tokenizer"),
        (
            ("--input-ids", "2", "--device", "cuda"),
            "device 'cuda' needs CuPy and cuda-bindings",
        ),
        (("--input-ids", "2", "--device", "emulator"), "device 'emulator': layer 0 has head_dim"),
    ],
)
def test_mistakes_are_one_line(
    tiny: str, words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    joined = [f"{words[0]}={words[1]}", *words[2:]]
    assert message in error_of(capsys, "prefill", "--model", tiny, *joined)


def test_a_model_that_is_not_there_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = str(tmp_path / "missing")
    assert missing in error_of(capsys, "prefill", "--model", missing, "--input-ids", "2")
    assert missing in error_of(capsys, "info", missing)
    assert str(tmp_path) in error_of(capsys, "info", str(tmp_path))


def test_a_prompt_file_that_is_not_utf8_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "prompt.txt"
    path.write_bytes(b"abc\xff")
    assert error_of(capsys, "prefill", "--prompt-file", str(path)).endswith("not UTF-8 text (byte 3)")


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("prefill",),
        ("prefill", "--prompt", "a", "--input-ids", "2"),
        ("prefill", "--prompt", "a", "--top", "0"),
        ("prefill", "--prompt", "a", "--dtype", "int8"),
        ("generate", "--input-ids", "2"),
        ("info",),
        ("unknown",),
    ],
)
def test_wrong_usage_exits_with_2(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        run(*words)
    assert stopped.value.code == 2
    assert "usage: gemma-cuda" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["prefill", "generate", "score", "info", "doctor"])
def test_each_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        run(command, "--help")
    assert stopped.value.code == 0
    assert f"usage: gemma-cuda {command}" in capsys.readouterr().out


def test_a_bug_is_not_dressed_up_as_an_error(
    tiny: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(common, "load_model", lambda arguments: 1 / 0)
    monkeypatch.delenv("GEMMA_CUDA_TRACEBACK", raising=False)
    words = ("prefill", "--model", tiny, "--input-ids", "2")
    assert run(*words) == 70
    err = capsys.readouterr().err
    assert err.startswith("gemma-cuda: bug: ZeroDivisionError: division by zero (") and err.count("\n") == 1
    monkeypatch.setenv("GEMMA_CUDA_TRACEBACK", "1")
    assert run(*words) == 70
    assert "Traceback" in (shown := capsys.readouterr().err) and shown.endswith(err)


def test_interrupt_exits_with_130(
    tiny: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(common, "load_model", interrupted)
    assert run("prefill", "--model", tiny, "--input-ids", "2") == 130
    assert capsys.readouterr() == ("", "")


def test_a_closed_pipe_is_quiet(tiny: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    process = start("info", tiny, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (141, b"")


def test_a_terminal_that_is_not_utf8_does_not_end_a_command(tiny: str, tmp_path: Path) -> None:
    folder = tmp_path / "gemma-\u00e9"
    folder.symlink_to(tiny)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [sys.executable, "-m", "gemma_cuda", "info", str(folder)], env=environment, capture_output=True, check=True
    )
    assert b"gemma-\\xe9" in done.stdout
