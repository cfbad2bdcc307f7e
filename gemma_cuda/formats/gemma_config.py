"""`GemmaConfig`: a model's configuration, read from config.json or from the metadata of a GGUF file."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .. import arguments
from ..config import ModelConfig
from ..errors import ConfigError
from .bounded_files import CONFIG, kind_of, read_json_object
from .gguf_config import parse_metadata
from .hf_config import parse_config

CONFIG_NAME = "config.json"


@dataclass(frozen=True)
class GemmaConfig(ModelConfig):
    """The text model of one checkpoint. Field names are HuggingFace's."""

    @classmethod
    def from_dict(cls, d: Mapping[str, object], *, source: str) -> "GemmaConfig":
        """The configuration in a parsed config.json `d`; `source` is the file name used in messages.

        Raises only ConfigError, naming `source` and the field, whatever `d` holds.
        """
        return cls(**vars(parse_config(d, source=arguments.text("source", source))))

    @classmethod
    def from_file(cls, path: str | Path) -> "GemmaConfig":
        """The configuration in the config.json at `path` (a file, or the directory that holds it); else ConfigError."""
        path = arguments.path("path", path)
        if kind_of(path, ConfigError) == "directory":
            path = path / CONFIG_NAME
        return cls(**vars(parse_config(read_json_object(path, CONFIG, ConfigError), source=str(path))))

    @classmethod
    def from_gguf(
        cls, metadata: Mapping[str, object], tensor_shapes: Mapping[str, tuple[int, ...]], *, source: str
    ) -> "GemmaConfig":
        """The configuration in a GGUF file's `metadata` (key to value) and tensor names with shapes; else ConfigError.

        `tensor_shapes` are in NumPy's order ([rows, cols]; a GGUF header lists them reversed).
        """
        return cls(**vars(parse_metadata(metadata, tensor_shapes, source=source)))
