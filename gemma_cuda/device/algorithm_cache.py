"""Which cuBLASLt algorithm was fastest, kept on disk: one JSON file per GPU, cuBLASLt version and format."""

from __future__ import annotations

import json
import re
from pathlib import Path

from ..files import atomic_path

FORMAT = 1
ALGORITHM_BYTES = 64
"""Size of cublasLtMatmulAlgo_t, which one version of cuBLASLt restores from its bytes."""


class AlgorithmCache:
    """Algorithms by the product they are for, of one GPU and one version of cuBLASLt.

    Any number of processes may use one directory: a file is replaced as a whole, with what others added to it since. Of
    two that write at the same moment one may lose its entry, which is then found anew. A damaged file counts as empty
    and is replaced by the next entry; a directory that cannot be written keeps nothing.
    """

    def __init__(self, directory: Path, gpu: str, version: int) -> None:
        name = re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-")
        self.path = directory / f"{name}-cublaslt-{version}-v{FORMAT}.json"
        self._identity = {"format": FORMAT, "gpu": gpu, "cublaslt": version}
        self._algorithms = self._read()

    def get(self, product: str) -> bytes | None:
        """The bytes of the algorithm for a product, None if there is none."""
        return self._algorithms.get(product)

    def put(self, product: str, algorithm: bytes) -> None:
        """Remembers an algorithm, on disk where that can be."""
        self._algorithms = {**self._algorithms, **self._read(), product: algorithm}
        texts = {product: algorithm.hex() for product, algorithm in sorted(self._algorithms.items())}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(self.path) as temporary:
                temporary.write_text(json.dumps({**self._identity, "algorithms": texts}, indent=1), encoding="utf-8")
        except OSError:
            return  # it is still remembered by this object

    def _read(self) -> dict[str, bytes]:
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
            algorithms = {str(product): bytes.fromhex(text) for product, text in content.pop("algorithms").items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}
        whole = all(len(algorithm) == ALGORITHM_BYTES for algorithm in algorithms.values())
        return algorithms if whole and content == self._identity else {}
