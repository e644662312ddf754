"""InternVL as published: tiles, frames, the first releases' templates and settings. Numbers are transformers 5.23's."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from parity import media
from parity.layouts import REFERENCE, read_json, write_checkpoint
from PIL import Image
from safetensors.numpy import load_file, save_file

import mlx_vlgen
from mlx_vlgen._runtime import mx
from mlx_vlgen.errors import LoadError
from mlx_vlgen.inputs.internvl import InternVLImageSettings, InternVLProcessor, middles
from mlx_vlgen.inputs.prompt import MediaInputs
from mlx_vlgen.models.internvl import InternVL

CONFIG: dict[str, Any] = {"vision_config": {"image_size": [448, 448], "patch_size": [14, 14]}}
FILE: dict[str, Any] = {"size": {"height": 448, "width": 448}, "crop_to_patches": False}
# What InternVL3-8B's files say, from before transformers knew it.
FIRST: dict[str, Any] = {
    "vision_config": {"image_size": 448, "patch_size": 14},
    "dynamic_image_size": True,
    "max_dynamic_patch": 6,
    "min_dynamic_patch": 2,
    "use_thumbnail": True,
}
FIRST_FILE: dict[str, Any] = {
    "crop_size": 448, "do_center_crop": True, "size": 448, "resample": 3, "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225], "feature_extractor_type": "CLIPFeatureExtractor",
}  # fmt: skip
# Of the same kind as theirs: contents are strings.
TEMPLATE = (
    "{%- if messages[0]['role'] != 'system' %}{{- '<|im_start|>system\\nHelp.<|im_end|>\\n' }}{%- endif %}"
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}\n"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In the first releases' layout, with settings of their kind."""
    folder = write_checkpoint("internvl", "mlx", tmp_path_factory.mktemp("internvl"))
    (folder / "preprocessor_config.json").write_text(json.dumps(FIRST_FILE | {"size": 28, "crop_size": 28}))
    (folder / "video_preprocessor_config.json").unlink()
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    (folder / "config.json").write_text(json.dumps(read_json(folder / "config.json") | {"max_dynamic_patch": 4}))
    return folder


@pytest.fixture(scope="module")
def processor(folder: Path) -> InternVLProcessor:
    return InternVLProcessor.from_folder(folder, read_json(folder / "config.json"))


@pytest.mark.parametrize(
    ("size", "twelve", "some", "four"),
    [
        ((448, 448), (1, 1), (2, 2), (2, 2)),
        ((634, 634), (2, 2), (2, 2), (2, 2)),  # just more than half the pixels of four tiles
        ((1000, 1000), (3, 3), (2, 2), (2, 2)),
        ((480, 640), (3, 4), (2, 3), (2, 2)),
        ((1080, 1920), (2, 4), (1, 2), (2, 2)),
        ((1920, 1080), (4, 2), (2, 1), (4, 1)),
        ((50, 900), (1, 12), (1, 6), (1, 4)),
        ((900, 5), (12, 1), (6, 1), (4, 1)),
        ((333, 400), (3, 4), (2, 2), (2, 2)),
    ],
)
def test_pictures_are_cut_as_transformers_cuts_them(
    size: tuple[int, int], twelve: tuple[int, int], some: tuple[int, int], four: tuple[int, int]
) -> None:
    def cut(fewest: int, largest: int) -> tuple[int, int]:
        return InternVLImageSettings.read(FILE | {"min_patches": fewest, "max_patches": largest}, CONFIG).grid(*size)

    assert InternVLImageSettings.read(FILE, CONFIG).grid(*size) == twelve
    assert (cut(2, 6), cut(4, 4)) == (some, four)
    assert cut(1, 1) == (1, 1)


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 4), st.integers(4, 14))
def test_no_allowed_grid_is_nearer(height: int, width: int, fewest: int, largest: int) -> None:
    settings = InternVLImageSettings.read(FILE | {"min_patches": fewest, "max_patches": largest}, CONFIG)
    rows, columns = settings.grid(height, width)
    assert fewest <= rows * columns <= largest
    assert all(
        abs(width / height - columns / rows) <= abs(width / height - c / r)
        for r in range(1, largest + 1)
        for c in range(1, largest + 1)
        if fewest <= r * c <= largest
    )


def test_the_first_releases_say_in_config_json_how_pictures_are_cut() -> None:
    settings = InternVLImageSettings.read(FIRST_FILE, FIRST)
    assert (settings.min_tiles, settings.max_tiles, settings.thumbnail) == (2, 6, True)
    assert (settings.square.size, settings.square.crop) == ((448, 448), None)
    whole = InternVLImageSettings.read(FIRST_FILE, FIRST | {"dynamic_image_size": False, "use_thumbnail": False})
    assert (whole.min_tiles, whole.max_tiles, whole.thumbnail) == (1, 1, False)


def test_tiles_of_another_size_than_the_towers_are_refused() -> None:
    with pytest.raises(LoadError, match=r"tiles of \(384, 384\) pixels, and its tower takes \(448, 448\)"):
        InternVLImageSettings.read({"size": {"height": 384, "width": 384}}, CONFIG)


@pytest.mark.parametrize(
    ("total", "count", "frames"),
    [(90, 8, [5, 16, 28, 39, 50, 61, 73, 84]), (7, 3, [1, 3, 5]), (14, 3, [2, 7, 11]), (5, 5, [0, 1, 2, 3, 4])],
)
def test_frames_are_chosen_as_transformers_chooses_them(total: int, count: int, frames: list[int]) -> None:
    assert middles(total, count).tolist() == frames


