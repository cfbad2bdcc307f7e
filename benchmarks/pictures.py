"""docs/pictures/*.svg, drawn from the tables and formulas of the code; `python -m benchmarks.report` writes them."""

from __future__ import annotations

import ast
import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from benchmarks.svg import AMBER, BLUE, FAINT, GREEN, GREY, RED, SHEET, Sheet
from gemma_cuda.engine.batch import Prompt, make_batch
from gemma_cuda.engine.bucket import Bucket, Fields
from gemma_cuda.model.decoder import Decoder
from gemma_cuda.model.masks import Queries, key_range
from gemma_cuda.ops import instances

ROOT = Path(__file__).parent.parent
WIDTH = 880

# Each room's content, in the words of the picture; FLOORS of tests/test_imports.py has the floors.
ROOMS = {
    "printable": "control characters in messages, escaped",
    "errors": "exceptions",
    "arguments": "checks a caller's values",
    "config": "ModelConfig",
    "precision": "dtypes and rounding",
    "host": "memory, threads, files",
    "formats": "files → config and tensors",
    "device": "Device protocol, arena, sources",
    "device.cuda": "NVRTC, launches, graphs, cuBLASLt",
    "device.emulator": "kernels on the CPU",
    "device.__init__": "chooses a device",
    "device.doctor": "what is missing",
    "device.foreign": "arrays of other libraries",
    "text": "tokenizer, chat template",
    "model": "decoder, masks, RoPE, KV cache",
    "ops": "one file per kernel",
    "reference": "the same in NumPy",
    "engine": "batch → context → executor → outputs",
    "gemma": "Gemma, the façade",
    "bench": "times, counts, tolerance",
    "interop": "torch, JAX, Transformers",
    "": "gemma_cuda/__init__.py: the public names",
    "cli": "the command gemma-cuda; only it prints",
    "__main__": "python -m gemma_cuda",
}


def pages() -> dict[str, str]:
    """File name in docs/pictures/ -> its SVG."""
    drawings = (rooms, packing, key_ranges, layer, timeline, block, tile, outputs)
    return {f"{draw.__name__.replace('_', '-')}.svg": str(draw()) for draw in drawings}


def floors() -> tuple[tuple[str, ...], ...]:
    """The rooms of each floor, lowest first, as tests/test_imports.py has them."""
    for node in ast.parse((ROOT / "tests" / "test_imports.py").read_text()).body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == "FLOORS":
            assert node.value is not None
            return cast("tuple[tuple[str, ...], ...]", ast.literal_eval(node.value))
    raise LookupError("tests/test_imports.py has no FLOORS")


def rooms() -> Sheet:
    table = floors()
    height, top, left = 32, 44, 46
    sheet = Sheet(WIDTH, top + height * len(table) + 16, "Rooms of gemma_cuda and the direction of imports")
    sheet.text(16, 26, "Rooms of gemma_cuda/. Each imports from lower floors only, never from its own or a higher one.")
    sheet.arrow(24, top + 8, 24, top + height * len(table) - 12)
    for level, names in enumerate(reversed(table)):
        width = (WIDTH - left - 16 - 8 * (len(names) - 1)) / len(names)
        for i, name in enumerate(names):
            x, y = left + i * (width + 8), top + level * height
            outer = name.partition(".")[0]
            fill = {"device": BLUE, "ops": GREEN, "reference": GREEN, "engine": AMBER, "gemma": AMBER}.get(outer, GREY)
            shown = name or "gemma_cuda"
            sheet.box(x, y, width, height - 6, fill=fill)
            sheet.text(x + 10, y + 17.5, shown, mono=True, bold=True)
            sheet.text(x + 18 + 7.9 * len(shown), y + 17.5, ROOMS[name], size=12, fill=FAINT)
    return sheet


