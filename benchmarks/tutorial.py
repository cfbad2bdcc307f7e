"""Writes what the commands of docs/tutorial.md print into it, after a kernel was edited: python -m benchmarks.tutorial

They run in a copy of the checkout.
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

ROOT = Path(__file__).resolve().parents[1]
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


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        copy_checkout(Path(temporary))
        TUTORIAL.write_text(rewrite(TUTORIAL.read_text(), Path(temporary)))


if __name__ == "__main__":
    main()
