"""Every program in examples/ runs and says what it is to show."""

from __future__ import annotations

import runpy

import pytest

from tests.support.paths import ROOT

SAID = {
    "swap_sdpa": "True\ntorch.Size([1, 8, 100, 64])\n",
    "gemma2_softcap": "the same tokens: True\n",
    "gemma3_images": "the same logits: True\n",
    "chunked_prefill": "chunks equal the whole: True\n",
    "our_cache_their_generate": "the same tokens: True\n",
}


def test_every_example_is_run() -> None:
    assert {path.stem for path in (ROOT / "examples").glob("*.py")} == set(SAID)


@pytest.mark.parametrize("name", SAID)
def test_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(ROOT / "examples" / f"{name}.py"), run_name="__main__")
    assert capsys.readouterr().out == SAID[name]


def test_the_readme_shows_the_first_one() -> None:
    assert f"```python\n{(ROOT / 'examples' / 'swap_sdpa.py').read_text()}```" in (ROOT / "README.md").read_text()
