"""Headers that every kernel includes, precompiled: where many kernels are compiled, they are read once."""

from __future__ import annotations

import os
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from . import sources

_PAYS_AFTER = 4  # to precompile takes as long as it spares in that many compilations
_KEPT_S = 86400.0
_TIMEOUT_S = 300

_lock = threading.Lock()
_compilations: Counter[Path] = Counter()


def options(text: str, headers: Sequence[Path], command: Sequence[str], version: str, cache: Path) -> tuple[str, ...]:
    """Options that make the compiler begin with `text`, precompiled; none as long as that does not pay.

    text: #include lines. headers: all files that they may read. command: the compiler with its flags and include
    directories. It pays where it was done before, or this process compiles its fifth kernel with this command. The
    object code is the same either way.
    """
    command = [word for word in command if word != "-shared" and not word.startswith("-Wl,")]
    header = cache / f"precompiled-{sources.digest(headers, text, version, *command)}" / "prelude.h"
    product = header.with_name("prelude.h.gch")
    with _lock:
        _compilations[header] += 1
        pays = _compilations[header] == _PAYS_AFTER + 1
        if not product.exists() and not (pays and _precompile(text, command, header)):
            return ()
    return ("-include", str(header))


def _precompile(text: str, command: Sequence[str], header: Path) -> bool:
    """Whether it could be done. A header whose product is removed meanwhile is read as it is."""
    _remove_old(header.parents[1])
    try:
        header.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".precompiled-", dir=header.parents[1]) as directory:
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
            os.replace(partial, header)
            os.replace(product, f"{header}.gch")
    except OSError:  # no room
        return False
    return True


def _remove_old(cache: Path) -> None:
    """Removes what was made of other headers a day ago or earlier: it is large, and made again in a moment."""
    for product in cache.glob("precompiled-*/*.gch"):
        if product.stat().st_mtime < time.time() - _KEPT_S:
            product.unlink(missing_ok=True)
