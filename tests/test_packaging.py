"""The package as it is installed: light imports, true metadata, a wheel that works anywhere, and a README that runs."""

from __future__ import annotations

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import gemma_cuda
from gemma_cuda import cli
from gemma_cuda.device import doctor
from tests.support.paths import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]


def import_in_a_fresh_process(code: str) -> set[str]:
    """Names of all modules that are loaded after `code`, beyond those of a bare interpreter."""
    code = f"import sys; before = set(sys.modules)\n{code}\nprint(*sorted(set(sys.modules) - before))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_the_tests_see_this_checkout() -> None:
    # An installation in place of another checkout would win over the working directory.
    assert Path(gemma_cuda.__file__).parent == ROOT / "gemma_cuda"


def test_importing_the_package_is_light() -> None:
    modules = import_in_a_fresh_process("import gemma_cuda")
    assert {name for name in modules if name.startswith("gemma_cuda")} == {"gemma_cuda"}
    assert "numpy" not in modules
    assert len(modules) < 40, sorted(modules)


def test_the_model_class_needs_none_of_the_heavy_packages() -> None:
    modules = import_in_a_fresh_process("import gemma_cuda; gemma_cuda.Gemma, gemma_cuda.open_checkpoint")
    assert "gemma_cuda.model.decoder" in modules
    heavy = {"torch", "transformers", "jax", "cupy", "nvmath", "gguf", "tokenizers", "sentencepiece", "huggingface_hub"}
    assert not modules & heavy


def test_the_functions_for_other_frameworks_import_none_of_them() -> None:
    code = "import numpy, gemma_cuda; x = numpy.ones((1, 2, 1, 64), 'f'); gemma_cuda.attention(x, x, x); "
    modules = import_in_a_fresh_process(
        f"{code} gemma_cuda.geglu(x, x), gemma_cuda.rms_norm(x), gemma_cuda.qk_norm_rope"
    )
    assert "gemma_cuda.interop.attention" in modules
    assert not modules & {"torch", "transformers", "jax", "cupy"}


def test_the_command_starts_without_numpy() -> None:
    modules = import_in_a_fresh_process("from gemma_cuda.cli.command import build_parser; build_parser()")
    assert "numpy" not in modules
    assert "tqdm" not in modules


def third_party_imports(folder: str) -> set[str]:
    """Top-level packages that the Python files of a folder import, wherever in the file."""
    found: set[str] = set()
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module is not None:
                names = [node.module]
            found.update(name.partition(".")[0] for name in names)
    return {normalised(name) for name in found - sys.stdlib_module_names - {"gemma_cuda", "tests", "benchmarks"}}


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_dependencies_are_what_is_imported() -> None:
    optional = {"torch", "transformers", "jax", "cupy", "cuda", "nvmath", "flash-attn", "flashinfer", "matplotlib"}
    imported = third_party_imports("gemma_cuda") - optional
    assert imported == core_dependencies()
    assert imported == {normalised(name) for name in doctor.PACKAGES} | {"numpy"}


def core_dependencies() -> set[str]:
    return {normalised(Requirement(text).name) for text in PROJECT["dependencies"]}


def test_what_tests_and_benchmarks_import_is_installed_by_make() -> None:
    installed = core_dependencies() | {normalised(requirement.name) for requirement in closure("dev")}
    comes_with_pytest = {"packaging"}
    distribution = {"cuda": "cuda-bindings", "nvmath": "nvmath-python"}
    for folder in ("tests", "benchmarks", "examples"):
        imported = {distribution.get(name, name) for name in third_party_imports(folder)}
        assert imported <= installed | comes_with_pytest, folder


def test_the_extra_test_is_enough_for_the_tests() -> None:
    installed = core_dependencies() | {normalised(requirement.name) for requirement in closure("test")}
    distribution = {"cuda": "cuda-bindings", "nvmath": "nvmath-python"}
    imported = {distribution.get(name, name) for name in third_party_imports("tests")}
    # The last two: what the commands that are tested draw and count with.
    assert imported | {"matplotlib", "nvidia-cuda-nvdisasm"} <= installed | {"packaging"}


def closure(extra: str) -> list[Requirement]:
    """The requirements of an extra, extras of this package resolved."""
    found: list[Requirement] = []
    for text in EXTRAS[extra]:
        requirement = Requirement(text)
        if requirement.name == "gemma-cuda":
            for inner in sorted(requirement.extras):
                found += closure(inner)
        else:
            found.append(requirement)
    return found


def test_the_extras_are_those_that_the_readme_names() -> None:
    assert set(EXTRAS) == {"cuda13", "cuda12", "demo", "torch", "transformers", "jax", "bench", "test", "peers", "dev"}
    readme = (ROOT / "README.md").read_text()
    for extra in EXTRAS:
        assert f"`{extra}`" in readme, extra
    assert all(requirement.specifier for extra in EXTRAS for requirement in closure(extra)), (
        "every requirement has a bound"
    )


def test_make_installs_no_other_torch() -> None:
    installed = set(re.findall(r'--editable "\.\[(\w+)', (ROOT / "Makefile").read_text()))
    assert installed == {"demo", "dev"}
    for extra in installed:
        torch = {str(requirement.specifier) for requirement in closure(extra) if requirement.name == "torch"}
        assert torch <= {"==2.13.0"}
    assert "torch" not in {requirement.name for requirement in closure("demo")}


def test_versions_and_licence_agree() -> None:
    assert gemma_cuda.__version__ == PROJECT["version"]
    assert PROJECT["license"] == "Apache-2.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text()[:200]
    assert PROJECT["requires-python"] == ">=3.11"


