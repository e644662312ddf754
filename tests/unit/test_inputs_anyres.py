"""Pictures in tiles, and the families that see them so, beside what the parity suite compares."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from invariants.family import Family
from parity.layouts import REFERENCE, read_json, write_checkpoint
from PIL import Image

from mlx_vlgen._runtime import mx
from mlx_vlgen.errors import LoadError, MediaError, UnsupportedError
from mlx_vlgen.inputs.anyres import AnyRes
from mlx_vlgen.inputs.llava_next import LlavaNextProcessor
from mlx_vlgen.inputs.llava_onevision import LlavaOnevisionProcessor
from mlx_vlgen.inputs.prompt import MediaInputs, Prompt
from mlx_vlgen.models.decoders import text_arguments
from mlx_vlgen.models.layers import resample_bilinear

CONFIG = {"vision_config": {"image_size": 28, "patch_size": 7}}
CANVASES = [(28, 56), (56, 28), (56, 56), (84, 28), (28, 84)]
SQUARES = AnyRes.read({"image_mean": [0] * 3, "image_std": [1] * 3}, CONFIG, CANVASES, (0,), (1,))
ASK = [{"role": "user", "content": [{"type": "text", "text": "What is it?"}]}]


@pytest.fixture(scope="module")
def onevision(tmp_path_factory: pytest.TempPathFactory) -> LlavaOnevisionProcessor:
    folder = write_checkpoint("llava_onevision", "v5", tmp_path_factory.mktemp("llava_onevision"))
    return LlavaOnevisionProcessor.from_folder(folder, read_json(folder / "config.json"))


def blank(width: int, height: int) -> Image.Image:
    return Image.new("RGB", (width, height), "white")


def shapes(prompt: Prompt) -> list[tuple[int, ...]]:
    return [medium.pixels.shape for medium in prompt.media]


@given(st.integers(1, 300), st.integers(1, 300))
def test_a_white_picture_is_white_exactly_where_its_layout_says(height: int, width: int) -> None:
    """To the patch: one that the picture's border cuts may be kept or not."""
    try:
        rows, columns, high, wide = SQUARES.layout((height, width))
    except MediaError as error:
        assert max(height, width) > 20 * min(height, width) and "too thin" in str(error)
        return
    whole, *tiles = SQUARES.pixels(blank(width, height))
    assert whole.min() == 255 and len(tiles) == rows * columns
    laid = np.stack(tiles).reshape(rows, columns, 28, 28, 3).transpose(4, 0, 2, 1, 3).reshape(3, rows * 28, -1)
    lines, across = (np.flatnonzero((laid[0] > 191).any(axis=axis)) for axis in (1, 0))
    for lit, size, tile in ((lines, high, rows), (across, wide, columns)):
        assert abs(len(lit) / 7 - size) < 2 and (tile * 4 - size) % 2 == 0
        assert abs(lit[0] + lit[-1] + 1 - tile * 28) <= 1  # in the middle


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9), st.integers(1, 9))
def test_resampling_reads_a_slope_where_a_point_lies(rows: int, columns: int, to_rows: int, to_columns: int) -> None:
    """A slope stays one, but for the half cell at each border where there is nothing to read beyond."""
    x = np.stack(np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"), axis=-1).astype(np.float32)
    resampled = np.array(resample_bilinear(mx.array(x), to_rows, to_columns))
    down = np.clip((np.arange(to_rows) + 0.5) * rows / to_rows - 0.5, 0, rows - 1)
    across = np.clip((np.arange(to_columns) + 0.5) * columns / to_columns - 0.5, 0, columns - 1)
    assert np.allclose(resampled, np.stack(np.meshgrid(down, across, indexing="ij"), axis=-1), atol=1e-5)


def test_a_picture_beside_others_is_one_square_wherever_it_was_given(onevision: LlavaOnevisionProcessor) -> None:
    picture = blank(60, 40)
    part, text = {"type": "image", "image": picture}, ASK[0]["content"][0]
    alone = onevision.prepare(ASK, MediaInputs(images=[picture]))
    assert shapes(alone) == shapes(onevision.prepare([{"role": "user", "content": [part, text]}])) == [(7, 23, 23, 3)]
    turns = [{"role": "user", "content": [part, text]}, {"role": "assistant", "content": "A."}] * 2
    for prompt in (onevision.prepare(turns[:3]), onevision.prepare(ASK, MediaInputs(images=[picture] * 2))):
        assert shapes(prompt) == [(1, 23, 23, 3)] * 2


def test_words_reach_a_template_that_reads_parts_only(onevision: LlavaOnevisionProcessor) -> None:
    strings = [{"role": "user", "content": "What <image>?"}, {"role": "assistant", "content": "It."}]
    parts = [m | {"content": [{"type": "text", "text": m["content"]}]} for m in strings]
    prompt = onevision.prepare(strings)
    assert "What <image>?" in prompt.text and "It." in prompt.text
    assert prompt.tokens.tolist() == onevision.prepare(parts).tokens.tolist()


def test_frames_that_were_chosen_are_kept_and_a_file_is_sampled(
    onevision: LlavaOnevisionProcessor, tmp_path: Path
) -> None:
    frames = [Image.fromarray(np.full((20, 30, 3), 6 * i, np.uint8)) for i in range(40)]
    file = tmp_path / "long.gif"
    frames[0].save(file, save_all=True, append_images=frames[1:], duration=1000)

    def count(source: object, **how: int) -> int:
        prompt = onevision.prepare(ASK, MediaInputs(videos=[source], **how))
        (medium,) = prompt.media
        assert medium.spans[0][1] - medium.spans[0][0] == 4 * len(medium.pixels) + 1
        return len(medium.pixels)

    assert [count(frames), count(file)] == [40, 32]
    assert [count(frames, max_frames=7), count(file, max_frames=39), count(file, num_frames=3)] == [7, 39, 3]


def test_bounds_in_pixels_are_refused(onevision: LlavaOnevisionProcessor) -> None:
    for given_media in (
        MediaInputs(images=[blank(9, 9)], max_pixels=9),
        MediaInputs(videos=[[blank(9, 9)]], min_pixels=9),
    ):
        with pytest.raises(UnsupportedError, match="_pixels"):
            onevision.prepare(ASK, given_media)


def test_a_huge_picture_is_noticed(capsys: pytest.CaptureFixture[str]) -> None:
    processor = LlavaNextProcessor(None, None, dataclasses.replace(SQUARES, patches=32))
    count = processor.expand("image", blank(300, 300), MediaInputs()).counts[0]
    assert count == 32 * 32 + 64 * 65
    assert capsys.readouterr().err == (
        f"mlx_vlgen: a picture of 300 x 300 pixels becomes {count:,} tokens; "
        "resize_shape (--resize-shape) makes it smaller\n"
    )
    processor.expand("image", blank(300, 300), MediaInputs(resize_shape=(300, 120)))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", ["llava_next", "llava_onevision"])
def test_a_picture_thinner_than_a_patch_has_features_for_its_tokens(
    name: str, load_family: Callable[[str], Family]
) -> None:
    """Of its tiles, next to nothing but ends of lines, or nothing."""
    family = load_family(name)
    for size, side in (((1, 30), 3), ((30, 1), 2)):
        prompt = family.processor.prepare(ASK, MediaInputs(images=[blank(*size)]))
        assert prompt.media[0].grid[side] <= 1  # of an odd number of patches there is one in the middle
        family.model.embed(prompt, family.model.encode(prompt.media))  # raises when they differ in number


def test_rules_that_are_not_known_are_refused(tmp_path: Path) -> None:
    folder = write_checkpoint("llava_onevision", "v5", tmp_path)
    config = read_json(folder / "config.json")
    with pytest.raises(LoadError, match="vision_aspect_ratio is 'anyres'"):
        LlavaOnevisionProcessor.from_folder(folder, config | {"vision_aspect_ratio": "anyres"})


def test_what_published_text_configurations_leave_out_is_as_transformers_has_it() -> None:
    """Those inside LLaVA 1.5 and 1.6: what equals the default of the day was not written."""
    vicuna = text_arguments({"model_type": "llama", "rms_norm_eps": 1e-5, "vocab_size": 32064})
    assert (vicuna["hidden_size"], vicuna["intermediate_size"], vicuna["num_hidden_layers"]) == (4096, 11008, 32)
    mistral = {"model_type": "mistral", "rope_theta": 1e6, "sliding_window": None, "vocab_size": 32064}
    arguments = text_arguments(mistral)
    assert (arguments["num_key_value_heads"], arguments["num_attention_heads"]) == (8, 32)
    assert arguments["rms_norm_eps"] == 1e-6
    assert math.isclose(text_arguments({"model_type": "qwen2"})["rope_theta"], 1e4)
    for window in ({"sliding_window": 4096}, {}):
        unwindowed = {key: value for key, value in mistral.items() if key != "sliding_window"}
        with pytest.raises(LoadError, match="sliding window"):
            text_arguments(unwindowed | window)
    assert text_arguments(mistral | {"sliding_window": 4096, "max_position_embeddings": 4096})


def test_references_cover_pictures_that_are_resampled_and_pictures_that_are_not() -> None:
    with np.load(REFERENCE / "processors" / "llava_onevision" / "pixels.npz") as file:
        grids = [file[name].tolist() for name in file if name.endswith("grid") and len(file[name]) == 6]
    assert {grid[2:4] == grid[4:] for grid in grids} == {True, False}
