"""What became of each test of a suite, from the lines that pytest_peers.py writes, and which of it we answer for."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.peers.refusals import Refusal


@dataclass
class Test:
    """outcome: passed, failed, skipped or not run. calls: of our op."""

    id: str
    outcome: str = "not run"
    calls: int = 0
    message: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Run:
    """uncollected: files that could not be imported, with the reason."""

    tests: dict[str, Test]
    uncollected: dict[str, str]


def read(path: Path) -> Run:
    run = Run({}, {})
    for line in path.read_text().splitlines() if path.exists() else []:
        event = json.loads(line)
        if event["event"] == "collected":
            run.tests.update({test: Test(test) for test in event["tests"] if test not in run.tests})
        elif event["event"] == "uncollected":
            run.uncollected[event["file"]] = event["message"]
        else:
            _take(run.tests.setdefault(event["test"], Test(event["test"])), event)
    return run


def _take(test: Test, event: Mapping[str, Any]) -> None:
    """One phase of a test: the worst of them is its outcome."""
    order = ("not run", "passed", "skipped", "failed")
    if order.index(event["outcome"]) > order.index(test.outcome):
        test.outcome, test.message = event["outcome"], event["message"]
    test.calls += event["calls"]
    test.parameters = event["parameters"] or test.parameters


@dataclass
class Verdict:
    """Counts and lists of one suite. failures, undecided (for want of time to run them without ours): (test, message);
    lifted, refusals that passed: (test, reason)."""

    title: str
    remark: str
    collected: int = 0
    passed: int = 0
    reached: int = 0
    skipped: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    fail_without: int = 0
    not_run: int = 0
    failures: list[tuple[str, str]] = field(default_factory=list)
    undecided: list[tuple[str, str]] = field(default_factory=list)
    lifted: list[tuple[str, str]] = field(default_factory=list)
    uncollected: dict[str, str] = field(default_factory=dict)

    @property
    def run(self) -> int:
        return self.collected - self.not_run - self.skipped


def in_doubt(run: Run, refusals: Sequence[Refusal], suite: str, device: str) -> list[str]:
    """Tests to run without our attention: what failed and is not listed, and what was skipped."""
    return [test.id for test in run.tests.values() if test.outcome in ("failed", "skipped") and not _reason(
        test, refusals, suite, device
    )]  # fmt: skip


def judge(
    run: Run, without: Run, refusals: Sequence[Refusal], suite: str, device: str, title: str, remark: str
) -> Verdict:
    """A failure is ours if the test passes without our attention and no refusal in the list explains it."""
    verdict = Verdict(title, remark, collected=len(run.tests), uncollected=run.uncollected)
    for test in run.tests.values():
        other = without.tests.get(test.id, Test(test.id)).outcome
        if test.outcome == "not run":
            verdict.not_run += 1
        elif test.outcome == "passed":
            verdict.passed += 1
            verdict.reached += test.calls > 0
            for reason in _named(test, refusals, suite, device):
                verdict.lifted.append((test.id, reason))
        elif test.outcome == "failed" and (reason := _reason(test, refusals, suite, device)):
            verdict.refused[reason] = verdict.refused.get(reason, 0) + 1
        elif other == "passed":
            verdict.failures.append((test.id, test.message if test.outcome == "failed" else f"skipped: {test.message}"))
        elif test.outcome == "skipped":
            verdict.skipped += 1
        elif other == "not run":
            verdict.undecided.append((test.id, test.message))
        else:
            verdict.fail_without += 1
    return verdict


def _reason(test: Test, refusals: Iterable[Refusal], suite: str, device: str) -> str:
    fitting = (r for r in refusals if r.explains(suite, device, test.id, test.parameters, test.message))
    return next((refusal.reason for refusal in fitting), "")


def _named(test: Test, refusals: Iterable[Refusal], suite: str, device: str) -> list[str]:
    return [r.reason for r in refusals if r.covers(suite, device, test.id, test.parameters) and test.calls][:1]


_COLUMNS = ("run", "passed", "reached", "refused", "fail_without", "skipped", "not_run", "undecided", "failures")
_HEADINGS = (
    "run",
    "passed",
    "reach our op",
    "refused",
    "fail without ours, too",
    "skipped",
    "not run",
    "undecided",
    "failures",
)


def table(verdicts: Sequence[Verdict]) -> str:
    """The counts in Markdown, then what was refused, and every failure with its message."""
    lines = ["| suite | " + " | ".join(_HEADINGS) + " |", "|---|" + "---|" * len(_HEADINGS)]
    for verdict in verdicts:
        lines.append(f"| {verdict.title} | " + " | ".join(_figure(getattr(verdict, name)) for name in _COLUMNS) + " |")
    for verdict in verdicts:
        lines += [f"{verdict.title}: {verdict.remark}"] if verdict.remark else []
        lines += [f"{verdict.title}: {file} was not collected: {why}" for file, why in verdict.uncollected.items()]
        lines += [f"{verdict.title}: refused {count}: {reason}" for reason, count in verdict.refused.items()]
        lines += [f"{verdict.title}: listed as refused, but passed: {test} ({why})" for test, why in verdict.lifted]
        lines += [f"{verdict.title}: fails, not tried without ours: {t}\n    {why}" for t, why in verdict.undecided]
        lines += [f"{verdict.title}: FAILURE {test}\n    {why}" for test, why in verdict.failures]
    return "\n".join(lines)


def _figure(value: Any) -> str:
    if isinstance(value, dict):
        return str(sum(value.values()))
    return str(len(value) if isinstance(value, list) else value)
