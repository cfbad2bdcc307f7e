"""The comparison of two commits finds what differs: in digests, and in a checkout with one changed constant."""

from __future__ import annotations

import copy
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import same_bits, same_bits_probe
from benchmarks.same_bits_models import write_models

CASES = {
    "a: prompt": {"logits": "00", "kv": "11", "launches": "22"},
    "b: prompt": {"refused": "InputError: no"},
}


def test_equal_digests_do_not_differ() -> None:
    assert same_bits.compare(CASES, copy.deepcopy(CASES)) == []


def test_each_difference_is_named() -> None:
    other = copy.deepcopy(CASES)
    other["a: prompt"]["kv"] = "12"
    other["b: prompt"]["refused"] = "InputError: never"
    assert same_bits.compare(CASES, other) == [
        "a: prompt: kv",
        "b: prompt: refused: 'InputError: no': 'InputError: never'",
    ]
    other["a: prompt"] = {**CASES["a: prompt"], "launches": "23"}
    other["b: prompt"] = {"logits": "00"}
    assert same_bits.compare(CASES, other, without=["launches"]) == ["b: prompt: logits, refused: 'InputError: no'"]


def test_a_case_of_one_side_and_a_crash_of_both_are_named() -> None:
    crash = {"c": {"crashed": "KeyError: 1"}}
    assert same_bits.compare(CASES | crash, crash) == [
        "a: prompt: only before",
        "b: prompt: only before",
        "c: crashed on both sides: KeyError: 1",
    ]


@pytest.mark.parametrize(("lines", "status"), [(["a: kv"], 1), ([], 0)])
def test_a_difference_fails_the_command(
    lines: list[str], status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("export_commit", "export_working_tree", "build_both", "write_models"):
        monkeypatch.setattr(same_bits, name, lambda *paths: None)
    monkeypatch.setattr(same_bits, "digests", lambda *given: [CASES, CASES])
    monkeypatch.setattr(same_bits, "compare", lambda *given, **options: lines)
    monkeypatch.setattr(sys, "argv", ["same_bits", "HEAD"])
    assert same_bits.main() == status
    assert capsys.readouterr().out.splitlines()[:-1] == lines


def test_digests_see_values_dtypes_and_shapes() -> None:
    values = np.arange(4, dtype="float32")
    changed = values.copy()
    changed[3] = np.nextafter(changed[3], changed[0])
    different = [values, changed, values.reshape(2, 2), values.view("int32"), values[:3], [values], None, "text"]
    assert len({same_bits_probe.digest(value) for value in different}) == len(different)
    assert same_bits_probe.digest(values) == same_bits_probe.digest(values.copy())


@pytest.mark.slow
def test_a_planted_change_is_found(tmp_path: Path) -> None:
    """On NumPy, which needs nothing built: the eps of RMSNorm doubled in a copy of the working tree."""
    here, equal, planted = (tmp_path / name for name in ("here", "equal", "planted"))
    same_bits.export_working_tree(here)
    shutil.copytree(here, equal)
    shutil.copytree(here, planted)
    (file,) = planted.glob("gemma_cuda/**/reference/rms_norm.py")
    text = file.read_text()
    assert text.count("x.dtype.type(eps)") == 1
    file.write_text(text.replace("x.dtype.type(eps)", "x.dtype.type(2 * eps)"))
    write_models(tmp_path / "models")
    before, same, after = same_bits.digests([here, equal, planted], tmp_path / "models", ["numpy"])
    assert len(before) > 500
    for name, case in before.items():
        assert "crashed" not in case and ("refused: " not in name or "refused" in case), name
    assert same_bits.compare(before, same) == []
    different = same_bits.compare(before, after)
    assert "numpy float64 gemma3: prompt: kv, last_hidden_state, logits" in different
    assert not any(": embed:" in line or ": refused:" in line for line in different)
    assert len(different) > 300
