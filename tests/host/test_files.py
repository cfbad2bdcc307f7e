"""Files are written whole or not at all, with the mode of the umask, and only in the place of regular files."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from gemma_cuda.cli import main
from gemma_cuda.errors import CacheError
from gemma_cuda.host.files import atomic_path
from tests.support.hf_models import build
from tests.support.parity import ours


def fifo(path: Path) -> None:
    os.mkfifo(path)


def link_to_a_file(path: Path) -> None:
    path.with_name("aim").write_text("kept")
    path.symlink_to("aim")


def link_to_nothing(path: Path) -> None:
    path.symlink_to("nothing")


def directory(path: Path) -> None:
    path.mkdir()


def socket_file(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as own:
        here = os.open(".", os.O_RDONLY)
        try:  # a socket's path is short
            os.chdir(path.parent)
            own.bind(path.name)
        finally:
            os.fchdir(here)
            os.close(here)


SPECIAL = {
    fifo: "a FIFO",
    link_to_a_file: "a symbolic link.*name the file that it leads to",
    link_to_nothing: "a symbolic link",
    directory: "a directory",
    socket_file: "a socket",
}
special = pytest.mark.parametrize(("make", "kind"), SPECIAL.items(), ids=[make.__name__ for make in SPECIAL])


def entries(folder: Path) -> list[tuple[str, int, int, bytes]]:
    """Everything in a folder, with kind, inode and, of a regular file, contents."""
    found = []
    for path in sorted(folder.iterdir()):
        status = path.lstat()
        is_plain = path.is_file() and not path.is_symlink()
        found.append((path.name, status.st_mode, status.st_ino, path.read_bytes() if is_plain else b""))
    return found


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o027)
    yield
    os.umask(before)


@special
def test_special_files_stay_what_they_are(tmp_path: Path, make: object, kind: str) -> None:
    target = tmp_path / "target"
    make(target)  # type: ignore[operator]
    before = entries(tmp_path)
    with pytest.raises(OSError, match=f"is {kind}"), atomic_path(target):
        pytest.fail("the block must not run")
    assert entries(tmp_path) == before


def test_a_special_file_that_comes_while_another_is_written_stays(tmp_path: Path) -> None:
    target = tmp_path / "target"
    with pytest.raises(OSError, match="is a FIFO"), atomic_path(target) as temporary:
        temporary.write_text("new")
        os.mkfifo(target)
    assert target.is_fifo() and len(entries(tmp_path)) == 1


@special
def test_a_cache_is_not_saved_over_special_files(tmp_path: Path, make: object, kind: str) -> None:
    cache = ours("gemma_mqa").prefill(build("gemma_mqa").ids(5)).past_key_values
    target = tmp_path / "target"
    make(target)  # type: ignore[operator]
    before = entries(tmp_path)
    with pytest.raises(CacheError, match=f"cannot be written: .*is {kind}"):
        cache.save(target)
    assert entries(tmp_path) == before


@special
def test_save_of_the_command_is_refused_before_the_model_is_loaded(
    tmp_path: Path, make: object, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "target"
    make(target)  # type: ignore[operator]
    before = entries(tmp_path)
    words = ["prefill", "--input-ids", "2,5", "--model", str(tmp_path / "no-model"), "--save", str(target)]
    assert main(words) != 0
    assert f"--save {target}: is {kind.split('.')[0]}" in capsys.readouterr().err
    assert entries(tmp_path) == before


@pytest.mark.usefixtures("umask")
def test_saved_files_have_the_mode_of_the_umask(tmp_path: Path) -> None:
    """Whatever the library that writes them gives to its files, and whichever mode the file before had."""
    cache, model = ours("gemma_mqa").prefill(build("gemma_mqa").ids(5)).past_key_values, build("gemma_mqa").path
    cache.save(tmp_path / "cache")
    (tmp_path / "prefill").touch(mode=0o600)
    words = ["prefill", "--input-ids", "2,5", "--device", "numpy", "--model", str(model)]
    assert main([*words, "--save", str(tmp_path / "prefill"), "--json"]) == 0
    assert {path.name: oct(path.stat().st_mode) for path in tmp_path.iterdir()} == dict.fromkeys(
        ("cache", "prefill"), oct(0o100640)
    )
    loaded = type(cache).load(tmp_path / "cache")
    assert all(
        np.array_equal(a, b) for mine, old in zip(loaded, cache, strict=True) for a, b in zip(mine, old, strict=True)
    )
