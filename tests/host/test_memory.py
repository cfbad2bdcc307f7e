"""What is free: the machine's own figure, and the limits of the control groups around this process."""

from __future__ import annotations

from pathlib import Path

import pytest

from gemma_cuda.errors import OutOfMemoryError
from gemma_cuda.host import memory
from gemma_cuda.host.memory import available_memory, require_memory

GB = 10**9


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with 8 MB available and no control groups; tests add theirs under `cgroup`."""
    (tmp_path / "meminfo").write_text("MemTotal:       16000 kB\nMemFree:  100 kB\nMemAvailable:    8000 kB\n")
    (tmp_path / "self").write_text("")
    (tmp_path / "cgroup").mkdir()
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "_OWN_CGROUP", tmp_path / "self")
    monkeypatch.setattr(memory, "_CGROUP_ROOT", tmp_path / "cgroup")
    return tmp_path


def group(directory: Path, files: dict[str, str]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (directory / name).write_text(text + "\n")


def test_machine(machine: Path) -> None:
    assert available_memory() == 8000 * 1024


def test_system_without_meminfo_gives_physical_memory(machine: Path) -> None:
    (machine / "meminfo").unlink()
    assert available_memory() > 100_000_000


@pytest.mark.parametrize(("limit", "left"), [("5000", 5000 - 3000 + 700 + 80), ("2000", 0), ("max", 8000 * 1024)])
def test_cgroup_v2_counts_its_file_cache_as_free(machine: Path, limit: str, left: int) -> None:
    (machine / "self").write_text("0::/user/app\n")
    stat = "anon 2000\ninactive_file 700\nactive_file 80"
    group(machine / "cgroup/user/app", {"memory.max": limit, "memory.current": "3000", "memory.stat": stat})
    assert available_memory() == left


def test_tightest_enclosing_group_counts(machine: Path) -> None:
    (machine / "self").write_text("0::/user/app\n")
    group(machine / "cgroup/user/app", {"memory.max": "5000", "memory.current": "100"})
    group(machine / "cgroup/user", {"memory.max": "4000", "memory.current": "300"})
    assert available_memory() == 3700
    group(machine / "cgroup", {"memory.max": "200", "memory.current": "30"})
    assert available_memory() == 170


def test_cgroup_v1(machine: Path) -> None:
    (machine / "self").write_text("7:cpu,cpuacct:/x\n4:memory:/host/name\n")
    group(machine / "cgroup/memory", {"memory.limit_in_bytes": "9000", "memory.usage_in_bytes": "1000"})
    assert available_memory() == 8000
    group(machine / "cgroup/memory/host/name", {"memory.limit_in_bytes": "700", "memory.usage_in_bytes": "100"})
    assert available_memory() == 600


def test_require_memory_names_both_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda: 2 * GB)
    require_memory(2 * GB, "the weights")
    with pytest.raises(OutOfMemoryError, match=r"the weights: needs 3\.5 GB, 2\.0 GB free"):
        require_memory(3_500_000_000, "the weights")


def test_real_machine() -> None:
    assert 0 < available_memory() < 1 << 50
