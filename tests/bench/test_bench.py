"""gemma-cuda bench on a fake GPU and on the emulator: what is right is timed or counted, what is wrong is marked."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gemma_cuda.bench import OPS, PEERS, cases, counted, peers, prefill, run, sass, tables
from gemma_cuda.bench.measure import Ceilings, Recording, noise
from gemma_cuda.bench.timing import Timing
from gemma_cuda.bench.transformers_peers import Peers
from gemma_cuda.cli import main
from gemma_cuda.device.cuda import nvrtc
from gemma_cuda.device.cuda.compile import SHARED_BYTES
from gemma_cuda.device.cuda.device import Cuda
from gemma_cuda.device.dry_run import DryRunDevice
from gemma_cuda.device.emulator.device import Emulator
from gemma_cuda.errors import DeviceError, InputError
from gemma_cuda.formats.gemma_config import GemmaConfig
from gemma_cuda.ops.instances import published
from tests.support import fake_gpu

SMALL = "gemma-3-270m"
FIELDS = {
    "model_type": "gemma3_text", "num_hidden_layers": 3, "hidden_size": 64, "intermediate_size": 96, "vocab_size": 80,
    "head_dim": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": 4,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}  # fmt: skip


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    return fake_gpu.for_bench(monkeypatch)


def test_every_op_is_right_and_timed(cuda: Cuda) -> None:
    chosen = [
        *cases.chosen(OPS, [SMALL], [1]),
        *cases.chosen(["softcap"], ["gemma-2-2b"], [1]),
        *cases.chosen(["attention", "qk_norm_rope"], ["gemma-2-2b"], [7]),
    ]
    result = run.run(cuda, chosen, PEERS, is_rehearsal=True)
    assert {row["op"] for row in result["rows"]} == set(OPS) and result["left_out"] == 0
    for row in result["rows"]:
        assert row["wrong"] is None, row
        assert 0 < row["low_us"] <= row["median_us"] <= row["high_us"] and row["sets"] >= 2
        assert (row["op"] == "linear") == ("cublas" in row["peers"])
    assert set(result["absent"]) == set(PEERS) - {"cublas"}
    assert result["absent"]["torch"] == "torch sees no GPU"


@pytest.mark.parametrize("op", ["geglu", "linear", "attention", "add_norm"])
def test_a_wrong_output_is_marked_and_has_no_time(op: str, cuda: Cuda) -> None:
    (case, *_) = cases.chosen([op], [SMALL], [3])

    def nothing_written(device: Any, given: Any) -> Any:
        y = case.run(DryRunDevice(device.shared_bytes), given)
        return device.empty(y.shape, y.dtype)

    other = case.make(cuda, 77)

    def of_other_inputs(device: Any, given: Any) -> Any:
        return case.run(device, other)

    for wrong in (nothing_written, of_other_inputs):
        (row,) = run.run(cuda, [replace(case, run=wrong)], [], is_rehearsal=True)["rows"]
        assert row["wrong"] is not None and "median_us" not in row
        assert "WRONG" in tables.timed_line(row)


def test_a_recording_has_outputs_of_its_own_and_poisons_them(cuda: Cuda) -> None:
    (case,) = cases.chosen(["geglu"], [SMALL], [2])
    sets = [case.make(cuda, seed) for seed in (0, 10)]
    recording = Recording(cuda, [lambda device, given=given: case.run(device, given) for given in sets])
    recording.poison()
    assert all(np.isnan(cuda.to_host(y).astype(np.float32)).all() for y in recording.outputs)
    recording.replay()
    assert all(case.check(cuda, given, y) is None for given, y in zip(sets, recording.outputs, strict=True))
    assert case.check(cuda, sets[0], recording.outputs[1]) is not None


def test_figures_are_rates_and_shares_of_the_floor() -> None:
    (case,) = [case for case in cases.chosen(["linear"], [SMALL], [128]) if case.shape.startswith("down")]
    timing, top = Timing(100.0, 90.0, 120.0, 9), Ceilings(2e12, 4e14, "a library")
    figures = run.figures(case, timing, top)
    assert case.flops == 2 * 128 * 640 * 2048 and case.bytes == 2 * (128 * 2048 + 640 * 2048 + 128 * 640)
    assert figures["tflops"] == pytest.approx(case.flops / 1e-4 / 1e12)
    floor = max(case.bytes / 2e12, case.flops / 4e14)
    assert figures["floor_us"] == pytest.approx(1e6 * floor) and figures["share"] == pytest.approx(floor / 1e-4)
    assert run.figures(case, timing, Ceilings(2e12, None, None))["share"] is None


def test_the_shapes_of_flash_attention_3() -> None:
    found = cases.chosen(["attention"], [cases.FA3], [])
    assert len(found) == 2 * 2 * 6
    for case in found:
        p = case.params
        assert p["batch"] * p["tokens"] == 16384 and p["heads"] * p["head_dim"] == 2048
        share = 0.5 + 0.5 / p["tokens"] if p["causal"] else 1.0
        assert case.flops == 4 * p["batch"] * p["heads"] * p["head_dim"] * p["tokens"] ** 2 * share


def test_no_case_is_timed_twice() -> None:
    names = [(case.op, case.model, case.shape) for case in cases.default()]
    assert len(names) == len(set(names)) and names[0][:2] == ("attention", "gemma-2-2b")


def test_a_row_says_whether_the_cache_may_hold_its_inputs(cuda: Cuda, monkeypatch: pytest.MonkeyPatch) -> None:
    (case,) = cases.chosen(["geglu"], [SMALL], [1])
    for cache_bytes, is_held in ((case.bytes // 2, False), (100 * case.bytes, True)):
        monkeypatch.setattr(cuda, "cache_bytes", cache_bytes)
        (row,) = run.run(cuda, [case], [], is_rehearsal=True)["rows"]
        assert row["cache_holds_inputs"] == is_held
        assert ("(inputs in L2)" in tables.timed_line(row)) == is_held


def test_noise_is_random_and_reaches_every_element(cuda: Cuda) -> None:
    for device in (cuda, Emulator()):
        x = np.asarray(device.to_host(noise(device, 1, ((1 << 22) + 5,), scale=2.0))).astype(np.float32)
        assert np.isfinite(x).all() and abs(x.std() - 2) < 0.01 and abs(x.mean()) < 0.01


@pytest.mark.parametrize("op", ["rms_norm", "geglu", "linear", "top_k", "attention"])
def test_torch_does_what_we_do(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(
        peers, "_normal", lambda torch, *shape, dtype="bfloat16": torch.randn(*shape, dtype=getattr(torch, dtype))
    )
    case = cases.chosen([op], [SMALL], [1])[-1]  # of attention the global layer
    call = peers.torch_call("torch", case)
    assert call is not None
    result = call()
    y = result[0] if op == "top_k" else result
    assert isinstance(y, torch.Tensor) and y.nbytes == (256 if op == "top_k" else case.written_bytes)


def test_counts_on_the_emulator() -> None:
    (row, *_) = [counted.count(case) for case in cases.chosen(["geglu", "linear"], [SMALL], [16])]
    assert row["wrong"] is None and row["conflicts"] == 0 and 1 <= row["traffic"] < 1.02 and row["mma"] is None
    assert not any("us" in name or "seconds" in name for name in row)
    (kernel,) = row["kernels"]
    assert kernel["instance"] == row["instances"][0] == "geglu<bf16, 8>" and kernel["architecture"] == "sm_90a"
    assert kernel["registers"] > 0 and kernel["blocks"] > 1 and kernel["sass"]["HMMA"] == 0 == kernel["sass"]["LDL"]
    assert row["estimate"] is None


def test_an_architecture_has_its_own_tiles() -> None:
    """And the estimate is for one architecture."""
    (case, *_) = cases.chosen(["attention"], [SMALL], [20])
    rows = {name: counted.count(case, name) for name in ("sm_80", "sm_90a")}
    assert [row["kernels"][0]["instance"] for row in rows.values()] == [
        "attention<bf16, 256, 128, 64, 1, Plain>", "attention<bf16, 256, 64, 64, 1, Plain>"
    ]  # fmt: skip
    assert all(row["wrong"] is None and row["kernels"][0]["architecture"] == name for name, row in rows.items())
    assert rows["sm_80"]["estimate"] is None and rows["sm_90a"]["estimate"]["gpu"] == "H100 SXM"


@pytest.mark.parametrize(("tool", "kernels"), [("NVRTC", 0), ("nvdisasm", 1)])
def test_a_tool_that_is_missing_is_said_once(
    tool: str, kernels: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def lacks(*arguments: Any) -> str:
        raise DeviceError("pip install it")

    monkeypatch.setattr(*((nvrtc, "version") if tool == "NVRTC" else (sass, "nvdisasm")), lacks)
    written = tmp_path / "counted.json"
    arguments = ["bench", "attention", "--device", "emulator", "--tokens", "1,2", "--json", str(written)]
    assert main(arguments) == 0
    rows = json.loads(written.read_text())["rows"]
    assert [len(row["kernels"]) for row in rows] == [kernels] * 4
    assert not any(row["estimate"] or any("sass" in kernel for kernel in row["kernels"]) for row in rows)
    assert capsys.readouterr().out.count("pip install it") == 1


def test_the_floor_of_a_prefill_counts_what_must_be_done() -> None:
    config = GemmaConfig.from_dict(FIELDS, source="test")
    bytes_moved, operations = prefill.least(config, 10)
    weights = 3 * ((4 + 2 * 2) * 64 * 64 + 64 * 256 + 3 * 96 * 64) + 80 * 64
    assert bytes_moved == 2 * weights + 3 * 2 * 10 * 2 * 2 * 64
    pairs = sum(min(i, 4) for i in range(1, 11)) + sum(range(1, 11)) + 4  # of the last layer the last query's
    own, shared = 2 * 4 * 64 * 64 + 3 * 96 * 64, 2 * 2 * 64 * 64
    assert operations == 2 * ((10 + 10 + 1) * own + 30 * shared + 80 * 64) + 4 * 64 * 4 * pairs


def test_a_random_model_is_timed_by_kernel(cuda: Cuda) -> None:
    (row,) = prefill.rehearse(cuda)["rows"]
    assert row["median_ms"] > 0 and row["launches"] > row["launches_per_layer"] > 5
    assert {"embed", "rms_norm", "qk_norm_rope", "attention"} <= set(row["kernels_ms"])
    assert "×" in tables.prefill_line(row)


@pytest.mark.slow
def test_each_row_of_a_prefill_is_saved_before_the_next_one(cuda: Cuda, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever ends the process has what was measured, and the prompts that no time was left for are named."""
    saved: list[list[int]] = []

    def save(result: Any) -> None:
        saved.append([row["tokens"] for row in result["rows"]])
        if saved[-1] == [3, 5]:
            monkeypatch.setattr(prefill.time, "monotonic", lambda: float("inf"))  # the end

    result: Any = {"gpu": "a GPU", "ceilings": asdict(Ceilings(1e12, None, None)), "rows": [], "left_out": []}
    config = GemmaConfig.from_dict(FIELDS, source="test")
    prefill._model(
        cuda, lambda: prefill.random_gemma(config, cuda), "small", [3, 5, 7], result, lambda: Peers({}, {}), 1e12, save
    )
    assert saved[:2] == [[3], [3, 5]] and saved[-1] == [3, 5]
    assert result["left_out"] == ["small 7"]


