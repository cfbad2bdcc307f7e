"""A model's weights and configuration, from a safetensors directory or a GGUF file, under canonical names.

Opening validates headers, index, names and shapes against the configuration and reads no weight. Tensors stay in the
file until `read_into` or `table().gather` decodes them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .. import arguments
from ..errors import CheckpointError
from ..printable import shown_line
from .bounded_files import INDEX, kind_of, read_json_object, require_file_or_directory
from .fields import shown_json
from .gemma_config import GemmaConfig
from .gguf_file import GgufFile
from .gguf_vocabulary import GgufVocabulary
from .safetensors_file import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, read_tensors
from .stored_tensor import StoredTensor
from .tensor_names import canonical_name, gguf_names

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


class StoredTable(Protocol):
    """A matrix [rows, columns] in its file; `gather(ids [n])` decodes the rows `ids` to float32 [n, columns]."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    def gather(self, ids: NDArray[np.integer[Any]]) -> NDArray[np.float32]: ...


class Checkpoint:
    """Tensors by canonical name (`layers.3.mlp.up_proj.weight`) with HuggingFace's shapes, and the model's config."""

    def __init__(
        self,
        path: Path,
        config: GemmaConfig,
        tensors: Mapping[str, StoredTensor],
        *,
        norm_plus_one_baked: bool = False,
        vocabulary: GgufVocabulary | None = None,
    ) -> None:
        _check_shapes(path, config, tensors)
        self.path = path
        self.config = config
        self.norm_plus_one_baked = norm_plus_one_baked  # True: the norm tensors already hold 1 + w
        self._tensors = tensors
        self._vocabulary = vocabulary

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def names(self) -> Iterable[str]:
        """Canonical names of every tensor of the text model and of its projectors."""
        return self._tensors.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        """HuggingFace's shape ([out, in] for a Linear); CheckpointError if the checkpoint lacks the tensor."""
        return self._tensor(name).shape

    def nbytes(self, name: str) -> int:
        """Bytes of the tensor in its file."""
        return self._tensor(name).nbytes

    def stored_as(self, name: str) -> str:
        """Storage format, such as "BF16" or "Q4_K"."""
        return self._tensor(name).format.name

    def read_into(self, name: str, out: NDArray[Any]) -> None:
        """Decodes the tensor into out [*shape(name)], float32, float64, float16 or bfloat16, C-contiguous."""
        self._tensor(name).read_into(out)

    def table(self, name: str) -> StoredTable:
        """The tensor [rows, columns], left in its file."""
        return self._tensor(name)

    def tokenizer_source(self) -> Path | GgufVocabulary:
        """The directory with the tokenizer's files, or a GGUF file's vocabulary; CheckpointError if it has none."""
        if self._vocabulary is not None:
            return self._vocabulary
        if kind_of(self.path, CheckpointError) == "directory":
            return self.path
        raise CheckpointError(f"{self.path}: the file holds no vocabulary; give token ids, or a file that has one")

    def _tensor(self, name: str) -> StoredTensor:
        try:
            return self._tensors[name]
        except KeyError:
            raise CheckpointError(f"{self.path}: there is no tensor {shown_line(name)}") from None


def open_checkpoint(path: str | Path) -> Checkpoint:
    """The checkpoint in a directory (config.json and model.safetensors or its shards) or in a .gguf file.

    Raises CheckpointError or ConfigError naming the file, the tensor and, for a wrong shape, both shapes.
    """
    path = arguments.path("the path of a model", path, error=CheckpointError)
    if require_file_or_directory(path, CheckpointError) == "directory":
        return _open_directory(path)
    if path.suffix == ".safetensors":
        raise CheckpointError(f"{path}: give the directory that holds it and config.json: {path.parent}")
    return _open_gguf(path)


