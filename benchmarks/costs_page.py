"""docs/generated/costs.md, from benchmarks/results/cost-emulator.json."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks import cycles_page
from benchmarks.markdown import heading, prose, table
from gemma_cuda.device.cuda.compile import SHARED_BYTES

Row = Mapping[str, Any]
FULL_BYTES = 512  # of a request of 32 lanes: rows that are no multiple end in one that is not full
WITH_PRODUCTS = ("attention", "linear")  # bound by arithmetic at these sizes, not by memory


@dataclass(frozen=True)
class Target:
    """A bound on one figure."""

    name: str
    bound: str
    limit: float
    is_least: bool = False

    def holds(self, value: float) -> bool:
        return value >= self.limit if self.is_least else value <= self.limit

    def show(self, value: float) -> str:
        return f"{value:.1%}" if self.is_least else f"{value:.3f}" if value % 1 else f"{value:.0f}"

    def mark(self, value: float, applies: bool) -> str:
        """The value, in bold with a cross where it misses the target."""
        return f"**{self.show(value)} ✗**" if applies and not self.holds(value) else self.show(value)


MOVED = Target("moved (distinct ÷ compulsory sectors), kernels bound by memory", "≤ 1.02", 1.02)
FULL = Target("full requests, attention and rows of whole 512 bytes", "≥ 99 %", 0.99, is_least=True)
CONFLICTS = Target("bank conflicts per shared-memory request", "0", 0)
CAUSAL = Target("mma issued ÷ mma of visible pairs, S 2048 causal", "≤ 1.10", 1.10)
WINDOW = Target("mma issued ÷ mma of visible pairs, S 2048 window 512", "≤ 1.25", 1.25)
SPILLS = Target("bytes spilled by a thread", "0", 0)
_RANGES = "A block reads its key ranges by 8 requests of 4 bytes a lane."
_PARTS = "Where a window begins inside a request, the lanes before it ask for nothing."
# Why a target is missed, by target and the start of what was counted.
REASONS = {
    (MOVED, "logits (top_k 64)"): "The 64 best of each slice go through memory to the second launch.",
    (FULL, "qk_norm_rope"): "Warps with two tokens ask for cos and sin in steps of 32 bytes, half of them at a time.",
    (FULL, "attention S 2048, H 1, KH 1, D 64, causal"): _RANGES,
    (FULL, "attention S 2048, H 1, KH 1, D 64, window"): f"{_RANGES} {_PARTS}",
    (FULL, "attention S 2048, H 1, KH 1, D 128, window"): f"{_RANGES} {_PARTS}",
}


def page(result: Mapping[str, Any]) -> str:
    """The page."""
    sections = (_opening(), _targets(result), _traffic(result), _products(result), _static(result))
    lines = [line for section in sections for line in section] + list(cycles_page.lines(result["loops"]))
    return "\n".join(lines) + "\n"


def judged(result: Mapping[str, Any]) -> Iterator[tuple[Target, str, float]]:
    """(target, what was counted, value) wherever a target applies."""
    for row in result["counted"]:
        what = _name(row)
        if row["checked"]:
            if row["kernel"] not in WITH_PRODUCTS:
                yield MOVED, what, _moved(row)
            if _is_aligned(row):
                yield FULL, what, _full(row)
            yield CONFLICTS, what, _conflicts(row)
        for target, mask in ((CAUSAL, "causal"), (WINDOW, "window 512")):
            if row["kernel"] == "attention" and "S 2048" in row["shape"] and mask in row["shape"]:
                yield target, f"{what} at {row['shared_bytes'] // 1024} KiB", _products_ratio(row)
    for row in result["static"]:
        spilled = row["spill_store_bytes"] + row["spill_load_bytes"]
        yield SPILLS, f"{row['instance']} on {row['architecture']}", spilled


def missed(result: Mapping[str, Any]) -> list[tuple[Target, str, float]]:
    """Where a target applies and is not met."""
    return [(target, what, value) for target, what, value in judged(result) if not target.holds(value)]


def _name(row: Row) -> str:
    return " ".join(filter(None, (row["kernel"], row["model"], row["shape"])))


def _is_aligned(row: Row) -> bool:
    return bool(row["kernel"] == "attention" or row["row_bytes"] % FULL_BYTES == 0)


def _distinct(row: Row) -> int:
    return int(row["counters"]["global_read_sectors"] + row["counters"]["global_write_sectors"])


def _compulsory(row: Row) -> int:
    return int(row["compulsory"]["read_sectors"] + row["compulsory"]["write_sectors"])


def _moved(row: Row) -> float:
    return _distinct(row) / _compulsory(row)


def _asked(row: Row) -> float:
    return float(row["counters"]["global_request_sectors"] / _distinct(row))


def _full(row: Row) -> float:
    counters = row["counters"]
    return float(counters["global_full_requests"] / (counters["global_requests"] - counters["global_scalar_requests"]))


def _full_of_all(row: Row) -> float:
    return float(row["counters"]["global_full_requests"] / row["counters"]["global_requests"])


def _conflicts(row: Row) -> float:
    return float(row["counters"]["shared_bank_conflicts"] / max(1, row["counters"]["shared_requests"]))


def _products_ratio(row: Row) -> float:
    return float(row["counters"]["mma"] / row["compulsory"]["mma"])


def _opening() -> Iterator[str]:
    yield "# Cost without a GPU"
    yield from prose("""
        Written by `python -m benchmarks.report` from `benchmarks/results/cost-emulator.json`, which `python
        -m benchmarks.cost` makes. No GPU took part and nothing was timed: these are exact counts of the
        emulator, figures of the compiler, and at the end an estimate that follows from them.
    """)
    yield from prose("""
        *Compulsory* is what every kernel for the job must do (tests/support/compulsory.py): each input read
        and each output written once, of K and V only keys that some query sees, of an embedding table only
        distinct rows, the products of visible (query, key) pairs. It follows from shapes and masks, not
        from what a kernel says of itself.
    """)


def _targets(result: Mapping[str, Any]) -> Iterator[str]:
    yield from heading(2, "Targets")
    values: dict[Target, list[float]] = {}
    for target, _, value in judged(result):
        values.setdefault(target, []).append(value)
    rows = []
    for target, row in values.items():
        worst, met = min(row) if target.is_least else max(row), sum(map(target.holds, row))
        verdict = "yes" if met == len(row) else f"**missed by {len(row) - met}**"
        rows.append([target.name, target.bound, target.show(worst), str(len(row)), verdict])
    yield from table(["target", "bound", "worst", "of", "met"], rows)
    failures = missed(result)
    if failures:
        yield from ("", "Missed:", "")
    for target, what, value in failures:
        yield from prose(f"- {target.show(value)} {target.name}: {what}.{_reason(target, what)}")[1:]
    shares = [_full_of_all(row) for row in result["counted"] if row["checked"] and _is_aligned(row)]
    few = sum(not FULL.holds(share) for share in shares)
    yield from prose(f"""
        The share of full requests leaves out requests of one address (a token's id, a block's entry in a table,
        a sequence's number). With them, {few} of {len(shares)} would be below 99 %, the lowest at
        {min(shares):.1%}; the tables below have both.
    """)


def _reason(target: Target, what: str) -> str:
    return "".join(f" {text}" for (of, kernel), text in REASONS.items() if of is target and what.startswith(kernel))


def _traffic(result: Mapping[str, Any]) -> Iterator[str]:
    yield from heading(2, "Memory")
    yield from prose("""
        *Moved* is distinct 32-byte sectors ÷ compulsory ones: what DRAM sees if caches are large enough.
        *Asked* is sectors asked for by all requests ÷ distinct ones: what many rows read again (weights,
        RoPE tables; x and weights of a product, K and V) comes from L1 and L2. A request is *full* when 32
        lanes ask for 16 bytes each, of at most 16 sectors; the share leaves out requests of one address, as for
        a token's id. Tiles are those of an H100.
    """)
    rows = []
    for row in filter(lambda row: row["checked"], result["counted"]):
        rows.append(
            [
                *(row["kernel"], row["model"], row["shape"], str(row["counters"]["blocks"])),
                f"{_compulsory(row) * 32 / 1e6:.2f} MB",
                MOVED.mark(_moved(row), row["kernel"] not in WITH_PRODUCTS),
                f"{_asked(row):.2f}",
                FULL.mark(_full(row), _is_aligned(row)),
                f"{_full_of_all(row):.1%}",
                CONFLICTS.mark(_conflicts(row), True),
            ]
        )
    columns = ["kernel", "model", "shape", "blocks", "compulsory", "moved", "asked", "full", "full of all", "conflicts"]
    yield from table(columns, rows)


def _products(result: Mapping[str, Any]) -> Iterator[str]:
    sizes = sorted(set(SHARED_BYTES.values()))
    yield from heading(2, "Matrix instructions")
    yield from prose("""
        mma.m16n8k16 issued ÷ those of the visible pairs, by the shared memory that a GPU gives a block,
        which decides the tiles. What exceeds 1 is tiles that a mask cuts, and rows that do not fill one.
    """)
    by_shape: dict[str, dict[int, Row]] = {}
    for row in result["counted"]:
        if row["kernel"] == "attention":
            by_shape.setdefault(_name(row), {})[row["shared_bytes"]] = row
    rows = []
    for name, of_size in by_shape.items():
        target = CAUSAL if "causal" in name else WINDOW
        rows.append([name, *(target.mark(_products_ratio(of_size[size]), "S 2048" in name) for size in sizes)])
    yield from table(["", *(f"{size // 1024} KiB" for size in sizes)], rows)
    linears = [row for row in result["counted"] if row["kernel"] == "linear"]
    yield from table(["", "issued ÷ needed"], ([_name(row), f"{_products_ratio(row):.2f}"] for row in linears))


def _static(result: Mapping[str, Any]) -> Iterator[str]:
    yield from heading(2, "Registers and blocks")
    yield from prose(f"""
        Registers of a thread, and blocks that fit a multiprocessor, of what the launches above become on
        each architecture, compiled by {result["compiler"]}. Shared memory is that of a block. Where a cell
        is empty the ops launch another instance there. `gemma-cuda kernels` lists every instance.
    """)
    by_instance: dict[tuple[str, int, int], dict[str, str]] = {}
    for row in result["static"]:
        key = (row["instance"], row["threads"], row["shared_bytes"] + row["static_shared_bytes"])
        by_instance.setdefault(key, {})[row["architecture"]] = f"{row['registers']}, {row['blocks']}"
    rows = [
        [f"`{instance}`", str(threads), f"{shared / 1024:.1f} KiB", *(cells.get(name, "") for name in SHARED_BYTES)]
        for (instance, threads, shared), cells in sorted(by_instance.items())
    ]
    yield from table(["instance", "threads", "shared", *SHARED_BYTES], rows)
