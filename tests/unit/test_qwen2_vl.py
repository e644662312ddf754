"""Qwen2-VL and Qwen2.5-VL: windows, a video's times, its frames' sizes, and configurations of every age."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from invariants.family import Family
from parity import media

from mlx_vlgen.errors import LoadError, PromptError
from mlx_vlgen.inputs import qwen_vl
from mlx_vlgen.inputs.images import PixelSettings
from mlx_vlgen.inputs.kinds import KINDS
from mlx_vlgen.inputs.prompt import Media, MediaInputs, Prompt
from mlx_vlgen.inputs.qwen2_vl import Qwen2VLProcessor
from mlx_vlgen.models.mrope import rotary_positions
from mlx_vlgen.models.qwen2_5_vl import window_order
from mlx_vlgen.models.qwen2_vl import text_arguments

sides = st.integers(1, 30)


@given(sides, sides, st.integers(1, 6))
def test_windows_are_squares_of_the_grid_cut_at_its_edges(rows: int, columns: int, side: int) -> None:
    order, runs = window_order(rows, columns, side)
    assert sorted(order) == list(range(rows * columns))
    assert len(runs) <= 4
    windows, start = [], 0
    for count, size in runs:
        for _ in range(count):
            windows.append(order[start : start + size].tolist())
            start += size
    grid = np.arange(rows * columns).reshape(rows, columns)
    corners = [(top, left) for top in range(0, rows, side) for left in range(0, columns, side)]
    squares = [grid[top : top + side, left : left + side].ravel().tolist() for top, left in corners]
    assert sorted(windows) == sorted(squares)


# Times that transformers gives to a video of so many groups of frames, one token high and two wide.
TIMES = [
    (2, 3.0, [0, 1, 2, 4, 5, 6, 8]),
    (2, 1.9, [0, 2, 4, 6, 8, 10, 12, 14]),
    (25, 2.0, [0, 25, 50]),
    (4, 9.99, [0, 0, 1, 2, 3, 4]),
]


@pytest.mark.parametrize(("tokens_per_second", "fps", "times"), TIMES)
def test_a_videos_positions_tell_the_time(tokens_per_second: int, fps: float, times: list[int]) -> None:
    count = 2 * len(times)
    clip = Media("video", np.empty(0), (len(times), 2, 4), ((3, 3 + count),), (28, 56), seconds=2 / fps)
    positions, delta = rotary_positions(Prompt(np.zeros(count + 5, np.int32), (clip,)), 2, tokens_per_second)
    time, row, column = positions
    assert (time[3:-2].reshape(-1, 2) == 3 + np.array(times)[:, None]).all()
    assert (row[3:-2] == 3).all() and (column[3:-2].reshape(-1, 2) == [3, 4]).all()
    assert (positions[:, :3] == [0, 1, 2]).all() and (positions[:, -2:] == [5, 6]).all()
    assert delta == 7 - (count + 5)  # decoded tokens run on from the last text
    steps = rotary_positions(Prompt(np.zeros(count + 5, np.int32), (clip,)), 2)[0][0]
    assert (steps[3:-2].reshape(-1, 2) == 3 + np.arange(len(times))[:, None]).all()  # Qwen2-VL counts groups


def test_a_clips_pace_is_of_its_kept_frames(qwen: Family) -> None:
    clip = np.zeros((8, 56, 56, 3), np.uint8)

    def prompt(**settings: float) -> Media:
        return qwen.processor.prepare("<|video_pad|>", MediaInputs(videos=[clip], **settings)).media[0]

    assert prompt().seconds == 1.0
    assert prompt(video_fps=4.0).seconds == 0.5
    assert prompt(video_fps=4.0, num_frames=2).seconds == 2.0
    assert prompt().key != prompt(video_fps=4.0).key


@pytest.fixture(scope="module")
def qwen(load_family: Callable[[str], Family]) -> Family:
    return load_family("qwen2_5_vl")


# (frames, height, width), then what transformers makes of the frames without and with a cap of 1,000 tokens.
SIZES = [
    ((4, 360, 640), (364, 644), (364, 644)),
    ((9, 360, 640), (364, 644), (280, 504)),
    ((300, 540, 960), (532, 952), (28, 84)),
    ((3, 100, 30), (112, 28), (112, 28)),
]


def test_settings_for_pictures_serve_for_videos(qwen: Family, tmp_path: Path) -> None:
    """As in the originals on the Hub; a file for videos comes before, and may bound all frames together."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(qwen.folder / name, tmp_path)
    published = {"min_pixels": 3136, "max_pixels": 12845056, "patch_size": 14, "merge_size": 2}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(published))
    shared = Qwen2VLProcessor.from_folder(tmp_path, {"vision_config": {}})
    assert shared.video_settings == shared.image_settings
    capped = {"size": {"shortest_edge": 3136, "longest_edge": 12845056}, "cap_pixels_per_frame": True}
    (tmp_path / "video_preprocessor_config.json").write_text(json.dumps(capped | {"max_video_tokens": 1000}))
    processor = Qwen2VLProcessor.from_folder(tmp_path, {"vision_config": {}})
    for frames, plain, bounded in SIZES:
        assert shared.frame_size(*frames, MediaInputs()) == plain
        assert processor.frame_size(*frames, MediaInputs()) == bounded
    (tmp_path / "video_preprocessor_config.json").write_text("{}")
    (tmp_path / "preprocessor_config.json").write_text("{}")
    silent = Qwen2VLProcessor.from_folder(tmp_path, {"vision_config": {}})
    assert (silent.image_settings.min_pixels, silent.image_settings.max_pixels) == (56 * 56, 28 * 28 * 1280)
    assert (silent.video_settings.min_pixels, silent.video_settings.max_pixels) == (128 * 28 * 28, 28 * 28 * 768)
    assert silent.image_settings.mean == (0.48145466, 0.4578275, 0.40821073)


