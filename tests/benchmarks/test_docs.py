"""The README and docs/ are true where a program can tell: links, paths, words, lengths, one number, one example."""

from __future__ import annotations

import json
import os
import re
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import gemma_cuda._emulator as runtime
import numpy as np
import pytest

from benchmarks import pictures
from tests.support.isa import layouts
from tests.support.paths import ROOT

PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
HAND_WRITTEN = [page for page in PAGES if page.parent.name != "generated"]
MOST_LINES = 200

# Words that gave way to another one, and that one.
REPLACED = {
    "Reporting": "raise_cuda_errors",
    "Recorder": "DryRunDevice",
    "StaticStep": "GraphContext",
    "BatchStep": "EagerContext",
    "take_kept": "prune_to_outputs",
    "kSlack": "kRescaleThreshold",
    "moved_right": "advance_swizzled",
    "tile_offset": "swizzled_offset",
    "place_in_16_rows": "swizzled_offset_16_rows",
    "MixedGemm": "GemmByRows",
    "_one_after_another": "_stream_ordered",
    "fresh_thread_index": "reload_tid",
    "prefill_graphs": "engine/graphs.py",
    "prefill_bucket": "engine/bucket.py",
    "nobody can vouch for": "untrusted files",
}


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def prose(page: Path) -> str:
    """The page without its code blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """What GitHub calls a page's headings."""
    titles = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def broken_links(page: Path) -> list[str]:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    return broken


def missing_paths(page: Path) -> list[str]:
    """Files of the repository that a page names and that are not there; those that a guide tells to write apart."""
    text = page.read_text(encoding="utf-8")
    folders = "gemma_cuda|kernels|tests|benchmarks|bindings|docs|examples"
    named = set(re.findall(rf"(?<![\w/.])(?:{folders})(?:/[\w.-]+)*/[\w-]+\.\w+", text))
    written = set(re.findall(r"^(?://|#) ((?:gemma_cuda|kernels|my_kernels)/\S+)$", text, re.MULTILINE))
    return sorted(path for path in named - written - TO_COME if not (ROOT / path).exists())


# Named before they are there: files that a guide tells to write, or that a GPU is to give.
TO_COME = {"tests/ops/test_scale.py", "tests/golden/NAME.zip", "benchmarks/results/gpu-bench.json"}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    assert broken_links(page) == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_named_files_exist(page: Path) -> None:
    assert missing_paths(page) == []