def test_the_command_times_and_writes(
    cuda: Cuda, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "ceilings", lambda cuda, **sizes: Ceilings(1e12, 1e14, "a library"))
    json_file, plot = tmp_path / "bench.json", tmp_path / "bench.png"
    arguments = ["bench", "rms_norm", "geglu", "--shapes", SMALL, "--tokens", "1,4", "--vs", "cublas,flashinfer"]
    assert main([*arguments, "--json", str(json_file), "--plot", str(plot)]) == 0
    printed = capsys.readouterr().out
    assert "[4, 640]" in printed and "of the ceiling" in printed and "flashinfer is absent: " in printed
    assert len(json.loads(json_file.read_text())["rows"]) == 4
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_figures_are_written_even_if_they_cannot_be_plotted(
    cuda: Cuda, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "ceilings", lambda cuda, **sizes: Ceilings(1e12, None, None))
    json_file, plot = tmp_path / "bench.json", tmp_path / "bench.png"
    arguments = ["bench", "attention", "--shapes", SMALL, "--tokens", "1"]
    assert main([*arguments, "--json", str(json_file), "--plot", str(plot)]) == 2
    assert "there is no row with a time and a ceiling to plot" in capsys.readouterr().err and not plot.exists()
    assert len(json.loads(json_file.read_text())["rows"]) == 2


