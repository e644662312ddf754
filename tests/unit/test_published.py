"""Published checkpoints, built from what their config.json says of sizes (published.json), without weights: MLX makes
no array before it is used, so that the largest take no memory."""

import json
from pathlib import Path
from typing import Any

import pytest

from mlx_vlgen._runtime import tree_flatten
from mlx_vlgen.inputs.anyres import AnyRes
from mlx_vlgen.inputs.images import CLIP_MEAN, CLIP_STD
from mlx_vlgen.models import find
from mlx_vlgen.models.base import Model

CONFIGS: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("published.json").read_text())
SIGLIP_HEAD = 15_238_352
"""Parameters of SigLIP so400m's pooling head, which some checkpoints hold and no text decoder takes."""

# (parameters that its files hold, positions). Where a page or an index of weights says how many there are, they are
# these; of Qwen 3.5, Gemma 4, LFM2.5 and JoyCaption, as first counted here.
PUBLISHED = {
    "SmolVLM-256M-Instruct": (256_484_928, 8192),
    "InternVL3-1B": (938_193_024, 32768),
    "Qwen2-VL-7B-Instruct": (8_291_375_616, 32768),
    "Qwen2.5-VL-7B-Instruct": (8_292_166_656, 128000),
    "olmOCR-2-7B-1025": (8_292_166_656, 128000),
    "Qwen3-VL-2B-Instruct": (2_127_532_032, 262144),
    "Qwen3-VL-4B-Instruct": (4_437_815_808, 262144),
    "Qwen3-VL-8B-Instruct": (8_767_123_696, 262144),
    "Qwen3-VL-32B-Instruct": (33_357_390_064, 262144),
    "Qwen3-VL-30B-A3B-Instruct": (31_070_754_032, 262144),
    "Qwen3-VL-235B-A22B-Instruct": (235_670_022_896, 262144),
    "Qwen3.5-9B": (9_409_813_744, 262144),
    "Qwen3.5-27B": (27_356_728_560, 262144),
    "Qwen3.5-35B-A3B": (35_107_181_936, 262144),
    "Qwen3.5-122B-A10B": (122_562_817_776, 262144),
    "Qwen3.5-397B-A17B": (396_802_360_816, 262144),
    "gemma-4-26B-A4B": (25_805_936_206, 262144),
    "llava-v1.6-mistral-7b-hf": (7_566_747_648, 32768),
    "Mistral-Small-3.2-24B-Instruct-2506": (24_011_361_280, 131072),
    "Devstral-Small-2-24B-Instruct-2512": (24_011_361_280, 393216),
    "GLM-4.5V": (107_710_933_120, 65536),
    "LFM2.5-VL-1.6B": (1_596_625_904, 128000),
    "granite-vision-3.2-2b": (2_975_396_928 - SIGLIP_HEAD, 131072),
    "llama-joycaption-beta-one-hf-llava": (8_479_990_848 - SIGLIP_HEAD, 131072),
}


def build(name: str) -> Model:
    return find(CONFIGS[name]).model_class()(CONFIGS[name])


@pytest.mark.parametrize("name", CONFIGS)
def test_a_published_configuration_makes_a_network_of_its_size(name: str) -> None:
    model = build(name)
    count = sum(value.size for _, value in tree_flatten(model.parameters()))
    assert (count, model.max_positions) == PUBLISHED[name]
    assert len(model.cache_layout()) == model.driver.arguments["num_hidden_layers"]


def test_granite_visions_pictures_are_cut_as_its_configuration_says() -> None:
    config = CONFIGS["granite-vision-3.2-2b"]
    assert build("granite-vision-3.2-2b").multi_modal_projector.linear_1.weight.shape == (2048, 4 * 1152)
    settings = {"size": {"height": 384, "width": 384}, "crop_size": {"height": 384, "width": 384}}
    pictures = AnyRes.read(settings, config, [], CLIP_MEAN, CLIP_STD)
    assert (len(pictures.canvases), pictures.patches) == (26, 27)
    assert pictures.layout((384, 3840))[:2] == (1, 10)
    assert pictures.layout((1100, 1100)) == (3, 3, 81, 81)
