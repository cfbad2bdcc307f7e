"""docs/tutorial.md does what it says: its commands run in a copy of the checkout and print what it shows.

python -m tests.test_tutorial rewrites what they print, after a kernel was edited.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import gemma_cuda._emulator as runtime

from tests.support.paths import ROOT

TUTORIAL = ROOT / "docs" / "tutorial.md"
BLOCK = re.compile(r"^```(python|console)\n(.*?)^```\n", re.MULTILINE | re.DOTALL)


def run_console(text: str, directory: Path) -> str:
    """The block with its commands run again: command lines as they are, below each what it prints now."""
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(directory),
    }
    lines = []
    for command in re.findall(r"^\$ (.*)$", text, re.MULTILINE):
        done = subprocess.run(
            ["bash", "-c", command], cwd=directory, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0 and not done.stderr, f"{command}: {done.stderr}"
        lines += [f"$ {command}", *done.stdout.splitlines()]
    return "\n".join(lines) + "\n"


def copy_checkout(directory: Path) -> None:
    """What the tutorial needs of the checkout, with the runtime beside it."""
    for name in ("gemma_cuda", "kernels", "bindings"):
        shutil.copytree(ROOT / name, directory / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    shutil.copy(str(runtime.__file__), directory / "gemma_cuda")
    # An installation in place finds its own checkout before PYTHONPATH; the commands are to run this one.
    forget = "sys.meta_path[:] = [f for f in sys.meta_path if type(f).__name__ != 'ScikitBuildRedirectingFinder']"
    (directory / "sitecustomize.py").write_text(f"import sys\n{forget}\n")


def rewrite(text: str, directory: Path) -> str:
    """The tutorial with what its commands print now."""
    blocks = BLOCK.findall(text)
    assert [language for language, _ in blocks] == ["python", *["console"] * 5]
    (directory / "norm.py").write_text(blocks[0][1])

    def again(match: re.Match[str]) -> str:
        return match[0] if match[1] == "python" else f"```console\n{run_console(match[2], directory)}```\n"

    return BLOCK.sub(again, text)


def test_the_tutorial_prints_what_it_shows(tmp_path: Path) -> None:
    copy_checkout(tmp_path)
    text = TUTORIAL.read_text()
    assert rewrite(text, tmp_path) == text, "python -m tests.test_tutorial brings docs/tutorial.md up to date"
    for name in ("kernels/common/reduce.cuh", "gemma_cuda/ops/rms_norm.py"):
        assert (tmp_path / name).read_text() == (ROOT / name).read_text(), f"the tutorial leaves {name} changed"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        copy_checkout(Path(temporary))
        TUTORIAL.write_text(rewrite(TUTORIAL.read_text(), Path(temporary)))
