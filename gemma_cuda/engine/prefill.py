"""`Engine`: make_batch → ForwardContext → EagerExecutor | GraphExecutor → outputs, for every prefill of one model."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import cached_property
from typing import Concatenate, ParamSpec, TypeVar, cast

import numpy as np
from numpy.typing import ArrayLike

from ..config import ModelConfig
from ..device.cuda import Cuda
from ..errors import InputError
from ..model.decoder import Decoder, Hook
from ..model.kv_cache import KVCache
from ..model.multimodal import embeddable
from ..model.ops import Ops
from ..model.weights import Weights
from ..ops.kernel_ops import KernelOps
from ..precision import Array
from . import embeddings
from .backend import stream_order
from .batch import Batch, Prompt, make_batch
from .context import EagerContext
from .graphs import BucketReport, GraphExecutor, WarmupSizes
from .outputs import OutputRows, PrefillOutput, decoder_hook
from .sampling import Sampler, require_finite

_SCORE_ROWS = 64  # logits of a whole long prompt would not fit: 2048 tokens are 2 GB

_P = ParamSpec("_P")
_R = TypeVar("_R")


def _stream_ordered(
    method: Callable[Concatenate[Engine, Prompt, _P], _R],
) -> Callable[Concatenate[Engine, Prompt, _P], _R]:
    """The method on the stream of the prompt's embeddings, ordered after the model's last use on any other stream."""

    @functools.wraps(method)
    def ordered(self: Engine, prompt: Prompt, *args: _P.args, **options: _P.kwargs) -> _R:
        embeds = prompt.inputs_embeds
        with nullcontext() if embeds is None else embeddings.stream_of(embeds, self.ops.memory), self.order:
            return method(self, prompt, *args, **options)

    return cast("Callable[Concatenate[Engine, Prompt, _P], _R]", ordered)


class EagerExecutor:
    """Runs a forward pass launch by launch: any batch over any cache."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder, self._ops = decoder, decoder.ops

    def require_memory(self, batch: Batch, logits: int) -> None:
        """OutOfMemoryError unless there is room for the batch and so many rows of logits."""
        config, size = self._decoder.config, self._ops.hidden_dtype.itemsize
        n = len(batch.sequence)
        widest = max(layer.intermediate_size for layer in config.layers)
        per_token = 3 * widest + 6 * config.hidden_size + config.num_hidden_layers * config.hidden_size_per_layer_input
        need = n * (config.kv_bytes_per_token(size) + per_token * size) + logits * config.vocab_size * 8
        biases = {id(bias): bias.size for bias in batch.attn_bias.values()}
        need += 4 * sum(biases.values())
        self._ops.require_memory(need, f"a prefill of {n} tokens with logits of {logits}")

    def run(self, batch: Batch, outputs: OutputRows, cache: KVCache, hook: Hook | None) -> Array:
        """Last hidden state [M, E] of the output rows; the cache gets K and V of all tokens, but is not extended."""
        decoder, ops = self._decoder, self._ops
        cache.make_room(max(cache.seq_length, batch.end))
        ids = None if batch.input_ids is None else embeddable(decoder.config, batch.input_ids)
        x = batch.packed_embeds(ops) if batch.inputs_embeds is not None else decoder.embed(cast(Array, ids))
        context = EagerContext(decoder.config, ops, batch, outputs)
        return decoder.forward(x, ids, context, cache.layers, hook)


