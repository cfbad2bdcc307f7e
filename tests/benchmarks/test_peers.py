"""The harness for other projects' tests, over a checkout of a few tests that is made here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.peers import __main__ as command
from benchmarks.peers import results, sample
from benchmarks.peers.refusals import LEFT_OUT, REFUSALS, Refusal
from benchmarks.peers.setting import Setting

pytest_plugins = ["pytester"]

# Each is one kind of end. The last query of `seen` sees nothing: lse is +inf in flash-attn, -inf in ours.
CHECKOUT = """
import os, pytest, torch
from flash_attn import flash_attn_func
from flash_attn.bert_padding import pad_input, unpad_input

q, k = torch.ones(1, 3, 1, 32, device="cuda"), torch.ones(1, 2, 1, 32, device="cuda")

@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("d", [32, 64])
def test_right(d, dtype):
    x = torch.randn(1, 3, 2, d, dtype=dtype, requires_grad=True)
    o = flash_attn_func(x, x, x, causal=True)
    assert torch.equal(o[:, 0], x[:, 0])
    assert torch.autograd.grad(o.sum(), x)[0].isfinite().all()

def test_wrong():
    assert flash_attn_func(q, k, k, causal=True, return_attn_probs=True)[1][0, 0, 0] == torch.inf

@pytest.mark.parametrize("dropout_p", [0.17])
def test_refused(dropout_p):
    flash_attn_func(q, k, k, dropout_p)

@pytest.mark.parametrize("alibi", [True])
def test_refused_no_more(alibi):
    flash_attn_func(q, k, k)

def test_crashing():
    flash_attn_func(q, k, k)
    if os.environ["PEERS_ATTENTION"] == "ours":
        os.abort()

def test_broken():
    assert flash_attn_func(q, k, k).shape == k.shape

def test_padding():
    x, mask = torch.randn(2, 3, 4), torch.tensor([[True, False, True], [True, False, False]])
    packed, places, offsets, longest, lengths = unpad_input(x, mask)
    assert (offsets.tolist(), longest, lengths.tolist()) == ([0, 2, 3], 2, [2, 1])
    assert torch.equal(pad_input(packed, places, 2, 3), x * mask[..., None])

@pytest.mark.skip("needs a GPU")
def test_skipped(): ...

def test_bwd_overflow():
    raise AssertionError("left out")
"""


@pytest.mark.slow
def test_each_kind_of_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "_NEEDED", ())
    (tmp_path / "flash-attention" / "tests").mkdir(parents=True)
    (tmp_path / "flash-attention" / "tests" / "test_flash_attn.py").write_text(CHECKOUT)
    report, words = tmp_path / "report.json", ("--only", "numpy", "--jobs", "1", "--minutes", "2")
    assert command.main([str(tmp_path), *words, "--json", str(report)]) == 1
    (verdict,) = json.loads(report.read_text())
    assert {name: verdict[name] for name in ("collected", "run", "passed", "reached", "skipped", "fail_without")} == {
        "collected": 11, "run": 10, "passed": 6, "reached": 5, "skipped": 1, "fail_without": 1,
    }  # fmt: skip
    assert verdict["refused"] == {"dropout is for training": 1}
    assert [test.rpartition("::")[2] for test, _ in verdict["lifted"]] == ["test_refused_no_more[True]"]
    failures = {test.rpartition("::")[2]: why for test, why in verdict["failures"]}
    assert failures.keys() == {"test_wrong", "test_crashing"}
    assert "AssertionError" in failures["test_wrong"] and "its process ended" in failures["test_crashing"]
    written = [path for path in (tmp_path / "flash-attention").rglob("*") if path.is_file()]
    assert [path.name for path in written] == ["test_flash_attn.py"]


def test_a_folder_with_no_checkout_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "_NEEDED", ())
    with pytest.raises(SystemExit, match="2"):
        command.main([str(tmp_path)])
    assert f"{tmp_path} holds neither flash-attention nor transformers" in capsys.readouterr().err
    monkeypatch.setattr(command, "_NEEDED", ("no_such_module",))
    with pytest.raises(SystemExit, match="2"):
        command.main([str(tmp_path)])
    assert "no_such_module is missing; install gemma-cuda[peers]" in capsys.readouterr().err


def _test(id: str, outcome: str, message: str = "", calls: int = 1, **parameters: Any) -> results.Test:
    return results.Test(id, outcome, calls, message, parameters)


REFUSAL = Refusal("suite", "dropout", "no dropout", parameters={"p": [0.5]})


@pytest.mark.parametrize(
    ("ours", "theirs", "where"),
    [
        (_test("test_it", "failed", "wrong"), "passed", "failures"),
        (_test("test_it", "failed", "wrong"), "failed", "fail_without"),
        (_test("test_it", "failed", "wrong"), "not run", "undecided"),
        (_test("test_it", "failed", "no dropout", p=0.5), "passed", "refused"),
        (_test("test_it", "failed", "wrong", p=0.5), "passed", "failures"),  # listed, but for another reason
        (_test("test_it", "failed", "no dropout", p=0.25), "passed", "failures"),
        (_test("test_it", "passed", p=0.5), "not run", "lifted"),
        (_test("test_it", "skipped"), "passed", "failures"),  # it skips because of us
        (_test("test_it", "skipped"), "skipped", "skipped"),
        (_test("test_it", "not run"), "not run", "not_run"),
    ],
)
def test_verdicts(ours: results.Test, theirs: str, where: str) -> None:
    run, without = results.Run({ours.id: ours}, {}), results.Run({ours.id: _test(ours.id, theirs)}, {})
    verdict = results.judge(run, without, [REFUSAL], "suite", "numpy", "title", "")
    counts = {name: getattr(verdict, name) for name in ("failures", "undecided", "fail_without", "refused", "lifted")}
    counts |= {"skipped": verdict.skipped, "not_run": verdict.not_run}
    assert {name for name, value in counts.items() if value} == {where}
    assert (ours.id in results.table([verdict])) == (where in ("failures", "undecided", "lifted"))


def test_a_sample_has_the_ids_of_the_whole(pytester: pytest.Pytester) -> None:
    source = """
        import pytest
        @pytest.mark.parametrize("dtype", [int, float])
        @pytest.mark.parametrize("dropout_p", [0.0, 0.17])
        @pytest.mark.parametrize("seqlen_q,seqlen_k", [(1, 3), (5, None), (4096, 4096)])
        @pytest.mark.parametrize("causal", [False, True])
        def test_all({}): ...
    """
    path = pytester.makepyfile(source.format("causal, seqlen_q, seqlen_k, dropout_p, dtype"))
    whole = {item.name for item in pytester.getitems(path.read_text())}
    module = pytester.getmodulecol(path.read_text()).obj  # type: ignore[attr-defined]
    sample.thin_out(module.test_all, "test_all", Setting("", "ours", "numpy", 4, 0, "", "flash-attention-2"))
    (mark,) = module.test_all.pytestmark
    drawn = {row.id for row in mark.args[1]}
    assert {f"test_all[{name}]" for name in drawn} < whole
    assert len(drawn) == 5 and sum("0.17" in name for name in drawn) == 1  # one of those that we are known to refuse
    assert not any("4096" in name for name in drawn)


def test_every_entry_of_the_lists_has_a_reason() -> None:
    assert all(entry.reason and entry.suite for entry in (*REFUSALS, *LEFT_OUT)) and all(r.says for r in REFUSALS)
