"""`gemma-cuda bench`: times of kernels and prefills on a GPU, beside peers; on the emulator counts instead."""

import argparse
import math
from pathlib import Path
from typing import Any

from ..bench import OPS, PEERS
from ..errors import InputError
from ..printable import reason
from . import common
from .parser import MOST_TOKENS, device, name, number_where, path, whole

_OF_ONE_KIND = {"model": True, "random": True, "no_compiled": True, "shapes": False, "vs": False}  # True: of prefill


def add_parser(commands: common.Commands) -> None:
    parser = commands.add_parser(
        "bench",
        help="time kernels, or whole prefills, on a GPU beside other libraries",
        description="Time kernels at the sizes of published models: medians of CUDA graphs over rotating random inputs "
        "that the L2 cache does not hold (or the row says so), with the share of what this GPU's copy and product "
        "reach in the same process. An output that is wrong is marked and has no time. `bench prefill` times whole "
        "models to the first token. --device emulator counts instead: memory traffic, matrix operations, bank "
        "conflicts, registers, blocks of a multiprocessor; no times, but an estimate of attention's speed on an H100.",
    )
    parser.add_argument("op", nargs="*", metavar="OP", help=f"{', '.join(OPS)}, or prefill alone (default: all ops)")
    parser.add_argument(
        "--device", type=device, default="cuda", help="cuda, cuda:1, ... or emulator (default: %(default)s)"
    )
    parser.add_argument("--arch", metavar="ARCH", help="of --device emulator: whose kernels (default: sm_90a)")
    parser.add_argument("--shapes", metavar="MODELS", help="published sizes, or fa3 for FlashAttention-3's, by commas")
    parser.add_argument("--tokens", metavar="N", help="numbers of tokens, by commas")
    parser.add_argument("--vs", metavar="PEERS", help=f"of {', '.join(PEERS)}, by commas (default: none)")
    parser.add_argument(
        "--seconds",
        type=number_where(lambda seconds: seconds >= 0, "a number of seconds"),
        default=math.inf,
        help="start no case after so long",
    )
    parser.add_argument("--model", type=name, metavar="MODEL", help=f"of prefill: {common.MODEL_HELP}")
    parser.add_argument("--random", metavar="SIZE", help="of prefill: random weights of a published size")
    parser.add_argument("--no-compiled", action="store_true", help="of prefill: no torch.compile of Transformers")
    parser.add_argument("--json", metavar="FILE", type=path, help="also write everything there")
    parser.add_argument("--plot", metavar="FILE", type=path, help="also plot shares of ceilings, or times of prefills")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    unknown = set(arguments.op) - {*OPS, "prefill"}
    if unknown or ("prefill" in arguments.op and len(arguments.op) > 1):
        raise InputError(f"bench {' '.join(arguments.op)}: expected some of {', '.join(OPS)}, or prefill alone")
    if arguments.json is not None:
        common.check_destination("--json", arguments.json)
    if arguments.plot is not None:
        common.check_picture("--plot", arguments.plot)
    if arguments.arch is not None and arguments.device != "emulator":
        raise InputError("--arch is for --device emulator; a GPU has its own")
    is_prefill = arguments.op == ["prefill"]
    for option, is_for_prefill in _OF_ONE_KIND.items():
        if getattr(arguments, option) and is_for_prefill != is_prefill:
            words = option.replace("_", "-")
            raise InputError(f"--{words} is for {'prefill, not kernels' if is_for_prefill else 'kernels, not prefill'}")
    if is_prefill:
        result = _prefill(arguments)
    elif arguments.device == "emulator":
        result = _counted(arguments)
    else:
        result = _timed(arguments)
    if arguments.json is not None:
        _write(arguments.json, common.json_text(result, indent=1))
    if arguments.plot is not None:  # after the figures are safe: there may be nothing to plot
        from ..bench import tables

        (tables.plot_prefills if is_prefill else tables.plot)(result["rows"], arguments.plot)
    return int(any(row.get("wrong") is not None for row in result["rows"]))


