"""Times the NumPy backend: `python -m benchmarks.run {prefill,load,memory}`.

prefill  time per prompt length, beside Transformers' eager and sdpa in interleaved rounds (--vs transformers)
load     seconds from process start to the first logits, and peak memory until then, each in a fresh process
memory   peak memory of one long prefill above the weights, in a fresh process
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

MODEL = "gemma-3-270m-q4_k_m"
PROMPT = "def fibonacci(n):\n"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    prefill = commands.add_parser("prefill")
    prefill.add_argument("--lengths", type=int, nargs="+", default=[128, 512, 2048])
    prefill.add_argument("--rounds", type=int, default=9, help="interleaved rounds; at least 7")
    prefill.add_argument("--vs", choices=["transformers"])
    commands.add_parser("load")
    memory = commands.add_parser("memory")
    memory.add_argument("--length", type=int, default=4096)
    for command in commands.choices.values():
        command.add_argument("--model", default=MODEL, help="a directory or .gguf file, or the demo model")
        command.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
        command.add_argument("--json", type=Path, help="also write the result here")
    arguments = parser.parse_args()
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = str(arguments.threads)  # read when NumPy and torch are first imported
    run = {"prefill": bench_prefill, "load": bench_load, "memory": bench_memory}[arguments.command]
    result = {"command": arguments.command, "model": arguments.model, "threads": arguments.threads, **run(arguments)}
    result["machine"] = machine()
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


def bench_prefill(arguments: argparse.Namespace) -> dict[str, Any]:
    """Rows {length, ours, eager, sdpa: seconds per round, ratio: ours / faster peer per round}."""
    import numpy as np

    import gemma_cuda
    from benchmarks.timing import interleaved, interval

    if arguments.rounds < 7:
        raise SystemExit("--rounds: at least 7, or the interval means nothing")
    gemma = gemma_cuda.Gemma.from_pretrained(arguments.model, device="numpy")
    peers: dict[str, Callable[[Any], Any]] = {}
    if arguments.vs == "transformers":
        from benchmarks.baselines import transformers_prefills

        peers = transformers_prefills(arguments.model, arguments.threads)
    rows = []
    for length in arguments.lengths:
        ids = np.random.default_rng(length).integers(10, 200_000, length)
        contenders = {"ours": lambda ids=ids: gemma.prefill(ids).logits[0, -1]}
        contenders |= {name: (lambda ids=ids, prefill=prefill: prefill(ids)) for name, prefill in peers.items()}
        wanted = contenders["ours"]()
        for name in peers:  # a figure for another result would mean nothing
            np.testing.assert_allclose(contenders[name](), wanted, atol=2e-3 * float(np.abs(wanted).max()))
        seconds = interleaved(contenders, arguments.rounds)
        row: dict[str, Any] = {"length": length, **seconds}
        text = f"{length:6d} tokens  ours {statistics.median(seconds['ours']) * 1e3:8.1f} ms"
        if peers:
            row["ratio"] = [o / min(p) for o, *p in zip(*seconds.values(), strict=True)]
            text += "".join(f"  {name} {statistics.median(seconds[name]) * 1e3:8.1f} ms" for name in peers)
            low, middle, high = interval(row["ratio"])
            text += f"  ours / faster {middle:.3f}, 95 % interval {low:.3f} to {high:.3f}"
        print(text, flush=True)
        rows.append(row)
    return {"rows": rows}


def bench_load(arguments: argparse.Namespace) -> dict[str, Any]:
    """{seconds, peak_bytes} of 5 fresh processes that load the model and run one short prompt."""
    load = f"import gemma_cuda; g = gemma_cuda.Gemma.from_pretrained({arguments.model!r}, device='numpy')"
    code = f"{load}; g.prefill({PROMPT!r})"
    runs = [_fresh_process(code) for _ in range(5)]
    seconds, peak = [r["seconds"] for r in runs], max(r["peak_bytes"] for r in runs)
    spread = f"{min(seconds):.2f} to {max(seconds):.2f}"
    print(f"first logits after {statistics.median(seconds):.2f} s ({spread}), peak {peak / 1e9:.2f} GB")
    return {"seconds": seconds, "peak_bytes": peak}


def bench_memory(arguments: argparse.Namespace) -> dict[str, Any]:
    """{loaded_bytes, peak_bytes}: resident after loading, and at most while one prompt of `--length` is prefilled."""
    load = f"import gemma_cuda, numpy; g = gemma_cuda.Gemma.from_pretrained({arguments.model!r}, device='numpy')"
    run = f"{load}; g.prefill(numpy.random.default_rng(0).integers(10, 200_000, {arguments.length}))"
    loaded, peak = _fresh_process(load)["peak_bytes"], _fresh_process(run)["peak_bytes"]
    print(f"{arguments.length} tokens: peak {peak / 1e6:.0f} MB, {(peak - loaded) / 1e6:.0f} MB above the loaded model")
    return {"length": arguments.length, "loaded_bytes": loaded, "peak_bytes": peak}


def _fresh_process(code: str) -> dict[str, float]:
    report = "import resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)"
    start = time.perf_counter()
    out = subprocess.run([sys.executable, "-c", f"{code}; {report}"], check=True, capture_output=True, text=True).stdout
    return {"seconds": time.perf_counter() - start, "peak_bytes": int(out)}


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    import numpy as np
    from threadpoolctl import threadpool_info

    blas = [f"{x['internal_api']} {x['version']} {x.get('architecture', '')}".strip() for x in threadpool_info()]
    versions = {"python": platform.python_version(), "numpy": np.__version__, "blas": blas}
    return {"cpu": cpu_name(), "cores": os.cpu_count(), **versions}


def cpu_name() -> str:
    """Of this machine's processor."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


if __name__ == "__main__":
    sys.exit(main())
