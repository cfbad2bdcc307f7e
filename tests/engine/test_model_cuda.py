"""Whole models on the CUDA device, on a fake GPU: the bits of the emulator, launched one by one and as graphs."""

from __future__ import annotations

import gc
import importlib
import json
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from gemma_cuda.cli import main
from gemma_cuda.device.cuda.device import Cuda
from gemma_cuda.device.emulator.device import Emulator
from gemma_cuda.errors import CacheError, DeviceError, InputError, OutOfMemoryError
from tests.support.compare import assert_within_rule
from tests.support.fake_cublaslt import CublasLt
from tests.support.fake_cuda import Machine
from tests.support.hf_models import build
from tests.support.kernel_models import (
    GRAPHS,
    MODELS,
    SIZE,
    assert_same_bits,
    emulator_model,
    load,
    numpy_model,
    prompt,
    text,
)


@pytest.fixture
def machine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A GPU that checks what kernels do, but where a test says unchecked."""
    machine = Machine(Emulator(checked=getattr(request, "param", "checked") != "unchecked"))
    machine.install(monkeypatch)
    return machine


# For what takes long and launches nothing that other tests do not.
unchecked = pytest.mark.parametrize("machine", ["unchecked"], indirect=True)


@pytest.mark.parametrize("name", MODELS)
def test_models_give_the_bits_of_the_emulator(name: str, machine: Machine) -> None:
    gpu, emulator = load(name, Cuda(), gemm="kernel"), emulator_model(name)
    assert_same_bits(gpu, gpu.prefill(**prompt(name)), emulator.prefill(**prompt(name)))
    assert gpu.fingerprint == emulator.fingerprint
    gpu.warmup(**GRAPHS)
    launched = len(machine.launched)
    y = gpu.prefill(**text(name))
    assert machine.graphs_launched == 1 and len(machine.launched) == launched
    assert_same_bits(gpu, y, emulator.prefill(**text(name)))
    embeds = {**text(name), "input_ids": None, "inputs_embeds": 1.5 * emulator.embed(text(name)["input_ids"])}
    y = gpu.prefill(**embeds)
    assert machine.graphs_launched == 2 and len(machine.launched) == launched
    assert_same_bits(gpu, y, emulator.prefill(**embeds))


def test_launches_one_by_one_give_the_bits_of_a_graph(machine: Machine) -> None:
    gpu = load("gemma3_text", Cuda(), gemm="kernel")
    gpu.warmup(**GRAPHS, graphs=False)
    ids = build("gemma3_text", SIZE).ids()
    assert_same_bits(gpu, gpu.prefill(ids), emulator_model("gemma3_text").prefill(ids))
    assert machine.graphs_launched == 0


def test_chunks_rows_and_decoding_share_the_graphs(machine: Machine) -> None:
    gpu, emulator = load("gemma2", Cuda(), gemm="kernel"), emulator_model("gemma2")
    gpu.warmup(**GRAPHS)
    ids = build("gemma2", SIZE).ids()[0].tolist()
    embeds = np.stack([emulator.embed(ids[:70]), emulator.embed(ids[20:90])])
    rows = {"inputs_embeds": embeds, "attention_mask": np.arange(70) >= [[0], [20]]}
    ours, theirs = gpu.prefill(**rows), emulator.prefill(**rows)
    assert_same_bits(gpu, ours, theirs)
    for chunk in ([ids[70:90], ids[50:101]], [[5], [7]], [[9], [3]]):
        past = {"past_key_values": ours.past_key_values}, {"past_key_values": theirs.past_key_values}
        ours, theirs = gpu.prefill(chunk, **past[0]), emulator.prefill(chunk, **past[1])
        assert_same_bits(gpu, ours, theirs)
    assert machine.graphs_launched == 4


@unchecked
def test_a_graph_splits_few_queries_over_many_keys(machine: Machine) -> None:
    gpu, emulator = load("gemma2", Cuda(), gemm="kernel"), emulator_model("gemma2")
    report = gpu.warmup(lengths=(1, 1200), kv_capacity=1300)
    assert [bucket.launches_per_layer for bucket in report] == [9, 9]  # a merge of the parts among them
    ids = np.random.default_rng(0).integers(3, 150, 1202).tolist()
    ours, theirs = gpu.prefill(ids[:1200]), emulator.prefill(ids[:1200])
    for token in ids[1200:]:
        assert_same_bits(gpu, ours, theirs)
        ours = gpu.prefill([token], past_key_values=ours.past_key_values)
        theirs = emulator.prefill([token], past_key_values=theirs.past_key_values)
    assert_same_bits(gpu, ours, theirs)
    assert machine.graphs_launched == 3


def test_a_bidirectional_text_has_no_second_chunk(machine: Machine) -> None:
    gpu, emulator = load("embedding_gemma", Cuda(), gemm="kernel"), emulator_model("embedding_gemma")
    gpu.warmup(**GRAPHS)
    ids = build("embedding_gemma", SIZE).ids()[0].tolist()
    y = gpu.prefill(ids)
    assert_same_bits(gpu, y, emulator.prefill(ids))
    assert machine.graphs_launched == 1
    with pytest.raises(CacheError, match="in a bidirectional model earlier tokens see later ones"):
        gpu.prefill(ids[:3], past_key_values=y.past_key_values)


def test_auto_takes_numpy_for_a_dtype_that_kernels_lack(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gemma_cuda.engine.backend.choose_device", lambda name: pytest.fail("nobody looks for a GPU"))
    model = load("gemma3_text", "auto", dtype="float32")
    assert (model.device, model.device_reason) == ("numpy", "kernels do not compute in float32")


def test_what_fits_no_graph_runs_launch_by_launch(machine: Machine) -> None:
    gpu, emulator = load("gemma3_text", Cuda(), gemm="kernel"), emulator_model("gemma3_text")
    gpu.warmup(lengths=(32,), kv_capacity=40, kv_rows=2)
    ids = build("gemma3_text", SIZE).ids()[0].tolist()
    first, second = gpu.prefill(ids[:30]), gpu.prefill(ids[:20])
    assert machine.graphs_launched == 2
    third = gpu.prefill(ids[:10])  # both caches are in use
    longer = gpu.prefill(ids[:33])
    assert machine.graphs_launched == 2
    assert_same_bits(gpu, third, emulator.prefill(ids[:10]))
    assert_same_bits(gpu, longer, emulator.prefill(ids[:33]))
    # A cache that outgrows its place in the pool moves, and makes room for another.
    grown = gpu.prefill(ids[30:45], past_key_values=first.past_key_values)
    whole = emulator.prefill(ids[30:45], past_key_values=emulator.prefill(ids[:30]).past_key_values)
    assert_same_bits(gpu, grown, whole)
    assert_same_bits(gpu, gpu.prefill(ids[:10]), emulator.prefill(ids[:10]))
    assert machine.graphs_launched == 3
    assert_same_bits(gpu, second, emulator.prefill(ids[:20]))


def test_positions_beyond_the_tables_run_launch_by_launch(machine: Machine) -> None:
    gpu, emulator = load("gemma3_text", Cuda(), gemm="kernel"), emulator_model("gemma3_text")
    gpu.warmup(lengths=(16,))
    ids = build("gemma3_text", SIZE).ids()[0, :9].tolist()
    for start, graphs in ((1000, 1), (1020, 1)):
        positions = np.arange(start, start + 9)
        y, expected = (model.prefill(ids, position_ids=positions) for model in (gpu, emulator))
        assert_same_bits(gpu, y, expected)
        assert machine.graphs_launched == graphs


def test_many_prefills_may_wait_in_the_stream(machine: Machine) -> None:
    gpu, emulator = load("gemma3_text", Cuda(), gemm="kernel"), emulator_model("gemma3_text")
    gpu.warmup(lengths=(16,), kv_rows=8)
    ids = build("gemma3_text", SIZE).ids()[0].tolist()
    prompts = [ids[i : i + 9 + i] for i in range(6)]
    outputs = [gpu.prefill(p) for p in prompts]
    for p, y in zip(prompts, outputs, strict=True):
        assert_same_bits(gpu, y, emulator.prefill(p))


def test_a_replay_waits_for_nothing_and_allocates_its_outputs_only(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    CublasLt(machine).install(monkeypatch)
    cuda = Cuda()
    gpu = load("gemma3_text", cuda)
    gpu.warmup(**GRAPHS)
    ids = build("gemma3_text", SIZE).ids()[0].tolist()
    embeds = np.ones((1, 64, SIZE.hidden_size), ml_dtypes.bfloat16)
    placed = cuda.from_host(embeds)
    gpu.prefill(ids)
    before = machine.allocated, machine.waits, len(machine.modules)
    for given in ({"input_ids": ids[:150]}, {"inputs_embeds": embeds}):
        gpu.prefill(**given)
    assert (machine.allocated, machine.waits, len(machine.modules)) == (before[0] + 4, *before[1:])
    before = machine.allocated, machine.waits
    gpu.prefill(inputs_embeds=placed)
    assert machine.allocated == before[0] + 2
    assert machine.waits <= before[1] + 1  # for the oldest of three blocks of pinned memory


def test_prefills_on_other_streams_wait_for_one_another(machine: Machine) -> None:
    cupy = importlib.import_module("cupy")  # the fake

    emulator = emulator_model("gemma3_text")
    with cupy.cuda.Stream(non_blocking=True):
        gpu = load("gemma3_text", Cuda(), gemm="kernel")
    gpu.warmup(lengths=(16,), kv_capacity=64)
    ids = build("gemma3_text", SIZE).ids()[0].tolist()
    streams = [cupy.cuda.Stream(non_blocking=True) for _ in range(3)]
    outputs = []
    with streams[0]:
        outputs.append(gpu.prefill(ids[:9]))
    with streams[1]:
        outputs.append(gpu.prefill(ids[9:20], past_key_values=outputs[0].past_key_values))
    with streams[2]:  # by no graph
        outputs.append(gpu.prefill(ids[20:50], past_key_values=outputs[0].past_key_values, logits_to_keep=2))
    with streams[0]:
        outputs.append(gpu.prefill(ids[50:51], past_key_values=outputs[0].past_key_values))
        last = gpu.to_host(outputs[-1].logits)
    assert machine.graphs_launched == 3
    cache = None
    for y, chunk in zip(outputs, (ids[:9], ids[9:20], ids[20:50], ids[50:51]), strict=True):
        expected = emulator.prefill(chunk, past_key_values=cache, logits_to_keep=y.logits.shape[1])
        cache = expected.past_key_values
        assert gpu.to_host(y.logits).tobytes() == expected.logits.tobytes()
    assert last.tobytes() == expected.logits.tobytes()


def test_memory_that_a_prefill_on_another_stream_gives_up_waits_for_it(machine: Machine) -> None:
    """A stream's memory is used again in its own order, so what another stream still reads must not be freed."""
    cupy = importlib.import_module("cupy")  # the fake
    gpu, emulator = load("gemma3_text", Cuda(), gemm="kernel"), emulator_model("gemma3_text")
    ids = build("gemma3_text", SIZE).ids()[0].tolist()
    first, second = (cupy.cuda.Stream(non_blocking=True) for _ in range(2))
    with first:
        y, expected = gpu.prefill(ids[:9]), emulator.prefill(ids[:9])
    with second:
        for begin, end in ((9, 80), (80, 149)):  # the cache grows each time
            y = gpu.prefill(ids[begin:end], past_key_values=y.past_key_values)
            expected = emulator.prefill(ids[begin:end], past_key_values=expected.past_key_values)
        far = {"input_ids": ids[:3], "position_ids": np.arange(1100, 1103)}  # and the rotary tables
        z, expected_z = gpu.prefill(**far), emulator.prefill(**far)
        y.past_key_values.trim_sliding()
        expected.past_key_values.trim_sliding()
        assert_same_bits(gpu, z, expected_z)
        assert_same_bits(gpu, y, expected)
    gpu.prefill(ids[:5])
    gpu.to_host(gpu.prefill(ids[:5]).logits)
    assert not gpu._engine.ops.memory._retired  # type: ignore[union-attr]