class Engine:
    """Prefills of one model on one device. Dropped, it waits for its last use."""

    def __init__(self, config: ModelConfig, weights: Weights, ops: Ops) -> None:
        self.config, self.weights, self.ops = config, weights, ops
        self.dtype = ops.precision.name
        self.decoder = Decoder(config, weights, ops)
        self.graphs: GraphExecutor | None = None
        self._eager = EagerExecutor(self.decoder)
        self.order = stream_order(ops.memory, self)
        with self.order:
            pass  # the weights are there before anything else

    @cached_property
    def fingerprint(self) -> str:
        """Tells this model's KV caches from another's: a digest of the configuration and of the norm weights."""
        digest = hashlib.sha256(repr(self.config).encode())
        for norm in (self.weights.norm, *(layer.input_norm for layer in self.weights.layers)):
            values = self.ops.to_host(norm)
            digest.update(values.astype(np.result_type(values, np.float32)).tobytes())  # on every device the same
        return digest.hexdigest()

    @property
    def can_record(self) -> bool:
        """Whether the device replays recorded launches."""
        return isinstance(self.ops.memory, Cuda)

    def warmup(self, sizes: WarmupSizes, *, graphs: bool, tune: bool) -> list[BucketReport]:
        """See `Gemma.warmup`; where `can_record`."""
        cuda = cast(Cuda, self.ops.memory)
        with self.order:
            if self.graphs is not None:
                cuda.synchronize()  # this stream waits for the last use on any other
                self.graphs = None  # the old one's memory can be used again
            self.graphs = GraphExecutor(self.decoder, cast(KernelOps, self.ops), cuda, sizes, graphs=graphs, tune=tune)
            return self.graphs.report()

    @_stream_ordered
    def prefill(
        self,
        prompt: Prompt,
        *,
        past: KVCache | None = None,
        logits_to_keep: int | ArrayLike = 1,
        output_hidden_states: bool = False,
        trim_sliding: bool = False,
        layer_hook: Hook | None = None,
    ) -> PrefillOutput:
        """See `Gemma.prefill`."""
        with nullcontext() if past is None else past.in_use():
            if past is not None and (self.graphs is None or not self.graphs.holds(past)):
                past.check_model(self.config, self.fingerprint, self.dtype)
            batch = make_batch(self.config, prompt, past=past, memory=self.ops.memory)
            outputs = OutputRows.of(batch, logits_to_keep)
            every_row = output_hidden_states or layer_hook is not None
            cache = past if past is not None else self._new_cache(batch.batch_size)
            memory, dtype = self.ops.memory, self.ops.hidden_dtype
            with nullcontext() if past is None else past.appending(batch.end, memory, dtype):
                replayed = None
                if self.graphs is not None and not every_row and outputs.are_last:
                    replayed = self.graphs.run(batch, cache)
                if replayed is not None:
                    output = PrefillOutput(replayed[1], replayed[0], cache)
                else:
                    output = self._eager_output(batch, outputs, cache, output_hidden_states, layer_hook)
                cache.extend(batch.starts, batch.ends, batch.spans)
                if trim_sliding:
                    cache.trim()
            return output

    def _eager_output(
        self, batch: Batch, outputs: OutputRows, cache: KVCache, output_hidden_states: bool, layer_hook: Hook | None
    ) -> PrefillOutput:
        ops = self.ops
        self._eager.require_memory(batch, len(outputs.rows))
        states: list[Array] | None = [] if output_hidden_states else None
        if states is None and layer_hook is None:
            hidden = self._eager.run(batch, outputs, cache, None)
        else:
            hook = decoder_hook(batch, states, layer_hook, ops)
            hidden = self._eager.run(batch, OutputRows.all(batch), cache, hook)
            if states is not None:  # HuggingFace's convention: the last entry has passed the final norm
                states[-1] = batch.unpack(ops.to_host(hidden))
            hidden = ops.take(hidden, ops.index(outputs.rows))
        logits = self.decoder.logits(hidden)
        return PrefillOutput(
            logits=outputs.in_layout(batch, logits, ops, empty=np.nan),
            last_hidden_state=outputs.in_layout(batch, hidden, ops, empty=0),
            past_key_values=cache,
            hidden_states=None if states is None else tuple(states),
        )

    @_stream_ordered
    def score(self, prompt: Prompt) -> Array:
        """See `Gemma.score`."""
        batch = make_batch(self.config, prompt)
        tokens = batch.input_ids
        assert tokens is not None
        if batch.batch_size != 1 or len(tokens) < 2:
            raise InputError("score: expected one row of at least two tokens")
        self._eager.require_memory(batch, _SCORE_ROWS)
        hidden = self._eager.run(batch, OutputRows.all(batch), self._new_cache(1), None)
        scores = np.empty(len(tokens) - 1, np.float64 if self.dtype == "float64" else np.float32)
        for start in range(0, len(scores), _SCORE_ROWS):
            rows = slice(start, min(start + _SCORE_ROWS, len(scores)))
            logits = self.ops.to_host(self.decoder.logits(hidden[rows]))
            require_finite(float(logits.max()))
            logits -= logits.max(axis=-1, keepdims=True)
            chosen = logits[np.arange(len(logits)), tokens[1:][rows]]
            scores[rows] = chosen - np.log(np.exp(logits).sum(axis=-1))
        require_finite(float(scores.min()))
        return scores

    def generate(self, ids: Sequence[int], max_new_tokens: int, sampler: Sampler) -> Iterator[int]:
        """The ids that continue `ids`, end tokens among them; see `Gemma.generate`."""
        cache: KVCache | None = None
        for _ in range(max_new_tokens):
            out = self.prefill(Prompt(ids), past=cache)
            cache = out.past_key_values
            if sampler.temperature == 0:
                token = self.ops.argmax(out.logits[0, -1:])  # NaN before all others, on every device
                require_finite(float(self.ops.to_host(out.logits[0, -1, token : token + 1])[0]))
            else:
                token = sampler.sample(self.ops.to_host(out.logits)[0, -1])
            yield token
            ids = [token]

    def _new_cache(self, batch_size: int) -> KVCache:
        cache = None
        if self.graphs is not None:
            cache = self.graphs.pool.take(batch_size, self.fingerprint, self.dtype)
        if cache is None:
            cache = KVCache.empty(
                self.config, batch_size, self.fingerprint, self.dtype, self.ops.hidden_dtype, self.ops.memory
            )
        return cache
