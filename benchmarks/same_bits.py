"""Shows that two commits compute the same bits: python -m benchmarks.same_bits [BASE]

Exports the commit BASE and the working tree, builds the emulator of both, and runs one program with either
(same_bits_probe.py): random models of every Gemma on NumPy, on the emulator and on the fake GPU of the tests, launch
by launch and as graphs. Exits with 1 and names each case whose outputs, caches, launches or error messages differ.
Nothing outside a temporary directory is written.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.same_bits_models import write_models

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("numpy", "emulator", "cuda")
_BUILD_INPUTS = ("CMakeLists.txt", "bindings")
# One thread each: the sums of a BLAS may depend on how many there are.
_ENVIRONMENT = {
    **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONDONTWRITEBYTECODE": "1",
}

Cases = Mapping[str, Mapping[str, str]]


def compare(before: Cases, after: Cases, *, without: Sequence[str] = ()) -> list[str]:
    """A line for each case that differs, or that something else than a refusal ended; `without`: fields to ignore."""
    lines = []
    for name in sorted({*before, *after}):
        if name not in before or name not in after:
            lines.append(f"{name}: only {'after' if name in after else 'before'}")
            continue
        old, new = before[name], after[name]
        fields = [field for field in sorted({*old, *new} - {*without}) if old.get(field) != new.get(field)]
        texts = [f"{side[field]!r}" for side in (old, new) for field in ("refused", "crashed") if field in side]
        if fields:
            lines.append(": ".join([name, ", ".join(fields), *texts]))
        elif "crashed" in new:
            lines.append(f"{name}: crashed on both sides: {new['crashed']}")
    return lines


def export_commit(commit: str, target: Path) -> None:
    """The files of a commit."""
    archive = subprocess.run(["git", "-C", ROOT, "archive", commit], capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        files.extractall(target, filter="data")


def export_working_tree(target: Path) -> None:
    """The files that git tracks or does not ignore, as they are now."""
    listed = subprocess.run(
        ["git", "-C", ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True, check=True, text=True,
    ).stdout  # fmt: skip
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():  # not one that was deleted
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)


def build(checkout: Path, log: Path) -> None:
    """Builds the emulator and puts it where `import gemma_cuda` of that checkout finds it."""
    cmakedir = [sys.executable, "-m", "pybind11", "--cmakedir"]
    pybind11 = subprocess.run(cmakedir, capture_output=True, check=True, text=True).stdout.strip()
    folder = checkout / "build"
    configure = ["cmake", "-S", checkout, "-B", folder, "-DCMAKE_BUILD_TYPE=Release", f"-Dpybind11_DIR={pybind11}"]
    configure.append(f"-DPython_EXECUTABLE={sys.executable}")
    jobs = str(len(os.sched_getaffinity(0)))
    with log.open("w") as output:
        for command in (
            configure,
            ["cmake", "--build", folder, "--parallel", jobs],
            ["cmake", "--install", folder, "--prefix", checkout],
        ):
            if subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, check=False).returncode != 0:
                sys.exit(f"error: the emulator of {checkout.name} cannot be built:\n{log.read_text()[-3000:]}")


def build_both(before: Path, after: Path) -> None:
    """Builds the emulator of both, once if they do not differ in what it is made of."""
    build(before, before.with_suffix(".log"))
    if _build_inputs(before) != _build_inputs(after):
        build(after, after.with_suffix(".log"))
        return
    for library in before.glob("gemma_cuda/**/*.so"):
        shutil.copy2(library, after / library.relative_to(before))


def _build_inputs(checkout: Path) -> dict[str, bytes]:
    files = [path for name in _BUILD_INPUTS for path in (checkout / name, *(checkout / name).rglob("*"))]
    return {str(path.relative_to(checkout)): path.read_bytes() for path in files if path.is_file()}


def start_probe(checkout: Path, models: Path, target: Path, parts: Sequence[str] = ()) -> subprocess.Popen[bytes]:
    """The process that writes the digests of a checkout to `target`; its kernels are compiled beside that."""
    cache = target.with_suffix(".cache")
    cache.mkdir(mode=0o700)  # one for each, so that neither is given the other's kernels
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "GEMMA_CUDA_"))}
    environment |= _ENVIRONMENT | {"GEMMA_CUDA_CACHE": str(cache)}
    if "GEMMA_CUDA_NVRTC" in os.environ:
        environment["GEMMA_CUDA_NVRTC"] = os.environ["GEMMA_CUDA_NVRTC"]
    probe = Path(__file__).with_name("same_bits_probe.py")
    return subprocess.Popen(
        [sys.executable, "-P", probe, checkout, models, target, *parts], cwd=target.parent, env=environment
    )


def digests(checkouts: Sequence[Path], models: Path, parts: Sequence[str] = ()) -> list[Cases]:
    """The digests of checkouts, whose probes run at the same time; SystemExit if one fails."""
    targets = [checkout.with_suffix(".json") for checkout in checkouts]
    probes = [start_probe(*pair, parts) for pair in zip(checkouts, [models] * len(targets), targets, strict=True)]
    for checkout, status in zip(checkouts, [probe.wait() for probe in probes], strict=True):
        if status != 0:
            sys.exit(f"error: the probe failed with {checkout.name}")
    return [json.loads(target.read_text()) for target in targets]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.same_bits", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("base", nargs="?", default="HEAD~1", help="the commit to compare the working tree with")
    parser.add_argument("--only", choices=PARTS, action="append", default=[], help="run this part alone; repeatable")
    parser.add_argument(
        "--without", metavar="FIELD", action="append", default=[],
        help="a field that may differ, such as launches where a kernel's name or its grid is changed on purpose",
    )  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="DIR", help="copy the digests of both sides there")
    options = parser.parse_args()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="gemma-cuda-same-bits-") as folder:
        before, after, models = (Path(folder, name) for name in ("before", "after", "models"))
        export_commit(options.base, before)
        export_working_tree(after)
        if options.only != ["numpy"]:
            build_both(before, after)
        write_models(models)
        old, new = digests([before, after], models, options.only)
        for side in (before, after) if options.json else ():
            shutil.copy2(side.with_suffix(".json"), options.json)
    lines = compare(old, new, without=options.without)
    print(*lines, sep="\n", end="\n" if lines else "")
    refused = sum("refused" in case for case in new.values())
    print(f"{len(new)} cases, {refused} of them refusals: {len(lines)} differ ({time.perf_counter() - started:.0f} s)")
    return int(bool(lines) or not new)


if __name__ == "__main__":
    sys.exit(main())
