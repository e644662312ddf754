"""Attention of text decoders in blocks: what MLX's function gives, and only in our layers."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mlx_vlgen
from mlx_vlgen._mlx_lm import swiglu, text_decoder, use_functions
from mlx_vlgen._runtime import mx
from mlx_vlgen.engine.cache import check, make_cache
from mlx_vlgen.engine.kv_settings import KVSettings
from mlx_vlgen.loading.footprint import Footprint
from mlx_vlgen.loading.forward_check import check_forward
from mlx_vlgen.models import attention, layers, x86
from mlx_vlgen.models.base import Embedded
from mlx_vlgen.models.text_attention import blocked_attention, text_swiglu


@given(
    rows=st.integers(1, 3),
    groups=st.integers(1, 3),
    shared=st.integers(1, 3),
    queries=st.integers(1, 40),
    earlier=st.integers(0, 40),
    kind=st.sampled_from(["none", "causal", "plain", "row", "all"]),
    budget=st.sampled_from([1, 4000, 2 << 20]),
    many=st.sampled_from([1, 1 << 15]),
    seed=st.integers(0, 2**31),
)
def test_blocks_give_what_mlx_gives(
    rows: int, groups: int, shared: int, queries: int, earlier: int, kind: str, budget: int, many: int, seed: int
) -> None:
    draw = np.random.default_rng(seed)
    keys = queries + earlier
    q, k, v = (
        mx.array(draw.normal(size=(rows, heads, length, 8)).astype(np.float32))
        for heads, length in ((groups * shared, queries), (groups, keys), (groups, keys))
    )
    shapes = {"plain": (queries, keys), "row": (1, 1, queries, keys), "all": (rows, 1, queries, keys)}
    mask: mx.array | str | None = "causal" if kind == "causal" else None
    if kind in shapes:
        allowed = draw.random(shapes[kind]) < 0.6
        allowed[..., 0] = True
        mask = mx.array(allowed)
    expected = mx.fast.scaled_dot_product_attention(q, k, v, scale=0.3, mask=mask)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "SCORE_BYTES", {"cpu": budget, "gpu": budget})
        patch.setattr(x86, "MANY", many)
        ours = blocked_attention(q, k, v, 0.3, mask)
    assert mx.abs(ours - expected).max().item() < 2e-6


def test_a_query_that_may_attend_to_nothing_is_finite() -> None:
    q = k = v = mx.ones((1, 1, 2, 4))
    out = blocked_attention(q, k, v, 0.5, mx.array([[False, False], [True, False]]))
    assert mx.isfinite(out).all().item()


def test_only_the_layer_that_is_told_changes() -> None:
    """mlx-lm's classes, and other networks of them, stay as they are."""
    config = {
        "model_type": "qwen3", "hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 16, "head_dim": 8,
        "num_attention_heads": 2, "num_key_value_heads": 1, "rms_norm_eps": 1e-6, "vocab_size": 8, "rope_theta": 1e4,
        "max_position_embeddings": 64, "tie_word_embeddings": True,
    }  # fmt: skip
    decoder, arguments = text_decoder(config)
    ours, other = (decoder(arguments.from_dict(config)) for _ in range(2))
    ours.update(other.parameters())
    calls = []

    def attend(queries: mx.array, *_: object, **__: object) -> mx.array:
        calls.append(queries.shape)
        return mx.zeros_like(queries)

    kind = type(ours.layers[0].self_attn)
    for layer in ours.modules():
        use_functions(layer, {"scaled_dot_product_attention": attend})
    tokens = mx.array([[1, 2, 3]])
    assert not mx.allclose(ours(tokens), other(tokens)).item()
    assert calls == [(1, 2, 3, 8)]
    assert type(other.layers[0].self_attn) is kind and isinstance(ours.layers[0].self_attn, kind)
    assert dict(ours.layers[0].self_attn).keys() == dict(other.layers[0].self_attn).keys()


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_a_gate_is_mlx_lms(dtype: mx.Dtype) -> None:
    """In float32 as exact as numbers are; there mlx-lm's errs by 4e-6 of small values. A gate that lies within another
    array, as half of a joined layer's output does, leaves that as it was."""
    gate = mx.concatenate([mx.linspace(-200, 200, x86.MANY), mx.linspace(-1, 1, 1001)]).astype(dtype)
    x = mx.linspace(-2, 2, gate.size).astype(dtype)
    joined = mx.stack([gate, x], axis=-1)
    within = text_swiglu(joined[:, 0], joined[:, 1])
    assert (joined == mx.stack([gate, x], axis=-1)).all().item()
    ours, theirs = (np.array(f(gate + 0, x).astype(mx.float32), np.float64) for f in (text_swiglu, swiglu))
    assert (np.array(within.astype(mx.float32)) == ours).all()
    exact, factor = (np.array(values.astype(mx.float32), np.float64) for values in (gate, x))
    exact *= factor / (1 + np.exp(-exact))
    known, tolerance = (exact, 5e-7) if dtype == mx.float32 else (theirs, 0)
    assert np.allclose(ours, known, rtol=tolerance, atol=1e-30) and np.isfinite(ours).all()


def test_gelu_is_exact() -> None:
    """Of many values as of few."""
    x = mx.concatenate([mx.linspace(-12, 12, x86.MANY), mx.array([0.0, -1e30, 1e30])])
    exact = np.array([value * (1 + math.erf(value / math.sqrt(2))) / 2 for value in np.array(x, np.float64).tolist()])
    for ours in (layers.gelu(x), mx.concatenate([layers.gelu(x[:9000]), layers.gelu(x[9000:])])):
        assert (np.abs(np.array(ours, np.float64) - exact) <= 4e-7 * np.maximum(1, np.abs(exact))).all()


@settings(max_examples=30)
@given(
    outer=st.lists(st.integers(1, 3), max_size=2),
    heads=st.integers(1, 3),
    length=st.integers(1, 9),
    half=st.integers(1, 5),
    turned=st.integers(1, 60),
    traditional=st.booleans(),
    of_rows=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_a_rotation_is_the_same_bit_by_bit(
    outer: list[int], heads: int, length: int, half: int, turned: int, traditional: bool, of_rows: bool, seed: int
) -> None:
    """Of many values as of few: heads that lie apart or together, angles of each row or of all."""
    draw = np.random.default_rng(seed)

    def values(*shape: int) -> mx.array:
        return mx.array(draw.normal(size=shape).astype(np.float32))

    x = values(*outer, length, heads, 2 * half).swapaxes(-2, -3)
    shape = (*outer, 1, length, half) if of_rows else (length, half)
    cos, sin = values(*shape), values(*shape)
    expected = layers.rotate(x, cos, sin, traditional)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(x86, "MANY", 1)
        patch.setattr(x86, "TURNED", turned)
        assert (layers.rotate(x, cos, sin, traditional) == expected).all().item()


def test_what_is_only_built_computes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading builds a forward and drops it, and so does a cache's first use."""
    model, _ = mlx_vlgen.load("demo")
    monkeypatch.setattr(x86, "MANY", 1)
    monkeypatch.setattr(layers, "LARGE_STATES", 1)
    for module, name in ((np, "exp"), (mx, "eval"), (mx, "async_eval")):
        monkeypatch.setattr(module, name, lambda *_, **__: pytest.fail("computed"))
    check_forward(model)
    check(model, KVSettings(bits=8, group_size=32))
    assert Footprint.of(model).layers
    if x86.on_x86(mx.float32):
        with pytest.raises(pytest.fail.Exception):
            model(Embedded(mx.zeros((1, 8), mx.int32)), make_cache(model.cache_layout()))
