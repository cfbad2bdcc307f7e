"""Counts what kernels cost, without a GPU: python -m benchmarks.cost writes benchmarks/results/cost-emulator.json.

counted  each case of benchmarks/cost_cases.py on the checked emulator, beside what is compulsory; attention again,
         unchecked, with the tiles of GPUs that give a block less shared memory
static   what NVRTC makes of the instances that each architecture launches, and the inner loops of attention. Takes
         nvdisasm (pip install nvidia-cuda-nvdisasm).
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import cost_cases
from benchmarks.cost_cases import Case
from gemma_cuda.bench import sass
from gemma_cuda.bench.cycles import ARCHITECTURE
from gemma_cuda.bench.occupancy import blocks_per_multiprocessor
from gemma_cuda.device.cuda import nvrtc
from gemma_cuda.device.cuda.compile import ARCHITECTURES, SHARED_BYTES, compile_kernel
from gemma_cuda.device.dry_run import DryRunDevice, Launch
from gemma_cuda.device.emulator.device import MAX_SHARED_BYTES, Emulator
from gemma_cuda.ops.attention_plan import BLOCK_K, HEAD_DIMS, choose_tiling

RESULT = Path(__file__).parent / "results" / "cost-emulator.json"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cost", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", choices=["counted", "static"], help="make this part anew and keep the other")
    only = parser.parse_args().only
    result = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    cases = list(cost_cases.cases())
    if only != "static":
        result["counted"] = counted(cases)
    if only != "counted":
        result["compiler"] = nvrtc.version()
        result["static"] = compiled(cases)
        result["loops"] = loops()
    RESULT.write_text(text_of(result))


def text_of(result: Mapping[str, Any]) -> str:
    """As JSON, a row a line."""
    rows = {
        name: "[\n" + ",\n".join(map(json.dumps, value)) + "\n]" if isinstance(value, list) else json.dumps(value)
        for name, value in sorted(result.items())
    }
    return "{\n" + ",\n".join(f'"{name}": {text}' for name, text in rows.items()) + "\n}\n"


def counted(cases: Sequence[Case]) -> list[dict[str, Any]]:
    """Every case with the tiles of an H100; attention also with those of GPUs that have less shared memory."""
    rows = [count(case, MAX_SHARED_BYTES, checked=True) for case in cases]
    smaller = sorted({size for size in SHARED_BYTES.values() if size < MAX_SHARED_BYTES})
    prompts = [case for case in cases if case.kernel == "attention"]
    return rows + [count(case, size, checked=False) for case in prompts for size in smaller]


def count(case: Case, shared_bytes: int, *, checked: bool) -> dict[str, Any]:
    """What all launches of a case cost together on an emulated GPU whose blocks have that much shared memory."""
    launched: list[tuple[str, dict[str, int]]] = []
    device = Emulator(
        checked=checked, shared_bytes=shared_bytes,
        observe=lambda launch, counters: launched.append((launch.instance, asdict(counters))),
    )  # fmt: skip
    least = case.run(device)
    instances, counters = zip(*launched, strict=True)
    print(f"{case.kernel} {case.model} {case.shape} at {shared_bytes // 1024} KiB", flush=True)
    return {
        **{name: getattr(case, name) for name in ("kernel", "model", "shape", "row_bytes")},
        "shared_bytes": shared_bytes,
        "checked": checked,
        "instances": list(instances),
        "counters": {name: sum(c[name] for c in counters) for name in counters[0]},
        "compulsory": asdict(least),
    }


def compiled(cases: Sequence[Case]) -> list[dict[str, Any]]:
    """Registers, shared memory, spills and blocks per multiprocessor of what the cases launch on each architecture."""
    rows = []
    for architecture in ARCHITECTURES:
        recorder = DryRunDevice(SHARED_BYTES[architecture])
        for case in cases:
            case.run(recorder)
        for launch in sorted(set(recorder.launches), key=lambda launch: launch.instance):
            needs = compile_kernel(launch.instance, architecture).resources
            blocks = blocks_per_multiprocessor(architecture, launch, needs)
            rows.append({"architecture": architecture, **asdict(launch), **asdict(needs), "blocks": blocks})
        print(f"{architecture}: {len(rows)} kernels compiled", flush=True)
    return rows


def loops() -> list[dict[str, Any]]:
    """Of attention at each head_dim and logit policy on an H100: what a warp issues for one tile of keys, by opcode."""
    rows = []
    for head_dim, policy in itertools.product(HEAD_DIMS, ("Plain", "SoftCap", "Bias<bf16>")):
        tiling = choose_tiling(head_dim, cost_cases.PROMPT, SHARED_BYTES[ARCHITECTURE], is_plain=policy == "Plain")
        instance = f"attention<bf16, {head_dim}, {tiling.block_q}, {BLOCK_K}, {tiling.pairs}, {policy}>"
        kernel, threads = compile_kernel(instance, ARCHITECTURE), tiling.threads(head_dim)
        launch = Launch(instance, threads, tiling.shared_bytes(head_dim))
        blocks = blocks_per_multiprocessor(ARCHITECTURE, launch, kernel.resources)
        rows.append(
            {
                **{"instance": instance, "head_dim": head_dim, "policy": policy, "block_q": tiling.block_q},
                **{"block_k": BLOCK_K, "warps": threads // 32, "blocks": blocks, "opcodes": sass.tile_loop(kernel)},
            }
        )
    return rows


if __name__ == "__main__":
    main()