def test_bounds_are_of_each_frame(qwen: Family) -> None:
    """Whatever their number: only Qwen3-VL bounds the whole."""
    for frames in (2, 40):
        clip = np.repeat(media.clip("clip")[:1], frames, axis=0)
        prompt = qwen.processor.prepare("<|video_pad|>", MediaInputs(videos=[clip], max_pixels=8 * 28 * 28))
        assert prompt.media[0].grid == (frames // 2, 4, 6)


def test_a_video_of_many_tokens_is_told_and_one_of_too_many_refused_before_pixels_are_made(
    qwen: Family, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Published Qwen2.5-VL has no settings for videos: a minute of 1080p becomes 161,460 tokens."""
    settings = PixelSettings(min_pixels=3136, max_pixels=12845056, patch=14)
    limited = Qwen2VLProcessor(qwen.processor.tokenizer, None, settings, settings)
    clip = np.zeros((12, 280, 560, 3), np.uint8)
    monkeypatch.setitem(KINDS, "video", replace(KINDS["video"], many_tokens=1199))
    limited.prepare("<|video_pad|>", MediaInputs(videos=[clip]))
    notice = capsys.readouterr().err
    assert "a video of 560 x 280 pixels becomes 1,200 tokens; max_pixels (--max-pixels)" in notice
    assert "video_fps (--video-fps) or max_frames (--max-frames)" in notice
    monkeypatch.setattr(qwen_vl, "_resize_frames", None)
    limited.max_positions = 1199
    with pytest.raises(PromptError, match=r"becomes 1,200 tokens and the model has 1,199 positions: max_pixels"):
        limited.prepare("<|video_pad|>", MediaInputs(videos=[clip]))


def test_pictures_of_too_many_tokens_are_refused_before_the_rest_is_read(qwen: Family) -> None:
    limited = Qwen2VLProcessor(
        qwen.processor.tokenizer, None, qwen.processor.image_settings, qwen.processor.video_settings
    )
    picture = media.picture("plain")
    limited.max_positions = count = sum(end - start for start, end in prompt_of(limited, picture).media[0].spans)
    with pytest.raises(PromptError, match=f"2 of 3 pictures and videos become {2 * count} tokens and the model"):
        prompt_of(limited, picture, picture, "no/such/file.png")
    limited.max_positions = count - 1
    with pytest.raises(PromptError, match=f"a picture of .* becomes {count} tokens and the model has {count - 1}"):
        prompt_of(limited, picture)


def prompt_of(processor: Qwen2VLProcessor, *pictures: Any) -> Prompt:
    return processor.prepare("<|image_pad|>" * len(pictures), MediaInputs(images=pictures))


# Configurations

FLAT = {"model_type": "qwen2_vl", "hidden_size": 64, "num_attention_heads": 4, "vision_config": {}}


def test_a_text_decoder_is_described_in_two_ways() -> None:
    sections = {"type": "mrope", "mrope_section": [2, 3, 3]}
    flat = text_arguments(FLAT | {"rope_theta": 5e4, "rope_scaling": sections, "tie_word_embeddings": True})
    inner = {"hidden_size": 64, "num_attention_heads": 4, "tie_word_embeddings": True}
    nested = text_arguments({"text_config": inner | {"rope_parameters": sections | {"rope_theta": 5e4}}})
    for arguments in (flat, nested):
        assert arguments["model_type"] == "qwen2" and arguments["tie_word_embeddings"] is True
        assert (arguments["rope_theta"], arguments["rope_scaling"]["mrope_section"]) == (5e4, [2, 3, 3])
        assert (arguments["num_key_value_heads"], arguments["rms_norm_eps"]) == (8, 1e-5)  # as transformers assumes
    assert text_arguments(FLAT)["rope_theta"] == 1e6 and text_arguments(FLAT)["tie_word_embeddings"] is False


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        ({"type": "linear", "factor": 4.0}, "rotary positions of the type 'linear'"),
        ({"type": "yarn"}, "rotary positions of the type 'yarn' and gives no factor"),
        ({"type": "yarn", "factor": 4.0, "truncate": False}, "truncate = false"),
    ],
)
def test_stretched_positions_that_are_not_computed_are_refused(scaling: dict[str, Any], message: str) -> None:
    with pytest.raises(LoadError, match=message):
        text_arguments(FLAT | {"rope_scaling": {"mrope_section": [2, 3, 3]} | scaling})