@pytest.mark.parametrize("page", HAND_WRITTEN, ids=name)
def test_replaced_words_are_gone(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert [f"{old}: say {new}" for old, new in REPLACED.items() if re.search(rf"\b{old}\b", text)] == []


@pytest.mark.parametrize("page", HAND_WRITTEN, ids=name)
def test_a_page_is_short(page: Path) -> None:
    assert len(page.read_text(encoding="utf-8").splitlines()) <= MOST_LINES


def test_what_is_wrong_is_found(tmp_path: Path) -> None:
    page, other = tmp_path / "page.md", tmp_path / "other.md"
    other.write_text("# A title: of words\n")
    page.write_text("[a](other.md#a-title-of-words) [b](other.md#none) [c](gone.md) gemma_cuda/gone/x.py")
    assert broken_links(page) == ["other.md#none", "gone.md"]
    assert missing_paths(page) == ["gemma_cuda/gone/x.py"]


def test_every_picture_is_on_a_page() -> None:
    shown = {target for page in PAGES for target in re.findall(r"!\[.*?\]\(pictures/(\S+)\)", page.read_text())}
    assert shown == set(pictures.pages()) == {path.name for path in (ROOT / "docs" / "pictures").iterdir()}


def test_glossary_has_each_word_once() -> None:
    words = re.findall(r"^\| ([^|]+?) \| (?!meaning)", (ROOT / "docs" / "glossary.md").read_text(), re.MULTILINE)
    assert len(words) > 50 and sorted(words) == sorted(set(words))


def test_the_number_of_the_readme_is_the_measured_one() -> None:
    result = json.loads((ROOT / "benchmarks" / "results" / "prefill-numpy.json").read_text())
    (row,) = (row for row in result["rows"] if row["length"] == 2048)
    seconds, ratio = statistics.median(row["ours"]), statistics.median(row["ratio"])
    opening = " ".join((ROOT / "README.md").read_text().split("```")[0].split())
    assert result["machine"]["cores"] == 2 and "on two CPU cores" in opening
    assert f"2,048 tokens of Gemma 3 270M in {seconds:.1f} s, {ratio:.2f} × the time of HuggingFace" in opening


# --- pictures ---


def test_the_swizzle_of_the_picture_is_cutes() -> None:
    """128 bytes: bits 4 to 6 of an address are xored by bits 7 to 9."""
    row, chunk = np.mgrid[:16, :8]
    address = 2 * pictures.swizzled_offset(row, chunk, 64)
    swizzle = tuple(layouts.read("swizzle")["128 bytes"]["function"]["swizzle"])
    np.testing.assert_array_equal(address, layouts.swizzled(128 * row + 16 * chunk, swizzle))


def test_the_lanes_of_the_picture_address_an_a_fragment() -> None:
    """Of matrix i lane l gets two elements of row l / 4, and they are values 2 i and 2 i + 1 of mma's operand a."""
    m, k = layouts.mma("a")
    lanes = pictures.fragment_lanes()
    for lane in range(32):
        for i in range(4):
            row, chunk = lanes[8 * i + lane // 4]
            assert [row] * 2 == m[lane, 2 * i : 2 * i + 2].tolist()
            assert [8 * chunk + 2 * (lane % 4) + j for j in range(2)] == k[lane, 2 * i : 2 * i + 2].tolist()


def test_the_fields_of_the_picture_are_explained_and_apart() -> None:
    fields, rows = pictures.example_fields()
    assert all(row[0].rpartition(".")[2] in pictures.MEANINGS for row in rows)
    ends = [first + 4 * int(np.prod(shape)) for _, shape, first in rows]
    assert all(first % 256 == 0 for *_, first in rows) and ends[-1] <= 4 * fields.size
    assert all(end <= row[2] for end, row in zip(ends, rows[1:], strict=False))


def test_the_rooms_of_the_picture_are_those_of_the_package() -> None:
    assert {room for floor in pictures.floors() for room in floor} == set(pictures.ROOMS)


# --- the guide to a kernel ---


def test_the_kernel_of_the_guide_runs(tmp_path: Path) -> None:
    for folder in ("gemma_cuda", "kernels", "bindings"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    shutil.copy(str(runtime.__file__), tmp_path / "gemma_cuda")
    # An installation in place finds its own checkout before PYTHONPATH; the commands are to run this one.
    forget = "sys.meta_path[:] = [f for f in sys.meta_path if type(f).__name__ != 'ScikitBuildRedirectingFinder']"
    (tmp_path / "sitecustomize.py").write_text(f"import sys\n{forget}\n")
    guide = (ROOT / "docs" / "add-a-kernel.md").read_text()
    files = re.findall(r"^```(?:cuda|python)\n(?://|#) (\S+)\n(.*?)^```", guide, re.MULTILINE | re.DOTALL)
    assert len(files) == 4
    for path, text in files:
        (tmp_path / path).write_text(text)
    (console,) = re.findall(r"^```console\n(.*?)^```", guide, re.MULTILINE | re.DOTALL)
    lines = console.splitlines()
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(tmp_path),
    }
    for command, shown in zip(lines[::2], lines[1::2], strict=True):
        done = subprocess.run(
            ["bash", "-c", command.removeprefix("$ ")], cwd=tmp_path, env=environment, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        assert done.stdout == f"{shown}\n", done.stderr
