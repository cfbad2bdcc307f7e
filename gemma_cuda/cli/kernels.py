"""`gemma-cuda kernels`: every kernel instance with its registers and shared memory on each architecture."""

import argparse
from typing import Any

from . import common, kernel_choice

_HEADER = "architecture registers  shared  stack spills blocks seconds  instance"


def add_parser(commands: common.Commands) -> None:
    parser = commands.add_parser(
        "kernels",
        help="registers, shared memory and spills of every kernel instance",
        description="Compile every kernel instance that some models launch and show registers and bytes of local "
        "memory per thread, bytes of shared memory per block, blocks that fit a multiprocessor, and seconds that its "
        "compilation took when it was compiled. Needs NVRTC, neither a driver nor a GPU.",
    )
    kernel_choice.add_options(parser, default_architectures="all that are tested")
    parser.add_argument(
        "--sass", action="store_true", help="also count instructions: products, copies, local memory (needs nvdisasm)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from ..bench import static
    from ..device.cuda.compile import ARCHITECTURES

    architectures = kernel_choice.chosen_architectures(arguments, ARCHITECTURES)
    rows: list[dict[str, Any]] = []
    for architecture, launches in kernel_choice.chosen_launches(arguments, architectures).items():
        for launch in launches:
            row = static.needs(launch, architecture, with_sass=arguments.sass)
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
    blocks = "-" if row["blocks"] is None else row["blocks"]
    numbers = (
        f"{row['registers']:>9} {shared:>7} {row['stack_bytes']:>6} {spills:>6} {blocks:>6} {row['seconds']:>7.2f}"
    )
    print(f"{row['architecture']:<12} {numbers}  {row['instance']}")
    if "sass" in row:
        print(f"{'':<12} {', '.join(f'{count} {opcode}' for opcode, count in row['sass'].items())}")
    for note in row["notes"]:
        print(f"{'':<12} {note}")
