"""Rows of measurements as lines of text and as a plot."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError

Row = dict[str, Any]


def timed_line(row: Row) -> str:
    """Of a row of bench.run: time and spread, rate, share of the ceiling, peers."""
    what = f"{row['op']:<13} {row['model']:<15} {row['shape']:<52}"
    if row["wrong"] is not None:
        return f"{what} WRONG: {row['wrong']}"
    spread = f"{row['median_us']:>10.2f} us ({row['low_us']:.2f} to {row['high_us']:.2f})"
    rate = f"{row['gbytes_per_s']:.0f} GB/s" if row["tflops"] is None else f"{row['tflops']:.1f} TFLOP/s"
    share = "" if row["share"] is None else f"  {row['share']:.0%} of the ceiling"
    peers = "".join(
        f"  {name} ×{peer['ours_to_peer']:.2f}{'' if peer['is_graph'] else ' (not a graph)'}"
        for name, peer in row["peers"].items()
    )
    refused = "".join(f"  {name} refused ({why})" for name, why in row["refused"].items())
    held = "  (inputs in L2)" if row["cache_holds_inputs"] else ""
    return f"{what} {spread}  {rate}{share}{held}{peers}{refused}"


def ceilings_line(result: dict[str, Any]) -> str:
    """The GPU and its ceilings."""
    top = result["ceilings"]
    product = "no product was measured"
    if top["product_flops_per_s"] is not None:
        product = f"product {top['product_flops_per_s'] / 1e12:.0f} TFLOP/s by {top['product_by']}"
    return f"{result['gpu']}: copy {top['copy_bytes_per_s'] / 1e9:.0f} GB/s, {product}"


def counted_lines(row: Row) -> Iterator[str]:
    """Of a row of bench.counted: the ratios, the estimate if there is one, a line for each kernel."""
    what = f"{row['op']:<13} {row['model']:<15} {row['shape']:<52}"
    if row["wrong"] is not None:
        yield f"{what} WRONG: {row['wrong']}"
        return
    mma = "" if row["mma"] is None else f"  matrix operations ×{row['mma']:.2f}"
    memory = f"memory ×{row['traffic']:.2f}  sectors/request {row['sectors_per_request']:.1f}"
    yield f"{what} {memory}  bank conflicts/request {row['conflicts']:.2f}{mma}"
    if row["estimate"] is not None:
        yield f"  estimated {row['estimate']['tflops']:.3g} TFLOP/s on an {row['estimate']['gpu']}; nobody measured it"
    for kernel in row["kernels"]:
        yield f"  {kernel['instance']}: {_needs(kernel)}"


def _needs(kernel: Row) -> str:
    """Of a row of bench.static."""
    shared = kernel["dynamic_shared_bytes"] + kernel["static_shared_bytes"]
    spills = kernel["spill_store_bytes"] + kernel["spill_load_bytes"]
    parts = [f"{kernel['registers']} registers", f"{shared} bytes shared", f"{spills} spilled"]
    if kernel["blocks"] is not None:
        parts.append(f"{kernel['blocks']} blocks a multiprocessor")
    parts += [f"{count} {opcode}" for opcode, count in kernel.get("sass", {}).items() if count]
    return ", ".join([*parts, f"compiled in {kernel['seconds']:.1f} s"])


def prefill_line(row: Row) -> str:
    """Of a row of bench.prefill."""
    peers = "".join(f"  {name} {ms:.2f} ms" for name, ms in row["peers"].items() if ms is not None)
    return (
        f"{row['model']:<15} {row['tokens']:>6} tokens  {row['median_ms']:8.3f} ms ({row['low_ms']:.3f} to "
        f"{row['high_ms']:.3f}), host {row['host_ms']:.3f} ms, ×{row['times_floor']:.1f} of the floor, "
        f"{row['launches_per_layer']} launches a layer{peers}"
    )


def absent_lines(rows: Sequence[Row]) -> Iterator[str]:
    """Of rows of bench.prefill: which peers have no time, and why; a line for each model, peer and reason."""
    tokens: dict[tuple[str, str, str], list[int]] = {}
    for row in rows:
        for peer, why in row["absent"].items():
            tokens.setdefault((row["model"], peer, why), []).append(row["tokens"])
    for (model, peer, why), counts in tokens.items():
        yield f"{model}, {', '.join(map(str, counts))} tokens: {peer} is absent: {why}"


def plot_prefills(rows: Sequence[Row], path: Path) -> None:
    """A plot of milliseconds over tokens: ours, the floor, the peers. Raises InputError without rows."""
    if not rows:
        raise InputError(f"{path}: there is no row to plot")
    figure = _figure()
    axes, tokens = figure.subplots(), [row["tokens"] for row in rows]
    axes.plot(tokens, [row["median_ms"] for row in rows], "o-", label="ours")
    axes.plot(tokens, [row["floor_ms"] for row in rows], "k:", label="floor")
    for peer in rows[0]["peers"]:
        axes.plot(tokens, [row["peers"][peer] for row in rows], "x--", label=peer)
    axes.set(xscale="log", yscale="log", xlabel="tokens", ylabel="ms to the first token", title=rows[0]["model"])
    axes.title.set_parse_math(False)  # a directory's name may hold $
    axes.legend()
    figure.savefig(path)


def plot(rows: Sequence[Row], path: Path) -> None:
    """A plot of each op's share of its ceiling over the case's operations or bytes. Raises InputError without rows."""
    right = [row for row in rows if row["wrong"] is None and row["share"] is not None]
    if not right:
        raise InputError(f"{path}: there is no row with a time and a ceiling to plot")
    figure = _figure()
    axes = figure.subplots()
    for op, group in itertools.groupby(sorted(right, key=lambda row: str(row["op"])), key=lambda row: str(row["op"])):
        own = list(group)
        axes.plot([row["floor_us"] for row in own], [100 * row["share"] for row in own], "o", label=op)
    axes.set(xscale="log", xlabel="least possible time, us", ylabel="% of the ceiling", ylim=(0, 105))
    axes.legend()
    figure.savefig(path)


def _figure() -> Any:
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError("a plot needs matplotlib: pip install 'gemma-cuda[bench]'") from error
    matplotlib.rcParams["svg.fonttype"] = "none"  # an .svg's words as text
    return Figure(figsize=(8, 5), layout="constrained")
