"""The layers of a config.json: their types, shapes, shared K and V, windows and rotary embeddings."""

from typing import cast

from ..arguments import shown
from ..config import GENERATIONS, LayerConfig, LayerType, RopeConfig, RopeType
from .fields import MAX_INT32, MAX_LAYERS, MAX_SIZE, Fields, shown_json

FULL: LayerType = "full_attention"
SLIDING: LayerType = "sliding_attention"

_GEMMA2_SIZES = {
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
}
DEFAULTS: dict[str, dict[str, int]] = {
    "gemma": {
        "vocab_size": 256000,
        "hidden_size": 3072,
        "intermediate_size": 24576,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "head_dim": 256,
        "max_position_embeddings": 8192,
    },
    "gemma2": _GEMMA2_SIZES | {"vocab_size": 256000, "max_position_embeddings": 8192, "sliding_window": 4096},
    "gemma3_text": _GEMMA2_SIZES | {"vocab_size": 262208, "max_position_embeddings": 131072, "sliding_window": 4096},
    "gemma4_text": _GEMMA2_SIZES
    | {"vocab_size": 262144, "max_position_embeddings": 131072, "sliding_window": 512, "num_hidden_layers": 30},
    "gemma4_unified_text": _GEMMA2_SIZES
    | {"vocab_size": 262144, "max_position_embeddings": 262144, "sliding_window": 1024, "num_hidden_layers": 30},
}


def is_generation_4(model_type: str) -> bool:
    return GENERATIONS[model_type] == 4


def size(text: Fields, model_type: str, key: str, *, maximum: int = MAX_SIZE) -> int:
    """The integer under `key`, by default that of HuggingFace's config class."""
    return text.integer(key, DEFAULTS[model_type][key], maximum=maximum)


def layer_count(text: Fields, model_type: str) -> int:
    return size(text, model_type, "num_hidden_layers", maximum=MAX_LAYERS)


def sliding_window(text: Fields, model_type: str) -> int | None:
    return text.optional_integer("sliding_window", DEFAULTS[model_type]["sliding_window"], maximum=MAX_INT32)


def parse_layers(text: Fields, model_type: str) -> tuple[LayerConfig, ...]:
    """One entry per decoder layer."""
    types = _layer_types(text, model_type)
    sources = _kv_sources(text, model_type, types)
    geometry = _geometry(text, model_type, types)
    ropes = {layer_type: _rope(text, model_type, layer_type) for layer_type in set(types)}
    window = sliding_window(text, model_type) if SLIDING in types else None
    if window is None and SLIDING in types:
        text.fail("sliding_window", "is null, but the model has sliding_attention layers")
    k_eq_v = is_generation_4(model_type) and text.flag("attention_k_eq_v", False)
    width = size(text, model_type, "intermediate_size")
    wide_shared = is_generation_4(model_type) and text.flag("use_double_wide_mlp", False)
    return tuple(
        LayerConfig(
            layer_type=layer_type,
            head_dim=head_dim,
            num_key_value_heads=kv_heads,
            intermediate_size=2 * width if wide_shared and source is not None else width,
            sliding_window=window if layer_type == SLIDING else None,
            rope=ropes[layer_type],
            attention_k_eq_v=k_eq_v and layer_type == FULL,
            kv_source=source,
        )
        for layer_type, (head_dim, kv_heads), source in zip(types, geometry, sources, strict=True)
    )


def _layer_types(text: Fields, model_type: str) -> list[LayerType]:
    """The type of each layer: `layer_types`, or else the generation's pattern."""
    count = layer_count(text, model_type)
    if model_type == "gemma":
        return [FULL] * count
    types: list[LayerType]
    if text.is_null("layer_types"):
        pattern = {"gemma2": 2, "gemma3_text": text.integer("sliding_window_pattern", 6)}.get(model_type, 6)
        types = [SLIDING if (index + 1) % pattern else FULL for index in range(count)]
    else:
        given = text.sequence("layer_types")
        if len(given) != count:
            text.fail("layer_types", f"has {len(given)} entries for {count} layers")
        for index, name in enumerate(given):
            if not isinstance(name, str) or name not in (FULL, SLIDING):
                text.fail(f"layer_types[{index}]", f"is {shown_json(name)}, expected {FULL} or {SLIDING}")
        types = cast(list[LayerType], list(given))
    if is_generation_4(model_type):
        types[-1] = FULL  # as in HuggingFace, even if the file has another type
    return types


def _kv_sources(text: Fields, model_type: str, types: list[LayerType]) -> list[int | None]:
    """`LayerConfig.kv_source` of each layer.

    The last `num_kv_shared_layers` layers read K and V of the last earlier layer of their type.
    """
    count = len(types)
    shared = text.integer("num_kv_shared_layers", 0, minimum=0) if is_generation_4(model_type) else 0
    if shared >= count:
        text.fail("num_kv_shared_layers", f"is {shared}, but there are only {count} layers")
    own = count - shared
    last = {layer_type: index for index, layer_type in enumerate(types[:own])}
    for layer_type in types[own:]:
        if layer_type not in last:
            text.fail("num_kv_shared_layers", f"is {shared}: no {layer_type} layer before those that share has K and V")
    return [None if index < own else last[layer_type] for index, layer_type in enumerate(types)]


