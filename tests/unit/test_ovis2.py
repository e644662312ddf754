"""Ovis2 as published: grids of tiles, its configuration, and what is refused."""

from typing import Any

import pytest
from parity.layouts import read_json, write_checkpoint

from mlx_vlgen._runtime import tree_flatten
from mlx_vlgen.errors import LoadError, PromptError
from mlx_vlgen.inputs.ovis2 import Ovis2ImageSettings, Ovis2Processor
from mlx_vlgen.models import find

SETTINGS = {"crop_to_patches": True, "max_patches": 9, "size": {"height": 448, "width": 448}}
CONFIG: dict[str, Any] = {
    "model_type": "ovis2", "hidden_size": 896, "vocab_size": 151936,
    "text_config": {
        "model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864, "num_attention_heads": 14,
        "num_hidden_layers": 24, "num_key_value_heads": 2, "max_position_embeddings": 32768, "vocab_size": 151936,
    },
    "vision_config": {"image_size": 448, "hidden_stride": 2, "vocab_size": 65536},
}  # fmt: skip


@pytest.mark.parametrize(
    ("size", "covering", "nearest"),
    [  # as transformers 5.24 cuts them
        ((64, 64), (1, 1), (1, 1)),
        ((481, 641), (2, 2), (2, 3)),
        ((2000, 900), (2, 4), (4, 2)),
        ((3000, 100), (1, 7), (9, 1)),
        ((1000, 1961), (4, 2), (2, 4)),
        ((7, 5000), (9, 1), (1, 9)),
        ((1200, 1600), (3, 3), (2, 3)),
    ],
)
def test_grids_are_transformers(size: tuple[int, int], covering: tuple[int, int], nearest: tuple[int, int]) -> None:
    assert Ovis2ImageSettings.read(SETTINGS, 448).grid(*size) == covering
    assert Ovis2ImageSettings.read(SETTINGS | {"use_covering_area_grid": False}, 448).grid(*size) == nearest
    assert Ovis2ImageSettings.read(SETTINGS | {"crop_to_patches": False}, 448).grid(*size) == (1, 1)


def test_a_published_configuration_makes_a_network_of_its_size() -> None:
    """Its count of parameters is that of transformers."""
    model = find(CONFIG).model_class()(CONFIG)
    assert sum(value.size for _, value in tree_flatten(model.parameters())) == 1_131_283_318


@pytest.mark.parametrize(
    ("vision", "message"),
    [
        ({"tokenize_function": "gumbel_argmax"}, "tokenize_function is 'gumbel_argmax'"),
        ({"image_size": 434}, "31 patches a side; expected a multiple of 2"),
        ({"num_visual_indicator_tokens": 4}, "5 visual_indicator_token_ids; expected"),
    ],
)
def test_what_is_not_computed_is_refused(vision: dict[str, Any], message: str) -> None:
    config = CONFIG | {"vision_config": {**CONFIG["vision_config"], **vision}}
    with pytest.raises(LoadError, match=message):
        find(config).model_class()(config)


def test_tokens_around_tiles_are_the_processors(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = write_checkpoint("ovis2", "v5", tmp_path_factory.mktemp("ovis2"))
    processor = Ovis2Processor.from_folder(folder, read_json(folder / "config.json"))
    with pytest.raises(PromptError, match="the prompt holds <IMG_END>"):
        processor.prepare("Look:<IMG_END>")
    with pytest.raises(LoadError, match="makes tiles of"):
        Ovis2ImageSettings.read(SETTINGS, 224)
