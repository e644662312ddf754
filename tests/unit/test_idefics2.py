"""Idefics2 as published: sizes of pictures and their quarters, its configuration, marks around pictures."""

import numpy as np
import pytest
from PIL import Image

from mlx_vlgen._runtime import tree_flatten
from mlx_vlgen.errors import LoadError, MediaError
from mlx_vlgen.inputs.idefics2 import Idefics2ImageSettings
from mlx_vlgen.models import find
from mlx_vlgen.models.base import Sliding

SETTINGS = Idefics2ImageSettings.read({"do_image_splitting": True}, 14)


@pytest.mark.parametrize(
    ("size", "quarters", "whole"),
    [  # as transformers 5.24 resizes them, without what is beside whole patches
        ((64, 64), [(378, 378)] * 4, (378, 378)),
        ((481, 641), [(378, 378)] * 4, (476, 630)),
        ((2000, 900), [(980, 434)] * 4, (980, 434)),
        ((1000, 1961), [(490, 980)] * 4, (490, 980)),
        ((3000, 100), [(980, 378)] * 4, (980, 378)),
    ],
)
def test_sizes_are_transformers(size: tuple[int, int], quarters: list[tuple[int, int]], whole: tuple[int, int]) -> None:
    picture = Image.fromarray(np.zeros((*size, 3), np.uint8))
    assert [part.shape[:2] for part in SETTINGS.parts(picture)] == [*quarters, whole]


def test_a_published_configuration_makes_a_network_of_its_size() -> None:
    """Its count of parameters is that of transformers."""
    config = {
        "model_type": "idefics2",
        "perceiver_config": {"model_type": "idefics2"},
        "text_config": {
            "model_type": "mistral", "max_position_embeddings": 32768, "rms_norm_eps": 1e-5, "sliding_window": 4096,
            "vocab_size": 32003,
        },
        "vision_config": {
            "hidden_size": 1152, "image_size": 980, "intermediate_size": 4304, "num_attention_heads": 16,
            "num_hidden_layers": 27, "patch_size": 14,
        },
    }  # fmt: skip
    model = find(config).model_class()(config)
    assert sum(value.size for _, value in tree_flatten(model.parameters())) == 8_402_768_112
    assert model.cache_layout() == [Sliding(4096)] * 32


def test_sizes_that_are_not_known_are_refused() -> None:
    with pytest.raises(LoadError, match="expected a shortest_edge and a longest_edge"):
        Idefics2ImageSettings.read({"size": {"longest_edge": 980}}, 14)
    assert Idefics2ImageSettings.read({"size": {"height": 28, "width": 42}}, 14).size == (28, 42)
    with pytest.raises(MediaError, match="1 x 9 pixels cannot be cut in four"):
        SETTINGS.parts(Image.new("RGB", (1, 9)))
