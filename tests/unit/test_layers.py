"""What towers share, against naive computation."""

import numpy as np
import pytest

from mlx_vlgen._runtime import mx
from mlx_vlgen.models import attention, layers


def naive_attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, scale: float) -> np.ndarray:
    scores = np.einsum("bhqd,bhkd->bhqk", q, k) * scale
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("bhqk,bhkd->bhqd", weights / weights.sum(-1, keepdims=True), v)


@pytest.mark.parametrize("budget", [1, 4 * 2 * 3 * 37 * 5, 128 << 20], ids=["one row", "blocks of 5", "whole"])
def test_attention_in_blocks_is_attention(monkeypatch: pytest.MonkeyPatch, budget: int) -> None:
    monkeypatch.setitem(attention.SCORE_BYTES, mx.default_device().type.name, budget)
    monkeypatch.setattr(attention, "fused_head_size", lambda *_: None)
    q, k, v = np.random.default_rng(0).normal(size=(3, 2, 3, 37, 12)).astype(np.float32)
    ours = attention.attention(mx.array(q), mx.array(k), mx.array(v), scale=0.3)
    np.testing.assert_allclose(np.array(ours), naive_attention(q, k, v, 0.3), atol=1e-5)


def test_heads_padded_to_a_fused_size_attend_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "fused_head_size", lambda *_: 16)
    q, k, v = np.random.default_rng(0).normal(size=(3, 2, 3, 37, 12)).astype(np.float32)
    ours = attention.attention(mx.array(q), mx.array(k), mx.array(v), scale=0.3)
    np.testing.assert_allclose(np.array(ours), naive_attention(q, k, v, 0.3), atol=1e-5)


def test_unfused_attention_where_heads_share_keys_and_scores_are_large() -> None:
    q, k, v = np.random.default_rng(0).normal(size=(3, 2, 6, 37, 12)).astype(np.float32)
    k, v = k[:, :2], v[:, :2]
    expected = naive_attention(q, k.repeat(3, axis=1), v.repeat(3, axis=1), 40.0)  # scores of some hundreds
    ours = attention.unfused_attention(mx.array(q), mx.array(k), mx.array(v), scale=40.0)
    np.testing.assert_allclose(np.array(ours), expected, atol=1e-3)


@pytest.mark.parametrize(
    ("backend", "dtype", "expected"),
    [
        ("cpu", mx.float32, {64: None}),
        ("metal", mx.float32, {8: 64, 64: 64, 72: 72, 88: 96, 100: 128, 128: 128, 192: None}),
        ("cuda", mx.bfloat16, {8: 8, 72: 72, 100: 104, 128: 128, 192: None}),
        ("cuda", mx.float32, {64: None}),
        ("cuda before Ampere", mx.float16, {64: None}),
    ],
)
def test_head_sizes_that_backends_fuse(
    monkeypatch: pytest.MonkeyPatch, backend: str, dtype: mx.Dtype, expected: dict[int, int | None]
) -> None:
    device = mx.Device(mx.cpu if backend == "cpu" else mx.gpu)
    monkeypatch.setattr(attention.mx, "default_device", lambda: device)
    monkeypatch.setattr(attention.mx.metal, "is_available", lambda: backend == "metal")
    monkeypatch.setattr(attention, "_cudnn_attends", lambda: backend == "cuda")
    assert {size: attention.fused_head_size(size, dtype) for size in expected} == expected


def test_attention_in_blocks_bounds_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "fused_head_size", lambda *_: None)
    monkeypatch.setitem(attention.SCORE_BYTES, mx.default_device().type.name, 1 << 20)
    q = mx.random.normal((1, 2, 3000, 8))
    mx.eval(q)
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    mx.eval(attention.attention(q, q, q, scale=1.0))
    assert mx.get_peak_memory() - before < 40 << 20  # whole scores are 72 MB, twice


def test_rotation_compiled_is_the_rotation() -> None:
    for shape in ((1, 2, 6, 8), (3, 1, 5, 8)):
        x, cos, sin = mx.random.normal(shape), mx.random.normal((shape[2], 4)), mx.random.normal((shape[2], 4))
        for half in (mx.float32, mx.bfloat16):
            a, b = mx.split(x.astype(half), 2, axis=-1)
            for one, other in zip(layers._turn(a, b, cos, sin), layers._turn_compiled(a, b, cos, sin), strict=True):
                assert one.dtype == other.dtype == half
                assert np.abs(np.array((one - other).astype(mx.float32))).max() < (1e-6 if half == mx.float32 else 0.05)


