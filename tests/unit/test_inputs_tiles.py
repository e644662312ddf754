"""Idefics3's and SmolVLM's tiles, frames and words at published settings. Numbers are transformers 5.23's."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from parity import media
from parity.layouts import write_checkpoint
from PIL import Image

import mlx_vlgen
from mlx_vlgen._runtime import tree_flatten
from mlx_vlgen.errors import LoadError
from mlx_vlgen.inputs.idefics3 import Idefics3ImageSettings, longest
from mlx_vlgen.inputs.prompt import MediaInputs, Prompt
from mlx_vlgen.inputs.smolvlm import SmolVLMProcessor, sample_frames, spell_number
from mlx_vlgen.models.idefics3 import Idefics3
from mlx_vlgen.models.vit import position_buckets

# What SmolVLM2-500M's files say of pictures, of videos and of the tower.
PICTURES: dict[str, Any] = {
    "size": {"longest_edge": 2048},
    "max_image_size": {"longest_edge": 512},
    "resample": 1,
    "video_sampling": {"fps": 1, "max_frames": 64, "video_size": {"longest_edge": 512}},
}
VISION = {"hidden_size": 768, "image_size": 512, "num_attention_heads": 12, "patch_size": 16}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny SmolVLM whose one file of settings, as of old, is the 500M's, with tiles of 32 pixels."""
    folder = write_checkpoint("smolvlm", "hub", tmp_path_factory.mktemp("smolvlm"))
    (folder / "video_preprocessor_config.json").unlink()
    tiles = {"max_image_size": {"longest_edge": 32}, "size": {"longest_edge": 64}}
    (folder / "preprocessor_config.json").write_text(json.dumps(PICTURES | tiles))
    return folder


@pytest.fixture(scope="module")
def processor(folder: Path) -> SmolVLMProcessor:
    return SmolVLMProcessor.from_folder(folder, json.loads((folder / "config.json").read_text()))


def animation(frames: int, milliseconds: int) -> bytes:
    """A GIF whose frames are all different."""
    pictures = [Image.fromarray(media.picture("plain")).rotate(3 * i) for i in range(frames)]
    file = io.BytesIO()
    pictures[0].save(file, "GIF", save_all=True, append_images=pictures[1:], duration=milliseconds)
    return file.getvalue()


def shown(processor: SmolVLMProcessor, **settings: Any) -> tuple[Prompt, str]:
    """The prompt of an animation of 12 frames in 3 seconds, and its words."""
    prompt = processor.prepare("<video>", MediaInputs(videos=[animation(12, 250)], **settings))
    return prompt, str(processor.tokenizer.decode(prompt.text_tokens, skip_special_tokens=True))


@pytest.mark.parametrize(
    ("size", "edge", "tile", "rows", "columns"),
    [
        ((1080, 1920), 2048, 512, 3, 4),
        ((3000, 2000), 2048, 512, 4, 3),
        ((500, 500), 2048, 512, 4, 4),
        ((60, 4000), 2048, 512, 1, 4),
        ((2000, 30), 2048, 512, 4, 1),
        ((768, 1024), 1456, 364, 3, 4),
        ((1080, 1920), 1920, 384, 3, 5),
        ((999, 1000), 1920, 384, 5, 5),
        ((480, 640), 512, 512, 0, 0),
    ],
)
def test_a_picture_has_as_many_tiles_as_transformers_makes(
    size: tuple[int, int], edge: int, tile: int, rows: int, columns: int
) -> None:
    settings = {"size": {"longest_edge": edge}, "max_image_size": {"longest_edge": tile}}
    tiles, grid = Idefics3ImageSettings.read(settings).cut(Image.new("RGB", size[::-1]))
    assert grid == (rows, columns)
    assert tiles.shape == (rows * columns + 1, tile, tile, 3)


def test_the_shorter_side_is_even_or_one() -> None:
    assert longest(1, 3256, 2048) == (1, 2048)
    assert longest(1, 2000, 2048) == (2, 2048)
    assert longest(490, 1000, 100) == (50, 100)
    assert longest(1000, 490, 100) == (100, 50)


def test_a_picture_that_is_not_to_be_split_is_one_tile() -> None:
    tiles, grid = Idefics3ImageSettings.read({**PICTURES, "do_image_splitting": False}).cut(Image.new("RGB", (90, 40)))
    assert (len(tiles), grid) == (1, (0, 0))


def test_a_size_that_is_no_longest_edge_is_refused() -> None:
    with pytest.raises(LoadError, match=r"size .*'height': 9.* expected a longest_edge"):
        Idefics3ImageSettings.read({"size": {"height": 9, "width": 9}})


def shares(count: int) -> np.ndarray:
    """Of the whole, at which rows begin: as `Idefics3` divides them."""
    return np.arange(count, dtype=np.float32) * (np.float32(1) / np.float32(count))


