"""Pictures and videos of any size as one sequence: what each is alone."""

from collections.abc import Callable
from itertools import groupby

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from invariants.family import Family

from mlx_vlgen._runtime import mx
from mlx_vlgen.inputs.prompt import MediaInputs
from mlx_vlgen.models import attention
from mlx_vlgen.models.grids import Grids
from mlx_vlgen.models.layers import merge_order, reading_order

grids = st.lists(st.tuples(st.integers(1, 3), st.sampled_from([2, 4]), st.sampled_from([2, 6])), min_size=1, max_size=5)


@given(grids)
def test_what_is_mapped_is_each_frame_in_its_place(shapes: list[tuple[int, int, int]]) -> None:
    frames = [(rows, columns) for count, rows, columns in shapes for _ in range(count)]
    packed = Grids.of(shapes)
    assert [run[1:] for run in packed.runs] == [size for size, _ in groupby(frames)]
    places = [merge_order(rows, columns, 2) for rows, columns in frames]
    assert (packed.places(lambda rows, columns: merge_order(rows, columns, 2)) == np.concatenate(places, axis=1)).all()
    x = mx.arange(sum(rows * columns for rows, columns in frames))[None, :, None]
    for joined in (1, 4):  # patches, and what four become together

        def number(part: mx.array, rows: int, columns: int, joined: int = joined) -> mx.array:
            assert part.shape[1] * joined == rows * columns == reading_order(rows, columns).shape[1]
            return mx.concatenate([part, mx.full(part.shape, rows * 10 + columns)], axis=-1)

        out = packed.map(x[:, : x.shape[1] // joined], number)
        assert (out[0, :, 0] == x[0, : x.shape[1] // joined, 0]).all().item()
        sizes = np.concatenate([[rows * 10 + columns] * (rows * columns // joined) for rows, columns in frames])
        assert (np.array(out[0, :, 1]) == sizes).all()


@given(grids, st.integers(0, 2**31))
def test_frames_do_not_see_each_other(shapes: list[tuple[int, int, int]], seed: int) -> None:
    packed = Grids.of(shapes)
    count = sum(frames * rows * columns for frames, rows, columns in shapes)
    q, k, v = mx.random.normal((3, 1, 2, count, 4), key=mx.random.key(seed))
    out = attention.framed_attention(q, k, v, 0.5, packed.frames)
    start = 0
    for frames, rows, columns in shapes:
        for _ in range(frames):
            part = slice(start, start + rows * columns)
            start = part.stop
            alone = attention.merge_heads(attention.attention(q[:, :, part], k[:, :, part], v[:, :, part], 0.5))
            assert mx.abs(out[:, part] - alone).max().item() < 1e-5


@given(st.lists(st.integers(1, 40), min_size=1, max_size=12), st.sampled_from([0, 1 << 11, 16 << 20]))
def test_padded_parts_do_not_see_each_other(lengths: list[int], scores: int) -> None:
    """As a GPU without a kernel for parts of unlike lengths has them: padded to the longest of some."""
    q, k, v = mx.random.normal((3, 1, 2, sum(lengths), 4), key=mx.random.key(len(lengths)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "fused_head_size", lambda size, dtype: size + 4)
        patch.setattr(attention, "PADDED_SCORES", scores)
        attention._padded_together.cache_clear()
        out = attention.padded_attention(q, k, v, 0.5, lengths)
        together = attention._padded_together.__wrapped__(tuple(lengths))
    assert [length for some in together for length in some] == lengths
    for some in together:
        assert len(some) * max(some) ** 2 <= 1.25 * sum(x * x for x in some) + scores
    start = 0
    for length in lengths:
        part = slice(start, start + length)
        start = part.stop
        alone = attention.merge_heads(attention.attention(q[:, :, part], k[:, :, part], v[:, :, part], 0.5))
        assert mx.abs(out[:, part] - alone).max().item() < 1e-5


FAMILIES = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "glm4v", "glm5_next", "paddleocr_vl", "ernie4_5_vl_moe"]


@pytest.mark.parametrize("name", FAMILIES)
def test_media_of_any_sizes_have_the_features_that_they_have_alone(
    load_family: Callable[[str], Family], name: str
) -> None:
    family, draw = load_family(name), np.random.default_rng(0)
    for kind in [kind for kind in family.model.packed if kind in family.processor.placeholders]:
        sizes = [(60, 90), (90, 60), (90, 60), (30, 120), (112, 112), (60, 90)]
        frames = [(2 + 2 * (index % 3),) if kind == "video" else () for index in range(len(sizes))]
        given = [draw.integers(0, 255, (*count, *size, 3), np.uint8) for count, size in zip(frames, sizes, strict=True)]
        inputs = MediaInputs(**{f"{kind}s": given})  # type: ignore[arg-type]
        together = family.processor.prepare(family.processor.placeholders[kind] * len(sizes), inputs).media
        assert len({medium.grid for medium in together}) > 2
        for medium, ours in zip(together, family.model.encode(together), strict=True):
            [alone] = family.model.encode([medium])
            for one, other in zip((ours.embeds, *ours.deepstack), (alone.embeds, *alone.deepstack), strict=True):
                assert one.shape == other.shape and mx.abs(one - other).max().item() < 2e-5
