"""Nobody else's code runs from a cache: whose directories and files are taken, and where products go without one."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gemma_cuda.device import doctor, product_cache
from gemma_cuda.device.cuda import compile as gpu_compiler
from gemma_cuda.device.cuda import nvrtc
from gemma_cuda.device.cuda.algorithm_cache import ALGORITHM_BYTES, AlgorithmCache, Entry
from gemma_cuda.device.emulator import kernel_library
from gemma_cuda.device.emulator.device import Emulator
from gemma_cuda.device.product_cache import ProductCache
from gemma_cuda.errors import DeviceError, DownloadError, GemmaError
from gemma_cuda.formats import demo_weights
from gemma_cuda.host import files, private_directory
from tests.support.paths import KERNELS, ROOT

SOMEBODY = 12345
ENTRY = Entry(bytes(range(ALGORITHM_BYTES)), "it was the fastest", 1.0, 2.0, 1.0, 0.5)


@pytest.fixture(autouse=True)
def fresh_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No temporary directory yet, and no library loaded."""
    monkeypatch.setattr(kernel_library, "_libraries", {})
    private_directory._temporary.cache_clear()
    private_directory._made.clear()
    yield
    private_directory._temporary.cache_clear()
    private_directory._made.clear()


@pytest.fixture
def give_away(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Makes a file or directory somebody else's: really as root, else by believing to be somebody else from then on."""

    def give(path: Path) -> None:
        if os.geteuid() == 0:
            os.chown(path, SOMEBODY, SOMEBODY, follow_symlinks=False)
        else:
            monkeypatch.setattr(os, "geteuid", lambda: SOMEBODY)

    return give


def copied(cache: Path) -> float:
    """What the kernel copy<float> makes of 64 ones: 64."""
    out = np.zeros(64, np.float32)
    device = Emulator(kernels=KERNELS, cache=cache, workers=1)
    device.launch("copy<float>", (1,), (64,), 0, [out, np.ones(64, np.float32)])
    return float(out.sum())


def only(directory: Path, pattern: str) -> Path:
    (path,) = directory.glob(pattern)
    return path


def python(code: str, *arguments: str, **environment: str) -> str:
    command = [sys.executable, "-c", code, *arguments]
    given = {**os.environ, **environment}
    done = subprocess.run(command, cwd=ROOT, env=given, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# --- whose directories are taken ---


@pytest.fixture
def shared_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever group the files have, others are in it."""
    monkeypatch.setattr(private_directory, "_is_private", lambda gid, uid: False)


def test_a_group_is_private_that_has_the_users_name_and_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    user, group = types.SimpleNamespace(pw_name="ann", pw_gid=7), types.SimpleNamespace(gr_name="ann", gr_mem=[])
    monkeypatch.setattr(private_directory.pwd, "getpwuid", lambda uid: user)
    monkeypatch.setattr(private_directory.grp, "getgrgid", lambda gid: group)
    is_private = private_directory._is_private.__wrapped__
    assert is_private(7, 1000) and not is_private(8, 1000)
    group.gr_mem = ["ann"]
    assert is_private(7, 1000)
    group.gr_mem = ["ann", "eve"]
    assert not is_private(7, 1000)
    group.gr_mem, group.gr_name = [], "users"
    assert not is_private(7, 1000)


def test_a_private_group_may_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(private_directory, "_is_private", lambda gid, uid: True)
    tmp_path.chmod(0o770)
    assert private_directory.why_unsafe(tmp_path / "cache") is None
    tmp_path.chmod(0o772)
    assert private_directory.why_unsafe(tmp_path / "cache") is not None


@pytest.mark.usefixtures("shared_group")
def test_a_directory_that_others_can_change_is_unsafe(tmp_path: Path) -> None:
    leaf = tmp_path / "parent" / "cache"
    assert private_directory.why_unsafe(leaf) is None  # not there yet
    private_directory.make(leaf)
    assert [stat.S_IMODE(path.stat().st_mode) for path in (leaf, leaf.parent)] == [0o700, 0o700]
    assert private_directory.why_unsafe(leaf) is None
    for path in (leaf, leaf.parent):
        for mode, others in ((0o770, "its group"), (0o702, "everybody"), (0o777, "everybody")):
            path.chmod(mode)
            problem = f"{path} can be written by {others} (chmod go-w {path})"
            assert private_directory.why_unsafe(leaf) == problem
            with pytest.raises(GemmaError) as info:
                private_directory.make(leaf)
            assert str(info.value).startswith(f"{leaf} cannot be a cache, since code in it is run: {problem}")
        path.chmod(0o755)
        assert private_directory.why_unsafe(leaf) is None
    leaf.parent.chmod(0o1777)  # as /tmp is: others cannot replace what is ours in it
    assert private_directory.why_unsafe(leaf) is None
    leaf.chmod(0o1777)  # but they can put files there
    assert private_directory.why_unsafe(leaf) is not None


@pytest.mark.parametrize("which", ["cache", "parent"])
def test_a_directory_of_somebody_else_is_unsafe(which: str, tmp_path: Path, give_away: Callable[[Path], None]) -> None:
    leaf = tmp_path / "parent" / "cache"
    private_directory.make(leaf)
    give_away(leaf if which == "cache" else leaf.parent)
    assert "belongs to " in str(private_directory.why_unsafe(leaf))


def test_in_a_container_that_does_not_know_root_its_directories_are_taken_above_a_cache(
    tmp_path: Path, give_away: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    parent, leaf = tmp_path / "parent", tmp_path / "parent" / "cache"
    private_directory.make(leaf)
    give_away(parent)
    owner = parent.stat().st_uid
    problem = private_directory.why_unsafe(leaf)
    monkeypatch.setattr(private_directory, "_unmapped_owner", lambda: owner)
    if os.geteuid() == 0:
        assert problem == f"{parent} belongs to user {owner}" and private_directory.why_unsafe(leaf) is None
        give_away(leaf)
    assert str(private_directory.why_unsafe(leaf)).startswith(f"{leaf} belongs to ")


def test_links_on_the_way_are_followed(tmp_path: Path) -> None:
    for name in ("good", "bad"):
        (tmp_path / name / "cache").mkdir(parents=True, mode=0o700)
        (tmp_path / f"{name}-link").symlink_to(tmp_path / name)
    (tmp_path / "bad").chmod(0o777)
    (tmp_path / "good" / "relative").symlink_to("../bad/cache")
    (tmp_path / "round").symlink_to("round")
    (tmp_path / "nowhere").symlink_to("missing/cache")
    why = private_directory.why_unsafe
    assert why(tmp_path / "good-link" / "cache") is None and why(tmp_path / "nowhere") is None
    for name in ("bad-link/cache", "good/relative", "good-link/relative", "good/../bad/cache"):
        assert str(tmp_path / "bad") in str(why(tmp_path / name)), name
    assert "links" in str(why(tmp_path / "round"))


def test_a_link_of_somebody_else_is_not_followed(tmp_path: Path, give_away: Callable[[Path], None]) -> None:
    (tmp_path / "good").mkdir(mode=0o700)
    link = tmp_path / "link"
    link.symlink_to("good")
    give_away(link)
    assert "belongs to " in str(private_directory.why_unsafe(link))


def test_every_cache_refuses_an_unsafe_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.chmod(0o777)
    cache = tmp_path / "cache"
    words = "cannot be a cache, since code in it is run: .* can be written by everybody"
    with pytest.raises(GemmaError, match=words):
        Emulator(cache=cache)
    with pytest.raises(GemmaError, match=words):
        gpu_compiler.compile_kernel("softcap<4>", "sm_90a", cache=cache)
    with pytest.raises(GemmaError, match=words):
        AlgorithmCache(cache, "GPU", 1)
    monkeypatch.setenv("GEMMA_CUDA_CACHE", str(cache))
    with pytest.raises(GemmaError, match=words):
        files.cache_directory()
    with pytest.raises(DownloadError, match=words):
        demo_weights.demo_weights()
    assert not cache.exists()


def test_a_directory_that_becomes_somebody_elses_is_refused(tmp_path: Path, give_away: Callable[[Path], None]) -> None:
    device = Emulator(kernels=KERNELS, cache=tmp_path / "cache", workers=1)
    (tmp_path / "cache" / "emulator").mkdir(parents=True, mode=0o700)
    give_away(tmp_path / "cache")
    with pytest.raises(GemmaError, match="belongs to "):
        device.launch("copy<float>", (1,), (64,), 0, [np.zeros(64, np.float32)] * 2)


# --- which directory it is ---


@pytest.mark.parametrize("own", ["cache", "./cache", "../cache", "~nobody-of-this-name/cache"])
def test_a_relative_cache_is_refused(own: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMMA_CUDA_CACHE", own)
    with pytest.raises(GemmaError, match=f"GEMMA_CUDA_CACHE is '{own}', expected an absolute path"):
        files.cache_directory()


def test_home_directories_of_users_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somewhere/else")
    monkeypatch.setenv("GEMMA_CUDA_CACHE", "~root/cache")
    assert files.wanted_cache() == Path(os.path.expanduser("~root")) / "cache"


def test_a_tilde_in_the_variable_of_the_standard_is_a_relative_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("GEMMA_CUDA_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "~/xdg")  # only a shell expands it; relative paths are to be ignored
    assert files.wanted_cache() == tmp_path / ".cache" / "gemma-cuda"


@pytest.mark.parametrize("home", [None, "relative", "unsafe"])
def test_without_a_safe_home_products_end_with_the_process(
    home: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("HOME", "GEMMA_CUDA_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    if home is None:
        monkeypatch.setattr("os.path.expanduser", lambda path: path)  # what it does where no home is known
    else:
        (tmp_path / home).mkdir()
        (tmp_path / home).chmod(0o777)
        monkeypatch.setenv("HOME", home if home == "relative" else str(tmp_path / home))
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    reason = "can be written by everybody" if home == "unsafe" else "there is no home directory for a cache"
    with pytest.warns(RuntimeWarning, match=f"what is compiled is not kept after this process: .*{reason}"):
        directory = files.cache_directory()
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700 and not directory.is_relative_to(tmp_path / "unsafe")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert files.cache_directory() == directory
    finding = doctor._cache()
    assert (
        finding.state is doctor.State.BROKEN and reason in finding.detail and "GEMMA_CUDA_CACHE" in str(finding.remedy)
    )


def test_the_temporary_directory_ends_with_the_process_that_made_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code = """
import os, sys
from pathlib import Path
import numpy as np
from gemma_cuda.device.emulator import Emulator
cache, kernels = map(Path, sys.argv[1:])
for _ in range(2):
    out = np.zeros(64, np.float32)
    device = Emulator(kernels=kernels, cache=cache, workers=1)
    device.launch("copy<float>", (1,), (64,), 0, [out, np.ones(64, np.float32)])
    path = device._compiler.library("copy<float>", checked=False)
    assert out.sum() == 64 and path.is_file()
if os.fork() == 0:
    sys.exit()
os.wait()
assert len(list(path.parent.iterdir())) == 1
print(path.parent)
"""
    directory = Path(python(code, str(tmp_path / "file"), str(KERNELS)))
    assert directory.name.startswith("gemma-cuda-") and not directory.exists()


def test_without_any_temporary_directory_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    with pytest.raises(DeviceError, match=r"copy<float> cannot be compiled: .*No such file or directory"):
        copied(tmp_path)
    monkeypatch.delenv("GEMMA_CUDA_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", "relative")
    words = "there is no home directory for a cache; .*, nor can a temporary directory be made: No such file"
    with pytest.warns(RuntimeWarning), pytest.raises(GemmaError, match=words):
        files.cache_directory()


def test_doctor_says_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMMA_CUDA_CACHE", str(tmp_path / "cache"))
    assert doctor.Finding("cache", doctor.State.OK, str(tmp_path / "cache")) in doctor.examine()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GEMMA_CUDA_CACHE", str(tmp_path / "file" / "cache"))
    finding = doctor._cache()
    assert finding.state is doctor.State.MISSING and "cannot be written" in finding.detail
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


# --- whose files are taken ---


@pytest.mark.usefixtures("shared_group")
@pytest.mark.parametrize("harm", ["somebody else's", "writable by the group", "a link", "a FIFO", "another kernel's"])
def test_a_planted_library_does_not_run(
    harm: str, tmp_path: Path, give_away: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    device = Emulator(kernels=KERNELS, cache=tmp_path, workers=1)
    device._compiler.library("ok_global", checked=False)
    other = only(tmp_path / "emulator", "ok_global-*.so")
    assert copied(tmp_path) == 64
    library = only(tmp_path / "emulator", "copy-*.so")
    planted = product_cache.read(other)
    assert planted is not None
    monkeypatch.setattr(kernel_library, "_libraries", {})
    if harm == "another kernel's":
        library.write_bytes(other.read_bytes())
    elif harm == "a FIFO":
        library.unlink()
        os.mkfifo(library)
    else:
        product_cache.write(library, planted)  # with a digest
        if harm == "a link":
            library.rename(tmp_path / "elsewhere.so")
            library.symlink_to(tmp_path / "elsewhere.so")
        elif harm == "writable by the group":
            library.chmod(0o775)
        else:
            give_away(library)
            if os.geteuid() != 0:  # then all of tmp_path is somebody else's
                assert product_cache.read(library) is None
                return
    assert copied(tmp_path) == 64
    content = product_cache.read(library)
    assert content is not None and content != planted


def test_a_description_or_algorithms_that_others_can_write_are_not_read(tmp_path: Path) -> None:
    first = gpu_compiler.compile_kernel("softcap<4>", "sm_90a", cache=tmp_path)
    description = only(tmp_path / "cuda", "*.json")
    fields = product_cache.read_json(description)
    assert fields is not None
    product_cache.write_json(description, {**fields, "lowered_name": "planted"})
    description.chmod(0o666)
    assert gpu_compiler.compile_kernel("softcap<4>", "sm_90a", cache=tmp_path).lowered_name == first.lowered_name
    AlgorithmCache(tmp_path, "GPU", 1).put("product", ENTRY)
    assert AlgorithmCache(tmp_path, "GPU", 1).get("product") == ENTRY.algorithm
    AlgorithmCache(tmp_path, "GPU", 1).path.chmod(0o666)
    assert AlgorithmCache(tmp_path, "GPU", 1).get("product") is None


def test_files_are_closed_to_others_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        assert copied(tmp_path / "cache") == 64
        gpu_compiler.compile_kernel("softcap<4>", "sm_90a", cache=tmp_path / "cache")
        AlgorithmCache(tmp_path / "cache" / "cublaslt", "GPU", 1).put("product", ENTRY)
    finally:
        os.umask(before)
    made = list((tmp_path / "cache").rglob("*"))
    assert len(made) == 3 + 4
    for path in made:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o644), path


# --- damage, and no room ---


def test_a_library_that_is_damaged_after_it_was_found_is_made_anew(tmp_path: Path) -> None:
    device, out = Emulator(kernels=KERNELS, cache=tmp_path, workers=1), np.zeros(64, np.float32)
    path = device._compiler.library("copy<float>", checked=False)
    path.write_bytes(path.read_bytes()[:5000])
    device.launch("copy<float>", (1,), (64,), 0, [out, np.ones(64, np.float32)])
    assert out.sum() == 64 and product_cache.read(path) is not None


def test_a_loaded_library_needs_its_file_no_more(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
import numpy as np
from gemma_cuda.device.emulator import kernel_library
from gemma_cuda.device.emulator import Emulator
cache, kernels = map(Path, sys.argv[1:])
device = Emulator(kernels=kernels, cache=cache, workers=1)
path, _ = device._library_of("copy<float>")
with path.open("r+b") as file:
    file.truncate(0)  # its pages are gone: SIGBUS where they are mapped
out = np.zeros(64, np.float32)
device.launch("copy<float>", (1,), (64,), 0, [out, np.ones(64, np.float32)])
assert out.sum() == 64
"""
    python(code, str(tmp_path), str(KERNELS))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_said_with_the_directory(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, **_: Any) -> Any:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(product_cache, "atomic_path", full)
    for folder, run in (
        ("emulator", lambda: copied(tmp_path)),
        ("cuda", lambda: gpu_compiler.compile_kernel("softcap<4>", "sm_90a", cache=tmp_path)),
    ):
        with pytest.raises(DeviceError) as info:
            run()
        assert str(info.value).startswith(f"{tmp_path / folder} has no room for what was compiled")
    assert private_directory.temporary_if_made() == []


def test_a_limit_of_file_sizes_is_said_with_the_directory(tmp_path: Path) -> None:
    """The compiler itself meets it, as it would meet a full disk."""
    code = """
import resource, sys
from pathlib import Path
import numpy as np
from gemma_cuda.device.cuda.compile import compile_kernel
from gemma_cuda.device.emulator import Emulator
from gemma_cuda.errors import DeviceError
cache, kernels = map(Path, sys.argv[1:])
ones = [np.ones(64, np.float32)] * 2
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
for run in (
    lambda: Emulator(kernels=kernels, cache=cache).launch("copy<float>", (1,), (64,), 0, ones),
    lambda: compile_kernel("softcap<4>", "sm_90a", cache=cache),
):
    try:
        run()
    except DeviceError as error:
        print(error)
"""
    one, two = python(code, str(tmp_path / "cache"), str(KERNELS), TMPDIR=str(tmp_path)).splitlines()
    assert one.startswith(f"{tmp_path} has no room to compile copy<float>")
    assert two.startswith(f"{tmp_path / 'cache' / 'cuda'} has no room for what was compiled")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_neither_directory_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(path: Path, **_: Any) -> Any:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(product_cache, "atomic_path", read_only)
    words = f"{tmp_path} cannot be written .Read-only file system., nor can "
    with pytest.warns(RuntimeWarning), pytest.raises(DeviceError, match=words):
        ProductCache(tmp_path).keep(lambda place: product_cache.write(place / "file", b""))


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"digest": ' + "9" * 5000 + "}", '{"digest": "", "a": NaN}', '"digest"']
)
def test_json_of_any_kind_is_no_entry(text: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text(text)
    assert product_cache.read_json(tmp_path / "file") is None
    product_cache.write_json(tmp_path / "file", {"a": [1, "b"]})
    assert product_cache.read_json(tmp_path / "file") == {"a": [1, "b"]}
    assert json.loads((tmp_path / "file").read_text())["a"] == [1, "b"]


# --- NVRTC's libraries ---


def test_libraries_of_the_working_directory_are_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []

    def noted(name: str, mode: int) -> None:
        loaded.append(name)
        raise OSError(f"{name}: no such library")

    monkeypatch.chdir(tmp_path)
    (tmp_path / "libnvrtc-builtins.so.13.0").write_text("planted")
    monkeypatch.setattr(nvrtc.ctypes, "CDLL", noted)
    monkeypatch.setenv(nvrtc.LIBRARY_VARIABLE, "libnvrtc.so.13")
    with pytest.raises(DeviceError, match="no such library"):
        nvrtc._bindings.__wrapped__()
    assert loaded == ["libnvrtc.so.13"]
    monkeypatch.setenv(nvrtc.LIBRARY_VARIABLE, "here/libnvrtc.so.13")
    with pytest.raises(DeviceError, match=r"is 'here/libnvrtc\.so\.13', expected an absolute path"):
        nvrtc._bindings.__wrapped__()
    assert len(loaded) == 1