def packing() -> Sheet:
    """Two prompts of 5 and 3 tokens, the second padded on the left, in caches of 8 slots."""
    lengths, capacity, cell = (5, 3), 8, 44
    sheet = Sheet(WIDTH, 350, "From padded prompts to packed tokens")
    sheet.text(16, 26, "Two prompts [B, S] = [2, 5] as the caller gives them; grey: padding", bold=True)
    tokens = [f"{name}{i}" for name, n in zip("ab", lengths, strict=True) for i in range(n)]
    for row, words in enumerate((tokens[:5], ["", "", *tokens[5:]])):
        sheet.text(150, 62 + 32 * row, f"row {row}", at="right", size=12, fill=FAINT)
        for column, word in enumerate(words):
            fill = GREY if not word else BLUE if row == 0 else GREEN
            sheet.box(160 + cell * column, 44 + 32 * row, cell, 28, fill=fill, words=word, mono=True)
    sheet.arrow(160 + 2.5 * cell, 108, 160 + 2.5 * cell, 134)
    sheet.text(16, 154, "The batch: N = 8 packed tokens, without padding", bold=True)
    ids, mask = np.ones((2, 5), int), [[1] * 5, [0, 0, 1, 1, 1]]
    batch = make_batch(instances.published()["gemma-3-270m"], Prompt(ids, attention_mask=mask))
    rows = {
        "token": tokens,
        "sequence": batch.sequence,
        "slots": batch.slots,
        "position_ids": batch.position_ids,
        "slot_mapping": batch.sequence * capacity + batch.slots,
    }
    notes = (
        "",
        "which prompt",
        "place in that sequence's cache",
        "for RoPE",
        f"cache row: sequence · {capacity} + slot",
    )
    for y, ((name, values), note) in enumerate(zip(rows.items(), notes, strict=True)):
        base = 168 + 30 * y
        sheet.text(150, base + 19, name, at="right", mono=True, size=12)
        for i, value in enumerate(values):
            fill = BLUE if i < 5 else GREEN
            sheet.box(160 + cell * i, base, cell, 26, fill=fill, words=str(value), mono=True)
        sheet.text(172 + cell * 8, base + 18, note, size=12, fill=FAINT)
    sheet.text(150, 336, "cu_seqlens", at="right", mono=True, size=12)
    for value in batch.cu_seqlens:
        sheet.text(160 + cell * value, 336, str(value), at="middle", mono=True)
    sheet.text(172 + cell * 8, 336, "[B + 1]: where each sequence begins", size=12, fill=FAINT)
    return sheet


def key_ranges() -> Sheet:
    """What 14 queries see in a layer of Gemma 3 with a window of 5 and an image at tokens 4 to 8."""
    tokens, span, window = 14, (4, 9), 5
    config = instances.published()["gemma-3-4b"]
    slot = np.arange(tokens, dtype=np.int32)
    inside = (slot >= span[0]) & (slot < span[1])
    span_begin, span_end = np.where(inside, span[0], slot), np.where(inside, span[1], slot + 1)
    queries = Queries(slot, np.zeros_like(slot), np.full_like(slot, tokens), span_begin, span_end)
    sheet, cell = Sheet(WIDTH, 400, "Masks as intervals"), 20
    for panel, sliding in enumerate((None, window)):
        layer = dataclasses.replace(config.layers[0], sliding_window=sliding)
        begin, end = key_range(config, layer, queries)
        left, top = 70 + 430 * panel, 66
        name = "full attention" if sliding is None else f"sliding attention, window {window}"
        sheet.text(left, 26, name, bold=True)
        sheet.text(left + 7 * cell, 52, "key t", at="middle", size=12, fill=FAINT)
        sheet.text(left - 8, top - 8, "query", at="right", size=12, fill=FAINT)
        sheet.text(left + 14 * cell + 10, 52, "begin, end", size=12, mono=True, fill=FAINT)
        for i in range(tokens):
            for t in range(tokens):
                fill = SHEET if not begin[i] <= t < end[i] else AMBER if inside[i] and inside[t] else BLUE
                sheet.box(left + t * cell, top + i * cell, cell, cell, fill=fill, round_by=0)
            sheet.text(left - 8, top + i * cell + 15, str(i), at="right", size=12, mono=True)
            sheet.text(left + 14 * cell + 10, top + i * cell + 15, f"{begin[i]:2}, {end[i]:2}", size=12, mono=True)
    sheet.paragraph(
        70, 372,
        "Gemma 3, image at tokens 4 to 8 (yellow: inside its span). The keys of a query are one interval, and neither "
        "end falls from one query to the next: two int32 arrays are the whole mask.", columns=110,
    )  # fmt: skip
    return sheet