def _open_directory(path: Path) -> Checkpoint:
    single = kind_of(path / SAFE_WEIGHTS_NAME, CheckpointError) == "file"
    if not single and kind_of(path / SAFE_WEIGHTS_INDEX_NAME, CheckpointError) == "absent":
        raise CheckpointError(_no_weights(path))
    config = GemmaConfig.from_file(path)
    listed = read_tensors(path / SAFE_WEIGHTS_NAME).values() if single else _read_shards(path)
    tensors: dict[str, StoredTensor] = {}
    for tensor in listed:
        name = canonical_name(tensor.name)
        if name is None:
            continue
        if name in tensors:
            both = f"{shown_line(tensors[name].name)} and {shown_line(tensor.name)}"
            raise CheckpointError(f"{path}: {both} are both {shown_line(name)}")
        tensors[name] = tensor
    if "lm_head.weight" not in tensors:  # HuggingFace leaves it out only where it is tied, whatever config.json says
        config = replace(config, tie_word_embeddings=True)
    return Checkpoint(path, config, tensors)


def _read_shards(path: Path) -> Iterator[StoredTensor]:
    """The tensors of the index in its order, each from the shard that the index names."""
    index = path / SAFE_WEIGHTS_INDEX_NAME
    weight_map = read_json_object(index, INDEX, CheckpointError, unique=True).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: weight_map is missing or empty")
    shards: dict[str, dict[str, StoredTensor]] = {}
    for name, file_name in weight_map.items():
        where = f"tensor {shown_line(name)}"
        if not isinstance(file_name, str) or Path(file_name).name != file_name or file_name == "..":
            raise CheckpointError(
                f"{index}: {where} is in {shown_json(file_name)}, expected the name of a file beside the index"
            )
        if file_name not in shards:
            if kind_of(path / file_name, CheckpointError) != "file":
                raise CheckpointError(f"{path / shown_line(file_name)} is missing; {SAFE_WEIGHTS_INDEX_NAME} lists it")
            shards[file_name] = read_tensors(path / file_name)
        if name not in shards[file_name]:
            raise CheckpointError(f"{path / file_name}: {where} is missing; {SAFE_WEIGHTS_INDEX_NAME} says it is there")
        yield shards[file_name][name]


def _no_weights(path: Path) -> str:
    pickled = next((p.name for pattern in _PICKLES for p in path.glob(pattern)), None)
    if pickled:
        return (
            f"{path}: only has pickled weights ({pickled}), which can run code when loaded. Convert them once with "
            "transformers: AutoModelForCausalLM.from_pretrained(path).save_pretrained(new_path)"
        )
    gguf = next(iter(path.glob("*.gguf")), None)
    if gguf:
        return f"{path}: has no {SAFE_WEIGHTS_NAME}; to load a GGUF file give its own path: {gguf}"
    return f"{path}: has neither {SAFE_WEIGHTS_NAME} nor {SAFE_WEIGHTS_INDEX_NAME}"


def _open_gguf(path: Path) -> Checkpoint:
    file = GgufFile(path)
    shapes = {name: tensor.shape for name, tensor in file.tensors.items()}
    config = GemmaConfig.from_gguf(file.metadata, shapes, source=str(path))
    names = gguf_names(config.generation, config.num_hidden_layers)
    tensors = {names[name]: tensor for name, tensor in file.tensors.items() if name in names}
    baked = config.norm_plus_one  # llama.cpp's converter adds the 1 wherever the model does
    return Checkpoint(path, config, tensors, norm_plus_one_baked=baked, vocabulary=file.vocabulary())


def _check_shapes(path: Path, config: GemmaConfig, tensors: Mapping[str, StoredTensor]) -> None:
    """CheckpointError unless every tensor of the text model is there, in its shape and in a supported format."""
    expected = config.weight_shapes()
    missing = [name for name in expected if name not in tensors]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise CheckpointError(f"{path}: tensors are missing: {', '.join(missing[:3])}{more}")
    for name, shape in expected.items():
        tensor = tensors[name]
        if tensor.shape != shape:
            raise CheckpointError(
                f"{tensor.file.path}: {tensor.name} is {list(tensor.shape)}, the configuration makes it {list(shape)}"
            )
        tensor.require_readable()
