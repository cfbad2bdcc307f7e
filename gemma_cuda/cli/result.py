"""What a prefill gives: its most probable next tokens, and all of it as one safetensors file."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from ..engine.sampling import require_finite
from ..errors import InputError
from ..host.files import atomic_path

if TYPE_CHECKING:
    from .. import Gemma, PrefillOutput


def top_tokens(logits: np.ndarray, count: int) -> list[tuple[int, float]]:
    """The `count` most probable (id, probability) of logits [V], best first, ties by id; softmax in float64.

    Raises CheckpointError where a logit is NaN or infinity.
    """
    values = logits.astype(np.float64)
    require_finite(float(values.max()))
    weights = np.exp(values - values.max())
    probabilities = weights / weights.sum()
    order = np.argsort(-probabilities, kind="stable")[:count]
    return [(int(index), float(probabilities[index])) for index in order]


def save_prefill(
    path: Path, gemma: "Gemma", out: "PrefillOutput", input_ids: list[int], metadata: dict[str, str]
) -> None:
    """Write `path`: input_ids [S], logits [1, keep, V], last_hidden_state [1, keep, E], layers.N.k, .v [1, KH, S, D].

    A layer that reads another's K and V has none of its own in the file. The file appears under its name only when it
    is complete. Raises InputError where it cannot be written.
    """
    tensors = {
        "input_ids": np.asarray(input_ids, dtype=np.int64),
        "logits": gemma.to_host(out.logits),
        "last_hidden_state": gemma.to_host(out.last_hidden_state),
    }
    for index, pair in enumerate(out.past_key_values):
        if pair is not None:
            tensors[f"layers.{index}.k"], tensors[f"layers.{index}.v"] = (gemma.to_host(side) for side in pair)
    try:
        with atomic_path(path) as partial:
            save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, partial, metadata)
    except (OSError, SafetensorError) as error:
        raise InputError(f"--save {path}: cannot be written ({error})") from error
