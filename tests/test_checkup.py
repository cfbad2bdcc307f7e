"""The check-up of a GPU, on a fake one: what it reports of right, wrong and hanging kernels, and of NVIDIA's tools."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import checkup, profilers
from tests import golden

SMALL = [
    "--tests=golden=pack or zeros",
    "--tests=tests=up_as or (without_a_weight and float16) or (features_take and bfloat16 and 7)",
    "--tests=models=library_obey",
]


def test_all_of_it_on_a_fake_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert checkup.main(["--gpu=fake", f"--out={tmp_path}", *SMALL]) == 0
    page = (tmp_path / "summary.txt").read_text()
    assert capsys.readouterr().out.endswith(page) and page.endswith("nothing was wrong\n")
    for section in ("device", "golden", "tests", "models", "sanitizer", "bench", "ncu"):
        assert f"\n{section} " in page
    assert "skipped  sanitizer: 1, compute-sanitizer is not on the PATH" in page
    assert "\nfailed   " not in page
    assert len(list(tmp_path.iterdir())) <= 8
    launches = list(golden.launches(tmp_path / "golden.zip"))
    assert len(launches) == 5 and not any(map(golden.difference, launches))
    rows = json.loads((tmp_path / "bench.json").read_text())["rows"]
    assert rows and all(row["wrong"] is None and row["median_us"] > 0 for row in rows)


def test_a_wrong_kernel_and_a_hang_cost_one_test_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(checkup, "KERNELS", ("tests/planted_gpu.py",))
    monkeypatch.setattr(checkup, "MODELS", ())
    assert checkup.main(["--gpu=fake", f"--out={tmp_path}", "--only=tests", "--test-limit=8"]) == 1
    results = json.loads((tmp_path / "tests.json").read_text())
    outcomes = {result["test"].partition("::")[2]: result["outcome"] for result in results}
    assert outcomes == {
        "test_right": "passed", "test_wrong": "failed", "test_hangs": "hung", "test_right_afterwards": "passed"
    }  # fmt: skip
    page = capsys.readouterr().out
    assert "2 ok     2 failed     0 skipped" in page and page.endswith("WRONG\n")
    assert "failed   tests/planted_gpu.py::test_hangs  hung: it took more than 8 s and was ended" in page
    assert "failed   tests/planted_gpu.py::test_wrong  failed: AssertionError: assert False" in page


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
    assert {v["outcome"] for v in json.loads((out / "sanitizer.json").read_text())} == {outcome}


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
