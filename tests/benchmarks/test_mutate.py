"""The lists of mutants fit the kernels as they are."""

from __future__ import annotations

import pytest

from benchmarks import mutate
from benchmarks.mutate import ROOT, mutants_of_indices, semantic_mutants
from benchmarks.semantic_mutants import SEMANTIC

KERNELS = sorted(path.stem for path in (ROOT / "kernels").glob("*.cu"))


def test_every_kernel_has_mistakes() -> None:
    assert sorted(SEMANTIC) == KERNELS


@pytest.mark.parametrize("kernel", KERNELS)
def test_each_mistake_is_an_edit_of_the_source(kernel: str) -> None:
    for mutant in semantic_mutants(kernel):
        text = (ROOT / "kernels" / mutant.source).read_text()
        assert text[mutant.position :].startswith(mutant.before) and mutant.apply(text) != text


@pytest.mark.parametrize("kernel", KERNELS)
def test_offsets_are_narrowed_where_they_are_computed(kernel: str) -> None:
    """Every line that says int64_t or long long outside parameters and members has a mutant."""
    text = (ROOT / "kernels" / f"{kernel}.cu").read_text()
    found = list(mutants_of_indices(f"{kernel}.cu", text))
    for mutant in found:
        assert text[mutant.position :].startswith(mutant.before)
        assert mutant.apply(text).count("int32_t") == text.count("int32_t") + 1
    narrowed = {mutant.line for mutant in found}
    for number, line in enumerate(text.splitlines(), 1):
        is_computed = any(f"<{wide}>(" in line for wide in ("int64_t", "long long")) or (
            "=" in line and any(f"const {wide} " in line for wide in ("int64_t", "long long"))
        )
        assert not is_computed or number in narrowed, line


@pytest.mark.parametrize("kernel", SEMANTIC)
def test_the_files_of_a_kernel_exist(kernel: str) -> None:
    assert [name for name in mutate.kernel_tests(kernel) if not (ROOT / name).exists()] == []
    assert [name for name in mutate.source_files(kernel) if not (ROOT / "kernels" / name).exists()] == []
