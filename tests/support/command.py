"""Runs the command `gemma-cuda` in this process or another, for the tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from safetensors.numpy import save_file

from gemma_cuda import cli
from gemma_cuda.formats.gemma_config import GemmaConfig
from tests.support.paths import ROOT

TINY_CONFIG = {
    "model_type": "gemma3_text",
    "architectures": ["Gemma3ForCausalLM"],
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "query_pre_attn_scalar": 16,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "rope_local_base_freq": 1e4,
    "sliding_window": 8,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
}
TINY_WORDS = ["<pad>", "<eos>", "<bos>", "<unk>", "<turn>", *"abcdefghijklmnopqrstuvwxyz", *"0123456", " "]
CHAT_TEMPLATE = "{{ bos_token }}{% for m in messages %}<turn>{{ m.content }}{% endfor %}<turn>"


def write_tiny(folder: Path, change: Callable[[Any], Any] = lambda array: array, *, tokenizer: bool = False) -> str:
    """The folder, which now holds a random Gemma 3 of 4 layers; change: of each weight."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(TINY_CONFIG))
    random = np.random.default_rng(0)
    shapes = GemmaConfig.from_file(folder).weight_shapes()
    tensors = {
        f"model.{name}": change(random.standard_normal(shape, np.float32) * 0.2) for name, shape in shapes.items()
    }
    save_file(tensors, folder / "model.safetensors")
    if tokenizer:
        model = tokenizers.models.BPE({word: i for i, word in enumerate(TINY_WORDS)}, [], unk_token="<unk>")
        backend = tokenizers.Tokenizer(model)
        backend.add_special_tokens(TINY_WORDS[:5])
        backend.save(str(folder / "tokenizer.json"))
        special = {"bos_token": "<bos>", "eos_token": "<eos>", "chat_template": CHAT_TEMPLATE}
        (folder / "tokenizer_config.json").write_text(json.dumps(special))
    return str(folder)


def run(*words: str) -> int:
    """The command in this process."""
    return cli.main(words)


def run_json(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    capsys.readouterr()
    assert run(*words, "--json") == 0
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    return report


def error_of(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The message of a command that must fail: one line on stderr, nothing on stdout, exit code 2."""
    capsys.readouterr()
    assert run(*words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("gemma-cuda: error: ") and err.endswith("\n") and err.count("\n") == 1, err
    return err.removeprefix("gemma-cuda: error: ").rstrip("\n")


def usage_error_of(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The message of a command that argparse must refuse: exit code 2, usage and one line on stderr."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        run(*words)
    out, err = capsys.readouterr()
    assert (stopped.value.code, out) == (2, "")
    usage, error, message = err.partition(": error: ")
    assert error and usage.startswith("usage: ") and message.count("\n") == 1 and message.endswith("\n"), err
    assert "\x1b" not in err
    return message


def start(*words: str, **options: Any) -> subprocess.Popen[bytes]:
    """The command as a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-m", "gemma_cuda", *words], cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, **options
    )
