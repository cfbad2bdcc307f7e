"""Which tests of a checkout are run, and how."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

_SMALL = 40  # tests of each function that are drawn where a suite has more than anyone waits for


@dataclass(frozen=True)
class Suite:
    """name: as in refusals.toml. module: that of this package which puts our attention there. directory: where pytest
    runs, with `tests` as its arguments. sample: tests of each function by default, 0 for all."""

    name: str
    module: str
    directory: Path
    tests: tuple[str, ...]
    limit_s: float
    device: str = "numpy"
    sample: int = 0
    environment: Mapping[str, str] | None = None
    remark: str = ""

    @property
    def title(self) -> str:
        return f"{self.name} on {self.device}"


# Their own switches: what we do not have, and what only repeats a call.
_HOPPER = {f"FLASH_ATTENTION_DISABLE_{what}": "TRUE" for what in ("BACKWARD", "FP8", "LOCAL", "SPLIT", "PACKGQA")}


def flash_attention(checkout: Path) -> list[Suite]:
    """Version 2's tests and version 3's, on the reference and on the kernels."""
    found = []
    for name, folder, environment in (
        ("flash-attention-2", checkout, {}),
        ("flash-attention-3", checkout / "hopper", {**_HOPPER, "PYTHONPATH": str(checkout / "hopper")}),
    ):
        file = folder / "tests" / "test_flash_attn.py" if folder == checkout else folder / "test_flash_attn.py"
        if not file.is_file():
            continue
        for device, sample, limit_s in (("numpy", _SMALL, 120.0), ("emulator", _SMALL // 8, 240.0)):
            found.append(
                Suite(name, "flash_attention", folder, (str(file),), limit_s, device, sample, environment)
            )  # fmt: skip
    return found


def transformers(checkout: Path, models: Sequence[str] = ()) -> list[Suite]:
    """The modelling tests of `models`, by default all that have gemma in their name, with the checkout's own source."""
    folders = checkout / "tests" / "models"
    names = models or sorted(folder.name for folder in folders.glob("*gemma*") if folder.is_dir())
    files = [str(file) for name in names for file in sorted((folders / name).glob("test_modeling_*.py"))]
    if not files:
        return []
    theirs, ours, source = _version(checkout), version("transformers"), checkout / "src"
    has_source = (source / "transformers" / "__init__.py").is_file()
    remark = "" if theirs == ours else f"the checkout is Transformers {theirs}, gemma-cuda is made for {ours}"
    remark += "" if has_source else f"{', ' if remark else ''}without its source: the installed {ours} is tested"
    environment = {"PYTHONPATH": str(source)} if has_source else {}
    module = "transformers_models"
    return [Suite("transformers", module, checkout, tuple(files), 120.0, environment=environment, remark=remark)]


def _version(checkout: Path) -> str:
    """Of Transformers, by its setup.py; "of no known version" without one."""
    setup = checkout / "setup.py"
    found = re.search(r'version="([^"]+)"', setup.read_text()) if setup.is_file() else None
    return found[1] if found else "of no known version"
