"""`gemma-cuda kernels` and `gemma-cuda compile`: what they print and leave in the cache."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gemma_cuda import cli
from gemma_cuda.bench.occupancy import blocks_per_multiprocessor
from gemma_cuda.cli import kernel_choice
from gemma_cuda.device.cuda.compile import SHARED_BYTES, compile_kernel
from gemma_cuda.device.dry_run import Launch
from gemma_cuda.ops.instances import launches, published

COLUMNS = ["architecture", "registers", "shared", "stack", "spills", "blocks", "seconds", "instance"]
ONE = ("--model", "gemma-3-270m", "--dtype", "bfloat16", "--arch", "sm_90a")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache; tests that do not look into it share the user's, and with it what is compiled."""
    monkeypatch.setenv("GEMMA_CUDA_CACHE", str(tmp_path))
    return tmp_path / "cuda"


def expected(architecture: str = "sm_90a", dtype: str = "bfloat16") -> list[Launch]:
    return launches([published()["gemma-3-270m"]], [dtype], shared_bytes=SHARED_BYTES[architecture])


def test_kernels_lists_each_instance_with_what_it_needs(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["kernels", *ONE]) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split() == COLUMNS
    assert [row.split(maxsplit=7)[7] for row in rows] == [launch.instance for launch in expected()]
    first, compiled = expected()[0], compile_kernel(expected()[0].instance, "sm_90a")
    blocks = blocks_per_multiprocessor("sm_90a", first, compiled.resources)
    figures = [str(figure) for figure in (compiled.resources.registers, first.shared_bytes, 0, 0, blocks)]
    assert rows[0].split()[:7] == ["sm_90a", *figures, f"{compiled.seconds:.2f}"]


def test_blocks_on_an_architecture_whose_limits_are_not_noted_are_a_dash(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["kernels", "--model", "gemma-3-270m", "--dtype", "float32", "--arch", "sm_103a"]) == 0
    assert [row.split()[5] for row in capsys.readouterr().out.splitlines()[1:]] == ["-"] * 4


def test_kernels_of_an_attention_bias_come_on_request(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["kernels", *ONE, "--attn-bias", "float32", "--attn-bias", "bfloat16"]) == 0
    _, *rows = capsys.readouterr().out.splitlines()
    more = {row.split(maxsplit=7)[7] for row in rows} - {launch.instance for launch in expected()}
    assert more == {f"attention<bf16, 256, 64, 64, 1, Bias<{dtype}>>" for dtype in ("float", "bf16")}


def test_kernels_prints_one_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["kernels", *ONE, "--arch", "sm_120a", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["kernels"]
    assert [(row["instance"], row["architecture"]) for row in rows] == [
        (launch.instance, name) for name in ("sm_90a", "sm_120a") for launch in expected(name)
    ]
    assert all(row["registers"] > 0 and row["spill_store_bytes"] == 0 and row["notes"] == [] for row in rows)


def test_kernels_counts_instructions(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    first = {launch.instance.partition("<")[0]: launch for launch in expected()}  # one of each kernel
    monkeypatch.setattr(kernel_choice, "chosen_launches", lambda *_: {"sm_90a": list(first.values())})
    assert cli.main(["kernels", *ONE, "--json", "--sass"]) == 0
    rows = json.loads(capsys.readouterr().out)["kernels"]
    assert len(rows) == len(first) > 6
    for row in rows:
        assert (row["sass"]["HMMA"] > 0) == row["instance"].startswith(("linear<", "attention<"))
        assert row["sass"]["LDL"] == row["sass"]["STL"] == 0


def test_compile_fills_the_cache(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = ("--model", "gemma-3-270m", "--dtype", "float32", "--arch", "sm_90a")  # which has the fewest kernels
    kernels = expected(dtype="float32")
    assert cli.main(["compile", *one]) == 0
    assert f"sm_90a   {len(kernels)} kernels, " in (out := capsys.readouterr().out) and str(cache) in out
    filled = {path: path.stat().st_mtime_ns for path in cache.iterdir()}
    assert len(filled) == 2 * len(kernels) > 2
    assert cli.main(["compile", *one]) == 0
    assert {path: path.stat().st_mtime_ns for path in cache.iterdir()} == filled


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--arch", "hopper"), "--arch hopper: expected an architecture such as sm_90a"),
        (("--arch", "sm_1"), "--gpu-architecture=sm_1 "),
        (("--model", "/nowhere"), "/nowhere"),
    ],
)
def test_mistakes_are_one_line(words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("kernels", "compile"):
        assert cli.main([command, *words]) == 2
        error = capsys.readouterr().err
        assert error.startswith("gemma-cuda: error: ") and message in error and error.count("\n") == 1
