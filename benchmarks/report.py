"""Writes docs/generated/ from benchmarks/results/*.json, and docs/pictures/ from the code.

What a GPU gave lies there as gpu-bench.json, gpu-prefill.json and gpu-compiled.json: files of benchmarks.checkup.
Plots are written beside the pages; --check looks at the pages only.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from benchmarks import costs_page, emulator_speed, gpu_page, mutants_page, pictures
from benchmarks.timing import interval

ROOT = Path(__file__).parent
DOCS = ROOT.parent / "docs"
GENERATED = DOCS / "generated"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a page is not what it would be")
    is_check = parser.parse_args().check
    stale = {path: text for path, text in pages().items() if not path.exists() or path.read_text() != text}
    for path, text in stale.items():
        print(f"{path.relative_to(ROOT.parent)} {'is stale' if is_check else 'written'}")
        if not is_check:
            path.write_text(text)
    if not is_check:
        gpu_page.write_plots(results(), GENERATED)
    return int(is_check and bool(stale))


def pages() -> dict[Path, str]:
    """Each generated page and its text."""
    known = results()
    return {
        GENERATED / "benchmarks.md": benchmarks_page(known),
        GENERATED / "costs.md": costs_page.page(known["cost-emulator"]),
        GENERATED / "mutants.md": mutants_page.page(known["mutants"]),
        **{DOCS / "pictures" / name: text for name, text in pictures.pages().items()},
    }


def results() -> dict[str, dict[str, Any]]:
    """What benchmarks/results/ holds, by file name."""
    return {p.stem: json.loads(p.read_text()) for p in sorted((ROOT / "results").glob("*.json"))}


def benchmarks_page(results: dict[str, dict[str, Any]]) -> str:
    """docs/generated/benchmarks.md, of the results by file name."""
    prefill, load, memory = (results[f"{name}-numpy"] for name in ("prefill", "load", "memory"))
    machine = prefill["machine"]
    blas = "; ".join(x for x in machine["blas"] if not x.startswith("openmp"))
    lines = [
        "# Benchmarks",
        "",
        "Written by `python -m benchmarks.report` from `benchmarks/results/`.",
        "",
        *gpu_page.lines(results),
        "",
        "## NumPy backend beside Transformers",
        "",
        f"{prefill['model']} in float32, {prefill['threads']} threads on {machine['cores']} cores ({machine['cpu']}),",
        f"Python {machine['python']}, NumPy {machine['numpy']}, {blas}. Time to the logits of the last token with a KV",
        "cache, medians of interleaved rounds; the ratio is ours to the faster of the two in the same round, with the",
        "95 % bootstrap interval of its median. `python -m benchmarks.run prefill --vs transformers`",
        "",
        "| tokens | ours | eager | sdpa | ours ÷ faster | rounds |",
        "|---|---|---|---|---|---|",
    ]
    for row in prefill["rows"]:
        ours, eager, sdpa = (f"{statistics.median(row[name]) * 1e3:.0f} ms" for name in ("ours", "eager", "sdpa"))
        low, middle, high = interval(row["ratio"])
        ratio = f"{middle:.2f} ({low:.2f} to {high:.2f})"
        lines.append(f"| {row['length']} | {ours} | {eager} | {sdpa} | {ratio} | {len(row['ratio'])} |")
    spread = f"{min(load['seconds']):.2f} to {max(load['seconds']):.2f}"
    above = (memory["peak_bytes"] - memory["loaded_bytes"]) / 1e6
    lines += [
        "",
        "## Start and memory",
        "",
        f"- First logits of a short prompt {statistics.median(load['seconds']):.2f} s ({spread}) after the start,",
        f"  {load['peak_bytes'] / 1e9:.2f} GB at most. `python -m benchmarks.run load`",
        f"- A prefill of {memory['length']} tokens takes {above:.0f} MB at most above the loaded model.",
        "  `python -m benchmarks.run memory`",
        "",
        "## Speed of the emulator",
        *emulator_speed.page_section(results["emulator-speed"]),
        "",
        "## Two commits, the same bits",
        "",
        "`python -m benchmarks.same_bits BASE` compares what the commit BASE and the working tree compute, bit by bit:",
        "random models of Gemma 1 to 4 on NumPy in three dtypes, Gemma 1 to 3 on the emulator and on the fake GPU,",
        "launch by launch and by plans; with their KV caches, kernel launches and error messages. It takes about two",
        "minutes on two cores.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
