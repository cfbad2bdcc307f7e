"""The check-up of a GPU, on a fake one: what it reports of right, wrong and hanging kernels, and of NVIDIA's tools."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks import checkup, processes, profilers
from tests.support import golden
from tests.support.paths import ROOT

FILES = {
    "device.json", "golden.zip", "tests.json", "tools.json", "bench.json", "prefill.json", "compiled.json",
    "summary.txt",
}  # fmt: skip
SMALL = [
    "--tests=golden=pack or zeros",
    "--tests=tests=up_as or (without_a_weight and float16) or (features_take and bfloat16 and 7)",
    "--tests=models=library_obey",
]


def test_its_files_of_tests_exist() -> None:
    named = (
        *checkup.GOLDEN,
        *checkup.KERNELS,
        *checkup.MODELS,
        *(test.partition("::")[0] for test in profilers.SANITIZED),
    )
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_all_of_it_on_a_fake_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert checkup.main(["--gpu=fake", f"--out={tmp_path}", *SMALL]) == 0
    page = (tmp_path / "summary.txt").read_text()
    assert capsys.readouterr().out.endswith(page) and page.endswith("nothing was wrong\n")
    for section in ("device", "golden", "tests", "models", "sanitizer", "bench", "ncu", "compiled"):
        assert f"\n{section} " in page
    assert "skipped  sanitizer: 1, compute-sanitizer is not on the PATH" in page
    assert "\nfailed   " not in page
    assert page.index("\nncu ") < page.index("\ncompiled ")
    assert "skipped  compiled: 2, torch sees no GPU" in page  # FlexAttention and Transformers
    assert {path.name for path in tmp_path.iterdir()} <= FILES and len(FILES) <= 8
    launches = list(golden.GoldenFile(tmp_path / "golden.zip").launches())
    assert len(launches) == 5 and not any(map(golden.difference, launches))
    rows = json.loads((tmp_path / "bench.json").read_text())["rows"]
    assert rows and all(row["wrong"] is None and row["median_us"] > 0 for row in rows)
    compiled = json.loads((tmp_path / "compiled.json").read_text())
    assert all(row["wrong"] is None for row in compiled["kernels"]["rows"])
    assert compiled["kernels"]["absent"] == {"flex": "torch sees no GPU"}
    assert [row["absent"] for row in compiled["prefill"]["rows"]] == [{"transformers compiled": "torch sees no GPU"}]


@pytest.mark.slow
def test_what_was_saved_before_the_compiled_part_was_ended_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A peer hangs while it is compiled; ours has its time, and nothing is called wrong."""
    hang = """
import sys, time
from benchmarks import gpu_parts
from gemma_cuda.bench import run
run.peers.absent = lambda name, cuda: None
run._peer = lambda *arguments: time.sleep(1000)
sys.argv[sys.argv.index("--seconds") + 1] = "1000"  # until the peer, however long ours is compiled
gpu_parts.main()
"""
    parts_by(hang, monkeypatch)
    assert checkup.main(["--gpu=fake", f"--out={tmp_path}", "--only=compiled", "--minutes=0.5"]) == 0
    (row,) = json.loads((tmp_path / "compiled.json").read_text())["kernels"]["rows"]
    assert row["wrong"] is None and row["median_us"] > 0
    printed = capsys.readouterr().out
    assert "   1 ok     0 failed     0 skipped     1 not run" in printed
    assert "not run  compiled: 1, it took more than 30 s and was ended in run, run.py:" in printed
    assert printed.endswith("nothing was wrong; 1 not run\n")


