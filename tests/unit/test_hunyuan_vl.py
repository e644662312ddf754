"""HunyuanOCR as published: its configuration, sizes of pictures, positions, marks around pictures."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from parity import media
from parity.layouts import read_json, write_checkpoint

from mlx_vlgen import load
from mlx_vlgen._runtime import mx, tree_flatten
from mlx_vlgen.engine.cache import make_cache
from mlx_vlgen.errors import LoadError
from mlx_vlgen.inputs.hunyuan_vl import END, IMAGE, START, HunyuanVLProcessor
from mlx_vlgen.inputs.prompt import MediaInputs
from mlx_vlgen.models import find

CONFIG: dict[str, Any] = {
    "model_type": "hunyuan_vl", "hidden_size": 1024, "intermediate_size": 3584, "num_attention_heads": 16,
    "num_hidden_layers": 24, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 120818, "num_experts": 1,
    "max_position_embeddings": 32768, "rope_theta": 10000.0, "tie_word_embeddings": True,
    "rope_scaling": {"alpha": 1000.0, "factor": 1.0, "type": "xdrope", "xdrope_section": [16, 16, 16, 16]},
    "vision_config": {"hidden_size": 1152, "max_image_size": 2048, "patch_size": 16, "spatial_merge_size": 2},
}  # fmt: skip


def test_a_published_configuration_makes_a_network_of_its_size() -> None:
    """Its count of parameters is that of transformers."""
    model = find(CONFIG).model_class()(CONFIG)
    assert sum(value.size for _, value in tree_flatten(model.parameters())) == 996_208_112
    assert (model.max_positions, len(model.cache_layout())) == (32768, 24)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rope_scaling": {"type": "xdrope", "alpha": 1000.0, "xdrope_section": [32, 16, 16]}}, "four sections of 64"),
        ({"rope_scaling": {"type": "yarn", "alpha": 1.0, "xdrope_section": [16] * 4}}, "the type 'yarn'"),
        ({"rope_scaling": None}, "alpha None"),
        ({"num_experts": 4}, "experts"),
        ({"use_cla": True}, "layers that share keys and values"),
        ({"vision_config": {"interpolate_mode": "bicubic"}}, "interpolate_mode 'bicubic'"),
    ],
)
def test_what_is_not_computed_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(LoadError, match=message):
        find(CONFIG).model_class()(CONFIG | change)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint("hunyuan_vl", "hub", tmp_path_factory.mktemp("hunyuan_vl"))


def test_marks_are_written_where_a_prompt_lacks_them(folder: Path) -> None:
    processor = HunyuanVLProcessor.from_folder(folder, read_json(folder / "config.json"))
    pictures = MediaInputs(images=[media.picture("small"), media.picture("plain")])
    marked = processor.prepare(f"{START}{IMAGE}{END}and{START}{IMAGE}{END}.", pictures)
    assert processor.prepare(f"{IMAGE}and{START}{IMAGE}.", pictures).tokens.tolist() == marked.tokens.tolist()


def test_pictures_are_numbered_through_the_whole_prompt(folder: Path) -> None:
    """What follows a known beginning is as in the whole prompt, though that has the first picture."""
    model, processor = load(str(folder), dtype="float32")
    pictures = MediaInputs(images=[media.picture("small"), media.picture("plain")])
    prompt = processor.prepare(f"One: {IMAGE} and two: {IMAGE} differ?", pictures)
    features = [model.encode([medium])[0] for medium in prompt.media]
    cut = prompt.media[0].spans[0][1] + 2
    whole = model.embed(prompt, features)
    later = model.embed(prompt.after(cut), features[1:])
    model.move(later, prompt, cut, 0)
    assert later.positions is not None and whole.positions is not None
    assert mx.array_equal(later.positions, whole.positions[:, :, cut:])
    start, end = prompt.media[1].spans[0]
    assert set(np.array(whole.positions)[2, 0, start + 1 : end - 1].tolist()) == {1}
    cache = make_cache(model.cache_layout())
    model(whole[:cut], cache)
    expected = model(whole, make_cache(model.cache_layout()))
    assert np.abs(np.array(model(later, cache) - expected[:, cut:])).max() < 1e-4
