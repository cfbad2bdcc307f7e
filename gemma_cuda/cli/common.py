"""What several commands share: options, the prompt, loading a model with a progress bar, how text is shown."""

import argparse
import json
import math
import os
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from ..device import DEVICES, DeviceChoice, choose_device
from ..errors import GemmaError, InputError
from ..formats.demo_weights import DEMO_MODEL, Progress
from ..host.files import check_target
from ..printable import reason
from .parser import device, name
from .streams import escaped, say

if TYPE_CHECKING:
    from .. import Gemma
    from ..formats.checkpoint import Checkpoint

Commands = Any  # argparse's sub-parsers action has no public type
DTYPES = ("auto", "float32", "float64", "bfloat16", "float16")
_MOST_PROMPT_BYTES = 8 << 20  # 32 bytes for each token of the longest context
_MOST_ID_DIGITS = 10
MODEL_HELP = f"a directory with safetensors, a .gguf file, {DEMO_MODEL} or a Hub id"


@dataclass(frozen=True)
class Loaded:
    """A model, the device it runs on and how long it took to be ready."""

    gemma: "Gemma"
    device: DeviceChoice
    seconds: float


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add --model, --device and --dtype."""
    parser.add_argument(
        "--model", type=name, default=DEMO_MODEL, metavar="MODEL", help=f"{MODEL_HELP} (default: %(default)s)"
    )
    parser.add_argument(
        "--device",
        type=device,
        default="auto",
        help=f"{', '.join(DEVICES)}, or a GPU's index as in cuda:1 (default: %(default)s)",
    )
    parser.add_argument(
        "--dtype", choices=DTYPES, default="auto", help="of weights and arithmetic (auto: float32 on numpy)"
    )


def add_prompt_options(parser: argparse.ArgumentParser, *, ids: bool) -> None:
    """Add --prompt and --prompt-file, with `ids` also --input-ids; exactly one must be given."""
    group = parser.add_mutually_exclusive_group(required=True)
    group.add_argument("--prompt", metavar="TEXT", help="the prompt")
    group.add_argument(
        "--prompt-file", type=name, metavar="FILE", help="a UTF-8 file with the prompt, - for standard input"
    )
    if ids:
        group.add_argument("--input-ids", metavar="IDS", help="token ids as they are, such as 2,818,5279")


def read_prompt(arguments: argparse.Namespace) -> str:
    """The text of --prompt or of --prompt-file. Raises InputError where it is not UTF-8, or cannot be read."""
    option, raw = "--prompt", b""
    try:
        if arguments.prompt is not None:
            raw = os.fsencode(arguments.prompt)  # words of the command line that are not UTF-8 hold surrogates
        else:
            option = f"--prompt-file {arguments.prompt_file}"
            raw = _file_bytes(arguments.prompt_file)
        return raw.decode("utf-8")
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{option}: {reason(error)}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{option}: not UTF-8 text (byte {error.start})") from error
    except ValueError as error:  # a NUL in the name of the file, surrogates that are no bytes
        raise InputError(f"{option}: {error}") from error


def _file_bytes(path: str) -> bytes:
    """What a file or pipe holds, - for standard input; InputError where that is more than any prompt."""
    if path == "-" and sys.stdin is None:
        raise InputError("--prompt-file -: standard input is closed")
    with nullcontext(sys.stdin.buffer) if path == "-" else open(path, "rb") as file:
        raw: bytes = file.read(_MOST_PROMPT_BYTES + 1)
    if len(raw) > _MOST_PROMPT_BYTES:
        raise InputError(f"--prompt-file {path}: a prompt may have {_MOST_PROMPT_BYTES >> 20} MiB, this has more")
    return raw


def given_ids(arguments: argparse.Namespace) -> list[int] | str:
    """The ids of --input-ids, or else the text of the prompt, read before a model is loaded."""
    return read_prompt(arguments) if arguments.input_ids is None else parse_input_ids(arguments.input_ids)


def parse_input_ids(text: str) -> list[int]:
    """Token ids out of `2,818,5279` or `2 818 5279`. Raises InputError for anything else."""
    words = text.replace(",", " ").split()
    if not words:
        raise InputError("--input-ids is empty, expected at least one token id")
    for word in words:
        if not (word.isascii() and word.isdigit() and len(word) <= _MOST_ID_DIGITS):
            raise InputError(f"--input-ids: {word!r} is not a token id, expected numbers such as 2,818,5279")
    return [int(word) for word in words]


def load_model(arguments: argparse.Namespace) -> Loaded:
    """The model of --model on --device in --dtype, a progress bar on stderr while it loads."""
    device = choose_device(arguments.device)
    warn(device)
    from .. import Gemma

    start = time.perf_counter()
    with progress_bar("loading") as progress:
        gemma = Gemma.from_pretrained(
            arguments.model, device=arguments.device, dtype=arguments.dtype, progress=progress
        )
    chosen = DeviceChoice(gemma.device, gemma.device_reason, gemma.device_warning)
    if chosen.warning != device.warning:
        warn(chosen)
    return Loaded(gemma, chosen, time.perf_counter() - start)


def warm_up(loaded: Loaded, tokens: int, new_tokens: int = 0) -> None:
    """On CUDA, prepare a prompt of so many tokens, and a decoding that goes on from it."""
    if loaded.device.name.startswith("cuda"):
        lengths = [tokens, 1] if new_tokens else [tokens]
        loaded.gemma.warmup(lengths, kv_rows=1, kv_capacity=tokens + max(new_tokens, 0))


def warn(device: DeviceChoice) -> None:
    """Say on stderr what keeps a visible GPU from being used."""
    if device.warning is not None:
        say("warning", device.warning)


def open_checkpoint(model: str) -> "Checkpoint":
    """The checkpoint of --model, with a progress bar on stderr during a download."""
    from ..formats import checkpoint, hub

    with progress_bar("fetching") as progress:
        path = hub.resolve(model, progress=progress)
    return checkpoint.open_checkpoint(path)


@contextmanager
def progress_bar(label: str) -> Iterator[Progress]:
    """A progress bar on stderr, removed at the end; a smaller count of bytes than the last one starts a new bar."""
    from tqdm import tqdm

    with tqdm(
        desc=label, unit="B", unit_scale=True, leave=False, file=sys.stderr, disable=not sys.stderr.isatty()
    ) as bar:

        def update(done: int, total: int) -> None:
            if done < bar.n or total != bar.total:
                bar.reset(total=total)
            bar.update(done - bar.n)

        yield update


def token_text(gemma: "Gemma", token_id: int) -> str | None:
    """The token as text, special tokens by name; None where the model has no tokenizer."""
    try:
        return gemma.tokenizer.decode([token_id], skip_special_tokens=False)
    except GemmaError:
        return None


def shown(text: str | None) -> str:
    """A token's text between quotes, line breaks and control characters escaped."""
    return "" if text is None else json.dumps(text, ensure_ascii=False)