def film(frames: int) -> bytes:
    """An animation at 10 frames a second, each frame of another grey."""
    file = io.BytesIO()
    pictures = [Image.new("L", (40, 30), 2 * number) for number in range(frames)]
    pictures[0].save(file, "GIF", save_all=True, append_images=pictures[1:], duration=100)
    return file.getvalue()


@pytest.mark.parametrize(
    ("settings", "frames"),
    [
        ({}, middles(90, 32)),
        ({"num_frames": 8}, middles(90, 8)),
        ({"video_fps": 1.0}, middles(90, 9)),
        ({"video_fps": 0.01}, middles(90, 1)),
        ({"max_frames": 5}, middles(90, 5)),
        ({"video_fps": 2.0, "max_frames": 4}, middles(90, 4)),
    ],
)
def test_a_file_is_sampled_in_the_middles_of_equal_parts(
    processor: InternVLProcessor, settings: dict[str, Any], frames: np.ndarray
) -> None:
    prompt = processor.prepare("<video>", MediaInputs(videos=[film(90)], **settings))
    assert np.allclose(prompt.media[0].pixels[:, 0, 0, 0] / 2, frames, atol=0.01)
    assert len(prompt.media[0].spans) == len(frames)
    assert f"Frame{len(frames)}: " in processor.tokenizer.decode(prompt.tokens)


def test_more_frames_than_there_are_repeat(processor: InternVLProcessor) -> None:
    prompt = processor.prepare("<video>", MediaInputs(videos=[film(2)], num_frames=4))
    first, again, second, last = prompt.media[0].pixels
    assert np.array_equal(first, again) and np.array_equal(second, last) and not np.array_equal(again, second)


def test_a_template_of_words_gets_pictures_as_words(processor: InternVLProcessor) -> None:
    messages = [
        {"role": "user", "content": [{"type": "image"}, {"type": "video"}, {"type": "text", "text": "Is it <video>?"}]},
        {"role": "assistant", "content": "No."},
        {"role": "user", "content": "Why?"},
    ]
    prompt = processor.prepare(messages, MediaInputs([media.picture("small")], [media.clip("clip")], video_fps=2.0))
    assert prompt.text == (
        "<|im_start|>system\nHelp.<|im_end|>\n<|im_start|>user\n<IMG_CONTEXT>\n<video>\nIs it <video>?<|im_end|>\n"
        "<|im_start|>assistant\nNo.<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert [medium.kind for medium in prompt.media] == ["image", "video"]
    words = processor.tokenizer.decode(prompt.text_tokens)
    assert "user\n<img></img>\nFrame1: <img></img>\nFrame2: " in words
    assert "Frame6: <img></img>\nIs it <video>?" in words


def test_a_template_of_words_may_begin_with_any_character(processor: InternVLProcessor) -> None:
    other = InternVLProcessor(
        processor.tokenizer,
        "\n  {{ messages[0].content }}",
        processor.image_settings,
        processor.video_settings,
        processor.tile_tokens,
    )
    assert other.format([{"role": "user", "content": [{"type": "text", "text": "Why?"}]}])[0].text == "\n  Why?"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"select_layer": -4}, "select_layer = -4"),
        ({"ps_version": "v1"}, "ps_version = 'v1'"),
        ({"vision_feature_select_strategy": "full"}, "vision_feature_select_strategy = 'full'"),
        ({"vision_config": {"use_mean_pooling": False}}, "use_mean_pooling = False"),
        ({"llm_config": {"model_type": "phimoe"}}, "text decoder is 'phimoe'; expected qwen2"),
    ],
)
def test_what_no_published_checkpoint_has_is_refused(wrong: dict[str, Any], message: str) -> None:
    config = read_json(REFERENCE / "internvl" / "config.json")
    config["llm_config"] = config.pop("text_config")
    with pytest.raises(LoadError, match=message):
        InternVL(config | wrong)


@pytest.mark.parametrize(("called_tied", "has_layer"), [(True, True), (True, False), (False, False)])
def test_the_checkpoint_decides_whether_there_is_an_output_layer(
    tmp_path: Path, called_tied: bool, has_layer: bool
) -> None:
    """transformers 5 calls one tied that an older release saved untied, and keeps its layer."""
    write_checkpoint("internvl", "v5", tmp_path)
    config = read_json(tmp_path / "config.json") | {"tie_word_embeddings": called_tied}
    (tmp_path / "config.json").write_text(json.dumps(config))
    weights = load_file(tmp_path / "model.safetensors")
    rows = weights[f"language_model.{'lm_head' if has_layer else 'model.embed_tokens'}.weight"]
    if not has_layer:
        del weights["language_model.lm_head.weight"]
        save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    if not called_tied:
        with pytest.raises(LoadError, match="lm_head"):
            mlx_vlgen.load(str(tmp_path))
        return
    model, processor = mlx_vlgen.load(str(tmp_path), dtype="float32")
    states = np.array(model.body(mx.array(processor.prepare("The").tokens)[None])[0, -1])
    result = mlx_vlgen.generate(model, processor, "The", max_tokens=1)
    assert result.tokens == [int(np.argmax(rows @ states))]
