"""How many bugs the tests of a kernel catch: python -m benchmarks.mutate KERNEL [--n 300] [--seed 0] [--json FILE]

Changes one token of kernels/KERNEL.cu, or of a header of kernels/common/ that its tests guard, at a time; runs the
kernel's tests in tests/ops/ on the emulator; and prints the share of mutants that a test kills, with the survivors to
explain. Mutants that do not compile do not count. --index: instead, offsets in 32 bits where the kernel has 64, and
the tests of large arrays. --semantic: instead, the mistakes of benchmarks/semantic_mutants.py.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.index_mutants import index_mutants
from benchmarks.semantic_mutants import SEMANTIC

ROOT = Path(__file__).resolve().parents[1]
TOKEN = re.compile(
    r"//[^\n]*|#[^\n]*|\"[^\"]*\"|[A-Za-z_]\w*|\d+\.\d+f|\d+|<<|>>|<=|>=|==|!=|&&|\|\||[-+*/%]=|\+\+|--|\S"
)
REPLACEMENTS: dict[str, tuple[str, ...]] = {
    **{
        "+": ("-",),
        "-": ("+",),
        "*": ("/", "+"),
        "/": ("*",),
        "%": ("/",),
        "+=": ("-=", "="),
        "-=": ("+=",),
        "*=": ("/=",),
    },
    **{"==": ("!=",), "!=": ("==",), "<=": ("<", ">"), ">=": (">", "<"), "&&": ("||",), "||": ("&&",), "?": ()},
    **{"<<": (">>",), ">>": ("<<",), "&": ("|",), "|": ("&",), "^": ("|",), "x": ("y",)},
    **{"threadIdx": ("blockIdx",), "blockIdx": ("threadIdx",), "blockDim": ("gridDim",), "fmaxf": ("fminf",)},
    **{
        "__syncthreads": ("(void)",),
        "__syncwarp": ("(void)",),
        "rsqrtf": ("sqrtf",),
        "true": ("false",),
        "false": ("true",),
    },
}
# Each header with the kernel that uses all of it.
HEADERS = {"attention": ("logit", "softmax", "tile"), "geglu": ("gelu", "vec"), "rms_norm": ("reduce",)}
# Test files of a kernel where it has several.
TESTS = {"attention": ("attention_edges", "attention_extremes", "attention")}
# A test that hangs costs CPU time, however busy the machine is.
SPARE_CPU_S = 30
WAIT_S = 3600


@dataclass(frozen=True)
class Mutant:
    """A source with one token changed: before -> after, `source` below kernels/."""

    source: str
    line: int
    before: str
    after: str
    code: str  # the line as it was
    position: int

    def apply(self, text: str) -> str:
        return text[: self.position] + self.after + text[self.position + len(self.before) :]

    def __str__(self) -> str:
        return f"{self.source}:{self.line}: {self.before} -> {self.after} in `{self.code}`"


@dataclass
class Running:
    """A mutant under test in process `pid`."""

    index: int
    pid: int
    directory: Path
    deadline: float


def kernel_tests(kernel: str) -> list[str]:
    """Those of a kernel, the ones that kill most mutants first."""
    return [f"tests/ops/test_{name}.py" for name in TESTS.get(kernel, (kernel,))]


def source_files(kernel: str) -> list[str]:
    """The kernel's file, and the common headers that its tests are to guard, by name below kernels/."""
    return [f"{kernel}.cu", *(f"common/{name}.cuh" for name in HEADERS.get(kernel, ()))]


def mutants(source: str, text: str) -> Iterator[Mutant]:
    """Every single-token mutant of a source."""
    declared = set(re.findall(r"\b(?:float|int|long long|V|T\*)\s+([A-Za-z]\w*)\b", text))
    names = sorted(name for name in declared if not name.startswith("k"))  # constants of the template stay
    lines = text.splitlines()
    for match in TOKEN.finditer(text):
        token = match[0]
        if token.startswith(("//", "#", '"')):
            continue
        line = text.count("\n", 0, match.start())
        for after in _alternatives(token, names, text, match):
            yield Mutant(source, line + 1, token, after, lines[line].strip(), match.start())


