"""The comparator and the random models catch what they are for: NaN, a wrong mask, a swapped head, a bland model."""

from __future__ import annotations

import numpy as np
import pytest

from tests.support import hf_forward, hf_models
from tests.support.compare import assert_within_rule, error, rounding_floor, tolerance


def _attention(q, k, v, visible, dtype):  # type: ignore[no-untyped-def]
    scores = (q.astype(dtype) @ k.astype(dtype).T).astype(np.float64)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True)) * visible
    return (weights / weights.sum(axis=-1, keepdims=True)).astype(dtype).astype(np.float64) @ v


def _cases():  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(0)
    q, k, v = rng.standard_normal((3, 24, 16))
    i = np.arange(24)
    window = (i[:, None] >= i) & (i[:, None] - i < 8)
    return q / 4, k, v, window, (i[:, None] >= i) & (i[:, None] - i < 9)


def test_rule_accepts_rounding_and_refuses_nan_masks_and_heads() -> None:
    q, k, v, window, one_more = _cases()
    r = _attention(q, k, v, window, np.float64)
    b = _attention(q, k, v, window, np.float32)
    assert_within_rule(b, r, b, dtype="float32")
    assert_within_rule(r, r, b, dtype="float32")
    broken = b.copy()
    broken[3, 4] = np.nan
    with pytest.raises(AssertionError, match=r"1 NaN, the first at \(3, 4\)"):
        assert_within_rule(broken, r, b, dtype="float32")
    with pytest.raises(AssertionError, match="exceeds"):
        assert_within_rule(_attention(q, k, v, one_more, np.float64), r, b, dtype="float32")
    with pytest.raises(AssertionError, match="exceeds"):
        assert_within_rule(np.roll(r, 8, axis=1), r, b, dtype="float32")
    assert_within_rule(b[3:5], r, b, dtype="float32", at=slice(3, 5))
    with pytest.raises(AssertionError, match="exceeds"):
        assert_within_rule(b[3:5], r, b, dtype="float32", at=slice(4, 6))
    with pytest.raises(AssertionError, match=r"shape \(23, 16\)"):
        assert_within_rule(r[1:], r, b, dtype="float32")
    with pytest.raises(AssertionError, match="nothing was compared"):
        assert_within_rule(r[:0], r[:0], b[:0], dtype="float32")


def test_rule_compares_infinities_before_values() -> None:
    r = np.array([1.0, np.inf, -np.inf])
    assert_within_rule(r, r, r, dtype="float32")
    with pytest.raises(AssertionError, match="infinities differ"):
        assert_within_rule(np.array([1.0, np.inf, 2.0]), r, r, dtype="float32")
    with pytest.raises(AssertionError, match="infinities differ"):
        assert_within_rule(np.array([1.0, -np.inf, -np.inf]), r, r, dtype="float32")


def test_floor_is_the_rounding_of_values_near_three_tenths() -> None:
    r = np.linspace(-1, 1, 101)
    assert rounding_floor(r, "float64") < 1e-15
    assert 2**-10 < rounding_floor(r, "bfloat16") < 2**-5
    assert tolerance(r, r, dtype="float32") == rounding_floor(r, "float32")


@pytest.mark.parametrize("name", hf_models.RECIPES)
def test_random_models_have_trained_scales(name: str) -> None:
    """Logits of several units, activations near one, and an eager float32 pass that is near the exact one."""
    model = hf_models.build(name)
    r = hf_forward.forward(model.float64, model.ids())
    f = hf_forward.forward(model.float32, model.ids())
    assert len(r.hidden_states) == model.text_config.num_hidden_layers + 1
    assert all(0.1 < state.std() < 6 for state in r.hidden_states)
    out = r.last_hidden_state if r.logits is None else r.logits
    assert out.std() > 2
    reached = f.last_hidden_state if f.logits is None else f.logits
    assert 1e-9 < error(reached, out).rms < 1e-4 * out.std()


def test_caps_bite_and_ignored_caps_do_not() -> None:
    """Scores of the capped models pass their caps; what HuggingFace ignores changes nothing."""
    capped, plain = hf_models.build("gemma3_text_capped"), hf_models.build("gemma3")
    assert np.abs(hf_forward.forward(capped.float64, capped.ids()).logits).max() < 5
    logits = hf_forward.forward(plain.float64, plain.ids()).logits
    assert plain.text_config.final_logit_softcapping == 5.0 and np.abs(logits).max() > 5
