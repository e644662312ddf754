"""Sizes of pictures by published settings, as transformers' image processors make them (make_processors.py)."""

import json
from typing import Any

import numpy as np
import pytest

from mlx_vlgen.inputs.processor_files import ProcessorSettings
from mlx_vlgen.inputs.prompt import MediaInputs
from mlx_vlgen.models import find

from .test_published import CONFIGS, FOLDER

ROWS: dict[str, dict[str, Any]] = json.loads((FOLDER / "processors.json").read_text())


@pytest.mark.parametrize("name", ROWS)
def test_pictures_have_the_sizes_of_transformers(name: str) -> None:
    config, settings = CONFIGS[name], ROWS[name]["settings"]
    family = find(config).processor_class()
    fields = family.read_fields(ProcessorSettings({}, settings, settings, settings), config)
    processor = family(None, None, **fields)  # type: ignore[arg-type]  # pictures need no tokenizer
    for height, width, expected in ROWS[name]["pictures"]:
        made = processor.expand("image", np.zeros((height, width, 3), np.uint8), MediaInputs())
        tiles = [len(made.pixels), *made.pixels.shape[1:3]]
        if config["model_type"] == "hunyuan_vl":  # pixels whole, and a grid of features
            assert [1, *(side // config["vision_config"]["patch_size"] for side in tiles[1:])] == expected
        else:
            assert (list(made.grid) if len(made.grid) == 3 else tiles) == expected
        assert sum(made.counts) > 0