@pytest.mark.parametrize("graphs", [True, False])
def test_warmup_again_waits_for_what_uses_the_old_memory(machine: Machine, graphs: bool) -> None:
    cupy = importlib.import_module("cupy")  # the fake
    gpu = load("gemma3_text", Cuda(), gemm="kernel")
    ids = build("gemma3_text", SIZE).ids()[0].tolist()
    gpu.warmup(lengths=(16,), kv_capacity=64, graphs=graphs)
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        y = gpu.prefill(ids[:9])
    gpu.warmup(lengths=(16,), kv_capacity=32, graphs=graphs)
    with stream:
        assert_same_bits(gpu, y, emulator_model("gemma3_text").prefill(ids[:9]))


def test_a_model_that_is_dropped_waits_for_its_last_use(machine: Machine) -> None:
    cupy = importlib.import_module("cupy")  # the fake
    models = [load("gemma3_text", Cuda(), gemm="kernel")]
    ids = build("gemma3_text", SIZE).ids()[0].tolist()
    models[0].warmup(lengths=(16,), kv_capacity=64)
    with cupy.cuda.Stream(non_blocking=True):
        logits = models[0].prefill(ids[:9]).logits
        models.clear()
        gc.collect()
        expected = emulator_model("gemma3_text").prefill(ids[:9]).logits
        assert logits.get().tobytes() == expected.tobytes()


