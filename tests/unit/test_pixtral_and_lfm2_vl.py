"""Pixtral, Mistral 3 and LFM2-VL as published: sizes and tiles of pictures, configurations, weights of eight bits."""

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from parity import media
from parity.layouts import REFERENCE, read_json, write_checkpoint

from mlx_vlgen import load
from mlx_vlgen._runtime import mx, tree_flatten
from mlx_vlgen.errors import LoadError
from mlx_vlgen.inputs.lfm2_vl import Lfm2VLImageSettings
from mlx_vlgen.inputs.pixtral import PixtralImageSettings, image_size
from mlx_vlgen.inputs.prompt import MediaInputs
from mlx_vlgen.models import FAMILIES, find
from mlx_vlgen.models.decoders import text_arguments

ANY = MediaInputs()
PIXTRAL = PixtralImageSettings((1024, 1024), 16)
MISTRAL3 = PixtralImageSettings((1540, 1540), 28)
LFM2_VL = Lfm2VLImageSettings.read({}, {})

sides = st.integers(1, 4000)


@pytest.mark.parametrize(
    ("size", "pixtral", "mistral3", "tiles", "whole"),
    [  # as transformers 5.23 resizes and cuts them
        ((5, 900), (16, 912), (28, 924), (0, 0), (32, 3456)),
        ((900, 7), (912, 16), (924, 28), (0, 0), (2912, 32)),
        ((1540, 1541), (1024, 1024), (1540, 1540), (3, 3), (480, 512)),
        ((333, 2000), (176, 1024), (280, 1540), (1, 6), (192, 1248)),
        ((2048, 2048), (1024, 1024), (1540, 1540), (3, 3), (512, 512)),
        ((700, 720), (704, 720), (700, 728), (0, 0), (480, 512)),
        ((1023, 1025), (1024, 1024), (1036, 1036), (2, 2), (480, 512)),
        ((17, 33), (32, 48), (28, 56), (0, 0), (192, 384)),
        ((64, 3000), (32, 1024), (56, 1540), (0, 0), (64, 3008)),
        ((1200, 400), (1024, 352), (1204, 420), (0, 0), (864, 288)),
        ((512, 1024), (512, 1024), (532, 1036), (0, 0), (352, 704)),
        ((1448, 1448), (1024, 1024), (1456, 1456), (3, 3), (512, 512)),
        ((725, 724), (736, 736), (728, 728), (2, 2), (512, 480)),
        ((300, 3000), (112, 1024), (168, 1540), (1, 10), (160, 1600)),
        ((2500, 600), (1024, 256), (1540, 392), (4, 1), (1024, 224)),
    ],
)
def test_sizes_are_transformers(
    size: tuple[int, int],
    pixtral: tuple[int, int],
    mistral3: tuple[int, int],
    tiles: tuple[int, int],
    whole: tuple[int, int],
) -> None:
    assert image_size(*size, PIXTRAL, ANY) == pixtral
    assert image_size(*size, MISTRAL3, ANY) == mistral3
    assert LFM2_VL.grid(*size) == tiles
    assert LFM2_VL.whole_size(*size) == whole


@given(sides, sides, st.integers(64 * 64, 1 << 22))
def test_a_request_bounds_the_area_of_a_picture(height: int, width: int, area: int) -> None:
    assume(max(height, width) <= 20 * min(height, width))
    small = image_size(height, width, PIXTRAL, MediaInputs(max_pixels=area))
    assert math.prod(small) <= area or 16 in small
    assert math.prod(image_size(height, width, PIXTRAL, MediaInputs(min_pixels=area))) >= area
    both = image_size(height, width, PIXTRAL, MediaInputs(min_pixels=area, max_pixels=area))
    assert math.prod(both) <= area or 16 in both
    within = LFM2_VL.bounded(MediaInputs(max_pixels=area))
    assert math.prod(within.grid(height, width)) * LFM2_VL.tile**2 <= area
    assert math.prod(whole := within.whole_size(height, width)) <= area or 32 in whole
    whole = LFM2_VL.bounded(MediaInputs(min_pixels=area, max_pixels=4 * area)).whole_size(height, width)
    assert area / 4 <= math.prod(whole)


