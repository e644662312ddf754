"""The bounded cache is full attention with a mask: the first four positions, and the last max_size - 4."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kv_rows import Oracle, Play, stories

from mlx_vlgen.engine.kv_settings import KVSettings
from mlx_vlgen.errors import UnsupportedError

SIZE = 4
BOUNDS = (5, 6, 9, 16, 40)


def play(bound: int, seed: int = 0) -> Play:
    return Play(KVSettings(max_size=bound), Oracle(visible=lambda q, p: (p < 4) | (p > q - (bound - 4))), SIZE, seed)


@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize("chunks", [(1,), (3, 3), (4,), (30,), (4, 4, 1), (1,) * 12, (2, 9, 3, 100), (7, 1, 50, 1, 6)])
def test_single_row(bound: int, chunks: tuple[int, ...]) -> None:
    """Before, at and after the first token is pushed out; no mask array at decode."""
    factory = play(bound)
    row = factory.single(*chunks)
    factory.decode(row, bound + 3)
    assert isinstance(row.cache[0].offset, int) and row.decode_mask() is None


@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize("lengths", [(3, 3), (1, 1), (1, 9), (7, 2, 5), (9, 1, 1, 6), (30, 4, 12), (45, 2)])
def test_pack(bound: int, lengths: tuple[int, ...]) -> None:
    factory = play(bound)
    rows = factory.pack(*lengths)
    factory.decode(rows, bound + 3)
    assert rows.decode_mask() is None, "all rows fill the window"


@given(st.sampled_from(BOUNDS), stories)
def test_any_coming_and_going(bound: int, story: tuple) -> None:
    play(bound).story(*story)


@pytest.mark.parametrize("bound", BOUNDS)
def test_several_tokens_in_an_unlike_batch(bound: int) -> None:
    factory = play(bound)
    rows = factory.pack(5, 1, 7).join(factory.single(20, 1, 1))
    factory.decode(rows)
    for count in (3, 2, 20, 5):
        rows.step([factory.vectors(count) for _ in range(4)])
        factory.decode(rows)


def test_mask_only_while_a_row_is_shorter() -> None:
    factory = play(9)
    rows = factory.pack(30, 4)
    assert rows.decode_mask() is not None
    factory.decode(rows, 5)
    assert rows.decode_mask() is None


@pytest.mark.parametrize("lengths", [(1000,), (1000, 3)])
def test_memory(lengths: tuple[int, ...]) -> None:
    """Never more than the bound once the chunk is through."""
    factory = play(40)
    rows = factory.pack(*lengths) if len(lengths) > 1 else factory.single(*lengths)
    factory.decode(rows, 100)
    positions = rows.cache[0].nbytes / len(lengths) / (2 * 2 * SIZE * 4)  # keys and values, heads, size, float32
    assert positions == 40


def test_refused() -> None:
    with pytest.raises(ValueError, match="max_kv_size=4: expected at least 5"):
        KVSettings(max_size=4)
    with pytest.raises(UnsupportedError, match="kv_bits=8 and max_kv_size=64"):
        KVSettings(bits=8, max_size=64)


def test_spans_that_see_each_other_fit_or_are_refused() -> None:
    KVSettings(max_size=14).check_spans([(0, 10), (50, 60)])
    KVSettings(bits=8).check_spans([(0, 1000)])
    with pytest.raises(UnsupportedError, match=r"max_kv_size=13: the prompt has 10 tokens .* at least 14"):
        KVSettings(max_size=13).check_spans([(3, 5), (50, 60)])
