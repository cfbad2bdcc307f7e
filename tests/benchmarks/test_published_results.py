"""Sums that others published of GPUs, held against the emulator."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks import published_results
from tests.support.isa.probes import TYPES
from tests.support.tensor_core import TENSOR_CORES


def test_published_results_are_counted(tmp_path: Path) -> None:
    """Files of the published form, with what our tensor core gives, and one sum that it does not."""
    rng = np.random.default_rng(0)
    for gpu, kind, dtype, core in (("A100", "bf16", TYPES["bf16"], "ampere"), ("H200", "fp16", np.float16, "hopper")):
        directory = tmp_path / "model_validation" / gpu / kind
        directory.mkdir(parents=True)
        terms = TENSOR_CORES[core].terms
        a, b = (rng.standard_normal((20, terms)).astype(dtype).astype(np.float32) for _ in range(2))
        c = rng.standard_normal(20).astype(np.float32)
        d = [
            TENSOR_CORES[core].sum_products(x, y, z, np.dtype(dtype).name)
            for x, y, z in zip(a.tolist(), b.tolist(), c.tolist(), strict=True)
        ]
        d[7] ^= 1
        for name, rows in (("a", a), ("b", b)):
            text = "\n".join(" ".join(f"{int(x):08x}" for x in row.view(np.uint32)) for row in rows)
            (directory / f"{name}_{gpu}_{kind}.txt").write_text(text + "\n")
        for name, numbers in (("c", c.view(np.uint32)), ("d", d)):
            text = "\n".join(f"{int(number):032b}" for number in numbers)
            (directory / f"{name}_{gpu}_fp32.txt").write_text(text + "\n")
    found = published_results.compare(tmp_path)
    assert {(of.gpu, of.kind, of.mma, of.equal, of.sums) for of in found} == {
        ("A100", "bf16", "ampere", 19, 20),
        ("H200", "fp16", "hopper", 19, 20),
    }