def _timed(arguments: argparse.Namespace) -> dict[str, Any]:
    from ..bench import cases, run, tables
    from ..device.cuda.device import Cuda

    peers = _words(arguments.vs) or []
    if set(peers) - set(PEERS):
        raise InputError(f"--vs {arguments.vs}: expected some of {', '.join(PEERS)}")
    chosen = _chosen(arguments, cases.DEFAULT_MODELS, cases.TOKENS)
    result = run.run(
        Cuda.named(arguments.device), chosen, peers, seconds=arguments.seconds,
        report=lambda row: print(tables.timed_line(row), flush=True),
    )  # fmt: skip
    print(tables.ceilings_line(result))
    for peer, version in result["versions"].items():
        print(f"{peer} is {version}")
    for peer, why in result["absent"].items():
        print(f"{peer} is absent: {why}")
    if result["left_out"]:
        print(f"{result['left_out']} cases had no time left")
    return result


def _counted(arguments: argparse.Namespace) -> dict[str, Any]:
    from ..bench import counted, cycles, tables
    from ..device.cuda.compile import SHARED_BYTES

    if arguments.vs is not None or arguments.plot is not None:
        raise InputError("--vs and --plot are for times, and the emulator has none")
    if arguments.seconds != math.inf:
        raise InputError("--seconds is for times; the emulator counts every case that is asked for")
    architecture = arguments.arch or cycles.ARCHITECTURE
    if architecture not in SHARED_BYTES:
        raise InputError(f"--arch {architecture}: expected one of {', '.join(SHARED_BYTES)}")

    def report(row: dict[str, Any]) -> None:
        print("\n".join(tables.counted_lines(row)), flush=True)

    result = counted.run(_chosen(arguments, ("gemma-3-270m",), (1, 16)), architecture, report=report)
    print(f"tiles and kernels of {architecture}; × is what was counted, as a multiple of what any kernel needs, and "
          "docs/generated/costs.md explains it and the estimate")  # fmt: skip
    for tool, why in result["absent"].items():
        lacks = "no registers, no estimate" if tool == "NVRTC" else "no instructions, no estimate"
        print(f"{lacks}: {why}")
    return result


def _prefill(arguments: argparse.Namespace) -> dict[str, Any]:
    from ..bench import prefill, tables
    from ..bench.transformers_peers import COMPILED, NAMES
    from ..device.cuda.device import Cuda
    from ..ops.instances import published

    if (arguments.model is None) == (arguments.random is None):
        raise InputError("bench prefill: expected either --model or --random")
    tokens = _numbers(arguments.tokens) or prefill.TOKENS
    if arguments.random is not None and arguments.random not in published():
        raise InputError(f"--random {arguments.random}: expected one of {', '.join(published())}")
    peers = [peer for peer in NAMES if not (arguments.no_compiled and peer == COMPILED)]
    cuda = Cuda.named(arguments.device)
    if arguments.random is not None:
        result = prefill.run_random(cuda, [arguments.random], tokens, seconds=arguments.seconds, peers=peers)
    else:
        result = prefill.run_checkpoint(cuda, arguments.model, tokens, seconds=arguments.seconds, peers=peers)
    for row in result["rows"]:
        print(tables.prefill_line(row))
        slowest = sorted(row["kernels_ms"].items(), key=lambda item: -item[1])
        print("".join(f"  {kernel} {ms:.3f} ms" for kernel, ms in slowest))
    print("\n".join([tables.ceilings_line(result), *tables.absent_lines(result["rows"])]))
    return result


def _chosen(arguments: argparse.Namespace, models: tuple[str, ...], tokens: tuple[int, ...]) -> Any:
    from ..bench import cases

    ops, names = tuple(dict.fromkeys(arguments.op)) or OPS, _words(arguments.shapes) or models
    chosen = cases.chosen(ops, names, _numbers(arguments.tokens) or tokens)
    for line in cases.without_kernels(ops, names):
        print(line)
    return chosen


def _words(text: str | None) -> list[str] | None:
    return None if text is None else list(dict.fromkeys(word.strip() for word in text.split(",")))


def _numbers(text: str | None) -> list[int] | None:
    words = _words(text)
    try:
        return None if words is None else [whole(word, 1, MOST_TOKENS) for word in words]
    except argparse.ArgumentTypeError as error:
        raise InputError(f"--tokens {text}: expected numbers of tokens such as 1,128,2048 ({error})") from error


def _write(target: Path, text: str) -> None:
    try:
        target.write_text(text + "\n")
    except OSError as error:
        raise InputError(f"--json {target}: cannot be written ({reason(error)})") from error