LAUNCHES = (
    ("product", "h · qkvᵀ", "[N, (H + 2 KH) D]"),
    ("qk_norm_rope", "norm and rotate q, k; write K, V", "q [N, H, D]"),
    ("attention", "work tiles over key ranges", "[N, H, D]"),
    ("product", "· o_projᵀ", "[N, E]"),
    ("rms_norm", "norm, add to x, norm", "x, h [N, E]"),
    ("product", "h · (gate | up)ᵀ", "[N, 2 F]"),
    ("geglu", "gelu(gate) · up", "[N, F]"),
    ("product", "· downᵀ", "[N, E]"),
    ("rms_norm", "norm, add to x, next layer's norm", "x, h [N, E]"),
)


def layer() -> Sheet:
    sheet = Sheet(WIDTH, 412, "The launches of one layer")
    sheet.text(16, 26, "An inner layer of Gemma 1 to 3: 9 launches", bold=True)
    for i, (name, work, result) in enumerate(LAUNCHES):
        y = 40 + 30 * i
        fill = GREY if name == "product" else AMBER if name == "attention" else GREEN
        sheet.box(40, y, 150, 24, fill=fill, words=name, mono=True)
        sheet.text(204, y + 17, work)
        sheet.text(470, y + 17, result, mono=True, size=12, fill=FAINT)
        sheet.text(28, y + 17, str(i + 1), at="right", size=12, fill=FAINT)
    sheet.box(620, 40, 120, 54, fill=BLUE)
    sheet.text(680, 63, "KV cache", at="middle", bold=True)
    sheet.text(680, 81, "k, v of layer i", at="middle", size=12)
    sheet.arrow(560, 78, 618, 78)
    sheet.line(680, 95, 680, 112)
    sheet.arrow(680, 112, 562, 112)
    sheet.line(16, 318, WIDTH - 16, 318)
    sheet.paragraph(
        16, 340,
        "Grey: cuBLASLt, or kernels/linear.cu for up to 64 rows, which also does launch 7: then there are 8 launches. "
        "Green, yellow: kernels/NAME.cu. N packed tokens, E hidden size, H / KH query / KV heads, D head_dim, "
        "F feed-forward. The last layer has 4 more launches: it writes K and V of all N tokens first; then "
        "prune_to_outputs takes x and h of the M output rows, and only these continue.",
    )  # fmt: skip
    return sheet


def timeline() -> Sheet:
    sheet = Sheet(WIDTH, 420, "Warm-up and replay as a timeline")
    sheet.text(16, 26, "Gemma.warmup(lengths=[16, 128]), once", bold=True)
    steps = (
        ("dry run", "arena, kernels, products", BLUE, 150),
        ("check", "free memory", GREY, 86),
        ("compile", "all kernels, in parallel", GREEN, 142),
        ("tune", "cuBLASLt", GREEN, 70),
        ("allocate", "pool, tables, arena", GREY, 118),
        ("16: record", "run, capture", AMBER, 106),
        ("128: record", "run, capture", AMBER, 106),
    )
    x = 20.0
    for name, note, fill, width in steps:
        sheet.box(x, 40, width, 46, fill=fill)
        sheet.text(x + width / 2, 59, name, at="middle", bold=True)
        sheet.text(x + width / 2, 76, note, at="middle", size=11)
        x += width + 10
    sheet.paragraph(
        16, 112,
        "record: the decoder runs once while Cuda.recording is open, so that launches go into a plan and arrays come "
        "from the arena. capture: the launches of the plan become one CUDA graph with the addresses of that plan.",
    )  # fmt: skip
    sheet.line(16, 162, WIDTH - 16, 162)
    sheet.text(16, 186, "Gemma.prefill(ids) of up to 16 or 128 tokens, each time", bold=True)
    rows = {
        "host": (200, (
            ("make_batch", 90, 110, BLUE), ("int32 block", 208, 110, BLUE), ("copy, launch graph", 326, 150, AMBER),
            ("allocate outputs", 484, 130, BLUE), ("return", 622, 70, GREY),
        )),
        "stream": (250, (
            ("wait", 326, 56, GREY), ("block", 390, 60, GREEN), ("graph: embed, layers, logits", 458, 260, AMBER),
            ("outputs", 726, 80, GREEN),
        )),
    }  # fmt: skip
    for name, (y, bars) in rows.items():
        sheet.text(78, y + 24, name, at="right", mono=True, size=12)
        for words, left, width, fill in bars:
            sheet.box(left, y + 4, width, 30, fill=fill, words=words, size=12)
    sheet.arrow(400, 234, 400, 252)
    for y, line in enumerate(
        (
            "int32 block: goes to one of three pinned buffers; the host fills one while the GPU still reads another.",
            "wait: for the last prefill of this model, on whichever stream it was; both use the same arena.",
            "outputs: logits and last hidden state are copied out of the arena, since the next prefill uses it again.",
            "return: the host waits for nothing; the arrays are CuPy's, ordered by the stream.",
            "Bars show the order. They have no scale: no GPU has been measured.",
        )
    ):
        sheet.text(16, 318 + 20 * y, line, size=12)
    return sheet


