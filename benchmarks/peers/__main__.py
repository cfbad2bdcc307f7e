"""python -m benchmarks.peers DIR: other projects' tests with our attention in the place of theirs.

DIR/flash-attention and DIR/transformers are checkouts; one of them may be missing. Nothing is downloaded. A test that
fails, or is skipped, runs once more without our attention: it is a failure of ours if it passes then and refusals.toml
does not name it. Exit code 1 if there is such a failure, or if no test could be run.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from benchmarks.peers import results, suites
from benchmarks.peers.refusals import REFUSALS
from benchmarks.peers.setting import Setting
from benchmarks.peers.suites import Suite
from benchmarks.processes import ROOT, Child

_NEEDED = ("torch", "xdist", "einops", "parameterized")
_LEAST_MINUTES = 0.5


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__.partition("\n")[0])
    parser.add_argument("directory", type=Path, help="holds flash-attention, transformers or both")
    parser.add_argument(
        "--only", action="append", default=[], metavar="SUITE", help="part of a suite's title; repeatable"
    )
    parser.add_argument(
        "--models", type=lambda text: text.split(","), default=[], help="of Transformers: gemma2,gemma3"
    )
    parser.add_argument("--sample", type=int, help="tests drawn of each function of flash-attention; 0 runs all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=30.0, help="of all suites together")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", type=Path, help="write the figures and failures there")
    options = parser.parse_args(arguments)
    lacking = [name for name in _NEEDED if not importlib.util.find_spec(name)]
    if lacking:
        parser.error(f"{', '.join(lacking)} is missing; install gemma-cuda[peers]")
    found = _suites(parser, options)
    deadline = time.monotonic() + 60 * options.minutes
    verdicts = []
    for i, suite in enumerate(found):
        end = time.monotonic() + (deadline - time.monotonic()) / (len(found) - i)
        verdicts.append(_verdict(suite, options.seed, options.jobs, end))
        print(f"{suite.title}: {verdicts[-1].run} run, {len(verdicts[-1].failures)} failures", file=sys.stderr)
    print(results.table(verdicts))
    if options.json:
        options.json.write_text(json.dumps([{**asdict(v), "run": v.run} for v in verdicts], indent=1) + "\n")
    return int(any(verdict.failures for verdict in verdicts) or not any(verdict.run for verdict in verdicts))


def _suites(parser: argparse.ArgumentParser, options: argparse.Namespace) -> list[Suite]:
    directory: Path = options.directory.resolve()
    checkouts = {name: directory / name for name in ("flash-attention", "transformers")}
    missing = [name for name, path in checkouts.items() if not path.is_dir()]
    if len(missing) == len(checkouts):
        parser.error(f"{directory} holds neither flash-attention nor transformers")
    for name in missing:
        print(f"{checkouts[name]} is missing and left out", file=sys.stderr)
    found = [] if "flash-attention" in missing else suites.flash_attention(checkouts["flash-attention"])
    if "transformers" not in missing:
        found += suites.transformers(checkouts["transformers"], options.models)
    chosen = [suite for suite in found if not options.only or any(part in suite.title for part in options.only)]
    if not chosen:
        parser.error(f"no tests for that in {directory}: it has {', '.join(s.title for s in found) or 'none'}")
    if options.sample is not None:
        chosen = [replace(suite, sample=options.sample) if suite.sample else suite for suite in chosen]
    return chosen


def _verdict(suite: Suite, seed: int, jobs: int, end: float) -> results.Verdict:
    """Runs a suite, then what is in doubt without our attention, which has a third of the time."""
    setting = Setting(suite.module, "ours", suite.device, suite.sample, seed, "", suite.name)
    with tempfile.TemporaryDirectory() as folder:
        now = time.monotonic()
        run = _run(suite, setting, Path(folder) / "ours", jobs, now + (end - now) * 2 / 3)
        doubtful = results.in_doubt(run, REFUSALS, suite.name, suite.device)
        without = results.Run({}, {})
        if doubtful:
            only = Path(folder) / "only.json"
            only.write_text(json.dumps(doubtful))
            without = _run(
                suite, replace(setting, attention="theirs", only=str(only)), Path(folder) / "theirs", jobs, end
            )
    return results.judge(run, without, REFUSALS, suite.name, suite.device, suite.title, suite.remark)


def _run(suite: Suite, setting: Setting, report: Path, jobs: int, end: float) -> results.Run:
    command = [
        sys.executable, "-m", "pytest", "-q", "-n", str(jobs), "--max-worker-restart=1000", "-p", "no:cacheprovider",
        "-p", "benchmarks.peers.pytest_peers", "--continue-on-collection-errors", "--tb=line",
        "-o", f"faulthandler_timeout={suite.limit_s:g}", "-o", "faulthandler_exit_on_timeout=true", *suite.tests,
    ]  # fmt: skip
    given = dict(suite.environment or {})
    paths = [str(ROOT), given.pop("PYTHONPATH", ""), os.environ.get("PYTHONPATH", "")]
    environment = {
        **setting.environment(), **given,
        "PEERS_REPORT": str(report), "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        # It may itself be started by a test, in a process of pytest-xdist.
        "PYTEST_XDIST_WORKER": "", "PYTEST_ADDOPTS": "",
        "PYTHONDONTWRITEBYTECODE": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
    }  # fmt: skip
    with Child(command, environment=environment, directory=suite.directory) as child:
        is_over = child.wait(max(end - time.monotonic(), 60 * _LEAST_MINUTES))
        said = "".join(child.printed())
    run = results.read(report)
    if not run.tests and not run.uncollected:
        why = said.strip().splitlines()[-1:] or ["it says nothing"]
        run.uncollected[suite.tests[0]] = why[0] if is_over else "no time was left"
    return run


if __name__ == "__main__":
    sys.exit(main())