def test_the_command_counts_on_the_emulator(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "rms_norm", "--device", "emulator", "--tokens", "2"]) == 0
    printed = capsys.readouterr().out
    assert "memory ×" in printed and " us" not in printed and "TFLOP" not in printed
    assert "registers, 1312 bytes shared, 0 spilled, " in printed and " blocks a multiprocessor" in printed
    assert main(["bench", "attention", "--device", "emulator", "--tokens", "2"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "TFLOP" in line]
    assert len(lines) == 2
    for line in lines:
        assert line.startswith("  estimated ") and line.endswith(" TFLOP/s on an H100 SXM; nobody measured it")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "bench nothing: expected some of rms_norm"),
        (["prefill", "linear"], "or prefill alone"),
        (["prefill"], "expected either --model or --random"),
        (["prefill", "--random", "gemma-9"], "--random gemma-9: expected one of gemma-2b"),
        (["prefill", "--random", "gemma-2-2b", "--vs", "torch"], "--vs is for kernels, not prefill"),
        (["linear", "--arch", "sm_90a"], "--arch is for --device emulator"),
        (["linear", "--no-compiled"], "--no-compiled is for prefill, not kernels"),
        (["--tokens", "0"], "--tokens 0: expected numbers of tokens"),
        (["--vs", "mkl"], "--vs mkl: expected some of cublas"),
        (["--shapes", "x"], "'x' is no published size; there are gemma-2b"),
        (["--device", "emulator", "--vs", "torch"], "--vs and --plot are for times"),
        (["--device", "emulator", "--arch", "sm_70"], "--arch sm_70: expected one of sm_80, "),
    ],
)
def test_the_command_refuses(
    arguments: list[str], message: str, cuda: Cuda, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_every_published_size_has_cases() -> None:
    device = DryRunDevice(SHARED_BYTES["sm_90a"])
    for name, config in published().items():
        found = cases.chosen(OPS, [name], [1])
        assert {case.op for case in found} >= {"linear", "attention", "top_k"}
        for case in found:
            if case.op == "attention":
                case.run(device, case.make(device, 0))
        expected = [f"{name}: attention has no kernel for head_dim 512"] if config.generation == 4 else []
        assert cases.without_kernels(OPS, [name]) == expected
    assert cases.without_kernels(["linear"], list(published())) == []
    with pytest.raises(InputError, match="'gemma-9' is no published size"):
        cases.chosen(["linear"], ["gemma-9"], [1])