def mutants_of_indices(source: str, text: str) -> Iterator[Mutant]:
    """Those that compute an offset in 32 bits."""
    lines = text.splitlines()
    for position, before, after in index_mutants(text):
        line = text.count("\n", 0, position)
        yield Mutant(source, line + 1, before, after, lines[line].strip(), position)


def semantic_mutants(kernel: str) -> list[Mutant]:
    """The mistakes of one kernel; raises ValueError for one that its source does not hold once."""
    found = []
    for mistake in SEMANTIC[kernel]:
        text = (ROOT / "kernels" / mistake.source).read_text()
        if text.count(mistake.before) != 1:
            raise ValueError(f"{mistake.source} holds {mistake.before!r} {text.count(mistake.before)} times, not once")
        position = text.index(mistake.before)
        line = text.count("\n", 0, position) + 1
        found.append(Mutant(mistake.source, line, mistake.before, mistake.after, mistake.what, position))
    return found


def _alternatives(token: str, names: list[str], text: str, match: re.Match[str]) -> tuple[str, ...]:
    if token.isdigit():
        return (str(int(token) + 1), *((str(int(token) - 1),) if int(token) > 0 else ()))
    if re.fullmatch(r"\d+\.\d+f", token):
        return ("2.0f",) if token != "2.0f" else ("1.0f",)
    is_comparison = token in "<>" and re.match(r"\s", text[match.end() : match.end() + 1] or " ") is not None
    if is_comparison and text[match.start() - 1].isspace() and not text[: match.start()].rstrip().endswith("template"):
        return (token + "=", ">" if token == "<" else "<")
    if token in names and len(names) > 1:  # another variable in its place; most that do not fit do not compile
        return (names[(names.index(token) + 1) % len(names)],)
    return REPLACEMENTS.get(token, ())


def start(tests: list[str], mutant: Mutant | None, directory: Path, cpu_s: int) -> int:
    """A process that runs these tests with the mutant (None: without one), and ends with pytest's exit status."""
    pid = os.fork()
    if pid:
        return pid
    os.setsid()
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s))
    with (directory / "log").open("w") as log:
        for descriptor in (1, 2):
            os.dup2(log.fileno(), descriptor)
    shutil.copytree(ROOT / "kernels", directory / "kernels")
    shutil.copytree(ROOT / "bindings" / "emulator", directory / "bindings" / "emulator")
    if mutant is not None:
        path = directory / "kernels" / mutant.source
        path.write_text(mutant.apply(path.read_text()))
    os.environ["GEMMA_CUDA_CACHE"] = str(directory / "cache")
    import pytest

    from gemma_cuda.device import sources

    sources.source_root = lambda: directory
    status = 1
    try:
        status = pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-m", "not slow", *tests])
    finally:
        sys.stdout.flush()
        os._exit(int(status))


def outcome(status: int, log: str) -> str:
    """ "killed", "refused" (does not compile) or "survived"."""
    if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0:
        return "survived"
    return "refused" if "does not compile" in log else "killed"


def wait_for_one(running: list[Running]) -> tuple[Running, int]:
    """The next process to end, and its status; those past their deadline are ended."""
    while True:
        for job in running:
            pid, status = os.waitpid(job.pid, os.WNOHANG)
            if pid:
                return job, status
            if time.monotonic() > job.deadline:
                os.killpg(job.pid, signal.SIGKILL)
        time.sleep(0.02)


