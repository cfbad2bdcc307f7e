"""What NVIDIA's tools say of our kernels: compute-sanitizer's verdicts, ncu's counts beside the emulator's."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.processes import run_for

COST = Path(__file__).parent / "results" / "cost-emulator.json"
SANITIZED = (  # a test of each kernel that is small and reaches its barriers, copies and edges
    "tests/ops/test_rms_norm.py::test_any_alignment_gives_the_same_values",
    "tests/ops/test_geglu.py::test_up_as_one_layer_of_the_per_layer_inputs",
    "tests/ops/test_embed.py::test_features_take_the_places_of_their_tokens",
    "tests/ops/test_logits.py::test_ties_go_to_the_lowest_index",
    "tests/ops/test_qk_norm_rope.py::test_positions_and_slots_are_implied",
    "tests/ops/test_linear.py::test_counters_serve_any_number_of_launches",
    "tests/ops/test_linear.py::test_any_number_of_columns_and_float32_out",
    "tests/ops/test_attention.py::test_queries_that_see_no_key_give_zero_and_minus_infinity",
    "tests/ops/test_attention.py::test_a_prompt_gives_the_same_bits_whole_and_in_chunks",
    "tests/ops/test_attention.py::test_the_bits_do_not_depend_on_the_schedule",
)
_FOUND = 99  # exit code

# ncu's name -> ours. Sectors of L2 that the SMs asked for; bytes between L2 and memory; conflicts of shared memory.
METRICS = {
    "dram__bytes_read.sum": "dram_read_bytes",
    "dram__bytes_write.sum": "dram_write_bytes",
    "lts__t_sectors_srcunit_tex_op_read.sum": "l2_read_sectors",
    "lts__t_sectors_srcunit_tex_op_write.sum": "l2_write_sectors",
    "l1tex__data_bank_conflicts_pipe_lsu_mem_shared.sum": "shared_bank_conflicts",
    "gpu__time_duration.sum": "nanoseconds",
    "sm__inst_executed_pipe_tensor.sum": "tensor_instructions",
}


@dataclass(frozen=True)
class Verdict:
    """What one tool found in one test: "ok", "found", or "no verdict" with the reason in text."""

    tool: str
    test: str
    outcome: str
    text: str


def sanitize(tool: str, test: str, gpu: str, limit_s: float) -> Verdict:
    """compute-sanitizer's verdict (memcheck, racecheck) of one test, with CuPy's pool off."""
    command = [
        "compute-sanitizer", "--tool", tool, "--error-exitcode", str(_FOUND), "--target-processes", "all",
        sys.executable, "-m", "pytest", "-x", "-q", f"--gpu={gpu}", "--no-pool", test,
    ]  # fmt: skip
    done = run_for(limit_s, command)
    if done.code is None:
        return Verdict(tool, test, "no verdict", f"more than {limit_s:.0f} s")
    text = done.out + done.error
    outcome = {0: "ok", _FOUND: "found"}.get(done.code, "no verdict")
    return Verdict(tool, test, outcome, "" if outcome == "ok" else text[-4000:])


def profile(command: Sequence[str], limit_s: float) -> list[dict[str, Any]]:
    """Of each kernel that a command launches, in order: its name and METRICS, as ncu counts them.

    Raises subprocess.SubprocessError where ncu does not get that far.
    """
    arguments = ["ncu", "--csv", "--clock-control", "none", "--metrics", ",".join(METRICS), "--target-processes", "all"]
    done = run_for(limit_s, [*arguments, *command])
    if done.code != 0:
        why = f"more than {limit_s:.0f} s" if done.code is None else f"exit code {done.code}\n{done.out}{done.error}"
        raise subprocess.SubprocessError(f"ncu: {why[-2000:]}")
    return parse(done.out)


def parse(text: str) -> list[dict[str, Any]]:
    """The kernels in what `ncu --csv` prints: a line for each kernel and metric, after what the program prints."""
    lines = text.splitlines()
    header = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), len(lines))
    kernels: dict[str, dict[str, Any]] = {}
    for row in csv.DictReader(io.StringIO("\n".join(lines[header:]))):
        kernel = kernels.setdefault(row["ID"], {"kernel": row["Kernel Name"]})
        name, value = METRICS.get(row["Metric Name"]), row["Metric Value"].replace(",", "")
        if name is not None:
            kernel[name] = float(value) * _scale(row["Metric Unit"])
    return list(kernels.values())


def _scale(unit: str) -> float:
    """What one of a unit is in bytes or nanoseconds."""
    scales = {"Kbyte": 1e3, "Mbyte": 1e6, "Gbyte": 1e9, "us": 1e3, "usecond": 1e3, "ms": 1e6, "msecond": 1e6}
    return scales.get(unit, 1.0)


def beside_counters(kernels: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Rows {kernel, model, shape, ncu, counted} of the cases of benchmarks/cost.py, whose launches `kernels` are.

    counted: what the emulator says, of the same launches. Raises ValueError where the launches do not fit the cases.
    """
    rows = [row for row in json.loads(COST.read_text())["counted"] if row["checked"]]
    launches = iter(kernels)
    for row in rows:
        own = [next(launches, None) for _ in row["instances"]]
        for instance, kernel in zip(row["instances"], own, strict=True):
            if kernel is None or instance.partition("<")[0] not in kernel["kernel"]:
                raise ValueError(f"{row['kernel']} {row['shape']}: expected {instance}, ncu saw {kernel}")
        ncu = {name: sum(k.get(name, 0.0) for k in own if k is not None) for name in METRICS.values()}
        counted = row["counters"]
        yield {
            **{name: row[name] for name in ("kernel", "model", "shape")},
            "ncu": ncu,
            "counted": {name: counted[name] for name in ("global_read_sectors", "shared_bank_conflicts", "mma")}
            | {"requested_sectors": counted["global_request_sectors"]},
        }
