"""What media add between text layers: placed by their spans, cut with a chunk, and stacked with the rows of a pack."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mlx_vlgen._runtime import mx
from mlx_vlgen.inputs.prompt import Media, Prompt
from mlx_vlgen.models.base import Embedded, Features
from mlx_vlgen.models.vision_language import place_deepstack

WIDTH, LAYERS = 3, 2


def row(draw: np.random.Generator, length: int, counts: list[int], silent: bool) -> tuple[Embedded, np.ndarray]:
    """A row with media of so many tokens, one token between them, and what each layer adds at each of its tokens.
    silent: the first adds nothing."""
    length, media, features = length + sum(counts) + len(counts), [], []
    added, start = np.zeros((LAYERS, length, WIDTH), np.float32), 0
    for place, count in enumerate(counts):
        span = start, start + count
        media.append(Media("image", np.zeros((1, 1), np.uint8), (1, 1, count), (span,), (1, 1)))
        deep = draw.normal(size=(LAYERS, count, WIDTH)).astype(np.float32)
        if silent and place == 0:
            features.append(Features(mx.zeros((count, WIDTH))))
        else:
            features.append(Features(mx.zeros((count, WIDTH)), [mx.array(layer) for layer in deep]))
            added[:, start : start + count] = deep
        start += count + 1
    prompt = Prompt(np.zeros(length, np.int32), media)
    tokens, embeds = mx.zeros((1, length), mx.int32), mx.zeros((1, length, WIDTH))
    return Embedded(tokens, embeds, deepstack=place_deepstack(prompt, features)), added


@given(
    rows=st.lists(st.tuples(st.integers(1, 5), st.lists(st.integers(1, 4), max_size=3)), min_size=1, max_size=4),
    silent=st.booleans(),
    cut=st.integers(0, 4),
    unit=st.integers(1, 8),
    seed=st.integers(0, 2**31),
)
def test_each_layer_adds_each_row_its_own(
    rows: list[tuple[int, list[int]]], silent: bool, cut: int, unit: int, seed: int
) -> None:
    draw = np.random.default_rng(seed)
    parts, added = zip(*(row(draw, length, counts, silent) for length, counts in rows), strict=True)
    batch = Embedded.stack(parts, unit)
    expected = np.zeros((LAYERS, len(rows), len(batch), WIDTH), np.float32)
    for place, deep in enumerate(added):
        expected[:, place, : deep.shape[1]] = deep
    states = mx.array(draw.normal(size=expected.shape[1:]).astype(np.float32))
    if not expected.any():
        assert batch.deepstack is None
        return
    for span in (slice(0, None), slice(cut, None), slice(0, cut)):
        some = batch if span.stop is None and span.start == 0 else batch[span]
        if not expected[:, :, span].any():
            assert some.deepstack is None
            continue
        assert some.deepstack is not None and len(some.deepstack) == LAYERS
        for index in range(LAYERS):
            h = some.deepstack.added(states[:, span], index)
            assert (np.array(h) == np.array(states)[:, span] + expected[index][:, span]).all()
