"""Instructions of a kernel, and of its inner loop, counted in what nvdisasm makes of its cubin."""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import subprocess
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from ..device.cuda.compile import CompiledKernel
from ..errors import DeviceError

_LABEL = re.compile(r"^(\.L_x_\d+):")
_INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:(@!?U?P\w+)\s+)?([A-Z][A-Z0-9_.]*)([^;]*);")
_TARGET = re.compile(r"`\((\.L_x_\d+)\)")
TELLING = ("HMMA", "HGMMA", "LDGSTS", "UTMALDG", "LDL", "STL")
"""Products of a warp and of a warpgroup, copies of cp.async and of the bulk copy engine, local memory."""
_NEEDED = ("HMMA", "LDSM", "LDGSTS")  # what an inner tile, one that is neither first nor last, goes through


@dataclass(frozen=True)
class Instruction:
    """target: index of the instruction that a branch goes to."""

    opcode: str
    is_conditional: bool
    target: int | None


def tile_loop(compiled: CompiledKernel) -> dict[str, int]:
    """Opcode (first part) -> instructions that a warp issues for one tile of keys that all its queries see.

    The loop is the one with the matrix instructions. Of two ways through it the shorter one counts, unless it leaves
    out products or copies: so neither the element test of edge tiles nor the rescaling of accumulators is in it.
    """
    return dict(sorted(shortest_turn(parse(_listing(compiled))).items()))


def mix(compiled: CompiledKernel) -> dict[str, int]:
    """Opcode (first part) -> instructions of the whole kernel, for those of TELLING.

    Raises DeviceError without nvdisasm.
    """
    counts = Counter(instruction.opcode for instruction in parse(_listing(compiled)))
    return {opcode: counts[opcode] for opcode in TELLING}


def _listing(compiled: CompiledKernel) -> str:
    command = [nvdisasm(), "-c", str(compiled.cubin)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def nvdisasm() -> str:
    """The program: from PATH, or of the package nvidia-cuda-nvdisasm. Raises DeviceError without it."""
    found = shutil.which("nvdisasm")
    if found is not None:
        return found
    try:
        files = importlib.metadata.files("nvidia-cuda-nvdisasm") or []
        return next(str(Path(str(f.locate()))) for f in files if f.name == "nvdisasm")
    except (importlib.metadata.PackageNotFoundError, StopIteration):
        raise DeviceError("nvdisasm is not on the PATH: pip install nvidia-cuda-nvdisasm") from None


def parse(text: str) -> list[Instruction]:
    """The instructions of one function's listing, in order."""
    labels: dict[str, int] = {}
    found: list[tuple[str, bool, str | None]] = []
    for line in text.splitlines():
        if label := _LABEL.match(line):
            labels[label[1]] = len(found)
        elif instruction := _INSTRUCTION.match(line):
            predicate, opcode, operands = instruction.groups()
            target = _TARGET.search(operands) if opcode.startswith("BRA") else None
            found.append((opcode.split(".")[0], predicate is not None, target and target[1]))
    return [Instruction(opcode, condition, labels.get(to) if to else None) for opcode, condition, to in found]


def shortest_turn(listing: list[Instruction]) -> Counter[str]:
    """Opcode -> count on the way through the loop with most HMMA: of the ways with most needed ones the shortest."""
    back = [(i, x.target) for i, x in enumerate(listing) if x.target is not None and x.target <= i]
    end, start = max(back, key=lambda pair: sum(x.opcode == "HMMA" for x in listing[pair[1] : pair[0]]))
    # From the end backwards: (minus needed ones, length) of the best way to the end, and where it goes first.
    best: dict[int, tuple[int, int]] = {end: (0, 1)}
    following: dict[int, int] = {}
    for i in range(end - 1, start - 1, -1):
        x = listing[i]
        ways = [] if x.target is not None and not x.is_conditional else [i + 1]
        if x.target is not None and i < x.target <= end:
            ways.append(x.target)
        reachable = [way for way in ways if way in best]
        if reachable:
            following[i] = min(reachable, key=lambda way: best[way])
            needed, length = best[following[i]]
            best[i] = (needed - (x.opcode in _NEEDED), length + 1)
    counts, i = Counter([listing[end].opcode]), start
    while i != end:
        counts[listing[i].opcode] += 1
        i = following[i]
    return counts
