"""A GPU's correctness and speed in a few minutes: python -m benchmarks.checkup --out DIR [--minutes 8] [--only SECTION]

Runs from a checkout in which nothing can be installed: packages that are missing may lie unpacked on PYTHONPATH, and
kernels compiled before in $GEMMA_CUDA_CACHE. It needs NumPy, pytest, CuPy and cuda-bindings; the models' tests and the
peers need torch and transformers. Sections, by value:

device     what the GPU is, the bandwidth of a copy and the rate of a library's product   device.json
golden     what each primitive gives; copy the file to tests/golden/                      golden.zip
tests      every kernel's tests, then whole models (tests.json also has those of golden)   tests.json
sanitizer  memcheck and racecheck of a small test of each kernel                          tools.json
bench      times of kernels beside peers, then of whole prefills                          bench.json, prefill.json
ncu        bytes and bank conflicts beside the emulator's                                 tools.json
compiled   a few times beside FlexAttention and compiled Transformers                     compiled.json

Each part has a process of its own, so what crashes or hangs costs only itself: it is killed at its limit, and all of it
ends --minutes after the start, or half a minute later. What had no time is listed as not run. summary.txt is what is
printed last; it is rewritten after each section, so that it is complete up to there if the check-up is ended early.
Exit code 1 if something was wrong: a test, a golden launch, a finding of the sanitizer, the output of a timed kernel.
--gpu fake rehearses all of it on the emulator, with no figure of any worth; --gpu fake-without-cublaslt does so as on a
machine that has no cuBLASLt.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import profilers
from benchmarks.isolated_tests import Result, run_isolated
from benchmarks.processes import run_for, where

GOLDEN = ("tests/device/test_primitives.py", "tests/ops/test_layouts.py")
KERNELS = tuple(f"tests/ops/test_{name}.py" for name in (
    "rms_norm", "geglu", "embed", "logits", "qk_norm_rope", "linear", "attention"
))  # fmt: skip
MODELS = ("tests/engine/test_model_gpu.py",)
TEST_LIMIT_S, MODEL_LIMIT_S, SANITIZER_LIMIT_S = 20.0, 60.0, 45.0
_MOST_JOBS = 8
_OUTCOMES = {"passed": "ok", "skipped": "skipped", "not run": "not run"}
_OVERTIME_S, _LEAST_S = 30.0, 20.0  # of a part that begins late; after both, none begins
_NO_TIME = "no time was left"
_OURS = ("device", "golden", "tests", "sanitizer", "bench")  # where a failure is not that of a tool or a compiler


@dataclass(frozen=True)
class Item:
    """One thing that was looked at. outcome: ok, failed, skipped (it cannot be had here) or not run (for want of time).

    wrong: it failed, and not for want of a tool.
    """

    section: str
    name: str
    outcome: str
    detail: str = ""
    wrong: bool = False


@dataclass
class Checkup:
    """One run: seconds in all from `begin` (of time.monotonic); limit_s: of a test; tests: section -> pytest's -k."""

    out: Path
    gpu: str
    begin: float
    seconds: float
    limit_s: float | None
    tests: dict[str, tuple[str, ...]]
    items: list[Item] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    tools: dict[str, Any] = field(default_factory=dict)
    results: list[Result] = field(default_factory=list)

    def deadline(self, fraction: float) -> float:
        return self.begin + fraction * self.seconds

    def write(self, name: str, value: Any) -> None:
        (self.out / name).write_text(json.dumps(value, indent=1) + "\n")

    def write_tool(self, name: str, value: Any) -> None:
        """Writes what one of NVIDIA's tools found beside what others did."""
        self.tools[name] = value
        self.write("tools.json", self.tools)

    def seconds_for(self, deadline: float) -> float:
        """What a part that should end at `deadline` gets; 0 where all is over."""
        left = self.deadline(1.0) + _OVERTIME_S - time.monotonic()
        return max(min(max(deadline - time.monotonic(), _LEAST_S), left), 0.0)

    def part(self, section: str, name: str, file: str, deadline: float) -> dict[str, Any] | None:
        """What a part of benchmarks/gpu_parts.py wrote until its end, its limit or its crash, which is an item then."""
        path, limit_s = (self.out / file).resolve(), self.seconds_for(deadline)
        path.unlink(missing_ok=True)
        if limit_s < 1:
            self.items.append(Item(section, name, "not run", _NO_TIME))
            return None
        command = [sys.executable, "-m", "benchmarks.gpu_parts", name, "--gpu", self.gpu, "--json", str(path)]
        end = ("--seconds", str(max(limit_s - 20, limit_s / 2)), "--traceback", str(0.9 * limit_s))
        done = run_for(limit_s, [*command, *end])
        result: dict[str, Any] | None = json.loads(path.read_text()) if path.exists() else None
        if done.code is None:
            outcome = "failed" if result is None else "not run"
            detail = f"it took more than {limit_s:.0f} s and was ended{where(done.error)}"
        elif done.code != 0:
            outcome, detail = "failed", f"exit code {done.code}: {_last_line(done.out + done.error)}"
        else:
            return result
        self.items.append(Item(section, name, outcome, detail, wrong=outcome == "failed" and section in _OURS))
        return result

    def run_tests(self, section: str, files: Sequence[str], limit_s: float, deadline: float, *more: str) -> None:
        """Runs a section's tests, each of which is an item; tests.json has those of all sections so far."""
        if not files:
            return
        wanted = self.tests.get(section, ())
        arguments = [f"--gpu={self.gpu}", *more, *files, *wanted]
        jobs = 1 if more else min(_MOST_JOBS, max(1, (os.cpu_count() or 1) // 2))  # a golden file has one writer
        try:
            for result in run_isolated(arguments, limit_s=self.limit_s or limit_s, deadline=deadline, jobs=jobs):
                self.results.append(result)
                outcome = _OUTCOMES.get(result.outcome, "failed")
                kind = f"{result.outcome}: " if outcome == "failed" else ""
                detail = "" if outcome == "ok" else kind + _last_line(result.detail)
                self.items.append(Item(section, result.test, outcome, detail, wrong=outcome == "failed"))
        finally:
            self.write("tests.json", [asdict(result) for result in self.results])


def device(run: Checkup) -> Iterator[Item]:
    facts = run.part("device", "facts", "device.json", run.deadline(0.12))
    if facts is None:
        return
    run.facts = facts
    yield Item("device", f"{run.facts['gpu']}, {run.facts['architecture']}", "ok")
    top = run.facts["ceilings"]
    yield Item("device", f"copy {top['copy_bytes_per_s'] / 1e9:.0f} GB/s", "ok")
    if top["product_flops_per_s"] is None:
        yield Item("device", "product", "skipped", "neither cuBLASLt nor torch can multiply here")
    else:
        yield Item("device", f"product {top['product_flops_per_s'] / 1e12:.0f} TFLOP/s by {top['product_by']}", "ok")


def golden(run: Checkup) -> Iterator[Item]:
    path = (run.out / "golden.zip").resolve()
    path.unlink(missing_ok=True)
    run.run_tests("golden", GOLDEN, TEST_LIMIT_S, run.deadline(0.2), f"--golden={path}")
    yield from ()


def tests(run: Checkup) -> Iterator[Item]:
    run.run_tests("tests", KERNELS, TEST_LIMIT_S, run.deadline(0.45))
    run.run_tests("models", MODELS, MODEL_LIMIT_S, run.deadline(0.55))
    yield from ()


def sanitizer(run: Checkup) -> Iterator[Item]:
    if shutil.which("compute-sanitizer") is None:
        yield Item("sanitizer", "memcheck, racecheck", "skipped", "compute-sanitizer is not on the PATH")
        return
    verdicts = []
    for test in profilers.SANITIZED:
        for tool in ("memcheck", "racecheck"):
            left = run.deadline(0.63) - time.monotonic()
            if left < 5:
                yield Item("sanitizer", f"{tool} {test}", "not run", _NO_TIME)
                continue
            verdict = profilers.sanitize(tool, test, run.gpu, min(left, SANITIZER_LIMIT_S))
            verdicts.append(verdict)
            outcome = {"ok": "ok", "found": "failed"}.get(verdict.outcome, "not run")
            detail = "" if outcome == "ok" else f"{verdict.outcome}: {_last_line(verdict.text)}"
            yield Item("sanitizer", f"{tool} {test}", outcome, detail, wrong=verdict.outcome == "found")
    run.write_tool("sanitizer", [asdict(verdict) for verdict in verdicts])


def bench(run: Checkup) -> Iterator[Item]:
    kernels = run.part("bench", "bench", "bench.json", run.deadline(0.78))
    yield from _kernels("bench", kernels or {"rows": []})
    prefills = run.part("bench", "prefill", "prefill.json", run.deadline(0.88))
    yield from _prefills("bench", prefills or {"rows": []})


def compiled(run: Checkup) -> Iterator[Item]:
    result = run.part("compiled", "compiled", "compiled.json", run.deadline(1.0))
    if result is not None:
        yield from _kernels("compiled", result["kernels"])
        yield from _prefills("compiled", result["prefill"])


def _kernels(section: str, result: dict[str, Any]) -> Iterator[Item]:
    """Of a result of gemma_cuda/bench/run.py."""
    if result.get("left_out"):
        yield Item(section, f"{result['left_out']} cases", "not run", _NO_TIME)
    for row in result["rows"]:
        name = f"{row['op']} {row['model']} {row['shape']}"
        outcome = "ok" if row["wrong"] is None else "failed"
        yield Item(section, name, outcome, row["wrong"] or "", wrong=row["wrong"] is not None)
        yield from (Item(section, f"{peer} of {name}", "skipped", why) for peer, why in row["refused"].items())
    yield from (Item(section, peer, "skipped", why) for peer, why in result.get("absent", {}).items())


def _prefills(section: str, result: dict[str, Any]) -> Iterator[Item]:
    """Of a result of gemma_cuda/bench/prefill.py."""
    yield from (Item(section, f"prefill {name}", "not run", _NO_TIME) for name in result.get("left_out", ()))
    for row in result["rows"]:
        name = f"prefill {row['model']} {row['tokens']}"
        yield Item(section, name, "ok")
        yield from (Item(section, f"{peer} of {name}", "skipped", why) for peer, why in row["absent"].items())


def ncu(run: Checkup) -> Iterator[Item]:
    if shutil.which("ncu") is None:
        yield Item("ncu", "all", "skipped", "ncu is not on the PATH")
        return
    command = [sys.executable, "-m", "benchmarks.gpu_parts", "launches", "--gpu", run.gpu]
    if (limit_s := run.seconds_for(run.deadline(0.94))) < 1:
        yield Item("ncu", "all", "not run", _NO_TIME)
        return
    kernels = profilers.profile(command, limit_s)
    run.write_tool("ncu", kernels)  # as they are, should they not fit the cases
    rows = list(profilers.beside_counters(kernels))
    run.write_tool("ncu", rows)
    for row in rows:
        conflicts = row["ncu"]["shared_bank_conflicts"]
        yield Item("ncu", f"{row['kernel']} {row['model']} {row['shape']}", "ok", f"{conflicts:.0f} bank conflicts")


SECTIONS: dict[str, Callable[[Checkup], Iterator[Item]]] = {
    "device": device, "golden": golden, "tests": tests, "sanitizer": sanitizer, "bench": bench, "ncu": ncu,
    "compiled": compiled,
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.checkup", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the result files, at most eight")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--only", choices=SECTIONS, action="append", help="may be given several times")
    parser.add_argument("--gpu", choices=["real", "fake", "fake-without-cublaslt"], default="real")
    parser.add_argument("--test-limit", type=float, metavar="SECONDS", help="for one test, instead of 20 (models 60)")
    parser.add_argument("--tests", action="append", default=[], metavar="SECTION=EXPRESSION", help="pytest's -k of it")
    options = parser.parse_args(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    chosen = {name: ("-k", expression) for name, _, expression in (given.partition("=") for given in options.tests)}
    run = Checkup(options.out, options.gpu, time.monotonic(), 60 * options.minutes, options.test_limit, chosen)
    left = list(options.only or SECTIONS)
    try:
        with _ended_by_signals():
            while left:
                _run_section(run, left[0])
                left.pop(0)
                write_summary(run)
    except _EndedError as error:
        run.items += [Item(name, name, "not run", str(error)) for name in left]
    print(write_summary(run), end="")
    return int(any(item.wrong for item in run.items) or bool(left))


class _EndedError(BaseException):
    """Somebody ends the check-up; no section's own handling of errors is to keep that from it."""


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Within it SIGTERM and Ctrl-C are an _EndedError: processes are ended, and what is known is written."""

    def end(number: int, frame: object) -> None:
        raise _EndedError(f"the check-up was ended by {signal.Signals(number).name}")

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _run_section(run: Checkup, name: str) -> None:
    print(f"--- {name}, {time.monotonic() - run.begin:.0f} s after the start", flush=True)
    before = len(run.items)
    try:
        for item in SECTIONS[name](run):
            run.items.append(item)
    except Exception as error:  # the next section may still tell something
        text = f"{type(error).__name__}: {_last_line(str(error))}"
        run.items.append(Item(name, name, "failed", text, wrong=name in _OURS))
    for item in run.items[before:]:
        print(f"{item.outcome:<8} {item.section:<10} {item.name}  {item.detail}".rstrip(), flush=True)


def write_summary(run: Checkup) -> str:
    """The summary of what is known by now, which it writes."""
    text = summary(run.items, run.facts, time.monotonic() - run.begin)
    (run.out / "summary.txt").write_text(text)
    return text


def summary(items: Iterable[Item], facts: dict[str, Any], seconds: float) -> str:
    """One page: counts of each section, then everything that failed, then what was skipped or not run and why."""
    items = list(items)
    lines = ["", f"check-up of {facts.get('gpu', 'a GPU of which nothing is known')}, {seconds:.0f} s", ""]
    for section in dict.fromkeys(item.section for item in items):
        counts = Counter(item.outcome for item in items if item.section == section)
        numbers = "  ".join(f"{counts[outcome]:>4} {outcome}" for outcome in ("ok", "failed", "skipped", "not run"))
        lines.append(f"{section:<10} {numbers}")
    failed = [item for item in items if item.outcome == "failed"]
    lines += ["", *(f"failed   {item.name}  {item.detail}"[:200] for item in failed[:25])]
    lines += [f"and {len(failed) - 25} more"] if len(failed) > 25 else []
    for outcome in ("skipped", "not run"):
        reasons = Counter((item.section, item.detail) for item in items if item.outcome == outcome)
        lines += [f"{outcome:<8} {section}: {count}, {detail}"[:200] for (section, detail), count in
                  reasons.most_common(8)]  # fmt: skip
    not_run = sum(item.outcome == "not run" for item in items)
    verdict = "WRONG" if any(item.wrong for item in items) else "nothing was wrong"
    lines.append(f"{verdict}; {not_run} not run" if not_run else verdict)
    return "\n".join(lines) + "\n"


def _last_line(text: str) -> str:
    """The one that says most of pytest's and Python's reports: the first with the error, or else the last."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return next((line[2:].strip() for line in lines if line.startswith("E ")), lines[-1] if lines else "")


if __name__ == "__main__":
    sys.exit(main())