def test_merge_order_brings_neighbours_together() -> None:
    row, column = layers.merge_order(4, 6, 2)
    assert list(zip(row, column, strict=True))[:8] == [(0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (0, 3), (1, 2), (1, 3)]
    assert sorted(zip(row, column, strict=True)) == [(r, c) for r in range(4) for c in range(6)]


@pytest.mark.parametrize(("rows", "columns"), [(2, 2), (4, 10), (24, 6), (12, 12)])
def test_interpolated_table_is_bilinear_with_aligned_corners(rows: int, columns: int) -> None:
    side, width = 12, 5
    table = np.random.default_rng(1).normal(size=(side, side, width)).astype(np.float32)
    ours = np.array(layers.resample_aligned(mx.array(table), rows, columns))
    for r, c in np.ndindex(rows, columns):
        y, x = r * (side - 1) / (rows - 1), c * (side - 1) / (columns - 1)
        y0, x0 = int(y), int(x)
        y1, x1 = min(y0 + 1, side - 1), min(x0 + 1, side - 1)
        top = table[y0, x0] * (1 - x + x0) + table[y0, x1] * (x - x0)
        bottom = table[y1, x0] * (1 - x + x0) + table[y1, x1] * (x - x0)
        np.testing.assert_allclose(ours[r, c], top * (1 - y + y0) + bottom * (y - y0), atol=2e-5)


def test_patch_embedding_is_the_convolution() -> None:
    embed = layers.PatchEmbedding(3, 2, 4, 7)
    patches = mx.random.normal((5, 3, 2, 4, 4))
    by_convolution = embed.proj(patches.transpose(0, 2, 3, 4, 1)).reshape(5, 7)
    np.testing.assert_allclose(np.array(embed(patches.reshape(5, -1))), np.array(by_convolution), atol=1e-5)


@pytest.mark.slow
@pytest.mark.timeout(1800)  # three minutes of MLX's BLAS where nothing else runs
def test_a_12_megapixel_picture_fits_in_memory() -> None:
    """46,875 patches: whole scores would take 8.8 GB a head; in blocks the tower stays within 2 GB."""
    from mlx_vlgen.models.qwen3_vl import Qwen3VLVisionConfig, VisionTower

    config = {
        "hidden_size": 64, "num_heads": 2, "depth": 1, "intermediate_size": 128, "out_hidden_size": 64,
        "patch_size": 16, "spatial_merge_size": 2, "temporal_patch_size": 2, "num_position_embeddings": 144,
        "deepstack_visual_indexes": [],
    }  # fmt: skip
    tower = VisionTower(Qwen3VLVisionConfig.from_dict(config))
    mx.eval(tower.parameters())
    rows, columns = 188, 250  # 4000 x 3008 pixels
    mx.reset_peak_memory()
    features, _ = tower(mx.zeros((1, rows * columns, 3 * 2 * 16 * 16)), rows, columns)
    mx.eval(features)
    assert features.shape == (1, rows * columns // 4, 64)
    assert mx.get_peak_memory() < 2e9


def test_experts_lie_without_gaps() -> None:
    """However they were stored: CUDA's kernels count on it."""
    joined = mx.arange(2 * 6 * 4, dtype=mx.float32).reshape(2, 6, 4)
    for halves, width in ((layers.packed_halves(joined), 4), (layers.packed_halves(joined.swapaxes(1, 2)), 6)):
        assert all(memoryview(half).strides == (half.shape[1] * width * 4, width * 4, 4) for half in halves)
    np.testing.assert_array_equal(np.concatenate(layers.packed_halves(joined), axis=1), np.array(joined))


def test_no_more_than_two_layers_are_in_memory() -> None:
    """MLX would hold what all of them give."""
    x = weight = mx.eye(1 << 9)
    mx.eval(x)
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    for _ in range(20):
        last, x = x, x @ weight @ weight @ weight
        layers.pace(last, x)
    mx.eval(x)
    assert mx.get_peak_memory() - before < 6 * x.nbytes
