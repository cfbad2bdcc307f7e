"""The command line on the demo weights: the main job, as a newcomer runs it."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest
from safetensors.numpy import load_file

import gemma_cuda
from tests.support.command import ROOT, error_of, run, run_json, start

pytestmark = pytest.mark.real_weights
DEMO = "gemma-3-270m-q4_k_m"
PROMPT_FILE = str(ROOT / "examples" / "fibonacci.txt")


@pytest.fixture(scope="module")
def demo() -> gemma_cuda.Gemma:
    return gemma_cuda.Gemma.from_pretrained(DEMO)


@pytest.fixture
def demo_is_loaded(demo: gemma_cuda.Gemma, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands on the demo weights take the model that is loaded already."""
    monkeypatch.setattr(gemma_cuda.Gemma, "from_pretrained", lambda name, **options: demo)


def test_the_main_job_on_real_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "out.safetensors"
    report = run_json(capsys, "prefill", "--prompt-file", PROMPT_FILE, "--save", str(target))
    assert report["model"] == DEMO
    assert report["input_ids"][0] == 2 and report["input_ids"].count(2) == 1
    assert report["top"][0]["text"] == " fib"
    assert report["top"][0]["probability"] == pytest.approx(0.498, abs=0.005)
    tensors = load_file(target)
    assert tensors["logits"].shape == (1, 1, 262144)
    assert tensors["layers.17.v"].shape == (1, 1, report["tokens"], 256)


@pytest.mark.usefixtures("demo_is_loaded")
def test_generate_streams_the_right_completion(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("generate", "--prompt-file", PROMPT_FILE, "--max-new-tokens", "15") == 0
    out, err = capsys.readouterr()
    assert out == " fibonacci(n-1) + fibonacci(n-2)\n"
    assert "numpy, float32" in err


@pytest.mark.usefixtures("demo_is_loaded")
def test_sampling_is_repeatable(capsys: pytest.CaptureFixture[str]) -> None:
    words = (
        "generate",
        "--prompt",
        "Once upon a time",
        "--max-new-tokens",
        "4",
        "--temperature",
        "1",
        "--top-p",
        "0.9",
    )
    texts = []
    for seed in ("1", "1", "2"):
        assert run(*words, "--seed", seed) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.usefixtures("demo_is_loaded")
def test_score_never_doubles_the_bos(capsys: pytest.CaptureFixture[str]) -> None:
    plain = run_json(capsys, "score", "--prompt", "The capital of France is Paris.")
    assert plain["input_ids"] == [2, 818, 5279, 529, 7001, 563, 9079, 236761]
    assert plain["tokens"][5] == {"id": 9079, "text": " Paris", "logprob": pytest.approx(-2.4769, abs=0.01)}
    explicit = run_json(capsys, "score", "--prompt", "<bos>The capital of France is Paris.")
    assert explicit["tokens"] == plain["tokens"]


@pytest.mark.usefixtures("demo_is_loaded")
def test_chat_needs_a_template(capsys: pytest.CaptureFixture[str]) -> None:
    assert "there is no chat template" in error_of(capsys, "generate", "--prompt", "hello", "--chat")


def test_an_interrupted_generation_has_no_traceback() -> None:
    process = start(
        "generate", "--prompt", "a", "--max-new-tokens", "4000", stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None and process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"Traceback" not in err
