"""Files of a GPU's results of the primitives' kernels, for comparison with the emulator where there is no GPU.

A file is a zip. Each launch has a launch.json with its arguments; arrays lie beside it as bits.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401 (gives NumPy the name bfloat16)
import numpy as np

from gemma_cuda.device.emulator.device import Approximation, Emulator, MmaRounding
from tests.support.emulated import MMA_ROUNDINGS
from tests.support.paths import KERNELS, TESTS

Array = np.ndarray[Any, Any]
DIRECTORY = TESTS / "golden"
_APPROXIMATE, _MULTIPLY = "approximate<", "multiply<"
_MMA_ERROR = 17 * 2.0**-24  # of a sum of 17 products, to the sum of their magnitudes


@dataclass(frozen=True)
class GoldenLaunch:
    """A launch and the contents, afterwards, of each array that the kernel could write."""

    instance: str
    grid: Sequence[int]
    block: Sequence[int]
    shared: int
    args: list[Any]
    results: dict[int, Array]

    @property
    def is_product(self) -> bool:
        """Whether a kernel of matrix products was launched, whose sums tensor cores round in their own way."""
        return self.instance.startswith(_MULTIPLY)

    def on_emulator(
        self, args: Sequence[Any] | None = None, approx: Approximation = "exact", mma: MmaRounding = "fast"
    ) -> dict[int, Array]:
        """The emulator's results of the same launch."""
        copies = [a.copy() if isinstance(a, np.ndarray) else a for a in (self.args if args is None else args)]
        Emulator(kernels=KERNELS, approx=approx, mma=mma).launch(
            self.instance, self.grid, self.block, self.shared, copies
        )
        return {i: copies[i] for i in self.results}


@dataclass(frozen=True)
class GoldenFile:
    """A zip of launches, to which launches can be added."""

    path: Path

    def add(self, launch: GoldenLaunch) -> None:
        with zipfile.ZipFile(self.path, "a", zipfile.ZIP_DEFLATED) as file:
            number = sum(name.endswith("launch.json") for name in file.namelist())
            given: list[Any] = []
            for i, value in enumerate(launch.args):
                if isinstance(value, np.ndarray):
                    _put(file, f"{number}/in{i}.npy", value)
                    value = {"dtype": value.dtype.name}
                given.append(value.item() if isinstance(value, np.generic) else value)
            for i, value in launch.results.items():
                _put(file, f"{number}/out{i}.npy", value)
            fields = {name: getattr(launch, name) for name in ("instance", "grid", "block", "shared")}
            fields |= {"args": given, "results": list(launch.results)}
            file.writestr(f"{number}/launch.json", json.dumps(fields))

    def launches(self) -> Iterator[GoldenLaunch]:
        with zipfile.ZipFile(self.path) as file:
            for name in file.namelist():
                if not name.endswith("launch.json"):
                    continue
                number, fields = name.partition("/")[0], json.loads(file.read(name))
                args, kept = fields.pop("args"), fields.pop("results")
                dtypes = {i: np.dtype(a["dtype"]) for i, a in enumerate(args) if isinstance(a, dict)}
                for i, dtype in dtypes.items():
                    args[i] = _get(file, f"{number}/in{i}.npy").view(dtype)
                results = {i: _get(file, f"{number}/out{i}.npy").view(dtypes[i]) for i in kept}
                yield GoldenLaunch(**fields, args=args, results=results)


def difference(launch: GoldenLaunch) -> str | None:
    """Where the emulator departs from the GPU by more than it may, in words.

    Approximations lie between the emulator's worst errors, sums of products apart by their rounding; else bits agree.
    """
    for i, golden in launch.results.items():
        if launch.instance.startswith(_APPROXIMATE):
            low, high = (launch.on_emulator(approx=a)[i] for a in ("down", "up"))
            same = (np.minimum(low, high) <= golden) & (golden <= np.maximum(low, high)) | (
                np.isnan(low) & np.isnan(golden)
            )
        elif launch.is_product:
            magnitude, same = launch.on_emulator(list(map(_magnitude, launch.args)))[i], np.zeros(golden.shape, bool)
            for mma in MMA_ROUNDINGS:
                ours = launch.on_emulator(mma=mma)[i]
                with np.errstate(invalid="ignore"):
                    same |= (np.abs(ours - golden) <= _MMA_ERROR * magnitude) | (ours == golden)
                same |= np.isnan(ours) & np.isnan(golden)
        else:
            kind = f"V{golden.itemsize}"
            same = launch.on_emulator()[i].view(kind) == golden.view(kind)
        if not same.all():
            count, first = int((~same).sum()), tuple(int(n) for n in np.argwhere(~same)[0])
            return f"{launch.instance}: argument {i} differs at {count} of {same.size} places, the first {first}"
    return None


def _magnitude(value: Any) -> Any:
    """Fragments and sums without their signs."""
    if not isinstance(value, np.ndarray):
        return value
    return np.abs(value) if value.dtype == np.float32 else value & np.uint32(0x7FFF7FFF)


def _put(file: zipfile.ZipFile, name: str, array: Array) -> None:
    data = io.BytesIO()
    np.save(data, np.ascontiguousarray(array).view(f"u{array.itemsize}"))
    file.writestr(name, data.getvalue())


def _get(file: zipfile.ZipFile, name: str) -> Array:
    values: Array = np.load(io.BytesIO(file.read(name)))
    return values