def test_products_by_the_library_obey_the_rule(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    CublasLt(machine).install(monkeypatch)
    gpu = load("gemma3_text", Cuda())
    report = gpu.warmup(**GRAPHS)
    assert [bucket.tokens for bucket in report] == [2, 64, 160] and [b.shortest for b in report] == [1, 3, 65]
    layers = gpu.config.num_hidden_layers
    ends = 3  # embedding, first norm, head
    assert [b.launches_per_layer for b in report] == [8, 8, 9]  # GeGLU is part of a product of few rows
    assert all(b.launches <= b.launches_per_layer * layers + 4 + ends <= 10 * layers for b in report)
    ids = build("gemma3_text", SIZE).ids()
    r, b = (numpy_model("gemma3_text", dtype).prefill(ids) for dtype in ("float64", "bfloat16"))
    one_by_one = load("gemma3_text", Cuda())
    one_by_one.warmup(**GRAPHS, graphs=False)
    logits = [model.to_host(model.prefill(ids).logits) for model in (gpu, one_by_one)]
    assert logits[0].tobytes() == logits[1].tobytes()  # two models on one GPU
    assert_within_rule(logits[0], r.logits, b.logits, dtype="bfloat16")


def test_everything_else_a_prefill_can_do(machine: Machine) -> None:
    gpu, emulator = load("gemma3_text", Cuda(), gemm="kernel"), emulator_model("gemma3_text")
    ids = build("gemma3_text", SIZE).ids()[0].tolist()
    assert gpu.score(ids[:20]).tobytes() == emulator.score(ids[:20]).tobytes()
    y, expected = (
        model.prefill([ids[:5], ids[:9]], logits_to_keep=0, output_hidden_states=True) for model in (gpu, emulator)
    )
    assert_same_bits(gpu, y, expected)
    for ours, theirs in zip(y.hidden_states, expected.hidden_states, strict=True):
        assert ours.tobytes() == theirs.tobytes()
    embeds = gpu.embed(ids[:12])
    bias = np.where(np.tri(12), 0, -np.inf)[None, None]
    y, expected = (model.prefill(inputs_embeds=embeds, attn_bias=bias) for model in (gpu, emulator))
    assert_same_bits(gpu, y, expected)
    branches = []
    for model in (gpu, emulator):
        cache = model.prefill(ids[:40]).past_key_values
        cache.crop(30)
        branches.append(model.prefill(ids[30:60], past_key_values=cache.copy(), trim_sliding=True))
        assert cache.seq_length == 30
    assert_same_bits(gpu, *branches)


def test_the_command_prefills_by_a_graph(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    CublasLt(machine).install(monkeypatch)
    ids = build("gemma3_text", SIZE).ids()[0, :20].tolist()
    words = [
        "prefill",
        "--model",
        str(build("gemma3_text", SIZE).path),
        "--input-ids",
        ",".join(map(str, ids)),
        "--json",
    ]
    tops = []
    for device in ("cuda:0", "emulator"):
        assert main([*words, "--device", device]) == 0
        report = json.loads(capsys.readouterr().out)
        assert report["device"] == device and report["dtype"] == "bfloat16"
        tops.append([row["id"] for row in report["top"]][:2])
    assert machine.graphs_launched == 1 and tops[0] == tops[1]


@unchecked
@pytest.mark.slow
@pytest.mark.real_weights
def test_the_command_decodes_by_graphs(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    CublasLt(machine).install(monkeypatch)
    texts = []
    for device in ("cuda", "numpy"):
        words = ["generate", "--prompt", "The capital of France is", "--max-new-tokens", "2", "--device", device]
        assert main(words) == 0
        texts.append(capsys.readouterr().out)
    assert machine.graphs_launched == 2 and texts[0] == texts[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lengths": ()}, r"lengths is \(\), expected numbers of tokens"),
        ({"lengths": (0, 16)}, r"lengths is \(0, 16\), expected"),
        ({"batch_size": 0}, "batch_size is 0, expected an integer of at least 1"),
        ({"lengths": (16,), "batch_size": 3}, "batch_size 3 is more than kv_rows 2"),
        ({"lengths": (16,), "kv_capacity": 15}, "kv_capacity 15 is less than the longest of lengths, 16"),
    ],
)
def test_warmup_refuses(machine: Machine, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load("gemma3_text", Cuda(), gemm="kernel").warmup(**options)


def test_warmup_without_room_or_without_a_gpu(machine: Machine) -> None:
    gpu = load("gemma3_text", Cuda(), gemm="kernel")
    with pytest.raises(
        OutOfMemoryError, match=r"KV caches of 100 x 1000000 tokens and the activations: needs [\d.]+ GB, "
    ):
        gpu.warmup(lengths=(16,), kv_rows=100, kv_capacity=1_000_000)
    assert gpu.prefill([2, 5]).logits.shape == (1, 1, gpu.config.vocab_size)  # the model is as usable as before
    with pytest.raises(DeviceError, match="warmup: there is nothing to prepare on device 'emulator'"):
        emulator_model("gemma3_text").warmup()


def test_a_graph_keeps_the_tables_that_a_longer_prompt_replaces(machine: Machine) -> None:
    gpu, emulator = load("gemma3_text", Cuda(), gemm="kernel"), emulator_model("gemma3_text")
    gpu.warmup(lengths=(8,), kv_capacity=64)
    ids = build("gemma3_text", SIZE).ids()[0].tolist()
    far = {"input_ids": ids[:3], "position_ids": np.arange(1100, 1103)}
    assert_same_bits(gpu, gpu.prefill(**far), emulator.prefill(**far))
    assert machine.graphs_launched == 0
    assert_same_bits(gpu, gpu.prefill(ids[:5]), emulator.prefill(ids[:5]))
    assert machine.graphs_launched == 1


@pytest.mark.parametrize(("kept", "uploads"), [(0, [1, 0]), (1, [1, 1])])
def test_a_bias_is_uploaded_once(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, kept: int, uploads: list[int]
) -> None:
    gpu, emulator = load("gemma2", Cuda(), gemm="kernel"), emulator_model("gemma2")
    ids = build("gemma2", SIZE).ids()[0, :12].tolist()
    bias = np.where(np.tri(12), 0.25, -np.inf)[None, None].repeat(gpu.config.num_attention_heads, axis=1)
    sizes: list[int] = []
    from_host = Cuda.from_host
    monkeypatch.setattr(Cuda, "from_host", lambda cuda, array: sizes.append(array.size) or from_host(cuda, array))
    # A list is no array: what it becomes is one array for all layers, too.
    y, expected = (model.prefill(ids, attn_bias=bias.tolist(), logits_to_keep=kept) for model in (gpu, emulator))
    assert gpu.config.num_hidden_layers == 7
    assert [sizes.count(bias.size), sizes.count(bias.size // 12)] == uploads  # of all rows, of the last
    assert_same_bits(gpu, y, expected)
