"""`gemma-cuda kernels`: every kernel instance, and what it needs of a multiprocessor on each architecture."""

import argparse
import dataclasses
from typing import Any

from . import common, kernel_choice

_HEADER = f"{'architecture':<12} {'registers':>9} {'shared':>7} {'stack':>6} {'spills':>6}  instance"


def add_parser(commands: common.Commands) -> None:
    parser = commands.add_parser(
        "kernels",
        help="registers, shared memory and spills of every kernel instance",
        description="Compile every kernel instance that some models launch and show registers and bytes of local "
        "memory per thread, bytes of shared memory per block. Needs NVRTC, neither a driver nor a GPU.",
        allow_abbrev=False,
    )
    kernel_choice.add_options(parser, default_architectures="all that are tested")
    parser.add_argument(
        "--sass", action="store_true", help="also count instructions: products, copies, local memory (needs nvdisasm)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from ..bench import sass
    from ..device.compile import ARCHITECTURES, compile_kernel

    architectures = kernel_choice.chosen_architectures(arguments, ARCHITECTURES)
    rows: list[dict[str, Any]] = []
    for architecture, launches in kernel_choice.chosen_launches(arguments, architectures).items():
        for launch in launches:
            compiled = compile_kernel(launch.instance, architecture)
            row = {
                "instance": launch.instance,
                "architecture": architecture,
                "threads": launch.threads,
                "dynamic_shared_bytes": launch.shared_bytes,
                **dataclasses.asdict(compiled.resources),
                "notes": compiled.notes,
                "compiler": compiled.compiler,
            }
            if arguments.sass:
                row["sass"] = sass.mix(compiled)
            rows.append(row)
            if not arguments.json:
                if len(rows) == 1:
                    print(_HEADER)
                _print(row)
    if arguments.json:
        common.print_json({"kernels": rows})
    return 0


def _print(row: dict[str, Any]) -> None:
    shared = row["dynamic_shared_bytes"] + row["static_shared_bytes"]
    spills = row["spill_store_bytes"] + row["spill_load_bytes"]
    numbers = f"{row['registers']:>9} {shared:>7} {row['stack_bytes']:>6} {spills:>6}"
    print(f"{row['architecture']:<12} {numbers}  {row['instance']}")
    if "sass" in row:
        print(f"{'':<12} {', '.join(f'{count} {opcode}' for opcode, count in row['sass'].items())}")
    for note in row["notes"]:
        print(f"{'':<12} {note}")
