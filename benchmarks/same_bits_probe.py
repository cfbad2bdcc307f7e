"""Digests of what one checkout computes: python -P same_bits_probe.py CHECKOUT MODELS FILE [PART ...]

same_bits.py runs this text with two checkouts. Apart from the public API it needs the fake GPU of the tests and the
emulator; where these lie may differ between the two (_HOMES).
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import itertools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

# Every place where a checkout may have what is needed.
_HOMES = {
    "Emulator": ("gemma_cuda.device.emulator", "gemma_cuda.device.emulator.device"),
    "Machine": ("tests.fake_cuda", "tests.support.fake_cuda", "tests.support.cuda"),
    "CublasLt": ("tests.fake_cublaslt", "tests.support.fake_cublaslt", "tests.support.cublaslt"),
}
NUMPY_DTYPES = ("float32", "float64", "bfloat16")
BIDIRECTIONAL = ("gemma3_images", "gemma4_images", "paligemma")
IMAGE, BOI, EOI, VISION = 97, 98, 99, 16
WARMUP = {"lengths": (3, 32, 80), "batch_size": 3, "kv_rows": 4, "kv_capacity": 96, "tune": False}
Case = dict[str, str]


def use(checkout: Path) -> None:
    """From now on gemma_cuda and tests are those of the checkout, whatever is installed."""
    sys.meta_path[:] = [f for f in sys.meta_path if not type(f).__module__.startswith(("_editable", "__editable"))]
    others = [path for path in sys.path if not Path(path, "gemma_cuda", "__init__.py").exists()]
    sys.path[:] = [str(checkout), *others]
    for name in ("gemma_cuda", "tests"):
        found = importlib.import_module(name).__file__
        assert found is not None and Path(found).is_relative_to(checkout), f"{name} is {found}, not of {checkout}"


def find(name: str) -> Any:
    """The class of that name, from the first of its homes that is there."""
    for home in _HOMES[name]:
        try:
            return getattr(importlib.import_module(home), name)
        except ModuleNotFoundError as error:
            if error.name is None or not home.startswith(error.name):
                raise
        except AttributeError:
            pass
    raise LookupError(f"{name} is in none of {', '.join(_HOMES[name])}; add its module to _HOMES")


def digest(value: Any) -> str:
    """The first 16 digits of sha256 over types, dtypes, shapes and bytes."""
    sha = hashlib.sha256()

    def add(x: Any) -> None:
        if isinstance(x, np.ndarray):
            sha.update(f"{x.dtype.name}{x.shape}".encode() + np.ascontiguousarray(x).tobytes())
        elif isinstance(x, tuple | list):
            sha.update(f"{len(x)}:".encode())
            for item in x:
                add(item)
        elif isinstance(x, bytes):
            sha.update(x)
        else:
            sha.update(f"{type(x).__name__} {x!r}".encode())

    add(value)
    return sha.hexdigest()[:16]


class Probe:
    """Collects the digests of cases: case -> field -> digest, or the text of an error of ours, or of any other."""

    def __init__(self) -> None:
        self.cases: dict[str, Case] = {}
        self.launches: list[Any] = []  # of kernels, since the case began

    def run(self, name: str, compute: Callable[[], dict[str, Any]]) -> None:
        assert name not in self.cases, name
        self.launches.clear()
        try:
            fields = {key: digest(value) for key, value in compute().items()}
        except Exception as error:
            is_ours = any(base.__name__ == "GemmaError" for base in type(error).__mro__)
            fields = {"refused" if is_ours else "crashed": f"{type(error).__name__}: {error}"}
        if self.launches:
            fields["launches"] = digest(self.launches)
        self.cases[name] = fields


def kv(model: Any, cache: Any) -> list[Any]:
    """K and V of each layer, zero where the cache holds no token."""
    layers = []
    for pair in cache:
        arrays = [None, None] if pair is None else [np.array(model.to_host(array)) for array in pair]
        for array in arrays:
            if array is not None:
                first = cache.seq_length - array.shape[2]
                for row, (begin, end) in enumerate(zip(cache.starts, cache.ends, strict=True)):
                    array[row, :, : max(0, begin - first)] = 0
                    array[row, :, max(0, end - first) :] = 0
        layers.append(arrays)
    return layers


def output(model: Any, y: Any) -> dict[str, Any]:
    """Everything that a prefill gives."""
    cache = y.past_key_values
    states = y.hidden_states
    return {
        "logits": model.to_host(y.logits),
        "last_hidden_state": model.to_host(y.last_hidden_state),
        "hidden_states": None if states is None else [np.asarray(state) for state in states],
        "kv": kv(model, cache),
        "positions": [np.asarray(cache.starts), np.asarray(cache.ends), cache.seq_length],
    }


def prompt(n: int, seed: int = 0) -> list[int]:
    return [2, *np.random.default_rng([n, seed]).integers(3, 97, n - 1).tolist()]


Steps = Callable[[Any], Any]


def chain(*options: dict[str, Any]) -> Steps:
    """Prefills over one cache, of which the last one counts."""

    def run(model: Any) -> Any:
        y = None
        for each in options:
            y = model.prefill(**each, past_key_values=None if y is None else y.past_key_values)
        return y

    return run


def cropped(model: Any) -> Any:
    y = model.prefill(prompt(30))
    branch = y.past_key_values.copy()
    branch.crop(21)
    model.prefill(prompt(5), past_key_values=y.past_key_values)
    return model.prefill([5, 6, 7], past_key_values=branch, logits_to_keep=0)


def given_embeds(model: Any) -> Any:
    rows = np.stack([model.embed(prompt(24)), model.embed(prompt(24, 1))])
    ids = {"input_ids": PAIR} if model.config.hidden_size_per_layer_input else {}
    return model.prefill(inputs_embeds=np.float32(1.5) * rows.astype(np.float32), attention_mask=MASKS["left"], **ids)


MASKS = {"left": np.arange(24) >= [[0], [9]], "right": np.arange(24) < [[24], [13]]}
BIAS = np.where(np.tri(24, dtype=bool), np.random.default_rng(0).standard_normal((1, 4, 24, 24)), -np.inf)
ROWS = [prompt(33), prompt(17), prompt(1)]
PAIR = [prompt(24), prompt(24, 1)]
NEXT = [[7], [8, 9, 10], prompt(20)]
# What a prepared length serves; "auto" products, so that both kinds take part.
SHORT: dict[str, Steps] = {
    "prompt": chain({"input_ids": prompt(40)}),
    "rows": chain({"input_ids": ROWS}),
    "rows, chunks": chain({"input_ids": ROWS}, {"input_ids": NEXT}),
    "chunks": chain({"input_ids": prompt(20)}, {"input_ids": prompt(13)}, {"input_ids": [7]}),
    "inputs_embeds": given_embeds,
    "position_ids": chain({"input_ids": prompt(30), "position_ids": np.arange(0, 90, 3)}),
}
CASES: dict[str, Steps] = SHORT | {
    "all logits": chain({"input_ids": ROWS, "logits_to_keep": 0}),
    "left": chain({"input_ids": PAIR, "attention_mask": MASKS["left"], "logits_to_keep": 3}),
    "left, chunk": chain(
        {"input_ids": PAIR, "attention_mask": MASKS["left"]}, {"input_ids": [[4, 5], [6, 7]], "logits_to_keep": 0}
    ),
    "right, columns": chain(
        {"input_ids": PAIR, "attention_mask": MASKS["right"], "logits_to_keep": np.array([0, 7, 20])}
    ),
    "packed": chain({"input_ids": prompt(30), "position_ids": np.r_[0:11, 0:12, 5:12], "logits_to_keep": 0}),
    "falling positions": chain({"input_ids": prompt(8), "position_ids": np.arange(30, 6, -3)}),
    "attn_bias": chain({"input_ids": prompt(24), "attn_bias": BIAS, "logits_to_keep": 0}),
    "attn_bias of full layers": chain(
        {"input_ids": PAIR, "attn_bias": {"full_attention": BIAS.astype(np.float32)}, "logits_to_keep": 9}
    ),
    "hidden states": chain({"input_ids": ROWS, "output_hidden_states": True, "logits_to_keep": 2}),
    "layer_hook": chain({"input_ids": prompt(20), "layer_hook": lambda i, x: x * 2 if i == 0 else None}),
    "trimmed": chain({"input_ids": prompt(40), "trim_sliding": True}),
    "trimmed, chunks": chain({"input_ids": prompt(40), "trim_sliding": True}, {"input_ids": prompt(3)}),
    "crop": cropped,
}
LONG = {"a token over many keys": chain({"input_ids": prompt(600)}, {"input_ids": [9]})}

BAD: dict[str, dict[str, Any]] = {
    "no argument": {},
    "three axes": {"input_ids": np.zeros((1, 2, 3), int)},
    "an id beyond the vocabulary": {"input_ids": [3, 5000]},
    "a negative id": {"input_ids": [3, -4]},
    "floats": {"input_ids": [1.5, 2.0]},
    "no token": {"input_ids": []},
    "both inputs": {"inputs_embeds": np.zeros((1, 3, 64), np.float32), "input_ids": [1, 2]},
    "wrong embeds": {"inputs_embeds": np.zeros((1, 3, 63), np.float32)},
    "NaN embeds": {"inputs_embeds": np.full((1, 3, 64), np.nan, np.float32)},
    "wrong mask": {"input_ids": [3, 4, 5], "attention_mask": [[1, 1]]},
    "a mask with a hole": {"input_ids": [3, 4, 5], "attention_mask": [[1, 0, 1]]},
    "wrong positions": {"input_ids": [3, 4, 5], "position_ids": [0, 1]},
    "wrong bias": {"input_ids": [3, 4, 5], "attn_bias": np.zeros((1, 1, 3, 2), np.float32)},
    "an unknown layer type": {"input_ids": [3, 4, 5], "attn_bias": {"linear": np.zeros((1, 1, 3, 3), np.float32)}},
    "wrong columns": {"input_ids": [3, 4, 5], "logits_to_keep": [7]},
    "negative keep": {"input_ids": [3, 4, 5], "logits_to_keep": -1},
    "two names of types": {"input_ids": [3], "token_type_ids": [[0]], "mm_token_type_ids": [[0]]},
    "wrong types": {"input_ids": [3, 4], "token_type_ids": [[0, 9]]},
    "no cache": {"input_ids": [3, 4], "past_key_values": "cache"},
    "no flag": {"input_ids": [3, 4], "trim_sliding": "yes"},
}


def image_cases(name: str) -> dict[str, Steps]:
    """Prompts with two images, or with a prefix for PaliGemma."""
    image = [BOI, *[IMAGE] * 4, EOI]
    ids = [2, 5, *image, 6, 7, 8, *image, *prompt(21)] if name != "paligemma" else [IMAGE] * 16 + prompt(19)

    def types(model: Any) -> Any:
        found = np.array(model.token_types(ids))[None]
        return found if name != "paligemma" else (np.arange(len(ids)) >= 24)[None].astype(int)

    def merged(model: Any) -> Any:
        rng, n = np.random.default_rng(3), ids.count(IMAGE)
        side = 4 if name == "gemma3_images" else 2
        if name == "paligemma":
            features = rng.standard_normal((n, 64)).astype(np.float32)
        else:
            tower = rng.standard_normal((2, side * side, VISION)).astype(np.float32)
            features = np.asarray(model.project_image_features(tower))
        embeds = model.merge_features(model.embed([ids]), features, [ids])
        given = {"inputs_embeds": embeds, "token_type_ids": types(model), "logits_to_keep": 5}
        return model.prefill(**given)

    def placeholders(model: Any) -> Any:
        return model.prefill(ids, token_type_ids=types(model), logits_to_keep=0)

    def padded(model: Any) -> Any:
        rows, mask = np.array([ids, ids]), np.arange(len(ids)) < [[len(ids)], [len(ids) - 6]]
        return model.prefill(rows, token_type_ids=np.repeat(types(model), 2, 0), attention_mask=mask)

    def goes_on(model: Any) -> Any:
        y = model.prefill(ids, token_type_ids=types(model))
        return model.prefill([5, 6], past_key_values=y.past_key_values, token_type_ids=[[0, 0]])

    return {"images": merged, "placeholders": placeholders, "images, padded": padded, "images, chunks": goes_on}


def prefills(probe: Probe, label: str, model: Any, cases: dict[str, Steps]) -> None:
    """The outputs of some cases, tokens that are generated; with all cases also those drawn, scores and texts."""
    for name, steps in cases.items():
        probe.run(f"{label}: {name}", lambda steps=steps: output(model, steps(model)))
    greedy, drawn = {"max_new_tokens": 4}, {"max_new_tokens": 4, "temperature": 0.8, "top_p": 0.9, "seed": 1}
    probe.run(f"{label}: generate", lambda: {"ids": [list(map(int, model.generate_ids(prompt(18), **greedy)))]})
    if len(cases) >= len(CASES):
        texts = {"prompt": "for x in y:", "max_new_tokens": 4}
        probe.run(f"{label}: text", lambda: {"text": model.generate(**texts)})
        probe.run(f"{label}: draw", lambda: {"ids": [list(map(int, model.generate_ids(prompt(18), **drawn)))]})
        probe.run(f"{label}: score", lambda: {"scores": np.asarray(model.score(prompt(26)))})


def whole(name: str, *, long: bool) -> dict[str, Steps]:
    """Every case for a model."""
    return CASES | (image_cases(name) if name in BIDIRECTIONAL else {}) | (LONG if long else {})


def errors(probe: Probe, label: str, model: Any, other: Any) -> None:
    """The texts of what is refused."""
    for name, options in BAD.items():
        probe.run(f"{label}: refused: {name}", lambda options=options: output(model, model.prefill(**options)))

    def over(cache: Callable[[], Any]) -> Callable[[], dict[str, Any]]:
        return lambda: output(model, model.prefill([3, 4], past_key_values=cache()))

    probe.run(f"{label}: refused: another batch", over(lambda: model.prefill(ROWS).past_key_values))
    probe.run(f"{label}: refused: another model", over(lambda: other.prefill([3, 4]).past_key_values))
    probe.run(f"{label}: refused: crop", lambda: {"none": model.prefill([3, 4]).past_key_values.crop(9)})
    probe.run(f"{label}: refused: score", lambda: {"none": model.score([3])})
    probe.run(f"{label}: refused: warmup", lambda: {"none": model.warmup()})


def numpy_models(probe: Probe, gemma: Any, models: Path) -> None:
    """All models in all dtypes, and what is computed without layers."""
    for path in sorted(models.iterdir()):
        for dtype in NUMPY_DTYPES if path.is_dir() else ("float32",):
            label = f"numpy {dtype} {path.stem}"
            model = gemma.from_pretrained(path, device="numpy", dtype=dtype)
            cases = whole(path.stem, long=dtype == "float32") if path.is_dir() else {"prompt": CASES["prompt"]}
            prefills(probe, label, model, cases)
            probe.run(f"{label}: embed", lambda model=model: {"embed": np.asarray(model.embed(prompt(30)))})
            probe.run(f"{label}: fingerprint", lambda model=model: {"text": model.fingerprint})
            if dtype == "float32" and path.is_dir():
                probe.run(f"{label}: saved cache", lambda model=model: {"file": saved(model, models)})
    model, other = (gemma.from_pretrained(models / name, device="numpy") for name in ("gemma3", "gemma2"))
    errors(probe, "numpy", model, other)
    marked = gemma.from_pretrained(models / "gemma3_images", device="numpy")
    ids = [2, 5, BOI, 109, 6, BOI, 7]
    probe.run("numpy: expand_image_tokens", lambda: {"ids": [marked.expand_image_tokens(ids, [3, 4])]})
    for wrong in ("absent", "gemma2/config.json", "gemma2/model.safetensors"):
        probe.run(f"refused: open {wrong}", lambda wrong=wrong: {"none": gemma.from_pretrained(models / wrong)})
    for options in ({"dtype": "float16"}, {"device": "tpu"}, {"gemm": "kernel"}):
        given = {"device": "numpy", **options}
        probe.run(
            f"refused: {options}", lambda given=given: {"none": gemma.from_pretrained(models / "gemma2", **given)}
        )


def saved(model: Any, models: Path) -> list[bytes]:
    """Header and data of a cache's file, which can be loaded; the order of the metadata in it is not defined."""
    path = models.parent / f"cache-{Path(sys.argv[1]).name}.safetensors"
    cache = model.prefill(ROWS).past_key_values
    cache.save(path)
    loaded = type(cache).load(path)
    assert model.prefill(NEXT, past_key_values=loaded).past_key_values.seq_length > cache.seq_length
    content = path.read_bytes()
    path.unlink()
    end = 8 + int.from_bytes(content[:8], "little")
    return [json.dumps(json.loads(content[8:end]), sort_keys=True).encode(), content[end:]]


