"""Static facts of a launch from the compiler, without a GPU: registers, shared memory, spills, instructions."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from ..device.cuda.compile import compile_kernel
from ..device.dry_run import Launch
from . import sass
from .occupancy import MULTIPROCESSORS, blocks_per_multiprocessor

Row = dict[str, Any]


def needs(launch: Launch, architecture: str, *, with_sass: bool) -> Row:
    """The row of a launch on an architecture: fields of Launch and Resources, and further facts of the compiled kernel.

    blocks: of a multiprocessor; None for an architecture whose limits are not known. seconds: of the compilation.
    sass: opcode -> instructions, for those of sass.TELLING.
    Raises LaunchError, DeviceError without NVRTC or, for with_sass, nvdisasm.
    """
    compiled = compile_kernel(launch.instance, architecture)
    is_known = architecture in MULTIPROCESSORS
    row = {
        "instance": launch.instance,
        "architecture": architecture,
        "threads": launch.threads,
        "dynamic_shared_bytes": launch.shared_bytes,
        **asdict(compiled.resources),
        "blocks": blocks_per_multiprocessor(architecture, launch, compiled.resources) if is_known else None,
        "seconds": compiled.seconds,
        "notes": compiled.notes,
        "compiler": compiled.compiler,
    }
    return row | {"sass": sass.mix(compiled)} if with_sass else row
