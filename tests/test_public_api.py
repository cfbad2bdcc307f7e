"""The public API: names and signatures as in public_api.txt (python -m tests.test_public_api writes it anew)."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from typing import Any

from gemma_cuda.device.protocol import Device
from tests.support.paths import TESTS

SNAPSHOT = TESTS / "public_api.txt"
# Where users are told to import from, and the names there; None: all of __all__.
MODULES: dict[str, tuple[str, ...] | None] = {
    "gemma_cuda": None,
    "gemma_cuda.interop.transformers": None,
    "gemma_cuda.device": None,
    "gemma_cuda.device.cuda": ("Cuda",),
    "gemma_cuda.device.emulator": ("Emulator",),
    "gemma_cuda.errors": (
        "CacheError", "CheckpointError", "ConfigError", "DeviceError", "DownloadError", "GemmaError", "InputError",
        "KernelError", "LaunchError", "OutOfMemoryError", "TokenizerError",
    ),
}  # fmt: skip


def lines() -> Iterator[str]:
    """One line for each name, and for each public method of a class."""
    for module, names in MODULES.items():
        imported = importlib.import_module(module)
        for name in sorted(imported.__all__ if names is None else names):
            yield from _described(f"{module}.{name}", getattr(imported, name))


def _described(name: str, value: Any) -> Iterator[str]:
    if not inspect.isclass(value):
        yield f"{name}{inspect.signature(value)}" if callable(value) else f"{name} = {value!r}"
        return
    bases = ", ".join(
        base.__name__ for base in value.__mro__[1:-1] if base.__module__ in ("builtins", "gemma_cuda.errors")
    )
    yield f"class {name}({bases}){_signature(value)}"
    for member in sorted(dir(value)):
        found = inspect.getattr_static(value, member)
        if member.startswith("_") or (member not in vars(value) and issubclass(value, BaseException)):
            continue
        if name.endswith((".Cuda", ".Emulator")) and member not in vars(Device):
            continue  # what the package itself uses
        if isinstance(found, classmethod | staticmethod) or inspect.isfunction(found):
            yield f"  {name.rpartition('.')[2]}.{member}{_signature(getattr(value, member))}"
        else:
            yield f"  {name.rpartition('.')[2]}.{member}"


def _signature(value: Any) -> str:
    signature = inspect.signature(value)
    parameters = [p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()]
    return str(signature.replace(parameters=parameters, return_annotation=inspect.Signature.empty))


def test_the_public_api_is_as_it_was() -> None:
    assert "\n".join(lines()) + "\n" == SNAPSHOT.read_text(encoding="utf-8")


if __name__ == "__main__":
    SNAPSHOT.write_text("\n".join(lines()) + "\n", encoding="utf-8")
