"""Cases on the emulator: what their launches cost, counted. Nothing here is a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any

from ..device.counters import Counters
from ..device.emulator import Emulator
from .case import Case

_SECTOR_BYTES, _MMA_FLOPS = 32, 2 * 16 * 8 * 16
Row = dict[str, Any]


def run(cases: Iterable[Case], *, report: Callable[[Row], None] = lambda row: None) -> dict[str, Any]:
    """{rows}: of each case what the checked emulator counted, beside the least that any kernel needs."""
    rows = []
    for case in cases:
        rows.append(count(case))
        report(rows[-1])
    return {"rows": rows}


def count(case: Case) -> Row:
    """The row of a case: counters of all its launches together, and their ratios.

    traffic: sectors of memory that were touched, in bytes, over each array once. mma: matrix operations over those of
    the products. conflicts: bank conflicts per request of shared memory. wrong: what was wrong with the output.
    """
    launched: list[tuple[str, Counters]] = []
    device = Emulator(checked=True, observe=lambda instance, counters: launched.append((instance, counters)))
    given = case.make(device, 0)
    wrong = case.check(device, given, case.run(device, given))
    every = [asdict(counters) for _, counters in launched]
    total = Counters(**{name: sum(c[name] for c in every) for name in every[0]})
    touched = _SECTOR_BYTES * (total.global_read_sectors + total.global_write_sectors)
    return {
        "op": case.op,
        "model": case.model,
        "shape": case.shape,
        "wrong": wrong,
        "instances": [instance for instance, _ in launched],
        "traffic": touched / case.bytes,
        "mma": total.mma * _MMA_FLOPS / case.flops if case.flops else None,
        "sectors_per_request": total.sectors_per_request,
        "conflicts": total.conflicts_per_request,
        "counters": asdict(total),
    }
