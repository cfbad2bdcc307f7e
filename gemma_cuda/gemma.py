"""`Gemma`: a loaded model and everything one does with it."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import arguments
from .config import LayerType
from .device import DeviceChoice
from .device.protocol import Device
from .engine import embeddings
from .engine.backend import choose, make_ops, stream_order
from .engine.batch import Batch, Ids, make_batch
from .engine.context import BatchStep, Kept
from .engine.outputs import decoder_hook, is_in_place, kept_columns, placed
from .engine.sampling import Sampler, require_finite
from .errors import CacheError, DeviceError, InputError, TokenizerError
from .formats.checkpoint import Checkpoint, open_checkpoint
from .formats.gemma_config import GemmaConfig
from .formats.hf_config import end_token_ids
from .formats.hub import resolve
from .host.memory import require_memory
from .model import multimodal
from .model.decoder import Decoder, Hook
from .model.kv_cache import HostMemory, KVCache, Memory
from .model.weights import Progress, Weights, load_weights
from .ops.kernel_ops import KernelOps
from .precision import Array
from .reference import ReferenceOps

if TYPE_CHECKING:
    from .engine.graphs import BucketReport, PrefillGraphs
    from .text.tokenizer import Tokenizer

DEFAULT_LENGTHS = (1, 16, 32, 64, 128, 256, 512, 1024, 2048)
"""Tokens of the prompts that `Gemma.warmup` prepares."""

_SCORE_ROWS = 64  # logits of a whole long prompt would not fit: 2048 tokens are 2 GB


@dataclass(frozen=True)
class PrefillOutput:
    """What a prefill gives; B rows, `keep` kept tokens, V vocabulary, E hidden_size.

    Logits and last_hidden_state are arrays of the device: cupy.ndarray on CUDA, else NumPy. hidden_states are NumPy.
    """

    logits: Array  # [B, keep, V] float32 (float64 in a float64 model)
    last_hidden_state: Array  # [B, keep, E] after the final norm
    past_key_values: KVCache
    # L + 1 of [B, S, E]: each layer's input, then last_hidden_state of all tokens
    hidden_states: tuple[Array, ...] | None = None


_P = ParamSpec("_P")
_R = TypeVar("_R")


def _one_after_another(method: Callable[Concatenate[Gemma, _P], _R]) -> Callable[Concatenate[Gemma, _P], _R]:
    """The method, whose work on a GPU waits for that of the one before it, should that be on another stream."""

    @functools.wraps(method)
    def ordered(self: Gemma, *args: _P.args, **options: _P.kwargs) -> _R:
        embeds = options.get("inputs_embeds")
        with nullcontext() if embeds is None else embeddings.stream_of(embeds, self._memory), self._order:
            return method(self, *args, **options)

    return cast("Callable[Concatenate[Gemma, _P], _R]", ordered)


class Gemma:
    """A Gemma causal language model, ready to prefill. Make one with `from_pretrained` or `from_checkpoint`."""

    def __init__(
        self,
        config: GemmaConfig,
        weights: Weights,
        ops: ReferenceOps | KernelOps,
        checkpoint: Checkpoint | None,
        device: DeviceChoice,
    ) -> None:
        self.config = config
        self.dtype = ops.precision.name
        self.device = device.name
        self.device_reason = device.reason
        self.device_warning = device.warning
        self._weights, self._ops, self._checkpoint = weights, ops, checkpoint
        self._host_ops = ReferenceOps(ops.precision)  # of what is done once per image, not per layer
        self._memory: Memory = HostMemory() if isinstance(ops, ReferenceOps) else ops.device
        self._decoder = Decoder(config, weights, ops)
        self._graphs: PrefillGraphs | None = None
        self._order = stream_order(ops, self)
        with self._order:
            pass  # the weights are there before anything else

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

    @cached_property
    def fingerprint(self) -> str:
        """Tells this model's KV caches from another's: a digest of the configuration and of the norm weights."""
        digest = hashlib.sha256(repr(self.config).encode())
        for norm in (self._weights.norm, *(layer.input_norm for layer in self._weights.layers)):
            values = self._ops.to_host(norm)
            digest.update(values.astype(np.result_type(values, np.float32)).tobytes())  # on every device the same
        return digest.hexdigest()

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

    @_one_after_another
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
        from .device.cuda.device import Cuda
        from .engine.graphs import PrefillGraphs, checked_sizes

        if not isinstance(self._memory, Cuda):
            raise DeviceError(f"warmup: there is nothing to prepare on device {self.device!r}, only on CUDA")
        graphs, tune = arguments.flag("warmup: graphs", graphs), arguments.flag("warmup: tune", tune)
        tokens, batch_size, kv_rows, capacity = checked_sizes(lengths, batch_size, kv_rows, kv_capacity)
        if self._graphs is not None:
            self._memory.synchronize()  # this stream waits for the last use on any other
            self._graphs = None  # the old one's memory can be used again
        self._graphs = PrefillGraphs(
            self._decoder, self._memory, tokens, batch_size=batch_size, kv_rows=kv_rows, kv_capacity=capacity,
            graphs=graphs, tune=tune,
        )  # fmt: skip
        return self._graphs.report()

    @_one_after_another
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
        past = past_key_values
        if past is not None and not isinstance(past, KVCache):
            raise CacheError(f"past_key_values is a {type(past).__name__}, expected a KVCache")
        ids = self._encode(input_ids) if isinstance(input_ids, str) else input_ids
        types = token_type_ids if token_type_ids is not None else mm_token_type_ids
        others = inputs_embeds, attention_mask, position_ids, types, attn_bias, layer_hook
        is_last = type(logits_to_keep) is int and logits_to_keep == 1 and not (output_hidden_states or trim_sliding)
        with nullcontext() if past is None else past.in_use():
            if self._graphs is not None and is_last and all(x is None for x in others):
                quick = self._replay_text(self._graphs, ids, past)
                if quick is not None:
                    return quick
            if past is not None:
                past.check_model(self.config, self.fingerprint, self.dtype)
            batch = make_batch(
                self.config,
                input_ids=ids,
                inputs_embeds=None if inputs_embeds is None else embeddings.view(inputs_embeds, self._memory),
                attention_mask=attention_mask,
                position_ids=position_ids,
                token_type_ids=types,
                attn_bias=attn_bias,
                past=past,
            )
            wanted, columns = kept_columns(batch, logits_to_keep)
            self._require_memory(batch, int(wanted.sum()))
            cache = past if past is not None else self._new_cache(batch.batch_size)
            with self._appending(past, int(batch.slots.max()) + 1):
                output = self._output(batch, cache, wanted, columns, output_hidden_states, layer_hook)
                cache.extend(batch)
                if trim_sliding:
                    cache.trim()
            return output

    def _output(
        self,
        batch: Batch,
        cache: KVCache,
        wanted: NDArray[np.bool_],
        columns: NDArray[np.int64] | int,
        output_hidden_states: bool,
        layer_hook: Hook | None,
    ) -> PrefillOutput:
        """What a prefill of the batch gives; K and V are written to the cache, which does not count them yet."""
        every_row = output_hidden_states or layer_hook is not None
        states: list[Array] | None = [] if output_hidden_states else None
        hook = decoder_hook(batch, states, layer_hook, self._ops) if every_row else None
        graphs = self._graphs
        is_last = is_in_place(batch, wanted, columns) and int(wanted.sum()) == batch.batch_size
        if graphs is not None and hook is None and is_last and wanted[batch.cu_seqlens[1:] - 1].all():
            bucket = graphs.serves(batch, cache)
            if bucket is not None:
                ids = None if batch.input_ids is None else multimodal.embeddable(self.config, batch.input_ids)
                last, last_logits = graphs.run(bucket, batch, ids, cache)
                return PrefillOutput(last_logits, last, cache)
        hidden = self._forward(batch, cache, np.ones(len(wanted), bool) if every_row else wanted, hook)
        if states is not None:
            # HuggingFace's convention: the last entry has passed the final norm.
            states[-1] = batch.unpack(self._ops.to_host(hidden))
        if every_row:
            hidden = self._ops.take(hidden, self._ops.index(np.flatnonzero(wanted)))
        logits = self._decoder.logits(hidden)
        return PrefillOutput(
            logits=self._place(batch, wanted, columns, logits, empty=np.nan),
            last_hidden_state=self._place(batch, wanted, columns, hidden, empty=0),
            past_key_values=cache,
            hidden_states=None if states is None else tuple(states),
        )

    def prefill_hidden(self, inputs_embeds: Any, **options: Any) -> PrefillOutput:
        """`prefill` of input embeddings [B, S, E]."""
        return self.prefill(inputs_embeds=inputs_embeds, **options)

    def embed(self, input_ids: str | ArrayLike) -> Array:
        """The layer-0 input [S, E] or [B, S, E] of ids [S] or [B, S].

        Scaled embeddings, placeholders as HuggingFace embeds them.
        """
        ids = arguments.integers("input_ids", self._encode(input_ids) if isinstance(input_ids, str) else input_ids)
        flat = make_batch(
            self.config, input_ids=ids.reshape(1, -1), inputs_embeds=None, attention_mask=None, position_ids=None,
            token_type_ids=None, attn_bias=None, past=None,
        ).input_ids  # fmt: skip
        assert flat is not None
        x = self._decoder.embed(multimodal.embeddable(self.config, flat))
        return self._ops.to_host(x).reshape(*ids.shape, self.config.hidden_size)

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
        return multimodal.project_image_features(self.config, self._weights, self._host_ops, tower_output)

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
        return self._generated(self._prompt("input_ids", input_ids), count, sampler)

    @_one_after_another
    def score(self, input_ids: str | Ids) -> Array:
        """log p(token s + 1 | tokens to s), float [S - 1], of one row of at least two ids or of a text.

        CheckpointError if the logits are not finite.
        """
        ids = self._encode(input_ids) if isinstance(input_ids, str) else input_ids
        batch = make_batch(
            self.config, input_ids=ids, inputs_embeds=None, attention_mask=None, position_ids=None,
            token_type_ids=None, attn_bias=None, past=None,
        )  # fmt: skip
        tokens = batch.input_ids
        assert tokens is not None
        if batch.batch_size != 1 or len(tokens) < 2:
            raise InputError("score: expected one row of at least two tokens")
        self._require_memory(batch, _SCORE_ROWS)
        hidden = self._forward(batch, self._new_cache(1), np.ones(len(tokens), bool), None)
        scores = np.empty(len(tokens) - 1, np.float64 if self.dtype == "float64" else np.float32)
        for start in range(0, len(scores), _SCORE_ROWS):
            rows = slice(start, min(start + _SCORE_ROWS, len(scores)))
            logits = self._ops.to_host(self._decoder.logits(hidden[rows]))
            require_finite(float(logits.max()))
            logits -= logits.max(axis=-1, keepdims=True)
            chosen = logits[np.arange(len(logits)), tokens[1:][rows]]
            scores[rows] = chosen - np.log(np.exp(logits).sum(axis=-1))
        require_finite(float(scores.min()))
        return scores

    def _generated(self, ids: list[int], max_new_tokens: int, sampler: Sampler) -> Any:
        cache: KVCache | None = None
        for _ in range(max_new_tokens):
            out = self.prefill(ids, past_key_values=cache)
            cache = out.past_key_values
            if sampler.temperature == 0:
                token = self._ops.argmax(out.logits[0, -1:])  # NaN before all others, on every device
                require_finite(float(self._ops.to_host(out.logits[0, -1, token : token + 1])[0]))
            else:
                token = sampler.sample(self._ops.to_host(out.logits)[0, -1])
            if token in self.eos_token_ids:
                return
            yield token
            ids = [token]

    def to_host(self, array: Array) -> NDArray[Any]:
        """The NumPy array of an output, wherever the model runs."""
        return self._ops.to_host(array)

    def _prompt(self, name: str, prompt: str | ArrayLike) -> list[int]:
        """The ids of a text, or of ids [S]."""
        ids = arguments.integers(name, self._encode(prompt) if isinstance(prompt, str) else prompt)
        if ids.ndim != 1:
            raise InputError(f"{name} is {list(ids.shape)}, expected one prompt: a text or ids [S]")
        return [int(i) for i in ids]

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text)

    def _new_cache(self, batch_size: int) -> KVCache:
        cache = None
        if self._graphs is not None:
            cache = self._graphs.pool.take(batch_size, self.fingerprint, self.dtype)
        if cache is None:
            cache = KVCache.empty(
                self.config, batch_size, self.fingerprint, self.dtype, self._ops.hidden_dtype, self._memory
            )
        return cache

    def _appending(self, past: KVCache | None, slots: int) -> AbstractContextManager[None]:
        """What leaves a caller's cache as it was if its prefill fails."""
        return nullcontext() if past is None else past.appending(slots, self._memory, self._ops.hidden_dtype)

    def _replay_text(self, graphs: PrefillGraphs, input_ids: Any, past: KVCache | None) -> PrefillOutput | None:
        """The shortest way for one prompt of ids without images; None if it is not one, or no graph serves it."""
        if type(input_ids) not in (list, np.ndarray):
            return None
        try:
            ids = np.asarray(input_ids)
        except Exception:  # make_batch will say why
            return None
        if ids.ndim != 1 or ids.size == 0 or ids.dtype.kind not in "iu" or (past is not None and past.batch_size != 1):
            return None
        if past is not None and past.memory is not self._memory:
            return None
        if ids.min() < 0 or ids.max() >= self._first_placeholder:
            return None
        cache = past if past is not None else self._new_cache(1)
        with self._appending(past, cache.seq_length + len(ids)):
            outputs = graphs.run_text(ids, cache)
        return None if outputs is None else PrefillOutput(outputs[1], outputs[0], cache)

    @cached_property
    def _first_placeholder(self) -> int:
        """The lowest id that is no token's."""
        config = self.config
        placeholders = (config.image_token_id, config.video_token_id, config.audio_token_id)
        return min([config.vocab_size, *(token for token in placeholders if token is not None)])

    def _forward(self, batch: Batch, cache: KVCache, wanted: NDArray[np.bool_], hook: Hook | None) -> Array:
        """Last hidden state [M, E] of the wanted tokens; K and V of all tokens go to the cache."""
        ops = self._ops
        cache.make_room(max(cache.seq_length, int(batch.slots.max()) + 1))
        ids = None if batch.input_ids is None else multimodal.embeddable(self.config, batch.input_ids)
        if batch.inputs_embeds is not None:
            x = embeddings.packed(batch, ops)
            x = ops.from_host(x) if isinstance(x, np.ndarray) else x
        else:
            assert ids is not None
            x = self._decoder.embed(ids)
        step = BatchStep(self.config, ops, batch, Kept.of(wanted, batch.cu_seqlens))
        return self._decoder.forward(x, ids, step, cache.layers, hook)

    def _place(
        self, batch: Batch, wanted: NDArray[np.bool_], columns: NDArray[np.int64] | int, values: Array, *, empty: float
    ) -> Array:
        """[B, keep, …] of the values [M, …] of the wanted tokens, where they are; `empty` where there is none."""
        if is_in_place(batch, wanted, columns):
            return values.reshape(batch.batch_size, len(values) // batch.batch_size, *values.shape[1:])
        return self._memory.from_host(placed(batch, wanted, columns, self._ops.to_host(values), empty=empty))

    def _require_memory(self, batch: Batch, kept: int) -> None:
        config, size = self.config, np.dtype(self._ops.hidden_dtype).itemsize
        n = len(batch.row)
        widest = max(layer.intermediate_size for layer in config.layers)
        per_token = 3 * widest + 6 * config.hidden_size + config.num_hidden_layers * config.hidden_size_per_layer_input
        need = n * (config.kv_bytes_per_token(size) + per_token * size) + kept * config.vocab_size * 8
        what = f"a prefill of {n} tokens with logits of {kept}"
        if isinstance(self._ops, ReferenceOps):
            require_memory(need, what)
        else:
            biases = {id(bias): bias.size for bias in batch.attn_bias.values()}
            self._ops.require_memory(need + 4 * sum(biases.values()), what)