def functions(probe: Probe, gemma_cuda: Any) -> None:
    """The functions that need no model, by NumPy and by the kernels."""
    rng = np.random.default_rng(5)

    def draw(*shape: int) -> Any:
        return rng.standard_normal(shape).astype(np.float16)

    q, k, v, ids = draw(2, 40, 4, 64), draw(2, 50, 2, 64), draw(2, 50, 2, 64), np.repeat(np.arange(-1, 4), 10)
    x, weight, gate = draw(11, 96), draw(96), draw(11, 96)
    packed, angles = draw(9, 8 * 64), rng.standard_normal((2, 9, 32)).astype(np.float32)
    attention = {"plain": {}, "causal": {"causal": True}, "window": {"causal": True, "sliding_window": 7}} | {
        "softcap": {"softcap": 2.0, "causal": True, "q_offset": 3},
        "blocks": {"causal": True, "block_ids": ids},
        "bias": {"attn_bias": draw(1, 4, 40, 50)},
    }
    for device in (None, "emulator"):
        label = device or "numpy"
        for name, options in attention.items():
            probe.run(
                f"attention {label}: {name}",
                lambda o=options, d=device: {
                    "o": list(gemma_cuda.attention(q, k, v, return_lse=True, device=d, **o)),
                },
            )
        probe.run(f"rms_norm {label}", lambda d=device: {"y": gemma_cuda.rms_norm(x, weight, plus_one=True, device=d)})
        wide = x.astype(np.float32)
        probe.run(f"rms_norm {label}: float32", lambda d=device, wide=wide: {"y": gemma_cuda.rms_norm(wide, device=d)})
        probe.run(f"geglu {label}", lambda d=device: {"y": gemma_cuda.geglu(x, gate, device=d)})

        def rotated(device: Any = device) -> dict[str, Any]:
            caches = [np.zeros((12, 2, 64), np.float16) for _ in range(2)]
            y = gemma_cuda.qk_norm_rope(
                packed, heads=4, cos=np.cos(angles[0]), sin=np.sin(angles[1]), q_weight=weight[:64],
                k_weight=x[0, :64], k_cache=caches[0], v_cache=caches[1], slots=np.arange(9, dtype=np.int32) + 2,
                device=device,
            )  # fmt: skip
            return {"q": y, "caches": caches}

        probe.run(f"qk_norm_rope {label}", rotated)