# A stand-in for the real bindings/: what is tested is when CMakeLists.txt builds it.
BINDINGS = """
#include <pybind11/pybind11.h>
PYBIND11_MODULE(_emulator, m) { m.def("answer", [] { return 42; }); }
"""


def build_wheel(folder: Path, *, compiler: bool) -> Path:
    """A wheel of a copy of this checkout that has kernels/ and bindings/, built offline into `folder`."""
    source = folder / "source"
    source.mkdir(parents=True)
    for name in ("pyproject.toml", "CMakeLists.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "gemma_cuda", source / "gemma_cuda", ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    for path, text in {
        "kernels/example.cu": "// a kernel",
        "kernels/gpu/platform.cuh": "// a header",
        "bindings/module.cc": BINDINGS,
        "bindings/emulator/platform.cuh": "// its twin",
        "bindings/emulator/cuda/cuda_runtime.h": "// a header of CUDA's",
        "bindings/emulator/cuda/cuda/std/atomic": "// one without a suffix",
    }.items():
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        (source / path).write_text(text)
    environment = dict(os.environ)
    if not compiler:
        environment |= {"CXX": "/no/such/compiler", "CC": "/no/such/compiler"}
    words = ["wheel", "--quiet", "--no-build-isolation", "--no-deps", "--no-index", "--wheel-dir", str(folder)]
    done = subprocess.run(
        [sys.executable, "-m", "pip", *words, str(source)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = folder.glob("gemma_cuda-*.whl")
    return wheel


def run_from_wheel(wheel: Path, folder: Path, code: str) -> str:
    """What `code` prints where the unpacked wheel is the only gemma_cuda, in another directory."""
    zipfile.ZipFile(wheel).extractall(folder / "unpacked")
    # -S leaves out .pth files, which could put this checkout first; the dependencies are added by hand.
    paths = [str(folder / "unpacked"), sysconfig.get_path("purelib")]
    prelude = f"import sys; sys.path[:0] = {paths!r}\n"
    done = subprocess.run(
        [sys.executable, "-S", "-c", prelude + code], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_wheel_works_from_any_directory(tmp_path: Path) -> None:
    wheel = build_wheel(tmp_path, compiler=True)
    names = set(zipfile.ZipFile(wheel).namelist())
    sources = {path.relative_to(ROOT).as_posix() for path in (ROOT / "gemma_cuda").rglob("*.py")}
    assert sources <= names and "gemma_cuda/py.typed" in names
    assert {
        "gemma_cuda/_sources/kernels/example.cu",
        "gemma_cuda/_sources/kernels/gpu/platform.cuh",
        "gemma_cuda/_sources/bindings/emulator/platform.cuh",
        "gemma_cuda/_sources/bindings/emulator/cuda/cuda_runtime.h",
        "gemma_cuda/_sources/bindings/emulator/cuda/cuda/std/atomic",
    } <= names
    assert not any(name.startswith(("tests/", "kernels/", "bindings/")) for name in names)
    entry_points = next(name for name in names if name.endswith("entry_points.txt"))
    assert b"gemma-cuda=gemma_cuda.cli:main" in zipfile.ZipFile(wheel).read(entry_points).replace(b" ", b"")
    code = "from gemma_cuda.cli import main; import gemma_cuda; print(gemma_cuda.__file__); main(['doctor'])"
    out = run_from_wheel(wheel, tmp_path, code)
    assert out.startswith(str(tmp_path))
    can_build = sys.platform == "linux" and Path(sysconfig.get_path("include"), "Python.h").exists()
    if can_build and shutil.which("c++") and os.uname().machine == "x86_64":
        assert run_from_wheel(wheel, tmp_path, "from gemma_cuda import _emulator; print(_emulator.answer())") == "42\n"


def test_without_a_compiler_the_package_is_built_without_the_emulator(tmp_path: Path) -> None:
    wheel = build_wheel(tmp_path, compiler=False)
    assert not [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".so")]
    out = run_from_wheel(wheel, tmp_path, "from gemma_cuda.cli import main; main(['doctor'])")
    assert "gemma_cuda._emulator was not built" in out


def readme_blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def readme_commands() -> list[list[str]]:
    lines = [line for block in readme_blocks("console") for line in block.splitlines()]
    return [shlex.split(line)[2:] for line in lines if line.startswith("$ gemma-cuda ")]


def test_readme_shows_the_two_commands_first() -> None:
    first = readme_blocks("console")[0].splitlines()
    assert [line.split()[:3] for line in first] == [["$", "make", "demo"], ["$", "make", "test"]]


@pytest.mark.real_weights
def test_readme_python_examples_run(capsys: pytest.CaptureFixture[str]) -> None:
    blocks = [block for block in readme_blocks("python") if "from_pretrained" in block]
    for block, count in zip(blocks, (1, 4), strict=True):
        exec(compile(block, "README.md", "exec"), {})
        printed = capsys.readouterr().out.splitlines()
        shapes = re.findall(r"print\(.*\) +# (\(.*?\))", block)
        assert len(shapes) == count
        assert [line for line in printed if line.startswith("(")] == shapes


@pytest.fixture(scope="module")
def demo() -> gemma_cuda.Gemma:
    return gemma_cuda.Gemma.from_pretrained("gemma-3-270m-q4_k_m")


@pytest.mark.real_weights
@pytest.mark.parametrize("words", readme_commands(), ids=" ".join)
def test_readme_commands_run(
    words: list[str], demo: gemma_cuda.Gemma, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gemma_cuda.Gemma, "from_pretrained", lambda name, **options: demo)  # loaded once for all
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    assert cli.main(words) == 0


def test_readme_names_every_command() -> None:
    assert {words[0] for words in readme_commands()} == {
        "prefill", "generate", "score", "info", "doctor", "bench", "mask"
    }  # fmt: skip