def test_the_tower_tells_pixtral_from_llava() -> None:
    llava: dict[str, Any] = {"model_type": "llava", "vision_config": {"model_type": "pixtral"}}
    assert find(llava) is FAMILIES["pixtral"]
    assert find(llava | {"vision_config": {"model_type": "clip_vision_model"}}) is FAMILIES["llava"]


def test_pixtral_loads_as_published() -> None:
    """Its configuration leaves out what transformers assumes. Nothing is computed here: MLX only makes a graph."""
    config = {
        "model_type": "llava", "vision_feature_layer": -1, "vision_feature_select_strategy": "full",
        "vision_config": {"model_type": "pixtral", "head_dim": 64, "hidden_act": "silu", "rope_theta": 1e4},
        "text_config": {
            "model_type": "mistral", "hidden_size": 5120, "head_dim": 128, "num_hidden_layers": 2, "rms_norm_eps": 1e-5,
            "rope_theta": 1e9, "sliding_window": None, "vocab_size": 131072,
        },
    }  # fmt: skip
    shapes = {name: value.shape for name, value in tree_flatten(find(config).model_class()(config).parameters())}
    assert shapes["vision_tower.vision_model.transformer.layers.23.feed_forward.up_proj.weight"] == (4096, 1024)
    assert shapes["multi_modal_projector.linear_1.weight"] == (5120, 1024)
    assert shapes["language_model.model.layers.1.self_attn.k_proj.weight"] == (8 * 128, 5120)
    assert shapes["language_model.lm_head.weight"] == (131072, 5120)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sliding_window": 1024}, "sliding window"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6, "factor": 16.0}}, "scale"),
    ],
)
def test_ministral3_is_refused_what_its_decoder_leaves_out(change: dict[str, Any], message: str) -> None:
    scaled = {"rope_theta": 1e6, "llama_4_scaling_beta": 0.1, "original_max_position_embeddings": 16384}
    config = {"model_type": "ministral3", "rope_parameters": scaled, "sliding_window": None}
    assert text_arguments(config)["head_dim"] == 128
    with pytest.raises(LoadError, match=message):
        text_arguments(config | change)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"tie_word_embeddings": False}, "output layer"), ({"vision_feature_layer": -2}, "vision_feature_layer")],
)
def test_lfm2_vl_is_refused_what_it_leaves_out(change: dict[str, Any], message: str) -> None:
    config = read_json(REFERENCE / "lfm2_vl" / "config.json")
    with pytest.raises(LoadError, match=message):
        find(config).model_class()(config | change)


def test_weights_of_eight_bits_are_read_as_the_floats_they_are() -> None:
    config = read_json(REFERENCE / "ministral3" / "config.json")
    name = "language_model.model.layers.0.self_attn.q_proj"
    values = mx.array([[1.0, -0.5], [448.0, 0.0625]])
    stored = {
        f"{name}.weight": mx.to_fp8(values),
        f"{name}.weight_scale_inv": mx.array(0.25, mx.bfloat16),
        f"{name}.activation_scale": mx.array(3.0, mx.bfloat16),
    }
    model = find(config).model_class()(config)
    weights = model.sanitize(stored)
    assert weights.keys() == {f"{name}.weight"}
    assert mx.array_equal(weights[f"{name}.weight"], values / 4)
    with pytest.raises(ValueError, match="expected one"):
        model.sanitize(stored | {f"{name}.weight_scale_inv": mx.ones((1, 2))})


@pytest.mark.parametrize("family", ["pixtral", "mistral3", "lfm2_vl"])
def test_pictures_of_one_size_are_encoded_together_as_alone(family: str, tmp_path: Path) -> None:
    model, processor = load(str(write_checkpoint(family, "mlx", tmp_path)), dtype="float32")
    large = media.picture("large")  # LFM2-VL cuts it into tiles
    prompt = processor.prepare(processor.placeholders["image"] * 2, MediaInputs(images=[large, large[::-1].copy()]))
    together, alone = model.encode(prompt.media), [model.encode([medium])[0] for medium in prompt.media]
    assert mx.abs(together[0].embeds - together[1].embeds).max() > 0.1
    for one, other in zip(together, alone, strict=True):
        assert mx.abs(one.embeds - other.embeds).max() < 1e-4
