"""PaddleOCR-VL: sizes of small pictures, and what checkpoints say and hold otherwise."""

from pathlib import Path

import numpy as np
import pytest
from parity.layouts import read_json, write_checkpoint, write_json
from safetensors.numpy import load_file, save_file

from mlx_vlgen import load
from mlx_vlgen.errors import LoadError
from mlx_vlgen.inputs.paddleocr_vl import PaddleOCRVLProcessor
from mlx_vlgen.inputs.prompt import MediaInputs
from mlx_vlgen.models.decoders import text_arguments as known_arguments
from mlx_vlgen.models.paddleocr_vl import PaddleOCRVL, text_arguments

SIZES = [
    (10, 100, (140, 1232)), (100, 10, (1232, 140)), (20, 20, (392, 392)), (1, 150, (56, 4704)), (500, 333, (504, 336)),
    (3000, 2000, (1876, 1232)), (27, 401, (112, 1484)), (9, 14, (308, 504)),
]  # fmt: skip
"""(height, width), and what transformers' PaddleOCRVLImageProcessor makes of it by default."""


@pytest.mark.parametrize(("height", "width", "expected"), SIZES)
def test_a_side_shorter_than_a_token_grows_first(
    tmp_path: Path, height: int, width: int, expected: tuple[int, int]
) -> None:
    folder = write_checkpoint("paddleocr_vl", "hub", tmp_path)
    write_json(folder / "preprocessor_config.json", {"image_processor_type": "PaddleOCRVLImageProcessor"})
    processor = PaddleOCRVLProcessor.from_folder(folder, read_json(folder / "config.json"))
    assert processor.image_size(height, width, MediaInputs()) == expected


def test_an_unused_table_is_passed_over_and_an_absent_output_layer_is_the_embeddings(tmp_path: Path) -> None:
    folder = write_checkpoint("paddleocr_vl", "v5", tmp_path)
    tensors = load_file(folder / "model.safetensors")
    tensors["visual.vision_model.embeddings.packing_position_embedding.weight"] = np.zeros((9, 48), np.float32)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert "lm_head" in load(folder)[0].language_model
    del tensors["lm_head.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(LoadError, match=r"lm_head\.weight"):
        load(folder)
    write_json(folder / "config.json", read_json(folder / "config.json") | {"tie_word_embeddings": True})
    assert "lm_head" not in load(folder)[0].language_model


def test_names_of_transformers_modules_are_read_too() -> None:
    """It reads them and does not write them."""
    names = {
        "model.visual.vision_model.encoder.layers.0.mlp.fc1.bias": "vision_tower.layers.0.mlp.fc1.bias",
        "model.visual.vision_model.post_layernorm.bias": "vision_tower.post_layernorm.bias",
        "model.projector.linear_1.bias": "vision_tower.projector.linear_1.bias",
        "model.language_model.norm.weight": "language_model.model.norm.weight",
    }
    assert {name: PaddleOCRVL.rename(name) for name in names} == names


def test_what_the_decoder_would_leave_out_is_refused() -> None:
    known_arguments(text_arguments({}))
    for change in ({"hidden_act": "gelu"}, {"rope_scaling": {"type": "yarn", "factor": 2.0}}):
        with pytest.raises(LoadError, match="does not compute"):
            known_arguments(text_arguments(change))