def emulator_models(probe: Probe, gemma: Any, models: Path, names: list[str]) -> None:
    """Models on the emulator."""
    for name, gemm in itertools.product(names, ("library", "kernel")):
        model = gemma.from_pretrained(models / name, device="emulator", gemm=gemm)
        cases = whole(name, long=name == "gemma2") if gemm == "kernel" else SHORT
        prefills(probe, f"emulator {gemm} {name}", model, cases)
    model, other = (gemma.from_pretrained(models / name, device="emulator") for name in ("gemma3", "gemma2"))
    errors(probe, "emulator", model, other)


def fake_gpu(probe: Probe) -> None:
    """From now on there is the tests' GPU, whose launches are noted."""
    import pytest

    patch = pytest.MonkeyPatch()
    emulator = find("Emulator")(workers=1)
    launch = emulator.launch

    def noted(instance: str, grid: Any, block: Any, shared_bytes: int, args: Any, **options: Any) -> None:
        dims = tuple(map(int, grid)), tuple(map(int, block)), int(shared_bytes)
        probe.launches.append((instance, *dims, bool(options.get("overlap"))))
        launch(instance, grid, block, shared_bytes, args, **options)

    emulator.launch = noted
    machine = find("Machine")(emulator)
    machine.install(patch)
    find("CublasLt")(machine).install(patch)