def parts_by(script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on the check-up's parts are this program, with the arguments of benchmarks/gpu_parts.py."""

    def run_for(limit_s: float, command: list[str]) -> processes.Ended:
        return processes.run_for(limit_s, [sys.executable, "-c", script, *command[3:]])

    monkeypatch.setattr(checkup, "run_for", run_for)


SAVE = """
import json, os, sys
def save(value):
    open(sys.argv[sys.argv.index("--json") + 1], "w").write(json.dumps(value))
"""
ROW = {"op": "geglu", "model": "m", "shape": "[1]", "wrong": None, "refused": {}}


def test_a_part_that_breaks_keeps_what_it_saved_and_is_called_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    result = {"rows": [ROW], "left_out": 3}
    parts_by(f"{SAVE}\nif sys.argv[1] == 'bench': save({result!r})\nprint('out of luck'); os._exit(7)", monkeypatch)
    assert checkup.main(["--gpu=fake", f"--out={tmp_path}", "--only=bench"]) == 1
    page = capsys.readouterr().out
    assert "bench         1 ok     2 failed     0 skipped     1 not run" in page
    assert "failed   bench  exit code 7: out of luck" in page and "failed   prefill  exit code 7: out of luck" in page
    assert "not run  bench: 1, no time was left" in page  # the cases that bench had no time for


def test_an_error_of_the_check_up_itself_costs_one_section(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parts_by(f"{SAVE}\nsave({{'gpu': 'a GPU'}})", monkeypatch)
    monkeypatch.setattr(checkup, "GOLDEN", ())
    assert checkup.main(["--gpu=fake", f"--out={tmp_path}", "--only=device", "--only=golden"]) == 1
    assert "failed   device  KeyError: 'architecture'" in capsys.readouterr().out


def test_no_part_begins_after_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.monotonic()
    run = checkup.Checkup(tmp_path, "fake", now - 100, 120, None, {})
    assert 19 < run.seconds_for(run.deadline(0.5)) <= 20 < 40 < run.seconds_for(now + 1e6) <= 50
    late = checkup.Checkup(tmp_path, "fake", now - 200, 120, None, {})
    assert late.seconds_for(now + 1e6) == 0 and late.part("bench", "bench", "bench.json", now + 1e6) is None
    assert [(item.outcome, item.detail) for item in late.items] == [("not run", "no time was left")]


def test_whoever_ends_the_check_up_finds_what_it_knew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parts: list[int] = []

    def well(run: checkup.Checkup) -> Any:
        yield checkup.Item("device", "well", "ok")

    def long(run: checkup.Checkup) -> Any:
        with processes.Child(["sleep", "1000"]) as child:
            parts.append(child._process.pid)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(100)
        yield

    monkeypatch.setattr(checkup, "SECTIONS", {"device": well, "golden": long, "tests": well})
    assert checkup.main(["--gpu=fake", f"--out={tmp_path}"]) == 1
    page = (tmp_path / "summary.txt").read_text()
    assert "device        1 ok" in page and "not run  golden: 1, the check-up was ended by SIGTERM" in page
    assert page.endswith("nothing was wrong; 2 not run\n") and capsys.readouterr().out.endswith(page)
    assert not Path(f"/proc/{parts[0]}").exists()


def test_a_wrong_kernel_and_a_hang_cost_one_test_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(checkup, "KERNELS", ("tests/support/planted_gpu.py",))
    monkeypatch.setattr(checkup, "MODELS", ())
    assert checkup.main(["--gpu=fake", f"--out={tmp_path}", "--only=tests", "--test-limit=8"]) == 1
    results = json.loads((tmp_path / "tests.json").read_text())
    outcomes = {result["test"].partition("::")[2]: result["outcome"] for result in results}
    assert outcomes == {
        "test_right": "passed", "test_wrong": "failed", "test_hangs": "hung", "test_right_afterwards": "passed"
    }  # fmt: skip
    page = capsys.readouterr().out
    assert "2 ok     2 failed     0 skipped" in page and page.endswith("WRONG\n")
    assert (
        "failed   tests/support/planted_gpu.py::test_hangs  hung: it took more than 8 s and was ended in launch, "
        in page
    )
    assert "failed   tests/support/planted_gpu.py::test_wrong  failed: AssertionError: assert False" in page


def tool(path: Path, name: str, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (path / name).write_text(f"#!/bin/sh\n{script}\n")
    (path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(path), prepend=":")


@pytest.mark.parametrize(
    ("script", "outcome"), [("exit 0", "ok"), ("echo ERROR; exit 99", "found"), ("exit 3", "no verdict")]
)
def test_verdicts_of_the_sanitizer(script: str, outcome: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool(tmp_path, "compute-sanitizer", script, monkeypatch)
    monkeypatch.setattr(profilers, "SANITIZED", profilers.SANITIZED[:1])
    out = tmp_path / "out"
    assert checkup.main([f"--out={out}", "--only=sanitizer"]) == int(outcome == "found")
    assert {v["outcome"] for v in json.loads((out / "tools.json").read_text())["sanitizer"]} == {outcome}


def test_each_tool_keeps_what_another_found(tmp_path: Path) -> None:
    run = checkup.Checkup(tmp_path, "fake", 0.0, 1.0, None, {})
    run.write_tool("sanitizer", [1])
    run.write_tool("ncu", [2])
    run.write_tool("ncu", [3])
    assert json.loads((tmp_path / "tools.json").read_text()) == {"sanitizer": [1], "ncu": [3]}


def ncu_lines(kernels: list[str]) -> str:
    metrics = [
        ("dram__bytes_read.sum", "Kbyte", "1.50"), ("gpu__time_duration.sum", "us", "2.5"),
        ("l1tex__data_bank_conflicts_pipe_lsu_mem_shared.sum", "", "1,024"), ("unknown.sum", "", "7"),
    ]  # fmt: skip
    lines = ["==PROF== Connected", '"ID","Kernel Name","Metric Name","Metric Unit","Metric Value"']
    lines += [f'"{i}","{k}","{m}","{u}","{v}"' for i, k in enumerate(kernels) for m, u, v in metrics]
    return "\n".join(lines)


def counted() -> list[dict[str, Any]]:
    return [row for row in json.loads(profilers.COST.read_text())["counted"] if row["checked"]]


def test_what_ncu_says_stands_beside_the_counters() -> None:
    instances = [instance for row in counted() for instance in row["instances"]]
    kernels = profilers.parse(ncu_lines([f"void {i.partition('<')[0]}<T>(int)" for i in instances]))
    assert kernels[0]["dram_read_bytes"] == 1500 and kernels[0]["nanoseconds"] == 2500
    rows = list(profilers.beside_counters(kernels))
    assert [row["shape"] for row in rows] == [row["shape"] for row in counted()]
    first = counted()[0]
    assert rows[0]["ncu"]["shared_bank_conflicts"] == 1024 * len(first["instances"])
    assert rows[0]["counted"]["global_read_sectors"] == first["counters"]["global_read_sectors"]
    with pytest.raises(ValueError, match=r"expected .*, ncu saw None"):
        list(profilers.beside_counters(kernels[:-1]))


def test_the_tests_that_the_sanitizer_runs_exist() -> None:
    for test in profilers.SANITIZED:
        path, _, name = test.partition("::")
        assert "@pytest.mark.gpu\n" in Path(path).read_text() and f"def {name}(" in Path(path).read_text()


@pytest.mark.slow
def test_the_check_up_goes_without_cublaslt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its ceilings, its tests of models, its prefills."""
    monkeypatch.setattr(checkup, "KERNELS", ())
    arguments = ["--gpu=fake-without-cublaslt", f"--out={tmp_path}", "--only=device", "--only=tests", "--only=bench"]
    assert checkup.main([*arguments, "--tests=models=library_obey or gemma3_text-auto"]) == 0
    page = capsys.readouterr().out
    assert page.endswith("nothing was wrong\n") and "\nfailed" not in page
    assert "product  neither cuBLASLt nor torch can multiply here" in page
    assert "models        1 ok     0 failed     1 skipped" in page and "cuBLASLt cannot be used" in page
    (row,) = json.loads((tmp_path / "prefill.json").read_text())["rows"]
    assert row["products_by"] == "kernels/linear.cu"
    assert {"cublas"} <= set(json.loads((tmp_path / "bench.json").read_text())["absent"])