def describe(arguments: argparse.Namespace, loaded: Loaded) -> dict[str, Any]:
    """What every --json object starts with: model, device and why, dtype, seconds to load."""
    return {
        "model": str(arguments.model),
        "device": loaded.device.name,
        "device_reason": loaded.device.reason,
        "warning": loaded.device.warning,
        "dtype": loaded.gemma.dtype,
        "load_seconds": round(loaded.seconds, 4),
    }


def print_description(report: dict[str, Any], file: TextIO | None = None) -> None:
    """The same for people, one line each."""
    print_row("model", report["model"], file)
    print_row("device", f"{report['device']}, {report['dtype']} ({report['device_reason']})", file)
    print_row("load", f"{report['load_seconds']:.2f} s", file)


def print_row(label: str, value: object, file: TextIO | None = None) -> None:
    print(f"{label:<11} {escaped_line(value)}", file=file)


def escaped_line(value: object) -> str:
    """The value as one line that a terminal takes for nothing else."""
    return escaped(str(value)).replace("\n", r"\n")


def print_json(value: dict[str, Any]) -> None:
    """One JSON object on stdout."""
    print(json_text(value))


def json_text(value: dict[str, Any], indent: int = 2) -> str:
    """JSON in ASCII, which no encoding and no terminal changes; what is no finite number, and so not JSON, is null."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def check_replaced(option: str, path: Path) -> None:
    """Raise InputError where no regular file can take the place of what is at `path`, as `check_destination` does."""
    check_destination(option, path)
    try:
        check_target(path)
    except OSError as error:
        raise InputError(f"{option} {path}: {reason(error)}") from error


def check_destination(option: str, path: Path) -> None:
    """Raise InputError where `path` cannot become a file; called before anything is loaded or computed."""
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        mode = 0
    except (OSError, ValueError) as error:  # too long, a NUL byte
        raise InputError(f"{option} {path}: {reason(error)}") from error
    if stat.S_ISDIR(mode):
        raise InputError(f"{option} {path}: is a directory, expected a file name")
    if not path.parent.is_dir():
        raise InputError(f"{option} {path}: the directory {path.parent} does not exist")


def check_picture(option: str, path: Path) -> None:
    """The same for a picture, whose format its name tells."""
    check_destination(option, path)
    if path.suffix.lower() not in (".png", ".svg"):
        raise InputError(f"{option} {path}: expected a name that ends in .png or .svg")
