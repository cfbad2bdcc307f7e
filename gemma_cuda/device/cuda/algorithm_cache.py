"""Chosen cuBLASLt algorithms, with the reasons, on disk: one JSON file per GPU, cuBLASLt version and format."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...host import private_directory
from .. import product_cache

FORMAT = 3
ALGORITHM_BYTES = 64
"""Size of cublasLtMatmulAlgo_t, which one version of cuBLASLt restores from its bytes."""


@dataclass(frozen=True)
class Entry:
    """The algorithm of a product, the reason for it, and median times of a launch in microseconds: of it, of
    cuBLASLt's first guess, of the fastest; noise_us: the spread of these times."""

    algorithm: bytes
    chosen: str
    chosen_us: float
    first_us: float
    fastest_us: float
    noise_us: float


class AlgorithmCache:
    """Product -> algorithm, for one GPU and one version of cuBLASLt.

    Any number of processes may share a directory: a file is replaced as a whole, with the entries that others have
    added. Of two simultaneous writes one may be lost; its product is measured again. A file that is damaged, or that
    other users could have written, counts as empty; a directory that cannot be written keeps nothing. Raises GemmaError
    where other users can change the directory.
    """

    def __init__(self, directory: Path, gpu: str, version: int) -> None:
        private_directory.check(directory.absolute())
        name = re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-")
        self.path = directory / f"{name}-cublaslt-{version}-v{FORMAT}.json"
        self._identity = {"format": FORMAT, "gpu": gpu, "cublaslt": version}
        self._entries = self._read()

    def get(self, product: str) -> bytes | None:
        """The bytes of the algorithm for a product, None if there is none."""
        entry = self._entries.get(product)
        return None if entry is None else entry.algorithm

    def put(self, product: str, entry: Entry) -> None:
        """Keeps an algorithm in memory and, if possible, on disk."""
        self._entries = {**self._entries, **self._read(), product: entry}
        texts = {
            product: asdict(entry) | {"algorithm": entry.algorithm.hex()}
            for product, entry in sorted(self._entries.items())
        }
        try:
            private_directory.make(self.path.parent.absolute())
            product_cache.write_json(self.path, {**self._identity, "algorithms": texts})
        except OSError:
            return  # it is kept in memory

    def _read(self) -> dict[str, Entry]:
        content = product_cache.read_json(self.path)
        if content is None:
            return {}
        try:
            entries = {str(product): _entry(value) for product, value in content.pop("algorithms").items()}
        except (ValueError, KeyError, TypeError, AttributeError):  # of another version
            return {}
        whole = all(len(entry.algorithm) == ALGORITHM_BYTES for entry in entries.values())
        return entries if whole and content == self._identity else {}


def _entry(value: dict[str, Any]) -> Entry:
    return Entry(**(value | {"algorithm": bytes.fromhex(value["algorithm"])}))
