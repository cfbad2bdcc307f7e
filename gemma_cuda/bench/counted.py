"""Counted costs of cases on the emulator, and an estimate for attention. Nothing here is a measured time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any

from ..device.cuda import compile as compiler
from ..device.cuda.compile import SHARED_BYTES, compile_kernel
from ..device.dry_run import Launch
from ..device.emulator.counters import Counters
from ..device.emulator.device import Emulator
from ..errors import DeviceError
from . import cycles, sass, static
from .case import Case, Inputs

_SECTOR_BYTES, _MMA_FLOPS = 32, 2 * 16 * 8 * 16
Row = dict[str, Any]


def run(
    cases: Iterable[Case], architecture: str = cycles.ARCHITECTURE, *, report: Callable[[Row], None] = lambda row: None
) -> dict[str, Any]:
    """{architecture, absent: tool -> what is missing, rows}: a row of each case, as on a GPU of that architecture.

    report: called with each row as it comes. Raises KeyError for an architecture that is not in SHARED_BYTES.
    """
    absent = missing()
    rows = []
    for case in cases:
        rows.append(count(case, architecture, absent))
        report(rows[-1])
    return {"architecture": architecture, "absent": absent, "rows": rows}


def missing() -> dict[str, str]:
    """NVRTC and nvdisasm, if they are not here: what is missing, in words."""
    found = {}
    if (why := compiler.missing()) is not None:
        found["NVRTC"] = why
    try:
        sass.nvdisasm()
    except DeviceError as error:
        found["nvdisasm"] = str(error)
    return found


def count(case: Case, architecture: str = cycles.ARCHITECTURE, absent: Iterable[str] = ()) -> Row:
    """The row of a case: counters summed over its launches, their ratios, and static facts of the kernels.

    traffic: sectors of memory that were touched, in bytes, over each array once. mma: matrix operations over those of
    the products. conflicts: bank conflicts per request of shared memory. wrong: what was wrong with the output.
    kernels: static.needs of each instance; none without NVRTC. estimate: {gpu, tflops} of attention on an H100, which
    nobody measured; None for other ops and architectures, and without one of the tools. absent: tools to do without.
    """
    launched: list[tuple[Launch, Counters]] = []
    device = Emulator(
        checked=True, shared_bytes=SHARED_BYTES[architecture],
        observe=lambda launch, counters: launched.append((launch, counters)),
    )  # fmt: skip
    given = case.make(device, 0)
    wrong = case.check(device, given, case.run(device, given))
    every = [asdict(counters) for _, counters in launched]
    total = Counters(**{name: sum(c[name] for c in every) for name in every[0]})
    touched = _SECTOR_BYTES * (total.global_read_sectors + total.global_write_sectors)
    launches = list(dict.fromkeys(launch for launch, _ in launched))
    without = set(absent)
    has_estimate = case.op == "attention" and architecture == cycles.ARCHITECTURE and not without
    return {
        "op": case.op,
        "model": case.model,
        "shape": case.shape,
        "wrong": wrong,
        "instances": [launch.instance for launch, _ in launched],
        "traffic": touched / case.bytes,
        "mma": total.mma * _MMA_FLOPS / case.flops if case.flops else None,
        "sectors_per_request": total.sectors_per_request,
        "conflicts": total.conflicts_per_request,
        "counters": asdict(total),
        "kernels": [] if "NVRTC" in without else [
            static.needs(launch, architecture, with_sass="nvdisasm" not in without) for launch in launches
        ],
        "estimate": _estimate(case, given, launches[0], device) if has_estimate else None,
    }  # fmt: skip


def _estimate(case: Case, given: Inputs, launch: Launch, device: Emulator) -> Row:
    compiled = compile_kernel(launch.instance, cycles.ARCHITECTURE)
    plan = given["plan"]
    work = cycles.of_attention(compiled, launch, plan.tiling.block_q)
    seconds = cycles.attention_seconds(work, plan, case.params["kv_heads"], device)
    return {"gpu": "H100 SXM", "tflops": case.flops / seconds / 1e12}
