"""Times cases beside peers; a row whose output was wrong is marked so and has no time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import Any

from ..device.cuda.device import Cuda
from ..errors import GemmaError
from . import peers
from .case import Case, Inputs
from .measure import Ceilings, Recording, ceilings
from .timing import Timing

_MOST_SETS = 20
Row = dict[str, Any]


def run(
    cuda: Cuda,
    cases: Iterable[Case],
    wanted: Sequence[str],
    *,
    seconds: float = float("inf"),
    is_rehearsal: bool = False,
    report: Callable[[Row], None] = lambda row: None,
    save: Callable[[dict[str, Any]], None] = lambda result: None,
) -> dict[str, Any]:
    """{gpu, architecture, ceilings, versions and absent: of peers, rows, left_out: cases without time}.

    versions: peer -> which module it is. absent: peer -> why it is not there. A row's peers: name -> Timing and
    ours_to_peer; its refused: name -> why a peer that has the op did not do the case; its cache_holds_inputs: whether
    what is read may come from the L2 cache. report, save: called with each row, and with the
    result so far. is_rehearsal: small ceilings, whose figures mean nothing.
    """
    end = time.monotonic() + seconds
    sizes = {"copy_bytes": 2**12, "size": 64} if is_rehearsal else {}
    top = ceilings(cuda, **sizes)
    missing = {name: why for name in wanted if (why := peers.absent(name, cuda)) is not None}
    present = [name for name in wanted if name not in missing]
    cublas = peers.cublas_call(cuda) if "cublas" in present else None
    rows: list[Row] = []
    versions = {name: peers.version_of(name) for name in present if name != "cublas"}
    facts = {"gpu": cuda.gpu_name, "architecture": cuda.architecture, "ceilings": asdict(top), "versions": versions}
    result: dict[str, Any] = {**facts, "absent": missing, "rows": rows, "left_out": 0}
    for case in cases:
        if time.monotonic() > end:
            result["left_out"] += 1
            continue
        row = _row(cuda, case, top)
        rows.append(row)
        save(result)  # a peer may take so long that this process is ended
        for name in present if row["wrong"] is None else []:
            try:
                timing = _peer(cuda, case, name, cublas, row["sets"])
            except Exception as error:  # any error of another library about a shape or an option
                row["refused"][name] = peers.why(error)
                continue
            if timing is not None:
                row["peers"][name] = timing | {"ours_to_peer": row["median_us"] / timing["median_us"]}
        report(row)
        save(result)
    return result


def _row(cuda: Cuda, case: Case, top: Ceilings) -> Row:
    """The row of a case; `wrong` names the fault of its output; the figures are there if it is None."""
    row: Row = {"op": case.op, "model": case.model, "shape": case.shape, "params": case.params}
    row |= {"peers": {}, "refused": {}}
    try:
        sets = input_sets(cuda, case)
        recording = Recording(cuda, [_call(case.run, given) for given in sets])
        wrong = case.check(cuda, sets[0], recording.outputs[0])
        timing = None
        if wrong is None:
            if not case.in_place:
                recording.poison()
            timing = recording.time()
            if not case.in_place:
                wrong = case.check(cuda, sets[-1], recording.outputs[-1])
    except GemmaError as error:
        return row | {"wrong": f"{type(error).__name__}: {error}"}
    if wrong is not None or timing is None:
        return row | {"wrong": wrong}
    is_held = len(sets) * case.bytes <= cuda.cache_bytes
    return row | {"wrong": None, "sets": len(sets), "cache_holds_inputs": is_held} | figures(case, timing, top)


def figures(case: Case, timing: Timing, top: Ceilings) -> Row:
    """Of a timed case: microseconds, rates, the floor and the share of it that is reached.

    floor_us: max(bytes / bandwidth, operations / rate) at the measured ceilings; None where the rate was not measured.
    """
    seconds = 1e-6 * timing.median_us
    floor: float | None = case.bytes / top.copy_bytes_per_s
    if case.by_tensor_cores:
        rate = top.product_flops_per_s
        floor = None if rate is None or floor is None else max(floor, case.flops / rate)
    return {
        **asdict(timing),
        "tflops": case.flops / seconds / 1e12 if case.flops else None,
        "gbytes_per_s": case.bytes / seconds / 1e9,
        "floor_us": None if floor is None else 1e6 * floor,
        "share": None if floor is None else floor / seconds,
    }


def input_sets(cuda: Cuda, case: Case) -> list[Inputs]:
    """Inputs of their own for each launch of a graph: more than the L2 cache holds, as far as that goes."""
    wanted = min(max(2, -(-2 * cuda.cache_bytes // max(case.bytes, 1)) + 1), _MOST_SETS)
    enough = cuda.free_bytes() // 2
    sets: list[Inputs] = []
    while len(sets) < wanted and (not sets or cuda.free_bytes() > enough):
        sets.append(case.make(cuda, 10 * len(sets)))
    return sets


def _call(run: Callable[[Any, Inputs], Any], given: Inputs) -> Callable[[Any], Any]:
    return lambda device: run(device, given)


def _peer(cuda: Cuda, case: Case, name: str, cublas: Any, count: int) -> dict[str, Any] | None:
    """Its Timing as a dict; None for what the peer does not have."""
    if name == "cublas":
        run = cublas(case)
        if run is None:
            return None
        sets = input_sets(cuda, case)
        return asdict(Recording(cuda, [_call(run, given) for given in sets]).time())
    calls = [peers.torch_call(name, case) for _ in range(count)]
    return None if None in calls else asdict(peers.torch_timing(*(c for c in calls if c is not None)))