@pytest.mark.parametrize("side", [24, 26, 27, 32])
def test_a_tile_of_the_size_the_tower_learnt_takes_each_position_once(side: int) -> None:
    assert position_buckets(shares(side), side).tolist() == list(range(side))


def test_a_smaller_tile_spreads_over_all_positions() -> None:
    assert position_buckets(shares(4), 6).tolist() == [0, 1, 3, 4]


@pytest.mark.parametrize(
    ("total", "rate", "count", "ends"),
    [
        (90, 30.0, 3, [0, 44, 89]),
        (45, 30.0, 2, [0, 44]),
        (1, 24.0, 1, [0]),
        (2400, 30.0, 64, [30, 67, 2332, 2370]),  # the first and the last second are left out
        (3000, 30000 / 1001, 64, [29, 75, 2923, 2970]),
    ],
)
def test_frames_are_kept_as_transformers_keeps_them(total: int, rate: float, count: int, ends: list[int]) -> None:
    indices = sample_frames(total, rate, 1, 64).tolist()
    assert len(indices) == count
    assert (indices if count <= 3 else indices[:2] + indices[-2:]) == ends


def test_numbers_spell_number() -> None:
    assert [spell_number(number) for number in (1, 12, 20, 64, 100, 101, 768)] == [
        "one", "twelve", "twenty", "sixty-four", "one hundred", "one hundred and one",
        "seven hundred and sixty-eight",
    ]  # fmt: skip
    assert spell_number(1001) == "one thousand and one"
    assert spell_number(2345) == "two thousand, three hundred and forty-five"


def test_a_file_is_sampled_at_the_rate_of_the_checkpoint(processor: SmolVLMProcessor) -> None:
    prompt, text = shown(processor)
    assert prompt.media[0].pixels.shape == (3, 32, 32, 3)
    assert "series of three frames from a 0:00:03 [H:MM:SS] video.\n\nFrame from 00:00:\nFrame from 00:01:" in text


@pytest.mark.parametrize(
    ("settings", "count"),
    [({"video_fps": 2.0}, 6), ({"max_frames": 2}, 2), ({"num_frames": 5}, 5), ({"video_fps": 9.0}, 12)],
)
def test_a_request_samples_otherwise(processor: SmolVLMProcessor, settings: dict[str, Any], count: int) -> None:
    assert len(shown(processor, **settings)[0].media[0].pixels) == count


def test_raw_frames_are_all_kept_and_timed(processor: SmolVLMProcessor) -> None:
    clip = np.repeat(media.clip("odd_clip"), 14, axis=0)
    prompt = processor.prepare("<video>", MediaInputs(videos=[clip], video_fps=1.0))
    assert len(prompt.media[0].pixels) == 70
    text = processor.tokenizer.decode(prompt.text_tokens, skip_special_tokens=True)
    assert text.startswith("You are provided the following series of seventy frames from a 0:01:10 [H:MM:SS] video.")
    assert text.endswith("\nFrame from 01:08:\nFrame from 01:09:\n\n")


def test_words_that_are_a_string_reach_the_template(processor: SmolVLMProcessor) -> None:
    text = mlx_vlgen.apply_chat_template(processor, {}, [{"role": "user", "content": "Why?"}])
    assert text == "<|im_start|>User: Why?<end_of_utterance>\nAssistant:"


def test_a_template_that_knows_video_writes_it(processor: SmolVLMProcessor, folder: Path) -> None:
    custom = SmolVLMProcessor.from_folder(folder, json.loads((folder / "config.json").read_text()))
    messages = [{"role": "user", "content": [{"type": "video"}]}]
    assert custom.format(messages)[0].text == "<|im_start|>User: <video><end_of_utterance>\nAssistant:"
    custom.chat_template = "{% for m in messages %}{% for c in m['content'] %}[<video>]{% endfor %}{% endfor %}"
    assert custom.format(messages)[0].text == "[<video>]"


def test_a_tower_has_the_sizes_that_the_published_configuration_leaves_out() -> None:
    text = {"hidden_size": 960, "intermediate_size": 2560, "num_attention_heads": 15, "num_key_value_heads": 5,
            "num_hidden_layers": 1, "vocab_size": 300, "rms_norm_eps": 1e-5}  # fmt: skip
    model = Idefics3({"model_type": "smolvlm", "scale_factor": 4, "vision_config": VISION, "text_config": text})
    shapes = {name: value.shape for name, value in tree_flatten(model.parameters())}
    assert shapes["vision_model.encoder.layers.11.mlp.fc1.weight"] == (3072, 768)
    assert "vision_model.encoder.layers.12.mlp.fc1.weight" not in shapes
    assert shapes["connector.modality_projection.proj.weight"] == (960, 768 * 16)
    assert shapes["language_model.lm_head.weight"] == (300, 960)
