"""Pixels on their way to a tower: levels normalised on the device, or floats that came so."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from invariants.family import Family
from parity import media

from mlx_vlgen._runtime import mx
from mlx_vlgen.engine.scheduling import encoding_groups
from mlx_vlgen.inputs.prompt import Media, MediaInputs, Normalization
from mlx_vlgen.models import layers
from mlx_vlgen.models.layers import PatchEmbedding

FAMILIES = [
    "qwen3_vl",
    "qwen2_5_vl",
    "glm4v",
    "llava_onevision",
    "gemma4",
    "lfm2_vl",
    "mistral3",
    "smolvlm",
    "internvl",
]


def prepared(family: Family) -> list[Media]:
    """A picture and, where the family takes one, a clip."""
    placeholders = family.processor.placeholders
    inputs = MediaInputs(images=[media.picture("upright")], videos=[media.clip("clip")] * ("video" in placeholders))
    return list(family.processor.prepare("".join(placeholders.values()), inputs).media)


@pytest.mark.parametrize("name", FAMILIES)
def test_floats_of_transformers_have_the_features_of_the_levels(
    load_family: Callable[[str], Family], name: str
) -> None:
    family = load_family(name)
    for medium in prepared(family):
        assert medium.pixels.dtype == np.uint8
        values = medium.replace(pixels=family.processor.pixel_values(medium), normalization=None)
        [ours], [theirs] = family.model.encode([medium]), family.model.encode([values])
        for one, other in zip((ours.embeds, *ours.deepstack), (theirs.embeds, *theirs.deepstack), strict=True):
            assert np.abs(np.array(one - other)).max() < 1e-5
        assert list(encoding_groups([medium, values], 10**9)) in ([[0], [1]], [[1], [0]])


@pytest.mark.parametrize("name", ["qwen3_vl", "glm4v", "pixtral", "gemma4", "siglip", "internvl"])
def test_what_a_gpu_takes_instead_gives_the_same(
    monkeypatch: pytest.MonkeyPatch, load_family: Callable[[str], Family], name: str
) -> None:
    family = load_family("llava_siglip" if name == "siglip" else name)
    media = prepared(family)[:1]
    [expected] = family.model.encode(media)
    mx.eval(expected.embeds)
    monkeypatch.setattr(layers, "LARGE_STATES", 0)
    monkeypatch.setattr(layers.mx, "default_device", lambda: mx.Device(mx.gpu))
    [features] = family.model.encode(media)
    for one, other in zip((expected.embeds, *expected.deepstack), (features.embeds, *features.deepstack), strict=True):
        assert np.abs(np.array(one - other)).max() < 1e-5


def test_a_single_frame_is_as_if_it_stood_in_all_and_no_sum_of_kernels_is_kept() -> None:
    embed, normalization = PatchEmbedding(3, 2, 4, 7), Normalization((0.5, 0.4, 0.3), (0.2, 0.3, 0.5))
    frame = mx.random.randint(0, 256, (1, 5000, 48)).astype(mx.uint8)
    twice = mx.concatenate([frame, frame], axis=-1)
    names = set(embed.proj)
    for _ in range(2):
        difference = embed(frame, normalization) - embed(twice, normalization)
        assert np.abs(np.array(difference)).max() < 1e-5
        embed.proj.weight = 3 * embed.proj.weight
    assert set(embed.proj) == names
    embed.set_dtype(mx.bfloat16)
    assert embed(frame, normalization).dtype == mx.bfloat16


def test_a_key_is_of_all_that_makes_features_and_is_kept(load_family: Callable[[str], Family]) -> None:
    [picture, _] = prepared(load_family("qwen3_vl"))
    key = picture.key
    assert picture.replace(spans=((9, 10),), pixels=np.empty(0, np.uint8)).key == key
    several: list[dict[str, Any]] = [
        {"seconds": 1.0}, {"normalization": None}, {"grid": (1, 1, 1)}, {"pixels": picture.pixels[::-1]},
    ]  # fmt: skip
    for changes in several:
        assert dataclasses.replace(picture, **changes).key != key
    with pytest.raises(ValueError, match="the pixels are gone"):
        _ = dataclasses.replace(picture, pixels=np.empty(0, np.uint8)).key
