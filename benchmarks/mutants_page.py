"""docs/generated/mutants.md: how many single-token bugs the tests of each kernel catch, and what the others are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.markdown import heading, prose, table


def page(results: Mapping[str, Any]) -> str:
    """The page of benchmarks/results/mutants.json: by kernel, what `python -m benchmarks.mutate` found."""
    rows = [
        (
            f"`{kernel}`", str(r["mutants"]), str(r["drawn"]), str(r["counted"]), str(r["killed"]),
            f"{r['killed'] / r['counted']:.1%}",
        )
        for kernel, r in results.items()
    ]  # fmt: skip
    lines = ["# What the tests catch"]
    lines += prose(
        """
        `python -m benchmarks.mutate KERNEL` changes one token of a kernel, or of a common header that only it uses in
        full, and runs the kernel's tests on the emulator. Some of all such changes are drawn; those that do not compile
        do not count. Kernels that are not in the table have not been drawn from since they last changed. A survivor
        that showed a gap counts as killed once a test kills it, and not at all once its code is gone.
        `--semantic` draws from a list of mistakes that people make (benchmarks/semantic_mutants.py) instead, `--index`
        from all offsets in 32 bits where the kernel has 64, which tests/device/emulator/test_large_arrays.py is to
        kill. Written by `python -m benchmarks.report` from `benchmarks/results/mutants.json`.
        """
    )
    lines += table(("kernel", "mutants", "drawn", "compile", "killed", "share"), rows)
    lines += prose("The survivors, and why no test of the kernel fails:")
    for kernel, r in results.items():
        if r["survivors"]:
            lines += [*heading(2, kernel), ""]
        for m in r["survivors"]:
            place = f"{m['source']}:{m['line']}"
            lines += prose(f"- `{m['before']}` to `{m['after']}` in `{m['code']}` ({place}): {m['why']}")[1:]
    return "\n".join(lines) + "\n"
