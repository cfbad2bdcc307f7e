"""Precompiled headers, so that many compilations parse the headers of all kernels once."""

from __future__ import annotations

import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ...errors import GemmaError
from ...host import private_directory
from .. import product_cache, sources
from ..product_cache import ProductCache

_PAYS_AFTER = 4  # precompiling takes as long as it saves in this many compilations
_KEPT_S = 86400.0
_TIMEOUT_S = 300
_FORMAT = "with a digest"  # older products, without one, are not read

_lock = threading.Lock()
_compilations: Counter[Path] = Counter()
_whole: dict[Path, object] = {}  # state of each product when it was last verified


def options(
    text: str, headers: Sequence[Path], command: Sequence[str], version: str, cache: ProductCache
) -> tuple[str, ...]:
    """Options that make the compiler begin with `text`, precompiled; none as long as that does not pay.

    text: #include lines. headers: all files that they may read. command: the compiler with its flags and include
    directories. It pays where it was done before, or this process compiles its fifth kernel with this command. The
    object code is the same either way. What is damaged, or others could have written, is made anew.
    """
    command = [word for word in command if word != "-shared" and not word.startswith("-Wl,")]
    digest = sources.digest(headers, text, version, *command, _FORMAT)
    header = cache.directory / f"precompiled-{digest}" / "prelude.h"
    with _lock:
        _compilations[header] += 1
        pays = _compilations[header] == _PAYS_AFTER + 1
        if not _is_whole(text, header) and not (pays and _precompile(text, command, header)):
            return ()
    return ("-include", str(header))


def _is_whole(text: str, header: Path) -> bool:
    """Whether header and product are as this user wrote them. The product is read once per process and change of it.

    The compiler opens both by name: nobody else can put other files there meanwhile.
    """
    product = Path(f"{header}.gch")
    try:
        if private_directory.why_unsafe(header.parent) or product_cache.read_private(header) != text.encode():
            return False
        state = sources.state_of([product])
    except OSError:
        return False
    if _whole.get(product) != state and product_cache.read(product) is not None:
        _whole[product] = state
    return _whole.get(product) == state


def _precompile(text: str, command: Sequence[str], header: Path) -> bool:
    """Whether it could be done. A header whose product is removed meanwhile is read as it is."""
    try:
        _remove_old(header.parents[1])
        private_directory.make(header.parent)
        with tempfile.TemporaryDirectory(prefix="gemma-cuda-") as directory:
            partial = Path(directory, header.name)
            partial.write_text(text, encoding="utf-8")
            product = Path(f"{partial}.gch")
            done = subprocess.run(
                [*command, "-x", "c++-header", str(partial), "-o", str(product)],
                capture_output=True,
                timeout=_TIMEOUT_S,
                check=False,
            )
            if done.returncode != 0:
                return False
            product_cache.write_private(header, text.encode())
            product_cache.write(Path(f"{header}.gch"), product.read_bytes())
    except (OSError, GemmaError):  # no room, or another user's directory
        return False
    return True


def _remove_old(cache: Path) -> None:
    """Removes what was made of other headers a day ago or earlier: it is large, and made again in a moment."""
    for product in cache.glob("precompiled-*/*.gch"):
        if product.stat().st_mtime < time.time() - _KEPT_S:
            product.unlink(missing_ok=True)