def run(
    tests: list[str], drawn: list[Mutant | None], wanted: int, jobs: int, cpu_s: int
) -> list[tuple[Mutant | None, str]]:
    """(mutant, outcome) of the first mutants, until `wanted` of them counted."""
    results: list[tuple[Mutant | None, str]] = []
    running: list[Running] = []
    upcoming = iter(enumerate(drawn))
    with tempfile.TemporaryDirectory() as parent:
        while True:
            counted = sum(result != "refused" for _, result in results)
            while len(running) < min(jobs, wanted - counted) and (entry := next(upcoming, None)) is not None:
                directory = Path(parent, str(entry[0]))
                directory.mkdir()
                pid = start(tests, entry[1], directory, cpu_s)
                running.append(Running(entry[0], pid, directory, time.monotonic() + WAIT_S))
            if not running:
                return results
            job, status = wait_for_one(running)
            running.remove(job)
            result = outcome(status, (job.directory / "log").read_text(errors="replace"))
            results.append((drawn[job.index], result))
            print(f"{counted}/{wanted} {result}: {drawn[job.index]}", file=sys.stderr, flush=True)
            shutil.rmtree(job.directory)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mutate", description=__doc__)
    parser.add_argument("kernel")
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument("--semantic", action="store_true", help="only the mistakes of benchmarks/semantic_mutants.py")
    kinds.add_argument("--index", action="store_true", help="only offsets in 32 bits, on arrays beyond 2^32 elements")
    parser.add_argument("--n", type=int, default=300, help="how many mutants that compile are tested")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--json", type=Path, help="put the result into this file, too")
    options = parser.parse_args()
    # What every process needs is imported once, before they fork.
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = "1"
    import tests.support.emulated

    tests = kernel_tests(options.kernel)
    if options.index:
        tests = ["tests/device/emulator/test_large_arrays.py", "-k", f"test_{options.kernel}"]
    ((_, before),) = run(tests, [None], 1, 1, WAIT_S)
    if before != "survived":
        sys.exit(f"{' '.join(tests)} fails without any mutant")
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = int(3 * (used.ru_utime + used.ru_stime)) + SPARE_CPU_S

    find = mutants_of_indices if options.index else mutants
    every = (
        semantic_mutants(options.kernel)
        if options.semantic
        else [m for name in source_files(options.kernel) for m in find(name, (ROOT / "kernels" / name).read_text())]
    )
    drawn = random.Random(options.seed).sample(every, len(every))
    results = run(tests, list(drawn), options.n, options.jobs, cpu_s)
    counted = [(mutant, result) for mutant, result in results if mutant is not None and result != "refused"]
    survivors = sorted((m for m, result in counted if result == "survived"), key=lambda m: (m.source, m.position))
    killed = len(counted) - len(survivors)
    print(f"{options.kernel}: {len(every)} mutants, {len(results)} drawn, {len(results) - len(counted)} do not compile")
    print(f"killed {killed} of {len(counted)} ({100 * killed / max(1, len(counted)):.1f} %)")
    for mutant in survivors:
        print(f"  survived: {mutant}")
    if options.json is not None:
        summary = {"seed": options.seed, "mutants": len(every), "drawn": len(results), "counted": len(counted)}
        write(options.json, options.kernel, summary | {"killed": killed}, survivors)


def write(path: Path, kernel: str, summary: dict[str, int], survivors: list[Mutant]) -> None:
    """Puts a kernel's result into a file of them; why a survivor lives is kept from before, and else to be written."""
    known = json.loads(path.read_text()) if path.exists() else {}
    reasons = {_change(m): m["why"] for m in known.get(kernel, {}).get("survivors", ())}
    found: list[dict[str, Any]] = []
    for survivor in survivors:
        described = asdict(survivor)
        del described["position"]
        found.append(described | {"why": reasons.get(_change(described), "")})
    known[kernel] = summary | {"survivors": found}
    path.write_text(json.dumps(known, indent=1, ensure_ascii=False) + "\n")


def _change(mutant: dict[str, Any]) -> tuple[str, ...]:
    return tuple(mutant[name] for name in ("source", "code", "before", "after"))


if __name__ == "__main__":
    main()
