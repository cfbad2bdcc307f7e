"""`gemma-cuda compile`: kernels compiled ahead of time, so that the first prefill on a GPU does not wait for them."""

import argparse
import time

from ..device import detect
from . import common, kernel_choice


def add_parser(commands: common.Commands) -> None:
    parser = commands.add_parser(
        "compile",
        help="compile kernels for GPUs ahead of time; needs no GPU",
        description="Fill the kernel cache ($GEMMA_CUDA_CACHE) for some models and GPU architectures. Needs NVRTC, "
        "neither a driver nor a GPU.",
    )
    kernel_choice.add_options(parser, default_architectures="the GPUs of this machine, without any all that are tested")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from ..device.cuda.compile import ARCHITECTURES, architecture_of, compile_kernels
    from ..host.files import cache_directory

    gpus = [architecture_of(gpu.compute_capability) for gpu in detect().gpus if gpu.supported]
    architectures = kernel_choice.chosen_architectures(arguments, gpus or ARCHITECTURES)
    for architecture, launches in kernel_choice.chosen_launches(arguments, architectures).items():
        start = time.perf_counter()
        compile_kernels([launch.instance for launch in launches], architecture)
        print(f"{architecture:<8} {len(launches)} kernels, {time.perf_counter() - start:.1f} s")
    common.print_row("cache", cache_directory() / "cuda")
    return 0