def cuda_models(probe: Probe, gemma: Any, models: Path, names: list[str]) -> None:
    """Models on the fake GPU: launch by launch, then by plans, started as graphs or one by one."""
    for name in names:
        images = {key: steps for key, steps in image_cases(name).items() if name in BIDIRECTIONAL}
        for gemm in ("auto", "kernel"):
            model = gemma.from_pretrained(models / name, device="cuda", gemm=gemm)
            label = f"cuda {gemm} {name}"
            if gemm == "auto":
                prefills(probe, label, model, whole(name, long=False))
            for graphs in (True, False) if gemm == "kernel" else (True,):
                way = "graphs" if graphs else "plans"
                probe.run(
                    f"{label}: warmup {way}",
                    lambda model=model, graphs=graphs: {
                        "report": [dataclasses.astuple(each) for each in model.warmup(**WARMUP, graphs=graphs)]
                    },
                )
                prefills(probe, f"{label} {way}", model, SHORT)
                for key, steps in images.items():
                    probe.run(f"{label} {way}: {key}", lambda m=model, steps=steps: output(m, steps(m)))
    model, other = (gemma.from_pretrained(models / name, device="cuda") for name in ("gemma3", "gemma2"))
    errors(probe, "cuda", model, other)


def main() -> None:
    """Writes the digests of the parts that are named, of all if none is, as JSON."""
    checkout, models, target, *parts = sys.argv[1:]
    use(Path(checkout))
    import gemma_cuda

    names = sorted(p.name for p in Path(models).iterdir() if p.is_dir() and not p.name.startswith("gemma4"))
    probe = Probe()
    if not parts or "numpy" in parts:
        numpy_models(probe, gemma_cuda.Gemma, Path(models))
    if not parts or "emulator" in parts:
        functions(probe, gemma_cuda)
        emulator_models(probe, gemma_cuda.Gemma, Path(models), names)
    if not parts or "cuda" in parts:
        fake_gpu(probe)
        cuda_models(probe, gemma_cuda.Gemma, Path(models), names)
    Path(target).write_text(json.dumps(probe.cases, indent=1))


if __name__ == "__main__":
    main()