def example_fields() -> tuple[Fields, list[tuple[str, tuple[int, ...], int]]]:
    """(fields, (name, shape, first byte) of each) of the block of gemma-3-270m for up to 128 tokens of one prompt."""
    config = instances.published()["gemma-3-270m"]
    last = max(i for i, layer in enumerate(config.layers) if layer.kv_source is None)
    decoder = cast(Decoder, SimpleNamespace(config=config, last_kv_layer=last))
    fields = Bucket(decoder, 128, 17, 1, 4096, 227 * 1024).fields
    arrays = fields.of(np.arange(fields.size))
    return fields, [(name, array.shape, 4 * int(array.flat[0])) for name, array in arrays.items()]


MEANINGS = {
    "ids": "token ids",
    "positions": "row of the RoPE tables",
    "slot_mapping": "cache row of K and V; -1 past the prompt's end",
    "feature_index": "row of the given embeddings; -1: looked up by id",
    "output_rows": "packed tokens whose output is asked for",
    "output_positions": "their positions",
    "begin": "key_begin of each query",
    "end": "key_end of each query",
    "table": "work tiles; unused ones have no rows",
    "merges": "row tiles whose keys are split over blocks",
}


def block() -> Sheet:
    fields, rows = example_fields()
    sheet = Sheet(WIDTH, 96 + 22 * len(rows) + 52, "The int32 block of a graph")
    sheet.text(
        16,
        26,
        f"The int32 block of gemma-3-270m, 128 tokens, 1 sequence, kv_capacity 4096: {4 * fields.size:,} bytes",
        bold=True,
    )
    scale = (WIDTH - 32) / (4 * fields.size)
    sheet.text(16, 80, "byte", size=12, fill=FAINT)
    sheet.text(80, 80, "field", size=12, fill=FAINT)
    sheet.text(356, 80, "shape", size=12, fill=FAINT)
    for i, (name, shape, first) in enumerate(rows):
        last = name.rpartition(".")[2]
        fill = AMBER if "." in name else GREEN if name.startswith("output") else BLUE
        after = rows[i + 1][2] if i + 1 < len(rows) else 4 * fields.size
        sheet.box(16 + first * scale, 40, (after - first) * scale, 22, fill=SHEET, round_by=0)
        sheet.box(16 + first * scale, 40, max(3, 4 * np.prod(shape) * scale), 22, fill=fill, round_by=0)
        y = 100 + 22 * i
        sheet.box(58, y - 11, 12, 12, fill=fill, round_by=0)
        sheet.text(50, y, str(first), at="right", size=12, mono=True)
        sheet.text(80, y, name, size=12, mono=True)
        sheet.text(356, y, str(list(shape)), size=12, mono=True)
        sheet.text(436, y, MEANINGS[last], size=12)
    sheet.paragraph(
        16, 116 + 22 * len(rows),
        "Each field begins at a multiple of 256 bytes; white: padding. A mask's fields are named after layer type, "
        "head_dim and query heads per KV head; .output: of the output rows, in the last layer. A work tile has 7 "
        "numbers.",
    )  # fmt: skip
    return sheet


def swizzled_offset(row: Any, chunk: Any, width: int) -> Any:
    """Element offset of 16-byte chunk `chunk` in a tile of rows of `width`, the formula of kernels/common/tile.cuh."""
    return row * width + ((chunk ^ (row & 7)) << 3)


