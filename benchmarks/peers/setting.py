"""What a process that runs a peer's tests is told by its environment."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Setting:
    """module: that of this package with `install`. suite: its name in refusals.toml. attention: "ours" or "theirs".
    sample: tests of each function, 0 for all. only: a file with the ids that are run, "" for all."""

    module: str
    attention: str
    device: str
    sample: int
    seed: int
    only: str
    suite: str

    def environment(self) -> dict[str, str]:
        return {f"PEERS_{name.upper()}": str(value) for name, value in vars(self).items()}

    @classmethod
    def from_environment(cls) -> Setting:
        words = {name: os.environ[f"PEERS_{name.upper()}"] for name in cls.__annotations__}
        return cls(**{**words, "sample": int(words["sample"]), "seed": int(words["seed"])})  # type: ignore[arg-type]
