"""A call that fails or is refused leaves a cache as it was, and a cache has one user at a time."""

from __future__ import annotations

import copy
import functools
import pickle
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gemma_cuda
from gemma_cuda import KVCache
from gemma_cuda.device.cuda.device import Cuda
from gemma_cuda.device.emulator.device import Emulator
from gemma_cuda.errors import CacheError, InputError, OutOfMemoryError
from gemma_cuda.model.kv_storage import HostMemory
from tests.support.cache_state import state
from tests.support.fake_cuda import Machine
from tests.support.hf_models import build
from tests.support.kernel_models import SIZE, load
from tests.support.parity import ours

IDS = build("gemma3_text").ids(30)[0].tolist()


@pytest.fixture(params=["numpy", "emulator", "cuda", "graphs"])
def gemma(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> gemma_cuda.Gemma:
    """gemma3_text on every backend; with graphs caches lie in a pool."""
    if request.param == "numpy":
        return gemma_cuda.Gemma.from_pretrained(build("gemma3_text").path, device="numpy")
    if request.param == "emulator":
        return load("gemma3_text", Emulator())
    Machine(Emulator()).install(monkeypatch)
    model = load("gemma3_text", Cuda(), gemm="kernel")
    if request.param == "graphs":
        model.warmup(lengths=(16,), batch_size=2, kv_rows=5, kv_capacity=16)
    return model


def ragged(model: gemma_cuda.Gemma) -> KVCache:
    """The cache of rows of 9 and 4 tokens: slots that are not a token's can be seen in it."""
    return model.prefill([IDS[:9], IDS[:4]]).past_key_values


@contextmanager
def unchanged(cache: KVCache, error: type[BaseException], match: str | None = None) -> Iterator[None]:
    before = state(cache)
    assert not before["rest"]
    with pytest.raises(error, match=match):
        yield
    assert state(cache) == before


def stopping_at(call: int, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, whose call number `call` is interrupted when its work is done."""
    calls = iter(range(10**9))

    def stop(*args: Any, **options: Any) -> Any:
        result = function(*args, **options)
        if next(calls) == call:
            raise KeyboardInterrupt
        return result

    return stop


def test_an_interrupt_anywhere_leaves_the_cache(gemma: gemma_cuda.Gemma, monkeypatch: pytest.MonkeyPatch) -> None:
    """On NumPy in every layer after every op that writes; on kernels, whose storage is undone alike, in some."""
    cache, rows = ragged(gemma), [IDS[9:18], IDS[4:10]]  # 18 slots: more than a row of the pool has
    expected = gemma.to_host(gemma.prefill(rows, past_key_values=cache.copy()).logits)
    is_numpy = gemma.device == "numpy"
    for op in ("qk_norm_rope", "add_norm", "attend", "linear") if is_numpy else ("qk_norm_rope", "linear"):
        real = getattr(gemma._engine.ops, op)
        for call in range(7) if is_numpy else (1,):
            with monkeypatch.context() as patch, unchanged(cache, KeyboardInterrupt):
                patch.setattr(gemma._engine.ops, op, stopping_at(call, real))
                gemma.prefill(rows, past_key_values=cache)
    assert np.array_equal(gemma.to_host(gemma.prefill(rows, past_key_values=cache).logits), expected)


@pytest.mark.parametrize("gemma", ["graphs"], indirect=True)
@pytest.mark.parametrize("rows", [[[5, 7, 9]], [[5, 7], [9]]])
@pytest.mark.parametrize("step", ["launch_graph", "empty"])
def test_an_interrupted_replay_leaves_the_cache(
    gemma: gemma_cuda.Gemma, monkeypatch: pytest.MonkeyPatch, rows: list[list[int]], step: str
) -> None:
    device: Any = gemma._engine.ops.memory
    cache = gemma.prefill([IDS[:9], IDS[:4]][: len(rows)]).past_key_values
    given: Any = rows if len(rows) > 1 else rows[0]
    assert cache.lease is not None
    expected = gemma.to_host(gemma.prefill(given, past_key_values=cache.copy()).logits)
    with monkeypatch.context() as patch, unchanged(cache, KeyboardInterrupt):
        patch.setattr(device, step, stopping_at(0, getattr(device, step)))
        gemma.prefill(given, past_key_values=cache)
    assert np.array_equal(gemma.to_host(gemma.prefill(given, past_key_values=cache).logits), expected)


def test_a_hook_that_fails_leaves_the_cache(gemma: gemma_cuda.Gemma) -> None:
    cache, layers = ragged(gemma), gemma.config.num_hidden_layers
    rows = [IDS[9:12], IDS[4:10]]

    def stop(at: int, layer: int, x: Any) -> None:
        if layer == at:
            raise KeyboardInterrupt

    for at in range(layers) if gemma.device == "numpy" else (1,):
        with unchanged(cache, KeyboardInterrupt):
            gemma.prefill(rows, past_key_values=cache, layer_hook=functools.partial(stop, at))
    with unchanged(cache, InputError, match="layer_hook returned"):
        gemma.prefill(rows, past_key_values=cache, layer_hook=lambda layer, x: x[:, :1])
    wrong: list[dict[str, Any]] = [
        {"logits_to_keep": -1},
        {"attention_mask": [[1] * 6, [1, 0, 1, 1, 1, 1]]},
        {"position_ids": [-1]},
    ]
    for arguments in wrong:
        with unchanged(cache, InputError):
            gemma.prefill(rows, past_key_values=cache, **arguments)


def test_what_cannot_be_cropped_or_reserved_leaves_the_cache(gemma: gemma_cuda.Gemma) -> None:
    cache = ragged(gemma)
    for length in (1.5, float("nan"), "3", None, True, [3], np.float32(2), 10, -10):
        with unchanged(cache, CacheError, match="crop: length"):
            cache.crop(length)  # type: ignore[arg-type]
    for slots in (1.5, float("nan"), None, True, -1, 2**31):
        with unchanged(cache, CacheError, match="reserve: slots"):
            cache.reserve(slots)  # type: ignore[arg-type]
    cache.crop(np.int64(5))  # type: ignore[arg-type]
    assert cache.ends.tolist() == [5, 4]


@pytest.mark.parametrize("use", ["reserve", "prefill"])
def test_memory_that_runs_out_leaves_the_cache(
    gemma: gemma_cuda.Gemma, monkeypatch: pytest.MonkeyPatch, use: str
) -> None:
    """In the midst of `reserve`, by itself or in a prefill; a pooled cache is in its pool with all layers, or none."""
    cache = ragged(gemma)
    for allocation in (0, 1, 5, 13):
        calls, real = iter(range(10**9)), cache.memory.zeros

        def zeros(*arguments: Any, left: Any = calls, at: int = allocation, real: Any = real) -> Any:
            if next(left) == at:
                raise MemoryError("no more")
            return real(*arguments)

        shapes = [None if s is None else s.k.shape for s in cache.layers]
        with monkeypatch.context() as patch, unchanged(cache, MemoryError, match="no more"):
            patch.setattr(cache.memory, "zeros", zeros)
            cache.reserve(100) if use == "reserve" else gemma.prefill([IDS, IDS[:9]], past_key_values=cache)
        if cache.lease is not None:
            assert [None if s is None else s.k.shape for s in cache.layers] == shapes
        cache = ragged(gemma) if cache.lease is None else cache


def test_more_than_there_is_is_out_of_memory() -> None:
    cache = ragged(ours("gemma3_text"))
    with unchanged(cache, OutOfMemoryError, match="a KV cache of"):
        cache.reserve(2**31 - 1)


def test_a_loaded_cache_stays_where_it_is(gemma: gemma_cuda.Gemma, tmp_path: Path) -> None:
    ragged(gemma).save(tmp_path / "cache")
    cache = KVCache.load(tmp_path / "cache")
    assert isinstance(cache.memory, HostMemory)
    with unchanged(cache, InputError, match="layer_hook"):
        gemma.prefill([IDS[9:12], IDS[4:10]], past_key_values=cache, layer_hook=lambda layer, x: np.zeros(3))
    again = gemma.prefill([IDS[9:12], IDS[4:10]], past_key_values=cache).logits
    assert np.isfinite(gemma.to_host(again)).all()


def test_a_trimmed_cache_is_not_a_prepared_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its full layers left the pool with the others, whose rows the next prompt takes."""
    Machine(Emulator()).install(monkeypatch)
    model = load("gemma3_text", Cuda(), gemm="kernel")
    model.warmup(lengths=(64,), kv_rows=1)
    ids = build("gemma3_text", SIZE).ids()[0].tolist()
    cache = model.prefill(ids[:60], trim_sliding=True).past_key_values
    before = state(cache)
    model.prefill(ids[60:120])
    assert state(cache) == before


class _Held:
    """A prefill of another thread that has got to its first layer, and waits there until the block ends."""

    def __init__(self, model: gemma_cuda.Gemma, cache: KVCache) -> None:
        self._reached, self._go_on = threading.Event(), threading.Event()
        self.logits: Any = None

        def run() -> None:
            self.logits = model.prefill([IDS[9:12], IDS[4:7]], past_key_values=cache, layer_hook=self._hook).logits

        self._thread = threading.Thread(target=run)

    def _hook(self, layer: int, x: Any) -> None:
        self._reached.set()
        assert self._go_on.wait(60)

    def __enter__(self) -> None:
        self._thread.start()
        assert self._reached.wait(60)

    def __exit__(self, *error: object) -> None:
        self._go_on.set()
        self._thread.join()


def test_a_second_user_is_refused(tmp_path: Path) -> None:
    model = ours("gemma3_text")
    cache = ragged(model)
    rows = [IDS[9:12], IDS[4:7]]  # a hook makes of one kept row of the last layer a product of all
    expected = model.prefill(rows, past_key_values=cache.copy(), layer_hook=lambda layer, x: None).logits
    uses: list[Callable[[], Any]] = [
        lambda: model.prefill([[5], [6]], past_key_values=cache), lambda: cache.crop(3), lambda: cache.reserve(50),
        lambda: cache.save(tmp_path / "cache"), cache.copy, cache.trim_sliding, cache.to_transformers,
    ]  # fmt: skip
    held = _Held(model, cache)
    with held:
        for use in uses:
            with pytest.raises(CacheError, match="in use by another call"):
                use()
    assert not list(tmp_path.iterdir())
    assert cache.ends.tolist() == [12, 7] and np.array_equal(held.logits, expected)
    cache.crop(9)  # nobody has it now


def test_a_hook_is_a_second_user() -> None:
    cache = ragged(ours("gemma3_text"))
    with unchanged(cache, CacheError, match="in use by another call"):
        ours("gemma3_text").prefill([[5], [6]], past_key_values=cache, layer_hook=lambda layer, x: cache.crop(2))
    cache.crop(2)


def test_many_threads_over_one_cache_give_one_continuation() -> None:
    """All but the first that comes are refused, or come after it: nothing of two calls is mixed."""
    model = ours("gemma3_text")
    cache = model.prefill(IDS[:9]).past_key_values
    refused: list[bool] = []

    def go_on() -> None:
        try:
            model.prefill(IDS[9:12], past_key_values=cache)
            refused.append(False)
        except CacheError:
            refused.append(True)

    threads = [threading.Thread(target=go_on) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    done = refused.count(False)
    assert done >= 1 and len(refused) == 8 and cache.seq_length == 9 + 3 * done
    alone = model.prefill(IDS[:9]).past_key_values
    for _ in range(done):
        model.prefill(IDS[9:12], past_key_values=alone)
    assert state(cache)["bytes"] == state(alone)["bytes"]


def test_caches_are_copied_and_pickled_as_before() -> None:
    cache = ragged(ours("gemma3_text"))
    for other in (copy.deepcopy(cache), pickle.loads(pickle.dumps(cache))):
        assert state(other)["bytes"] == state(cache)["bytes"]
        with cache.in_use():
            other.crop(3)
    with cache.in_use(), pytest.raises(CacheError, match="in use"):
        copy.copy(cache).crop(3)  # the same arrays