def fragment_lanes() -> list[tuple[int, int]]:
    """(row, chunk) that each of 32 lanes addresses for an A fragment [16, 16] at column 0, by ldmatrix.x4."""
    return [(lane % 16, lane // 16) for lane in range(32)]


def tile() -> Sheet:
    width, column, cell, high = 64, 16, 38, 19
    colors = (BLUE, GREEN, AMBER, RED)
    matrix_of = {(row, chunk + column // 8): lane // 8 for lane, (row, chunk) in enumerate(fragment_lanes())}
    sheet = Sheet(WIDTH, 470, "A swizzled tile and the fragments that ldmatrix reads")
    sheet.text(16, 26, "A tile [16, 64] of 16-bit elements: 8 chunks of 16 bytes a row", bold=True)
    for panel, title in enumerate(
        ("as the matrix has it: chunk = column / 8", "as it lies in shared memory: chunk ^ (row & 7)")
    ):
        left = 46 + 424 * panel
        sheet.text(left, 50, title, size=12)
        for place in range(8):
            sheet.text(left + cell * (place + 0.5), 68, str(place) if panel == 0 else f"{4 * place}-{4 * place + 3}",
                       at="middle", size=11, mono=True, fill=FAINT)  # fmt: skip
        for row in range(16):
            sheet.text(left - 6, 88 + high * row, str(row), at="right", size=11, mono=True, fill=FAINT)
            for chunk in range(8):
                place = chunk if panel == 0 else swizzled_offset(row, chunk, width) % width // 8
                fill = colors[matrix_of[row, chunk]] if (row, chunk) in matrix_of else SHEET
                x, y = left + cell * place, 74 + high * row
                sheet.box(x, y, cell, high, fill=fill, round_by=0, words=str(chunk), mono=True, size=11)
    sheet.text(46, 396, "numbers: chunk", size=11, fill=FAINT)
    sheet.text(470, 396, "header: banks of 4 bytes; numbers: chunk", size=11, fill=FAINT)
    sheet.paragraph(
        16, 420,
        "Coloured: load_a at column 16. Lane 8 m + r addresses row r of the 8 × 8 matrix m: a[0] blue, a[1] green, "
        "a[2] yellow, a[3] red. The 8 rows of a matrix lie in the same 4 banks on the left, in all 32 on the right: no "
        "conflict. Of each matrix lane l gets elements 2 (l % 4) and 2 (l % 4) + 1 of row l / 4 in one 32-bit "
        "register: the A fragment of mma.m16n8k16.",
    )  # fmt: skip
    return sheet


def outputs() -> Sheet:
    """The two prompts of `packing` on their way to logits, with logits_to_keep=1."""
    sheet, cell, top = Sheet(WIDTH, 290, "From packed tokens to logits"), 26, 64
    columns = (
        (16, "x, h of N tokens [N, E]"),
        (236, "output rows [M, E]"),
        (470, "final norm, · tableᵀ"),
        (690, "[B, keep, V]"),
    )
    for x, title in columns:
        sheet.text(x, 28, title, bold=True)
    names = [*(f"a{i}" for i in range(5)), *(f"b{i}" for i in range(3))]
    last = (4, 7)  # cu_seqlens[1:] - 1
    for i, name in enumerate(names):
        fill = GREY if i not in last else BLUE if i < 5 else GREEN
        sheet.text(40, top + cell * i + 17, name, at="right", mono=True, size=12)
        sheet.box(48, top + cell * i, 110, cell - 4, fill=fill)
    for row, (i, fill) in enumerate(zip(last, (BLUE, GREEN), strict=True)):
        y = 120 + 60 * row
        sheet.arrow(162, top + cell * i + 11, 244, y + 11)
        sheet.box(250, y, 110, 22, fill=fill, words=names[i], mono=True)
        sheet.arrow(364, y + 11, 464, y + 11)
        sheet.box(470, y, 150, 22, fill=fill, words="logits [V]", size=12)
        sheet.arrow(624, y + 11, 684, y + 11)
        sheet.box(690, y, 150, 22, fill=fill, words=f"row {row}, last token", size=12)
    sheet.text(206, 56, "prune_to_outputs", at="middle", mono=True, size=12, fill=FAINT)
    sheet.paragraph(
        236, 252,
        "Grey rows end in the last layer: it needs their K and V, and nothing else of them. With logits_to_keep=n each "
        "prompt has up to n output rows, with 0 all of them.", columns=96,
    )  # fmt: skip
    return sheet
