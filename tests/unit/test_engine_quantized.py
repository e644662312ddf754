"""The quantized cache: attention sees each position quantized by itself, from the start on, whatever the steps.

`-m slow` draws more comings and goings, and takes every width at every number of bits.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kv_rows import Oracle, Play, stories

from mlx_vlgen._runtime import mx
from mlx_vlgen.engine import cache as kv
from mlx_vlgen.engine.kv_settings import BITS, GROUP_SIZES, KVSettings
from mlx_vlgen.engine.quantized import PACKED_QUERIES
from mlx_vlgen.errors import UnsupportedError
from mlx_vlgen.models.base import Full, Opaque, Recurrent, Sliding

STARTS = (0, 1, 5, 100)


def play(settings: KVSettings, size: int = 32, seed: int = 0) -> Play:
    def stored(x: np.ndarray) -> np.ndarray:
        quantized = mx.quantize(mx.array(x), group_size=settings.group_size, bits=settings.bits)
        back = np.array(mx.dequantize(*quantized, group_size=settings.group_size, bits=settings.bits))
        return np.where(np.arange(len(x))[:, None, None] < settings.start, x, back)

    return Play(settings, Oracle(stored), size, seed)


@pytest.mark.parametrize(
    ("bits", "group_size", "size"),
    [
        # Every two of them together.
        pytest.param(bits, group, size, marks=[pytest.mark.slow] if (b + g + s) % 3 else [])
        for b, bits in enumerate(BITS)
        for g, group in enumerate(GROUP_SIZES)
        for s, size in enumerate((32, 64, 96, 128, 256))
    ],
)
def test_every_width(bits: int, group_size: int, size: int) -> None:
    """Alone and in a batch, packed and not; a group size that does not divide the head size is refused at once."""
    for start in (0, 5):
        factory = play(KVSettings(bits, group_size, start), size)
        if size % group_size:
            with pytest.raises(UnsupportedError, match=f"head size of {size}: give 32"):
                factory.single(1)
            continue
        rows = factory.single(3, PACKED_QUERIES + 1, 1).join(factory.pack(4, 2))
        factory.decode(rows, 2)


def test_head_size_without_group() -> None:
    with pytest.raises(UnsupportedError, match=r"kv_group_size=32 .* head size of 80: none .* leave kv_bits out"):
        play(KVSettings(4, 32), 80).single(1)


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("chunks", [(1,), (30,), (4, 4, 1), (1,) * 8, (2, 9, 3, 100), (260, 3)])
def test_single_row(start: int, chunks: tuple[int, ...]) -> None:
    factory = play(KVSettings(8, 32, start))
    row = factory.single(*chunks)
    factory.decode(row, 4)
    assert isinstance(row.cache[0].offset, int) and row.decode_mask() is None


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("lengths", [(3, 3), (1, 9), (7, 2, 5), (9, 1, 1, 6), (120, 4, 99)])
def test_pack(start: int, lengths: tuple[int, ...]) -> None:
    factory = play(KVSettings(4, 32, start))
    rows = factory.pack(*lengths)
    factory.decode(rows, 5)
    assert (rows.decode_mask() is None) == (len(set(lengths)) == 1)


@settings(max_examples=settings().max_examples // 4)
@given(st.sampled_from(STARTS), st.sampled_from(BITS), stories)
def test_any_coming_and_going(start: int, bits: int, story: tuple) -> None:
    play(KVSettings(bits, 32, start)).story(*story)


@pytest.mark.slow
@given(st.sampled_from(STARTS), st.sampled_from(BITS), stories)
def test_much_coming_and_going(start: int, bits: int, story: tuple) -> None:
    play(KVSettings(bits, 32, start)).story(*story)


def test_one_row_left_is_alone() -> None:
    factory = play(KVSettings(4, 32, 3))
    rows = factory.pack(5, 2, 7).select([1])
    assert rows.cache[0].offset == 2 and rows.decode_mask() is None
    factory.decode(rows, 8)


def test_several_tokens_in_an_unlike_batch() -> None:
    """As when drafted tokens are verified."""
    for start in (0, 4, 9):
        factory = play(KVSettings(6, 32, start))
        rows = factory.pack(5, 2, 7)
        rows.step([factory.vectors(3) for _ in range(3)])
        rows.step([factory.vectors(20) for _ in range(3)])


def test_packed_only_where_it_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """mlx-lm's attention looks for `bits`; a chunk's scores are left to the fused kernel. CUDA has no kernel for packed
    arrays that are a part of larger ones."""
    monkeypatch.setattr(mx.cuda, "is_available", lambda: False)
    factory = play(KVSettings(4, 32))
    row = factory.single(PACKED_QUERIES + 1)
    assert not hasattr(row.cache[0], "bits")
    factory.decode(row)
    assert row.cache[0].bits == 4 and row.cache[0].group_size == 32
    row = play(KVSettings(4, 32, 1)).single(1, 1)
    assert not hasattr(row.cache[0], "bits")
    monkeypatch.setattr(mx.cuda, "is_available", lambda: True)
    row = play(KVSettings(4, 32)).single(1, 1)
    assert not hasattr(row.cache[0], "bits")


def test_memory() -> None:
    """4 bits and two scales for 32 values are 0.1875 of float32, and the start is not stored twice."""
    factory = play(KVSettings(4, 32, 256), size=64)
    whole = 2 * 2 * 64 * 4  # bytes of a position: keys and values, heads, size, float32
    row = factory.single(512)
    assert row.cache[0].nbytes == 256 * whole + 256 * whole * 0.1875


def test_window_of_the_layer() -> None:
    """A layer that asks for a window gets it, in one row and in unlike ones."""
    factory = play(KVSettings(4, 32, 2))
    for rows in (factory.single(9), factory.pack(9, 4)):
        mask = np.array(rows.cache[0].make_mask(1, window_size=3))[:, 0, 0]
        assert mask[0].tolist() == [False] * 7 + [True] * 3
        assert mask[-1].sum() == 3


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"bits": 5}, "kv_bits=5: expected 2, 3, 4, 6 or 8"),
        ({"bits": 4, "group_size": 16}, "kv_group_size=16: expected 32, 64 or 128"),
        ({"bits": 4, "start": -1}, "quantized_kv_start=-1"),
    ],
)
def test_refused_values(keywords: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        KVSettings(**keywords)


def test_settings_without_bits_are_equal() -> None:
    """Rows that ask for nothing run together, whatever the unused numbers."""
    assert KVSettings(start=100, group_size=32) == KVSettings()


def test_layers_left_whole() -> None:
    layout = [Full(), Sliding(5), Full(), Recurrent(2), opaque := Opaque(object)]
    assert kv.unquantized(layout, KVSettings(8)) == [Sliding(5), Recurrent(2), opaque]
    assert kv.unquantized(layout, KVSettings(max_size=9)) == kv.unquantized([Full()], KVSettings(8)) == []
