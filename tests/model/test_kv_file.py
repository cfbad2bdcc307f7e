"""A saved KV cache is believed only where digest, data and model bear its description out."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from gemma_cuda import KVCache
from gemma_cuda.errors import CacheError
from gemma_cuda.model.kv_file import _digest
from tests.support.cache_state import state
from tests.support.hf_models import build
from tests.support.parity import ours

WINDOW = 8
Description = dict[str, Any]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """The cache of rows of 12 and 10 tokens, the second padded left, trimmed to its windows."""
    path, mask = tmp_path / "cache.safetensors", np.arange(12) >= [[0], [2]]
    ids = build("gemma3_text").ids(12, batch=2)
    ours("gemma3_text").prefill(ids, attention_mask=mask, trim_sliding=True).past_key_values.save(path)
    return path


def test_files_of_this_version_stay_readable(saved: Path) -> None:
    """The format's name is in files on disk: it changes with the format, and with nothing else."""
    with safe_open(saved, "numpy") as file:
        metadata = file.metadata()
    assert metadata["format"] == "gemma_cuda.kv.2"
    assert list(json.loads(metadata["cache"])) == [
        "starts", "ends", "fingerprint", "dtype", "sliding_windows", "first_slots", "spans",
    ]  # fmt: skip


def rewrite(path: Path, change: Callable[[Description, dict[str, np.ndarray]], object], *, digest: bool) -> None:
    """The file with another description or other tensors; digest: with one that fits."""
    with safe_open(path, "numpy") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    described = json.loads(metadata["cache"])
    change(described, tensors)
    metadata["cache"] = json.dumps(described)
    if digest:
        metadata["digest"] = _digest(metadata["cache"], tensors)
    save_file(tensors, path, metadata)


def windows_of(value: Any) -> Callable[[Description, Any], object]:
    return lambda d, t: d.update(sliding_windows=[value if w else w for w in d["sliding_windows"]])


def shift_layer(d: Description, tensors: dict[str, np.ndarray]) -> None:
    """A layer that says it begins at its second slot, and lacks the first."""
    d["first_slots"][5] += 1
    for name in ("layers.5.k", "layers.5.v"):
        tensors[name] = np.ascontiguousarray(tensors[name][:, :, 1:])


ALTERED: dict[str, tuple[Callable[[Description, dict[str, np.ndarray]], object], str]] = {
    "other windows": (windows_of(4), "layer 0 begins at slot|has the windows"),
    "wider windows": (windows_of(WINDOW + 1), "layer 0 begins at slot 5, which cuts keys that are seen"),
    "no window": (windows_of(0), "its sliding_windows is"),
    "a window in words": (windows_of("8"), "its sliding_windows is"),
    "other first slots": (lambda d, t: d.update(first_slots=[f and f - 1 for f in d["first_slots"]]), "holds .B, KH"),
    "a full layer cut": (shift_layer, "layer 5 begins at slot 1, which cuts"),
    "a negative first slot": (lambda d, t: d["first_slots"].__setitem__(0, -1), "its first_slots is"),
    "half a slot": (lambda d, t: d["first_slots"].__setitem__(0, 3.5), "its first_slots is"),
    "tokens in padding": (lambda d, t: d.update(starts=[0, 0]), "cannot tell"),
    "tokens called padding": (lambda d, t: d.update(starts=[1, 2]), "layer 5 holds keys in row 0 outside 1:12"),
    "an earlier end": (lambda d, t: d.update(ends=[12, 11]), "holds keys in row 1 outside 2:11|cuts keys"),
    "later ends": (lambda d, t: d.update(ends=[13, 12]), "holds .B, KH"),
    "an end before its start": (lambda d, t: d.update(ends=[12, 1]), "rows begin at"),
    "rows in words": (lambda d, t: d.update(starts=["0", "2"]), "its starts is"),
    "another number of rows": (lambda d, t: d.update(starts=[0], ends=[12], spans=[[]]), "holds .B, KH"),
    "no rows": (lambda d, t: d.update(starts=[], ends=[], spans=[]), "rows begin at"),
    "another dtype": (lambda d, t: d.update(dtype="float64"), "holds float32 and float32, expected float64"),
    "an unknown dtype": (lambda d, t: d.update(dtype="int8"), "its dtype is 'int8'"),
    "a span outside": (lambda d, t: d.update(spans=[[], [[0, 4]]]), "its spans"),
    "a span backwards": (lambda d, t: d.update(spans=[[[5, 4]], []]), "its spans"),
    "a span of three ends": (lambda d, t: d.update(spans=[[[1, 2, 3]], []]), "cannot be read"),
    "no description": (lambda d, t: d.clear(), "cannot be read"),
    "a layer too few": (lambda d, t: d["first_slots"].pop(), "windows for 6 layers"),
    "a layer that is not there": (lambda d, t: d["first_slots"].__setitem__(0, None), "its first_slots is"),
    "values of another type": (
        lambda d, t: t.update({n: x.astype(np.float64) for n, x in t.items()}), "holds float64 and float64, expected"
    ),
    "heads of K that V lacks": (lambda d, t: t.update({"layers.0.k": t["layers.0.k"][:, :1].copy()}), "lacks matching"),
    "a tensor of no layer": (lambda d, t: t.update({"layers.9.k": t["layers.0.k"]}), "tensors of no layer"),
    "another value": (lambda d, t: t["layers.3.v"].__setitem__((0, 0, 3, 5), 1.5), "cannot tell"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "message"), ALTERED.values(), ids=ALTERED)
def test_an_altered_cache_is_refused(saved: Path, change: Any, message: str) -> None:
    """By its digest; with a digest made anew, by what it contradicts."""
    rewrite(saved, change, digest=False)
    with pytest.raises(CacheError, match=f"{saved.name}.*(changed after it was saved|cannot be read)"):
        KVCache.load(saved)
    rewrite(saved, lambda d, t: None, digest=True)
    if message != "cannot tell":  # digests keep nobody out who makes them
        with pytest.raises(CacheError, match=message):
            ours("gemma3_text").prefill([[3], [4]], past_key_values=KVCache.load(saved))


def test_windows_are_the_models(tmp_path: Path) -> None:
    """Of an untrimmed cache, whose data fit any window."""
    gemma, path = ours("gemma3_text"), tmp_path / "cache"
    gemma.prefill(build("gemma3_text").ids(12)).past_key_values.save(path)
    rewrite(path, windows_of(4), digest=True)
    cache = KVCache.load(path)
    before = state(cache)
    with pytest.raises(CacheError, match=r"past_key_values has the windows .*4.*, the model .*8"):
        gemma.prefill([3], past_key_values=cache)
    assert state(cache) == before


def test_a_saved_cache_is_the_same_again(saved: Path) -> None:
    cache = KVCache.load(saved)
    again = saved.with_name("again")
    cache.save(again)
    same = state(KVCache.load(again)) | {"memory": 0}
    assert same == state(cache) | {"memory": 0} and cache.ends.tolist() == [12, 12] and cache.starts.tolist() == [0, 2]


def test_what_is_no_file_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", tmp_path, tmp_path / "absent"):
        with pytest.raises(CacheError, match=f"{path.name}: it is no file"):
            KVCache.load(path)
