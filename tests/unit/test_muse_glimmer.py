"""Muse Glimmer: sizes, frames and positions where the cases of its reference do not reach."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from invariants.family import Family
from parity import media

from mlx_vlgen._runtime import mx
from mlx_vlgen.errors import LoadError, MediaError, UnsupportedError
from mlx_vlgen.inputs.images import PixelSettings
from mlx_vlgen.inputs.muse_glimmer import evenly_spaced, fitted_size
from mlx_vlgen.inputs.prompt import MediaInputs
from mlx_vlgen.models.layers import resample_bilinear, resample_faded
from mlx_vlgen.models.muse_glimmer import MuseGlimmer, MuseVisionConfig


@pytest.fixture(scope="module")
def family(load_family: Callable[[str], Family]) -> Family:
    return load_family("muse_glimmer")


@pytest.mark.parametrize(
    ("size", "tokens", "expected"),
    [  # of transformers' smart_resize
        ((1080, 1920), 4096, (1092, 1932)),
        ((3000, 4000), 4096, (1540, 2044)),
        ((10, 10), 4096, (28, 28)),
        ((100, 100), 4096, (112, 112)),
        ((480, 640), 144, (280, 364)),
        ((2000, 31), 144, (1988, 28)),
    ],
)
def test_sizes(size: tuple[int, int], tokens: int, expected: tuple[int, int]) -> None:
    assert fitted_size(*size, PixelSettings(1, tokens * 28 * 28, 14)) == expected


def test_a_strip_is_refused() -> None:
    with pytest.raises(MediaError, match="too thin"):
        fitted_size(1, 1000, PixelSettings(1, 4096 * 28 * 28, 14))


def test_frames_are_spaced_evenly() -> None:
    """As torch.linspace(0, total - 1, count).long() has them."""
    assert evenly_spaced(10, 4).tolist() == [0, 3, 6, 9]
    assert evenly_spaced(300, 20).tolist()[:5] == [0, 15, 31, 47, 62]
    assert evenly_spaced(5, 1).tolist() == [0] and evenly_spaced(513, 15)[7] == 255


def test_which_frames_are_kept(family: Family) -> None:
    def kept(total: int, rate: float, **bounds: Any) -> int:
        return len(family.processor.sampler(MediaInputs(**bounds))(total, rate))

    assert kept(300, 30) == 20 and kept(30_000, 30) == 96 and kept(15, 30) == 2 and kept(1, 30) == 1
    assert kept(300, 30, video_fps=1.0) == 10 and kept(300, 30, max_frames=7) == 6


def test_positions_fade_past_the_border() -> None:
    table = mx.ones((4, 4, 1))
    faded, plain = (np.array(f(table, 8, 2))[..., 0] for f in (resample_faded, resample_bilinear))
    assert np.allclose(plain, 1) and np.allclose(faded[[0, -1]], 0.75) and np.allclose(faded[1:-1], 1)
    assert np.array_equal(np.array(resample_faded(table, 4, 4)), np.array(table))


def test_frames_are_encoded_alone(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = family.processor.prepare("<|video|>", MediaInputs(videos=[media.clip("clip")]))
    together = np.array(family.model.encode(prompt.media)[0].embeds)
    monkeypatch.setattr("mlx_vlgen.models.muse_glimmer.PATCHES_AT_ONCE", 1)
    assert np.abs(np.array(family.model.encode(prompt.media)[0].embeds) - together).max() < 1e-5


def test_a_bound_of_pixels(family: Family) -> None:
    def tokens(**bounds: int) -> int:
        return len(family.processor.prepare("<|patch|>", MediaInputs([media.picture("large")], **bounds)).tokens)

    assert tokens(max_pixels=4 * 28 * 28) < tokens() == tokens(max_pixels=10**9)
    with pytest.raises(UnsupportedError, match="min_pixels"):
        tokens(min_pixels=10**6)


def test_full_layers_of_the_published_tower() -> None:
    full = MuseVisionConfig().full
    assert {3, 7, 47, 49} <= full and len(full) == 13


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("text_config", {"hidden_activation": "gelu"}, "gelu"),
        ("text_config", {"layer_types": ["chunked_attention"] * 5}, "chunked_attention layers"),
        ("text_config", {"attention_bias": True}, "biases in its attention"),
        ("vision_config", {"pos_emb_width": 8}, "4 x 8 positions"),
        ("vision_config", {"merge_size": 4}, "expected a square and 768"),
    ],
)
def test_other_networks_are_refused(family: Family, part: str, change: dict[str, Any], message: str) -> None:
    config = dict(family.model.config)
    with pytest.raises(LoadError, match=message):
        MuseGlimmer(config | {part: config[part] | change})
