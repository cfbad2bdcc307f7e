"""A model file that changes under a model that uses it: one error, neither other numbers nor a dead process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest

import gemma_cuda
from gemma_cuda.errors import CheckpointError
from gemma_cuda.formats import gguf_file
from gemma_cuda.formats.checkpoint import Checkpoint, open_checkpoint
from tests.support.checkpoints import GEMMA3, TINY_GEMMA1, random_tensors, write_directory, write_gguf_model
from tests.support.paths import ROOT

CHANGED = "the file was changed after it was opened; load the model again"
CONFIG = {**TINY_GEMMA1, "tie_word_embeddings": False, "vocab_size": 2000}


def write(folder: Path) -> Path:
    """A model whose embedding stays in its file, and is larger than a page."""
    return write_directory(folder, CONFIG, random_tensors(CONFIG, seed=0))


def overwrite(path: Path) -> None:
    """Other bytes in the place of those that are there, in the same file."""
    with path.open("r+b") as file:
        file.seek(-4096, os.SEEK_END)
        file.write(os.urandom(4096))
    os.utime(path)  # two writes within one tick of the clock have one time


def cut(path: Path) -> None:
    os.truncate(path, 4096)


@pytest.mark.parametrize("change", [overwrite, cut])
@pytest.mark.parametrize("when", ["before loading", "before a prefill"])
def test_a_changed_file_is_noticed(tmp_path: Path, change: object, when: str) -> None:
    """In a process of its own, which a mapping would end."""
    program = f"""
import sys
from pathlib import Path
import gemma_cuda
from gemma_cuda.formats import gguf_file
from gemma_cuda.formats.checkpoint import open_checkpoint
from gemma_cuda.errors import CheckpointError
from tests.formats import test_changed_file
checkpoint = open_checkpoint(sys.argv[1])
change = lambda: test_changed_file.{change.__name__}(Path(sys.argv[1]) / "model.safetensors")
try:
    if {when == "before loading"}:
        change()
    model = gemma_cuda.Gemma.from_checkpoint(checkpoint, device="numpy")
    if {when == "before a prefill"}:
        model.prefill([1, 1999])
        change()
    model.prefill([1, 1999])
except CheckpointError as error:
    print(error)
"""  # type: ignore[attr-defined]
    done = subprocess.run(
        [sys.executable, "-c", program, str(write(tmp_path))], capture_output=True, text=True, check=False,
        cwd=ROOT,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{tmp_path / 'model.safetensors'}: {CHANGED}\n"


def test_a_file_that_another_replaces_by_name_is_still_read(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write(tmp_path))
    before = gather(checkpoint)
    write(tmp_path / "other")
    (tmp_path / "model.safetensors").rename(tmp_path / "old")
    (tmp_path / "other" / "model.safetensors").rename(tmp_path / "model.safetensors")
    assert np.array_equal(gather(checkpoint), before)


def test_a_model_that_has_read_all_of_its_file_needs_it_no_more(tmp_path: Path) -> None:
    config = {**CONFIG, "tie_word_embeddings": True}
    tensors = random_tensors(config, seed=0)
    model = gemma_cuda.Gemma.from_pretrained(write_directory(tmp_path, config, tensors), device="numpy")
    before = model.prefill([1, 1999]).logits
    overwrite(tmp_path / "model.safetensors")
    assert np.array_equal(model.prefill([1, 1999]).logits, before)


def test_a_file_is_closed_with_its_checkpoint(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write(tmp_path))
    descriptor = checkpoint._tensors["embed_tokens.weight"].file._descriptor
    os.fstat(descriptor)
    del checkpoint
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def gather(checkpoint: Checkpoint) -> np.ndarray:
    return checkpoint.table("embed_tokens.weight").gather(np.array([0, 1999, 7]))


def test_gathering_notices_a_change(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write(tmp_path))
    gather(checkpoint)
    overwrite(tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=CHANGED):
        gather(checkpoint)


@pytest.mark.parametrize("after", [0, 1, 5])
def test_a_gguf_header_that_is_cut_while_it_is_read(
    tmp_path: Path, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.gguf"
    write_gguf_model(path, GEMMA3, random_tensors(GEMMA3, seed=0), gguf.GGMLQuantizationType.F32)
    monkeypatch.setattr(gguf_file, "_BLOCK", 64)
    blocks, fill = [], gguf_file._Cursor.fill

    def cutting(self: gguf_file._Cursor, end: int) -> bool:
        if len(blocks) == after:
            os.truncate(path, 32)
        blocks.append(end)
        return fill(self, end)

    assert gguf_file.GgufFile(path).tensors
    monkeypatch.setattr(gguf_file._Cursor, "fill", cutting)
    with pytest.raises(CheckpointError, match=CHANGED):
        gguf_file.GgufFile(path)
