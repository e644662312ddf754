"""Sizes and patches of pictures and videos, against properties and plain loops."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from mlx_vlgen.errors import MediaError
from mlx_vlgen.inputs.images import PixelSettings, channels_first, image_size, patchify, video_size
from mlx_vlgen.inputs.prompt import MediaInputs, Normalization
from mlx_vlgen.inputs.qwen_vl import bounded

PUBLISHED = PixelSettings(min_pixels=65536, max_pixels=16777216, patch=16)  # Qwen3-VL's, on the Hub
VIDEO = PixelSettings(min_pixels=4096, max_pixels=25165824, patch=16)

sides = st.integers(1, 5000)
patches = st.sampled_from([14, 16])
areas = st.integers(14 * 14 * 4, 1 << 24)
bounds = st.integers(14 * 14 * 4, 1 << 20).flatmap(
    lambda min_area: st.tuples(st.just(min_area), st.integers(16 * min_area, 1 << 24))
)


def settings_of(min_area: int, max_area: int, patch: int) -> PixelSettings:
    return PixelSettings(min_pixels=min_area, max_pixels=max_area, patch=patch)


@given(sides, sides, bounds, patches)
def test_a_picture_has_whole_tokens_within_the_bounds_and_nearly_its_aspect(
    height: int, width: int, area_bounds: tuple[int, int], patch: int
) -> None:
    assume(max(height, width) <= 200 * min(height, width))
    min_area, max_area = area_bounds
    settings = settings_of(min_area, max_area, patch)
    factor = settings.factor
    rows, columns = image_size(height, width, settings)
    assert rows % factor == columns % factor == 0 and min(rows, columns) >= factor
    thin = factor in (rows, columns)  # one token wide: it cannot be made narrower, or lost half of itself in rounding
    assert rows * columns <= max_area or thin
    assert rows * columns >= min_area
    # Each side is within one token of a scale that both have in common: nearly the same picture.
    if not thin:
        low = max((rows - factor) / height, (columns - factor) / width)
        high = min((rows + factor) / height, (columns + factor) / width)
        assert low <= high


@given(sides, sides)
def test_a_picture_within_the_bounds_keeps_its_size_but_for_rounding(height: int, width: int) -> None:
    assume(1 << 18 <= height * width <= 1 << 23 and max(height, width) <= 200 * min(height, width))
    rows, columns = image_size(height, width, PUBLISHED)
    assert abs(rows - height) <= 16 and abs(columns - width) <= 16
    assert image_size(rows, columns, PUBLISHED) == (rows, columns)


@given(st.integers(1, 64), st.integers(16, 2000), st.integers(16, 2000))
def test_a_videos_bounds_are_of_all_its_frames(frames: int, height: int, width: int) -> None:
    settings = settings_of(128 * 1024, 4 << 20, 16)
    assume(max(height, width) <= 50 * min(height, width))
    rows, columns = video_size(frames, height, width, settings)
    assert rows % 32 == columns % 32 == 0 and min(rows, columns) >= 32
    pairs = max(2, 2 * round(frames / 2))  # transformers counts so, and rounds half to even
    slack = max(pairs, frames) / min(pairs, frames) if frames > 1 else 1
    assert pairs * rows * columns <= settings.max_pixels * slack or 32 in (rows, columns)
    assert pairs * rows * columns * slack >= settings.min_pixels


def test_one_frame_counts_as_the_two_that_it_becomes() -> None:
    assert video_size(1, 600, 900, VIDEO) == video_size(2, 600, 900, VIDEO) == (608, 896)


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (1, 1, (256, 256)),
        (1, 200, (32, 3648)),
        (200, 1, (3648, 32)),
        (600, 900, (608, 896)),
        (48, 48, (256, 256)),
        (8000, 6000, (4704, 3520)),
    ],
)
def test_sizes_at_the_edges(height: int, width: int, expected: tuple[int, int]) -> None:
    rows, columns = image_size(height, width, PUBLISHED)
    assert (rows, columns) == expected


@pytest.mark.parametrize("size", [(1, 201), (201, 1), (10, 2001)])
def test_very_thin_pictures_are_refused(size: tuple[int, int]) -> None:
    with pytest.raises(MediaError, match=rf"{size[1]} x {size[0]} pixels is too thin: one side may be at most 200"):
        image_size(*size, PUBLISHED)


# The request's bounds


@given(st.none() | areas, st.none() | areas, st.integers(1, 40))
def test_the_requests_bounds_hold_or_are_refused(min_area: int | None, max_area: int | None, frames: int) -> None:
    media = MediaInputs(min_pixels=min_area, max_pixels=max_area)
    if min_area is not None and max_area is not None and min_area > max_area:
        with pytest.raises(ValueError, match=f"min_pixels={min_area}, max_pixels={max_area}: expected"):
            bounded(VIDEO, media, frames)
        return
    settings = bounded(VIDEO, media, frames)
    assert 0 < settings.min_pixels <= settings.max_pixels
    assert min_area is None or settings.min_pixels == min_area * frames
    assert max_area is None or settings.max_pixels <= max_area * frames
    assert frames == 1 or settings.max_pixels <= max(VIDEO.max_pixels, settings.min_pixels)
    if frames == 1 and max_area is not None:
        assert settings.max_pixels == max_area
    same = dataclasses.replace(settings, min_pixels=VIDEO.min_pixels, max_pixels=VIDEO.max_pixels)
    assert same == VIDEO


def test_a_bound_beyond_the_processors_other_one_moves_that() -> None:
    small = bounded(PUBLISHED, MediaInputs(max_pixels=1024))
    assert (small.min_pixels, small.max_pixels) == (1024, 1024)
    large = bounded(PUBLISHED, MediaInputs(min_pixels=1 << 25))
    assert (large.min_pixels, large.max_pixels) == (1 << 25, 1 << 25)


# Patches


def by_hand(frames: np.ndarray, settings: PixelSettings) -> np.ndarray:
    """Patches in their order, one value at a time."""
    t, p, m = settings.frames, settings.patch, settings.merge
    while len(frames) % t:
        frames = np.concatenate([frames, frames[-1:]])
    count, height, width, channels = frames.shape
    rows = []
    for first in range(0, count, t):
        for block_y in range(0, height, p * m):
            for block_x in range(0, width, p * m):
                for y in range(block_y, block_y + p * m, p):
                    for x in range(block_x, block_x + p * m, p):
                        rows.append(
                            [
                                frames[first + time, y + dy, x + dx, channel]
                                for channel in range(channels)
                                for time in range(t)
                                for dy in range(p)
                                for dx in range(p)
                            ]
                        )
    return np.array(rows)


shapes = st.sampled_from([(2, 1, 1), (2, 2, 2), (3, 2, 1), (2, 2, 3)])  # patch, merge, frames


@given(st.integers(1, 5), st.integers(1, 3), st.integers(1, 3), shapes)
def test_patchify_is_the_loop(frames: int, rows: int, columns: int, shape: tuple[int, int, int]) -> None:
    patch, merge, times = shape
    settings = PixelSettings(1, 1, patch=patch, merge=merge, frames=times)
    height, width = rows * settings.factor, columns * settings.factor
    pixels = np.arange(frames * height * width * 3).reshape(frames, height, width, 3)
    patches, grid = patchify(pixels, settings)
    assert grid == (math.ceil(frames / times), rows * merge, columns * merge)
    assert np.array_equal(channels_first(patches, settings), by_hand(pixels, settings))


def test_normalize_is_level_over_255_less_mean_by_deviation() -> None:
    levels = np.arange(256, dtype=np.uint8)[:, None].repeat(3, axis=1)
    mean, std = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
    expected = (levels / 255 - np.array(mean)) / np.array(std)
    normalized = Normalization(mean, std)(levels)
    assert normalized.dtype == np.float32
    assert np.abs(normalized - expected).max() < 1e-6
