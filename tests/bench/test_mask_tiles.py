"""gemma-cuda mask: the states of tiles are what the elements of the mask say; the picture and the numbers beside it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gemma_cuda.bench.mask_tiles import EDGE, FULL, SKIPPED, mask_tiles
from gemma_cuda.cli import main
from gemma_cuda.ops.attention_plan import BLOCK_K
from gemma_cuda.ops.instances import published


@pytest.mark.parametrize("shared_kib", [99, 227])
@pytest.mark.parametrize(
    ("model", "layer", "tokens", "images"),
    [
        ("gemma-2b", 0, 1, []),
        ("gemma-2-2b", 1, 700, []),
        ("gemma-3-1b", 0, 1300, []),
        ("gemma-3-4b", 5, 900, [(40, 296), (500, 756)]),
        ("gemma-3-4b", 0, 2000, [(10, 266), (1500, 1756)]),
        ("embeddinggemma-300m", 0, 600, []),
    ],
)
def test_states_are_what_the_elements_say(
    model: str, layer: int, tokens: int, images: list[tuple[int, int]], shared_kib: int
) -> None:
    config = published()[model]
    tiles = mask_tiles(config, config.layers[layer], tokens, images, shared_kib * 1024)
    visible = tiles.visible()
    assert tiles.spans == images and visible.any(axis=1).all()
    bounds = [*tiles.first_tokens.tolist(), tokens - 1]
    for i, states in enumerate(tiles.states):
        rows = visible[bounds[i] : bounds[i + 1] + 1]  # a tile may share its last token with the next one
        for j, state in enumerate(states):
            part = rows[:, j * BLOCK_K : (j + 1) * BLOCK_K]
            own = part[:-1] if i + 1 < len(tiles.states) and len(part) > 1 else part
            if state == SKIPPED:
                assert not own.any()
            elif state == FULL:
                assert own.all() and part.shape[1] == BLOCK_K
    assert sum(map(tiles.count, (SKIPPED, EDGE, FULL))) == tiles.states.size


def test_a_causal_mask_has_its_edge_on_the_diagonal() -> None:
    config = published()["gemma-2b"]
    tiles = mask_tiles(config, config.layers[0], 64 * 8, [], 227 * 1024)
    assert tiles.states.shape == (64, 8)  # 8 heads of a group: 8 tokens a tile
    expected = np.arange(8)[None] < (np.arange(64) // 8)[:, None]
    assert np.array_equal(tiles.states == FULL, expected)
    assert tiles.count(EDGE) == 64 and tiles.count(SKIPPED) == 64 * 7 // 2


def test_the_command_prints_the_tiles(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["mask", "gemma-3-4b", "--tokens", "2048", "--image", "40:296"]) == 0
    title, legend, *lines, numbers = capsys.readouterr().out.splitlines()
    assert title == "gemma-3-4b, layer 0 (sliding_attention, window 1024), 2048 tokens" and "64 keys a letter" in legend
    assert any(line.split()[1] == "i" for line in lines) and lines[0].split()[0] == "0"
    assert "█" in lines[-1] and len(lines[-1]) > len(lines[0])
    assert numbers.endswith("%)") and " skipped (" in numbers and " full (" in numbers


def test_the_command_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mask.png"
    assert main(["mask", "gemma-3-4b", "--tokens", "300", "--image", "9:99", "--layer", "5", "--out", str(path)]) == 0
    assert path.read_bytes().startswith(b"\x89PNG") and "tiles of a KV head" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gemma-3-4b", "--layer", "34"], "--layer 34: the model has layers 0 to 33"),
        (["gemma-3-4b", "--tokens", "4097", "--out", "a.png"], "--tokens 4097: --out draws at most 4096"),
        (["gemma-3-4b", "--out", "a.pdf"], "--out a.pdf: expected a name that ends in .png or .svg"),
        (["gemma-3-4b", "--arch", "sm_1"], "--arch sm_1: expected one of sm_80"),
        (["gemma-3-4b", "--image", "9"], "--image 9: expected tokens such as 40:296"),
        (["gemma-3-4b", "--image", "9:2000"], "mask: image 9:2000 does not lie within 1024 tokens"),
        (["gemma-3-1b", "--image", "1:9"], "mask: this model has no spans of images"),
    ],
)
def test_the_command_refuses(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["mask", *arguments]) == 2
    assert message in capsys.readouterr().err
