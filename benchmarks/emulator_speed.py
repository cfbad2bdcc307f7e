"""How fast the emulator is: python -m benchmarks.emulator_speed [--mma ampere]

Attention-shaped work of 8 heads × 512 tokens × D 256 (tests/kernels/attention_shaped.cu), unchecked and checked, and
the import of the compiled module. These times say nothing about a GPU; they say how long the tests take. Writes
benchmarks/results/emulator-speed.json, with the fastest of several runs; with --mma only prints.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from benchmarks.markdown import prose, table
from benchmarks.run import cpu_name
from gemma_cuda.device.emulator.device import Emulator

RESULT = Path(__file__).parent / "results" / "emulator-speed.json"
KERNELS = Path(__file__).resolve().parents[1] / "tests" / "kernels"
HEADS, TOKENS, WIDTH, TILE, REPEATS = 8, 512, 256, 64, 9
FLOPS = 4 * TOKENS * TOKENS * WIDTH * HEADS
_IMPORT = "from time import perf_counter as now; t = now(); import gemma_cuda._emulator; print(now() - t)"


def seconds(device: Emulator) -> dict[str, float]:
    """Wall and CPU seconds of the fastest of a few launches, the first of which compiles."""
    random = np.random.default_rng(0)
    q, k, v = (random.standard_normal((TOKENS, HEADS, WIDTH)).astype(ml_dtypes.bfloat16) for _ in range(3))
    out = device.empty(q.shape, q.dtype)
    shared = 3 * TILE * WIDTH * q.dtype.itemsize
    times = []
    for _ in range(REPEATS + 1):
        wall, cpu = time.perf_counter(), time.process_time()
        args = [out, q, k, v, TOKENS, HEADS, WIDTH**-0.5 * 1.4426950408889634]
        device.launch(f"attention_shaped<{WIDTH}>", (TOKENS // TILE, HEADS), (128,), shared, args)
        times.append((time.perf_counter() - wall, time.process_time() - cpu))
    return {"wall": min(wall for wall, _ in times[1:]), "cpu": min(cpu for _, cpu in times[1:])}


def import_seconds() -> float:
    """Of the compiled module, in the fastest of some fresh processes."""
    command = [sys.executable, "-c", _IMPORT]
    return min(
        float(subprocess.run(command, check=True, capture_output=True, text=True).stdout) for _ in range(REPEATS)
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.emulator_speed")
    parser.add_argument("--mma", choices=["fast", "ampere", "hopper"], help="print the times with this rounding only")
    mma = parser.parse_args().mma
    if mma is not None:
        for checked in (False, True):
            times = seconds(Emulator(checked=checked, kernels=KERNELS, mma=mma))
            print(f"{'checked' if checked else 'fast':8} {times['wall']:.3f} s wall, {times['cpu']:.3f} s CPU")
        return
    cores, load = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    result: dict[str, Any] = {"cores": cores, "cpu": cpu_name(), "load": load, "runs": REPEATS}
    for name, checked in (("fast", False), ("checked", True)):
        result[name] = seconds(Emulator(checked=checked, kernels=KERNELS))
        print(f"{name:8} {result[name]['wall']:.3f} s wall, {FLOPS / result[name]['wall'] / 1e9:.1f} GFLOP/s of mma")
    result["import_seconds"] = import_seconds()
    print(f"import   {result['import_seconds'] * 1e3:.1f} ms")
    RESULT.write_text(json.dumps(result, indent=1) + "\n")


def page_section(result: dict[str, Any]) -> list[str]:
    """Lines for docs/generated/benchmarks.md."""
    fast, checked = result["fast"], result["checked"]
    rows = [
        [name, *(f"{times[clock]:.2f} s" for clock in ("wall", "cpu")), f"{FLOPS / times['cpu'] / 1e9:.1f} GFLOP"]
        for name, times in (("unchecked", fast), ("checked", checked))
    ]
    return [
        *prose(f"""
            `python -m benchmarks.emulator_speed`, the fastest of {result["runs"]} runs on {result["cores"]} cores
            ({result["cpu"]}) that had {result["load"]:.1f} processes to run before it began. These figures say how long
            tests take; none of them says anything about a GPU.
        """),
        *table([f"attention of {HEADS} heads × {TOKENS} tokens × {WIDTH}", "wall", "CPU", "per CPU second"], rows),
        *prose(f"""
            Checks take {checked["cpu"] / fast["cpu"]:.1f} × the CPU time. `gemma_cuda` and its compiled module are
            imported in {result["import_seconds"] * 1e3:.0f} ms.
        """),
    ]


if __name__ == "__main__":
    main()