def _geometry(text: Fields, model_type: str, types: list[LayerType]) -> list[tuple[int, int]]:
    """head_dim and num_key_value_heads of each layer."""
    heads = size(text, model_type, "num_attention_heads")
    head_dim = size(text, model_type, "head_dim")
    kv_heads = size(text, model_type, "num_key_value_heads")
    geometry = [(head_dim, kv_heads)] * len(types)
    if is_generation_4(model_type):
        if "per_layer_config" in text:
            geometry = _per_layer_geometry(text, geometry)
        else:
            global_dim = text.integer("global_head_dim", 512)
            global_kv = text.optional_integer("num_global_key_value_heads", None)
            if not text.flag("attention_k_eq_v", False):
                global_kv = None
            full = (global_dim, global_kv or kv_heads)
            geometry = [full if layer_type == FULL else (head_dim, kv_heads) for layer_type in types]
    for index, (dim, kv) in enumerate(geometry):
        if geometry[types.index(types[index])] != (dim, kv):  # HuggingFace refuses it too: one rope for each type
            text.fail("per_layer_config", f"makes layer {index} unlike another {types[index]} layer")
        if dim % 2:
            text.fail("head_dim", f"is {dim} on layer {index}; rotary embeddings need an even one")
        if heads % kv:
            text.fail("num_attention_heads", f"is {heads}, no multiple of num_key_value_heads = {kv} on layer {index}")
    return geometry


def _per_layer_geometry(text: Fields, geometry: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """`geometry` with the overrides of `per_layer_config`: {"05": {"head_dim": 512, "num_key_value_heads": 4}, ...}."""
    if text.is_null("per_layer_config"):
        return geometry
    overrides = text.section("per_layer_config")
    result = list(geometry)
    for key in overrides.values:
        index = int(key) if isinstance(key, str) and key.isascii() and key.isdigit() and len(key) < 6 else key
        if not isinstance(index, int) or not 0 <= index < len(geometry):
            text.fail("per_layer_config", f"has the key {shown(key)}, expected a layer from 0 to {len(geometry) - 1}")
        layer = overrides.section(key)
        for name in layer.values:
            if name not in ("head_dim", "num_key_value_heads"):
                layer.fail(shown(name), "is not supported: only head_dim and num_key_value_heads vary by layer")
        result[index] = (
            layer.integer("head_dim", geometry[index][0]),
            layer.integer("num_key_value_heads", geometry[index][1]),
        )
    return result


def _rope(text: Fields, model_type: str, layer_type: LayerType) -> RopeConfig:
    """The rotary embedding of the layers of `layer_type`."""
    if model_type in ("gemma", "gemma2"):
        scaling, parameters = text.optional_section("rope_scaling"), text.optional_section("rope_parameters")
        entry = scaling if scaling.values else parameters
        for name in (FULL, SLIDING):
            if name in entry:
                entry.fail(name, f"is not supported: {model_type} has one rope for all layers")
        return _rope_entry(entry, theta=text.positive("rope_theta", 10_000.0))
    parameters = text.optional_section("rope_parameters")
    if parameters.values and FULL not in parameters and SLIDING not in parameters:
        text.fail("rope_parameters", f"has neither {FULL} nor {SLIDING}, by which {model_type} keys it")
    if model_type == "gemma3_text":
        return _gemma3_rope(text, parameters, layer_type)
    if text.is_null("rope_parameters"):
        if layer_type == FULL:
            return RopeConfig("proportional", 1_000_000.0, partial_rotary_factor=0.25)
        return RopeConfig("default", 10_000.0)
    return _rope_entry(parameters.section(layer_type), theta=None)


def _gemma3_rope(text: Fields, parameters: Fields, layer_type: LayerType) -> RopeConfig:
    """Gemma 3: `rope_parameters` by layer type, or `rope_theta` and `rope_scaling` (full), `rope_local_base_freq`."""
    entry = parameters.optional_section(layer_type)
    if layer_type == SLIDING:
        return _rope_entry(entry, theta=text.positive("rope_local_base_freq", 10_000.0))
    scaling = text.optional_section("rope_scaling")
    if scaling.values:
        entry = Fields({**entry.values, **scaling.values}, source=text.source, prefix=scaling.prefix)
    return _rope_entry(entry, theta=text.positive("rope_theta", 1_000_000.0))


def _rope_entry(entry: Fields, *, theta: float | None) -> RopeConfig:
    """The RopeConfig of one dictionary; `theta` is its default `rope_theta` (None: required)."""
    key = "type" if "type" in entry and "rope_type" not in entry else "rope_type"  # "type" before Transformers 4.45
    rope_type = entry.text(key, "default")
    if rope_type not in ("default", "linear", "proportional"):
        entry.fail(key, f"is {shown_json(rope_type)}, expected default, linear or proportional")
    if theta is None or "rope_theta" in entry:
        theta = entry.positive("rope_theta")
    if theta < 1:
        entry.fail("rope_theta", f"is {theta!r}, expected at least 1")
    partial = 1.0 if entry.is_null("partial_rotary_factor") else entry.positive("partial_rotary_factor")
    if partial > 1 or (partial < 1 and rope_type != "proportional"):
        entry.fail("partial_rotary_factor", f"is {partial!r}, not supported with rope type {rope_type}")
    factor = 1.0
    if rope_type == "linear" or (rope_type == "proportional" and "factor" in entry):
        factor = entry.positive("factor")
    return RopeConfig(cast(RopeType, rope_type), theta, factor, partial)
