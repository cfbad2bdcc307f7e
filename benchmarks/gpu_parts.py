"""Parts of the check-up that use a GPU, each in a process of its own: python -m benchmarks.gpu_parts PART --json FILE

facts     what the GPU is, and its ceilings
bench     the kernels' times beside peers, until --seconds are over
prefill   whole prefills of random models
compiled  a few of both beside what torch.compile makes, FlexAttention and Transformers
launches  each case of benchmarks/cost_cases.py once, for a profiler
"""

from __future__ import annotations

import argparse
import faulthandler
import importlib.metadata
import json
import platform
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from gemma_cuda.device.cuda.device import Cuda

Save = Callable[[dict[str, Any]], None]
_PACKAGES = ("cupy-cuda13x", "cuda-bindings", "nvidia-cuda-nvrtc", "nvmath-python", "torch", "triton", "transformers")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_parts")
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--gpu", choices=["real", "fake", "fake-without-cublaslt"], default="real")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--traceback", type=float, help="seconds after which it prints where it is, and goes on")
    options = parser.parse_args()
    if options.traceback is not None:
        faulthandler.dump_traceback_later(options.traceback)
    is_rehearsal = options.gpu != "real"
    if is_rehearsal:
        from tests.support import fake_gpu

        fake_gpu.install(pytest.MonkeyPatch(), has_cublaslt=fake_gpu.FAKES[options.gpu])

    def save(result: dict[str, Any]) -> None:
        if options.json is not None:
            draft = options.json.with_suffix(".draft")  # the file is whole if this process is ended
            draft.write_text(json.dumps(result, indent=1) + "\n")
            draft.replace(options.json)

    save(PARTS[options.part](is_rehearsal, options.seconds, save))


def facts(is_rehearsal: bool, seconds: float, save: Save) -> dict[str, Any]:
    """The GPU, its ceilings, its clocks and the versions of packages."""
    from gemma_cuda.bench.measure import ceilings

    cuda = Cuda()
    sizes = {"copy_bytes": 2**12, "size": 64} if is_rehearsal else {}
    return {
        "gpu": cuda.gpu_name,
        "architecture": cuda.architecture,
        "l2_bytes": cuda.cache_bytes,
        "shared_bytes_of_a_block": cuda.shared_bytes,
        "free_bytes": cuda.free_bytes(),
        "python": platform.python_version(),
        "packages": {name: version for name in _PACKAGES if (version := _version(name)) is not None},
        "nvidia_smi": _nvidia_smi(),
        "ceilings": asdict(ceilings(cuda, **sizes)),
        "nvidia_smi_after": _nvidia_smi(),
    }


def bench(is_rehearsal: bool, seconds: float, save: Save) -> dict[str, Any]:
    """See gemma_cuda/bench/run.py."""
    from gemma_cuda.bench import PEERS, cases, run

    chosen = cases.chosen(["rms_norm", "attention"], ["gemma-3-270m"], [16]) if is_rehearsal else cases.default()
    peers = [name for name in PEERS if name != "flex"]  # see compiled
    return run.run(Cuda(), chosen, peers, seconds=seconds, is_rehearsal=is_rehearsal, save=save)


def prefill(is_rehearsal: bool, seconds: float, save: Save) -> dict[str, Any]:
    """See gemma_cuda/bench/prefill.py."""
    from gemma_cuda.bench import prefill as prefills
    from gemma_cuda.bench.transformers_peers import NAMES

    if is_rehearsal:
        return prefills.rehearse(Cuda())
    models = ("gemma-3-270m", "gemma-2-2b")
    return prefills.run_random(Cuda(), models, prefills.TOKENS, seconds=seconds, peers=NAMES[:2], save=save)


def compiled(is_rehearsal: bool, seconds: float, save: Save) -> dict[str, Any]:
    """{kernels, prefill}: as of bench and prefill, beside peers that are compiled for a minute before their first time.

    What is there when this process is ended is what was saved; so the shape that tells most comes first.
    """
    from gemma_cuda.bench import cases, run
    from gemma_cuda.bench import prefill as prefills
    from gemma_cuda.bench.transformers_peers import COMPILED

    cuda, end = Cuda(), time.monotonic() + seconds
    result: dict[str, Any] = {"kernels": {"rows": []}, "prefill": {"rows": []}}

    def keep(name: str) -> Save:
        return lambda part: save(result | {name: part})

    models, tokens = (["gemma-3-270m"], [16]) if is_rehearsal else (["gemma-3-27b", "gemma-2-2b"], [2048])
    chosen = cases.chosen(["attention"], models, tokens)
    result["kernels"] = run.run(
        cuda, chosen, ["flex"], seconds=seconds / 2, is_rehearsal=is_rehearsal, save=keep("kernels")
    )
    left = end - time.monotonic()
    result["prefill"] = prefills.rehearse(cuda, peers=[COMPILED]) if is_rehearsal else prefills.run_random(
        cuda, ["gemma-3-270m"], [128, 2048], seconds=left, peers=[COMPILED], save=keep("prefill")
    )  # fmt: skip
    return result


def launches(is_rehearsal: bool, seconds: float, save: Save) -> dict[str, Any]:
    """In the order of benchmarks/results/cost-emulator.json."""
    from benchmarks import cost_cases

    cuda, count = Cuda(), 0
    for case in cost_cases.cases():
        if not is_rehearsal or count < 2:
            case.run(cuda)
            cuda.synchronize()
            count += 1
    return {"cases": count}


PARTS: dict[str, Callable[[bool, float, Save], dict[str, Any]]] = {
    "facts": facts, "bench": bench, "prefill": prefill, "compiled": compiled, "launches": launches
}  # fmt: skip


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _nvidia_smi() -> str | None:
    """Driver, clocks, power and temperature, as text."""
    query = "driver_version,clocks.sm,clocks.mem,clocks.max.sm,power.draw,power.limit,temperature.gpu,ecc.mode.current"
    try:
        done = subprocess.run(
            ["nvidia-smi", f"--query-gpu={query}", "--format=csv"], capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip()


if __name__ == "__main__":
    main()
