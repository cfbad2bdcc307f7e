"""GPUs in docs/generated/benchmarks.md: the figures of a check-up, and published figures of peers beside them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.markdown import prose, table

PUBLISHED = json.loads((Path(__file__).parent / "published" / "attention.json").read_text())
LENGTHS = ("512", "1024", "2048", "4096", "8192", "16384")
_NOBODY = "not measured"
_KERNEL_COLUMNS = ["op", "shape", "us", "rate", "% of the ceiling", "peers"]
_PREFILL_COLUMNS = ["model", "tokens", "ms", "host ms", "× floor", "launches a layer", "peers"]
_KINDS = tuple(itertools.product((128, 256), ("full", "causal")))
_NAMES = {"over-length": "Attention: TFLOP/s over length", "roofline": "Roofline", "latency": "Time to the first token"}
Results = dict[str, dict[str, Any]]


def lines(results: Results) -> list[str]:
    """The section: kernels, prefills, attention beside what was published."""
    bench, prefill, compiled = (results.get(f"gpu-{name}") for name in ("bench", "prefill", "compiled"))
    text = ["## Kernels and prefills on a GPU", ""]
    if bench is None and prefill is None:
        text += ["Nobody has measured a GPU yet, so no figure for one of ours stands here.", "`python -m "]
        text[-1] += "benchmarks.checkup --out DIR` measures one; [costs.md](costs.md) has what can be counted without."
    if bench is not None:
        text += [*_ceilings(bench), "", *table(_KERNEL_COLUMNS, _rows(bench))]
    if prefill is not None:
        text += ["", *table(_PREFILL_COLUMNS, _prefills(prefill))]
    if compiled is not None:
        text += ["", "### Beside what torch.compile makes", ""]
        kernels, prefills = compiled["kernels"], compiled["prefill"]
        text += [*table(_KERNEL_COLUMNS, _rows(kernels)), "", *table(_PREFILL_COLUMNS, _prefills(prefills))]
    text += ["", "### Attention beside what was published", ""]
    text += [f"{PUBLISHED['what']}; TFLOP/s, read off {PUBLISHED['source']}. Ours in bfloat16.", ""]
    text += table(["D, mask", "by", *LENGTHS], _attention(bench))
    for name in plots(results):
        text += ["", f"![{_NAMES[name]}](plots/{name}.svg)"]
    return text


def plots(results: Results) -> list[str]:
    """Which plots there is something to draw for."""
    return ["over-length", *(["roofline"] if "gpu-bench" in results else []), *_latency(results)]


def _latency(results: Results) -> list[str]:
    return ["latency"] if "gpu-prefill" in results else []


def _ceilings(bench: dict[str, Any]) -> list[str]:
    top = bench["ceilings"]
    rate = top["product_flops_per_s"]
    product = "no product" if rate is None else f"product {rate / 1e12:.0f} TFLOP/s ({top['product_by']})"
    copy = f"copy {top['copy_bytes_per_s'] / 1e9:.0f} GB/s"
    peers = "".join(f" {peer} is {version}." for peer, version in bench["versions"].items())
    return prose(f"{bench['gpu']}: {copy}, {product}, measured in the same process.{peers}")


def _rows(bench: dict[str, Any]) -> Iterator[list[str]]:
    for row in bench["rows"]:
        if row["wrong"] is not None:
            yield [row["op"], row["shape"], "wrong", "", "", ""]
            continue
        rate = f"{row['gbytes_per_s']:.0f} GB/s" if row["tflops"] is None else f"{row['tflops']:.1f} TFLOP/s"
        share = _NOBODY if row["share"] is None else f"{100 * row['share']:.0f}"
        peers = ", ".join(
            f"{name} ×{peer['ours_to_peer']:.2f}{'' if peer.get('is_graph', True) else ' (not a graph)'}"
            for name, peer in row["peers"].items()
        )
        time = f"{row['median_us']:.1f} ({row['low_us']:.1f} to {row['high_us']:.1f})"
        yield [row["op"], f"{row['model']} {row['shape']}", time, rate, share, peers]


def _prefills(prefill: dict[str, Any]) -> Iterator[list[str]]:
    for row in prefill["rows"]:
        peers = ", ".join(f"{name} {_NOBODY if ms is None else f'{ms:.1f}'}" for name, ms in row["peers"].items())
        yield [
            row["model"], str(row["tokens"]), f"{row['median_ms']:.2f}", f"{row['host_ms']:.2f}",
            f"{row['times_floor']:.1f}", str(row["launches_per_layer"]), peers,
        ]  # fmt: skip


def _attention(bench: dict[str, Any] | None) -> Iterator[list[str]]:
    """Rows of each head_dim and mask: the published ones, then ours."""
    for head_dim, mask in _KINDS:
        for row in PUBLISHED["attention"]:
            if (row["head_dim"], row["mask"]) == (head_dim, mask):
                cells = [row["tflops"][n] for n in LENGTHS]
                yield [f"{head_dim} {mask}", row["by"], *("unreadable" if c is None else str(c) for c in cells)]
        ours = measured(bench, head_dim, mask)
        yield [f"{head_dim} {mask}", "ours", *(f"{ours[n]:.0f}" if n in ours else _NOBODY for n in LENGTHS)]


def measured(bench: dict[str, Any] | None, head_dim: int, mask: str) -> dict[str, float]:
    """Length -> TFLOP/s of our attention at the shapes that FlashAttention-3 was published for."""
    rows = [] if bench is None else [row for row in bench["rows"] if row["model"] == "fa3" and row["wrong"] is None]
    return {
        str(row["params"]["tokens"]): row["tflops"]
        for row in rows
        if (row["params"]["head_dim"], "causal" if row["params"]["causal"] else "full") == (head_dim, mask)
    }


def write_plots(results: Results, pages: Path) -> None:
    """plots/*.svg beside the pages; without matplotlib nothing."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        print("plots need matplotlib: pip install 'gemma-cuda[bench]'")
        return
    matplotlib.rcParams["svg.hashsalt"] = "gemma-cuda"  # the same file every time
    (pages / "plots").mkdir(exist_ok=True)
    for name in plots(results):
        figure = Figure(figsize=(9, 6), layout="constrained")
        {"over-length": _draw_over_length, "roofline": _draw_roofline, "latency": _draw_latency}[name](figure, results)
        figure.savefig(pages / "plots" / f"{name}.svg", metadata={"Date": None})


def _draw_over_length(figure: Any, results: Results) -> None:
    panels = figure.subplots(2, 2, sharex=True, sharey=True)
    for axes, (head_dim, mask) in zip(
        panels.flat, [(d, m) for d in (128, 256) for m in ("full", "causal")], strict=True
    ):
        for row in PUBLISHED["attention"]:
            if (row["head_dim"], row["mask"]) == (head_dim, mask):
                points = {int(n): v for n, v in row["tflops"].items() if v is not None}
                axes.plot(list(points), list(points.values()), "o--", label=f"{row['by']}, published")
        ours = measured(results.get("gpu-bench"), head_dim, mask)
        if ours:
            axes.plot([int(n) for n in ours], list(ours.values()), "s-", label="ours, measured")
        axes.set(title=f"D {head_dim}, {mask}", xscale="log", ylim=(0, None), ylabel="TFLOP/s", xlabel="tokens")
    panels[0, 0].legend()


def _draw_roofline(figure: Any, results: Results) -> None:
    bench, axes = results["gpu-bench"], figure.subplots()
    top = bench["ceilings"]
    rows = [row for row in bench["rows"] if row["wrong"] is None and row["tflops"]]
    for op in dict.fromkeys(row["op"] for row in rows):
        own = [row for row in rows if row["op"] == op]
        axes.plot([row["tflops"] * 1e3 / row["gbytes_per_s"] for row in own], [r["tflops"] for r in own], "o", label=op)
    x = [2.0**i for i in range(-2, 13)]
    rate = top["product_flops_per_s"] or float("inf")
    axes.plot(x, [min(i * top["copy_bytes_per_s"], rate) / 1e12 for i in x], "k-", label="ceilings, measured")
    axes.set(xscale="log", yscale="log", xlabel="operations per byte", ylabel="TFLOP/s")
    axes.legend()


def _draw_latency(figure: Any, results: Results) -> None:
    axes, rows = figure.subplots(), results["gpu-prefill"]["rows"]
    for model in dict.fromkeys(row["model"] for row in rows):
        own = [row for row in rows if row["model"] == model]
        tokens = [row["tokens"] for row in own]
        axes.plot(tokens, [row["median_ms"] for row in own], "o-", label=model)
        axes.plot(tokens, [row["floor_ms"] for row in own], "k:", label=f"{model}, floor")
        for peer in own[0]["peers"]:
            axes.plot(tokens, [row["peers"][peer] for row in own], "x--", label=f"{model}, {peer}")
    axes.set(xscale="log", yscale="log", xlabel="tokens", ylabel="ms to the first token")
    axes.legend()
