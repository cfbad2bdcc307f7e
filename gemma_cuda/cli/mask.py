"""`gemma-cuda mask`: a layer's attention as a picture, with the tiles that the kernel skips, tests or takes whole."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from . import common, kernel_choice
from .parser import MOST_TOKENS, name, path, whole, whole_from

if TYPE_CHECKING:
    from ..bench.mask_tiles import MaskTiles

_LETTERS = " ░█"  # by state
_MOST_COLUMNS = 100
_MOST_DRAWN = 4096  # tokens of a picture: 20 s and 1.3 GB, for a frame around each tile


def add_parser(commands: common.Commands) -> None:
    parser = commands.add_parser(
        "mask",
        help="one layer's attention as a picture: tiles skipped, at an edge, full",
        description="Show which keys the queries of a prompt see in one layer, as the kernel cuts it into tiles: it "
        "skips some, tests every element of those at an edge, and takes the others whole. Weights are not loaded.",
    )
    parser.add_argument(
        "model", type=name, metavar="MODEL", help=f"a published size such as gemma-3-4b, {common.MODEL_HELP}"
    )
    parser.add_argument(
        "--tokens",
        type=whole_from(1, MOST_TOKENS),
        default=1024,
        metavar="N",
        help="of the prompt (default: %(default)s)",
    )
    parser.add_argument(
        "--layer", type=whole_from(0, 9999), default=0, metavar="I", help="from 0 (default: %(default)s)"
    )
    parser.add_argument("--image", action="append", default=[], metavar="B:E", help="its tokens; may be given again")
    parser.add_argument("--arch", default="sm_90a", help="whose tiles (default: %(default)s)")
    parser.add_argument(
        "--out",
        type=path,
        metavar="FILE",
        help="a .png or .svg instead of text; needs matplotlib",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from ..bench.mask_tiles import mask_tiles
    from ..device.cuda.compile import SHARED_BYTES

    if arguments.out is not None:
        common.check_picture("--out", arguments.out)
        if arguments.tokens > _MOST_DRAWN:
            raise InputError(f"--tokens {arguments.tokens}: --out draws at most {_MOST_DRAWN}")
    (config,) = kernel_choice.configs([arguments.model])
    if not 0 <= arguments.layer < len(config.layers):
        raise InputError(f"--layer {arguments.layer}: the model has layers 0 to {len(config.layers) - 1}")
    if arguments.arch not in SHARED_BYTES:
        raise InputError(f"--arch {arguments.arch}: expected one of {', '.join(SHARED_BYTES)}")
    layer = config.layers[arguments.layer]
    images = [_span(text) for text in arguments.image]
    tiles = mask_tiles(config, layer, arguments.tokens, images, SHARED_BYTES[arguments.arch])
    window = "" if layer.sliding_window is None else f", window {layer.sliding_window}"
    model = common.escaped_line(arguments.model)
    title = f"{model}, layer {arguments.layer} ({layer.layer_type}{window}), {arguments.tokens} tokens"
    if arguments.out is None:
        print(title)
        print("\n".join(text(tiles)))
    else:
        draw(tiles, title, arguments.out)
    print(counts(tiles))
    return 0


def _span(text: str) -> tuple[int, int]:
    try:
        begin, end = (whole(word, 0, MOST_TOKENS) for word in text.split(":"))
    except (argparse.ArgumentTypeError, ValueError) as error:
        raise InputError(f"--image {text}: expected tokens such as 40:296") from error
    return begin, end


def counts(tiles: "MaskTiles") -> str:
    """The number of tiles of one KV head in each state, as a line."""
    from ..bench.mask_tiles import EDGE, FULL, SKIPPED

    total = tiles.states.size
    numbers = {"skipped": tiles.count(SKIPPED), "at an edge": tiles.count(EDGE), "full": tiles.count(FULL)}
    words = ", ".join(f"{count} {name} ({count / total:.0%})" for name, count in numbers.items())
    return f"{total} tiles of a KV head: {words}"


def text(tiles: "MaskTiles") -> list[str]:
    """A line per tile of queries, a letter per tile of keys; a letter for several tiles shows the fullest of them."""
    from ..ops.attention_plan import BLOCK_K

    states = tiles.states
    across = -(-states.shape[1] // _MOST_COLUMNS)
    down = -(-len(states) // _MOST_COLUMNS)
    lines = [
        f"queries down, {BLOCK_K * across} keys a letter: █ full, ░ at an edge; i: a tile with a token of an image"
    ]
    for i in range(0, len(states), down):
        letters = [_LETTERS[states[i : i + down, j : j + across].max()] for j in range(0, states.shape[1], across)]
        first = int(tiles.first_tokens[i])
        last = int(tiles.first_tokens[i + down]) if i + down < len(states) else len(tiles.key_begin)
        mark = "i" if any(begin < max(last, first + 1) and first < end for begin, end in tiles.spans) else " "
        lines.append(f"{first:>7} {mark} {''.join(letters).rstrip()}")
    return lines


def draw(tiles: "MaskTiles", title: str, target: Path) -> None:
    """Writes the picture: visible elements, those within an image in another colour, tiles framed."""
    try:
        from matplotlib.colors import ListedColormap
        from matplotlib.figure import Figure
        from matplotlib.patches import Rectangle
    except ImportError as error:
        raise InputError("--out needs matplotlib: pip install 'gemma-cuda[bench]'") from error
    import numpy as np

    from ..bench.mask_tiles import EDGE, FULL
    from ..ops.attention_plan import BLOCK_K

    tokens = len(tiles.key_begin)
    shown: Any = tiles.visible().astype(np.uint8)
    for begin, end in tiles.spans:
        shown[begin:end, begin:end] *= 2
    figure = Figure(figsize=(9, 9), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shown, cmap=ListedColormap(["white", "#9ecae1", "#fdae6b"]), vmin=0, vmax=2, interpolation="nearest")
    for i, first in enumerate(tiles.first_tokens.tolist()):
        last = int(tiles.first_tokens[i + 1]) if i + 1 < len(tiles.first_tokens) else tokens
        for j, state in enumerate(tiles.states[i].tolist()):
            if state in (EDGE, FULL):
                colour = "#d62728" if state == EDGE else "#7f7f7f"
                corner = (j * BLOCK_K - 0.5, first - 0.5)
                axes.add_patch(
                    Rectangle(corner, BLOCK_K, max(last - first, 1), fill=False, edgecolor=colour, linewidth=0.5)
                )
    axes.set(title=f"{title}\n{counts(tiles)}", xlabel="key", ylabel="query", xlim=(-0.5, tokens - 0.5))
    axes.title.set_parse_math(False)  # a directory's name may hold $
    figure.savefig(target, dpi=150)
