"""`Gemma`: a loaded model, the public face of the package."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import arguments
from .config import LayerType
from .device import DeviceChoice
from .device.protocol import Device
from .engine.backend import choose, make_ops
from .engine.batch import Ids, Prompt, make_batch
from .engine.graphs import BucketReport, WarmupSizes
from .engine.outputs import PrefillOutput
from .engine.prefill import Engine
from .engine.sampling import Sampler
from .errors import CacheError, DeviceError, InputError, TokenizerError
from .formats.checkpoint import Checkpoint, open_checkpoint
from .formats.gemma_config import GemmaConfig
from .formats.hf_config import end_token_ids
from .formats.hub import resolve
from .model import multimodal
from .model.decoder import Hook
from .model.kv_cache import KVCache
from .model.ops import Ops
from .model.weights import Progress, Weights, load_weights
from .precision import Array
from .reference import ReferenceOps

if TYPE_CHECKING:
    from .text.tokenizer import Tokenizer

DEFAULT_LENGTHS = (1, 16, 32, 64, 128, 256, 512, 1024, 2048)
"""Tokens of the prompts that `Gemma.warmup` prepares."""


class Gemma:
    """A Gemma causal language model, ready to prefill. Make one with `from_pretrained` or `from_checkpoint`."""

    def __init__(
        self, config: GemmaConfig, weights: Weights, ops: Ops, checkpoint: Checkpoint | None, device: DeviceChoice
    ) -> None:
        self.config = config
        self.dtype = ops.precision.name
        self.device = device.name
        self.device_reason = device.reason
        self.device_warning = device.warning
        self._checkpoint = checkpoint
        self._engine = Engine(config, weights, ops)

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        device: str | Device = "auto",
        dtype: str = "auto",
        gemm: str = "auto",
        progress: Progress | None = None,
    ) -> Gemma:
        """The model in a directory of safetensors, a .gguf file, "gemma-3-270m-q4_k_m", or a Hugging Face Hub id.

        device: auto, numpy, cuda (or cuda:1, ...), emulator, or an Emulator or Cuda with options of one's own.
        dtype: auto (float32 on NumPy, bfloat16 on kernels), float32, bfloat16, or float64 (the oracle); float16 is
        refused, since Gemma overflows it. gemm, on kernels: who multiplies with weights: library (cuBLASLt, BLAS on the
        emulator), kernel (kernels/linear.cu), or auto: the library, on CUDA for more than 64 rows.
        progress(done, total) gets bytes while weights load.
        Raises DownloadError, CheckpointError, ConfigError, DeviceError or OutOfMemoryError.
        """
        arguments.function("progress", progress)
        choose(device, dtype)  # what cannot be had is refused before anything is fetched
        checkpoint = open_checkpoint(resolve(name, progress=progress))
        return cls.from_checkpoint(checkpoint, dtype=dtype, device=device, gemm=gemm, progress=progress)

    @classmethod
    def from_checkpoint(
        cls,
        checkpoint: Checkpoint,
        *,
        dtype: str = "auto",
        device: str | Device = "auto",
        gemm: str = "auto",
        progress: Progress | None = None,
    ) -> Gemma:
        """The model of an open checkpoint; see `from_pretrained`."""
        if not isinstance(checkpoint, Checkpoint):
            raise InputError(f"checkpoint is {arguments.shown(checkpoint)}, expected one of open_checkpoint")
        arguments.function("progress", progress)
        chosen, working = choose(device, dtype, checkpoint.config)
        ops = make_ops(checkpoint, chosen, working, device, gemm)
        return cls(checkpoint.config, load_weights(checkpoint, ops, progress), ops, checkpoint, chosen)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The checkpoint's tokenizer; TokenizerError if it has none."""
        from .text.tokenizer import Tokenizer

        if self._checkpoint is None:
            raise TokenizerError("weights that came from no checkpoint have no tokenizer")
        return Tokenizer.from_pretrained(self._checkpoint.tokenizer_source())

    @property
    def fingerprint(self) -> str:
        """Tells this model's KV caches from another's: a digest of the configuration and of the norm weights."""
        return self._engine.fingerprint

    @cached_property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Ids that end a generation: those of generation_config.json, the configuration and the tokenizer."""
        ids = set(self.config.eos_token_ids)
        if self._checkpoint is None:
            return tuple(sorted(ids))
        ids.update(end_token_ids(self._checkpoint.path / "generation_config.json"))
        if self.tokenizer.eos_token_id is not None:
            ids.add(self.tokenizer.eos_token_id)
        return tuple(sorted(ids))

    def warmup(
        self,
        lengths: Sequence[int] = DEFAULT_LENGTHS,
        *,
        batch_size: int = 1,
        kv_rows: int = 2,
        kv_capacity: int | None = None,
        graphs: bool = True,
        tune: bool = True,
    ) -> list[BucketReport]:
        """Prepares prefills on CUDA: compiles, allocates, and records one launch plan per length. Nothing else does.

        A prompt then takes the plan of the smallest of `lengths` (in new tokens, of all rows together) that it fits,
        which costs a copy of some KB and one graph launch. Up to batch_size rows at once; kv_rows caches of kv_capacity
        tokens (None: twice the longest length) can be in use at once. What fits none of it runs launch by launch.
        graphs=False starts the same launches one by one, to the same bits. tune: time cuBLASLt's algorithms for
        products not seen on this GPU before, and remember the fastest. All prefills of a model use the same memory: one
        waits for the one before it, whichever streams they are on.
        Raises InputError, DeviceError on a device without graphs, OutOfMemoryError before caches, tables or activations
        are allocated.
        """
        if not self._engine.can_record:
            raise DeviceError(f"warmup: there is nothing to prepare on device {self.device!r}, only on CUDA")
        graphs, tune = arguments.flag("warmup: graphs", graphs), arguments.flag("warmup: tune", tune)
        sizes = WarmupSizes.of(lengths, batch_size, kv_rows, kv_capacity)
        return self._engine.warmup(sizes, graphs=graphs, tune=tune)

    def prefill(
        self,
        input_ids: str | Ids | None = None,
        *,
        inputs_embeds: Any | None = None,
        attention_mask: ArrayLike | None = None,
        position_ids: ArrayLike | None = None,
        token_type_ids: ArrayLike | None = None,
        mm_token_type_ids: ArrayLike | None = None,
        attn_bias: ArrayLike | Mapping[LayerType, ArrayLike] | None = None,
        past_key_values: KVCache | None = None,
        logits_to_keep: int | ArrayLike = 1,
        output_hidden_states: bool = False,
        trim_sliding: bool = False,
        layer_hook: Hook | None = None,
    ) -> PrefillOutput:
        """Logits, last hidden states and KV cache of a prompt, or of its next chunk.

        input_ids: a text, ids [S] or [B, S], or a list of B lists of ids of any lengths (then S is the longest, rows
        padded right).
        inputs_embeds [B, S, E] float: the layer-0 input instead, not scaled; with it input_ids are only used for
        per-layer embeddings. Of NumPy, torch, CuPy or whatever speaks DLPack; on the model's GPU bfloat16, and then
        torch's current stream is the one that is worked on if they are torch's. NaN and infinity are refused on the
        host only.
        attention_mask [B, S] (or [B, T + S] with a cache): 1 token, 0 padding, left or right; positions then count
        tokens only. Cached tokens before the first that it shows are not seen by these tokens, and keep their
        positions; a mask that hides others is refused. Padding takes no room in the cache after the first chunk, so
        that a window does not count it, as it does in HuggingFace's.
        position_ids [S] or [B, S], with any gaps. Without mask and cache a row's first position starts a packed
        sequence wherever it comes again, as in HuggingFace's without use_cache.
        token_type_ids (or mm_token_type_ids) [B, S]: 0 text, 1 image, 2 video, 3 audio; see `token_types`.
        attn_bias [B or 1, H or 1, S, T] float: added to the scores after the cap, in place of every layer's mask; a
        dict by layer type ("full_attention", "sliding_attention") replaces the masks of those layers only. T counts the
        cached tokens, too.
        past_key_values: the cache to continue, which is appended to in place. A refused call leaves it as it was.
        logits_to_keep: outputs of the last n tokens of each row, at most S, its last token always in the last column;
        0: of all, in the caller's layout; or of columns [K] of it. Where a row has no token, logits are NaN and hidden
        states 0.
        trim_sliding: sliding layers of the returned cache keep only what later tokens can see, their last w - 1
        positions.
        layer_hook(layer, hidden_states [B, S, E]) is called with each layer's output, and may return a replacement.
        Raises InputError (CacheError for past_key_values) or OutOfMemoryError before anything is computed.
        """
        if token_type_ids is not None and mm_token_type_ids is not None:
            raise InputError("token_type_ids and mm_token_type_ids are two names of one argument; give one")
        output_hidden_states = arguments.flag("output_hidden_states", output_hidden_states)
        trim_sliding = arguments.flag("trim_sliding", trim_sliding)
        layer_hook = arguments.function("layer_hook", layer_hook)
        if past_key_values is not None and not isinstance(past_key_values, KVCache):
            raise CacheError(f"past_key_values is a {type(past_key_values).__name__}, expected a KVCache")
        types = token_type_ids if token_type_ids is not None else mm_token_type_ids
        prompt = Prompt(self._ids(input_ids), inputs_embeds, attention_mask, position_ids, types, attn_bias)
        return self._engine.prefill(
            prompt, past=past_key_values, logits_to_keep=logits_to_keep, output_hidden_states=output_hidden_states,
            trim_sliding=trim_sliding, layer_hook=layer_hook,
        )  # fmt: skip

    def prefill_hidden(self, inputs_embeds: Any, **options: Any) -> PrefillOutput:
        """`prefill` of input embeddings [B, S, E]."""
        return self.prefill(inputs_embeds=inputs_embeds, **options)

    def embed(self, input_ids: str | ArrayLike) -> Array:
        """The layer-0 input [S, E] or [B, S, E] of ids [S] or [B, S].

        Scaled embeddings, placeholders as HuggingFace embeds them.
        """
        ids = arguments.integers("input_ids", self._ids(input_ids))
        flat = make_batch(self.config, Prompt(ids.reshape(1, -1))).input_ids
        assert flat is not None
        x = self._engine.decoder.embed(multimodal.embeddable(self.config, flat))
        return self.to_host(x).reshape(*ids.shape, self.config.hidden_size)

    def token_types(self, input_ids: ArrayLike) -> NDArray[np.int64]:
        """token_type_ids of ids with placeholders: 0 text, 1 image, 2 video, 3 audio."""
        return multimodal.token_types(self.config, input_ids)

    def expand_image_tokens(self, input_ids: Sequence[int], counts: int | Sequence[int]) -> list[int]:
        """The ids with each image marker expanded to its soft tokens; see `multimodal.expand_image_tokens`."""
        return multimodal.expand_image_tokens(self.config, input_ids, counts)

    def project_image_features(self, tower_output: ArrayLike) -> Array:
        """Image features [n, tokens, E] of a vision tower's output [n, patches, vision].

        See `multimodal.project_image_features`.
        """
        on_host = ReferenceOps(self._engine.ops.precision)  # done once per image, not per layer
        return multimodal.project_image_features(self.config, self._engine.weights, on_host, tower_output)

    def merge_features(
        self, inputs_embeds: ArrayLike, features: ArrayLike, input_ids: ArrayLike, *, token_type: int = 1
    ) -> Array:
        """inputs_embeds [B, S, E] with placeholder rows replaced by features; token_type 1 image, 2 video, 3 audio."""
        return multimodal.merge_features(self.config, inputs_embeds, features, input_ids, token_type)

    def generate(
        self,
        prompt: str | Sequence[int],
        *,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
        on_token: Callable[[str], None] | None = None,
    ) -> str:
        """The text that continues `prompt` (a text, or ids), until an end token or max_new_tokens.

        temperature 0 takes the likeliest token; above, tokens are drawn from the smallest set of probability top_p
        with `seed`.
        on_token(text) is called as text becomes final; a character is never cut.
        CheckpointError if the logits are not finite.
        """
        ids = self._prompt("prompt", prompt)
        arguments.function("on_token", on_token)
        stream = self.tokenizer.stream()
        pieces: list[str] = []

        def emit(text: str) -> None:
            pieces.append(text)
            if on_token is not None and text:
                on_token(text)

        for token in self.generate_ids(
            ids, max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, seed=seed
        ):
            emit(stream.push(token))
        emit(stream.flush())
        return "".join(pieces)

    def generate_ids(
        self,
        input_ids: Sequence[int],
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
    ) -> Any:
        """An iterator of the generated token ids, without the end token; see `generate`."""
        count = arguments.integer("max_new_tokens", max_new_tokens, least=0)
        sampler = Sampler(temperature=temperature, top_p=top_p, seed=seed)
        tokens = self._engine.generate(self._prompt("input_ids", input_ids), count, sampler)
        return takewhile(lambda token: token not in self.eos_token_ids, tokens)

    def score(self, input_ids: str | Ids) -> Array:
        """log p(token s + 1 | tokens to s), float [S - 1], of one row of at least two ids or of a text.

        CheckpointError if the logits are not finite.
        """
        return self._engine.score(Prompt(self._ids(input_ids)))

    def to_host(self, array: Array) -> NDArray[Any]:
        """The NumPy array of an output, wherever the model runs."""
        return self._engine.ops.to_host(array)

    def _ids(self, given: Any) -> Any:
        """The ids of a text, or what is none as it is."""
        return self.tokenizer.encode(given) if isinstance(given, str) else given

    def _prompt(self, name: str, prompt: str | ArrayLike) -> list[int]:
        """The ids of a text, or of ids [S]."""
        ids = arguments.integers(name, self._ids(prompt))
        if ids.ndim != 1:
            raise InputError(f"{name} is {list(ids.shape)}, expected one prompt: a text or ids [S]")
        return [int(i) for i in ids]
