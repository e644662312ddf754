"""A processor's media: settings of the request, spans, sizes, and what a person is told."""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from invariants.family import Family
from parity import media
from PIL import Image

from mlx_vlgen import apply_chat_template
from mlx_vlgen.errors import MediaError
from mlx_vlgen.inputs.processor import Processor
from mlx_vlgen.inputs.prompt import MediaInputs, Prompt
from mlx_vlgen.inputs.qwen_vl import Qwen3VLProcessor

CLIP = media.clip("clip")  # (6, 100, 150, 3)


@pytest.fixture(scope="module")
def qwen(load_family: Callable[[str], Family]) -> Any:
    return load_family("qwen3_vl").processor


@pytest.fixture(scope="module")
def roomy(qwen: Any) -> Qwen3VLProcessor:
    """With the bounds that Qwen3-VL is published with."""
    pictures = dataclasses.replace(qwen.image_settings, min_pixels=65536, max_pixels=16777216)
    videos = dataclasses.replace(qwen.video_settings, min_pixels=4096, max_pixels=25165824)
    return Qwen3VLProcessor(qwen.tokenizer, qwen.chat_template, pictures, videos)


def picture(processor: Processor, source: Any, **settings: Any) -> Prompt:
    string = apply_chat_template(processor, {}, "Hi", num_images=1)
    return processor.prepare(string, MediaInputs(images=[source], **settings))


def video(processor: Processor, source: Any, **settings: Any) -> Prompt:
    string = apply_chat_template(processor, {}, "Hi", video=[source] if isinstance(source, np.ndarray) else source)
    return processor.prepare(string, MediaInputs(videos=[source], **settings))


def blank(width: int, height: int) -> Image.Image:
    return Image.new("RGB", (width, height), "teal")


def side(prompt: Prompt) -> tuple[int, int]:
    """Height and width of the processed frames, in pixels."""
    return prompt.media[0].grid[1] * 16, prompt.media[0].grid[2] * 16


def test_each_feature_has_one_token_in_the_spans(qwen: Any) -> None:
    string = apply_chat_template(qwen, {}, "Hi", num_images=2, video=[CLIP])
    inputs = MediaInputs(images=[media.picture("large"), media.picture("small")], videos=[CLIP])
    prompt = qwen.prepare(string, inputs)
    ids = {kind: qwen.tokenizer.convert_tokens_to_ids(token) for kind, token in qwen.placeholders.items()}
    covered = np.zeros(len(prompt.tokens), dtype=bool)
    for one in prompt.media:
        assert sum(end - start for start, end in one.spans) == len(one.pixels) // 4 == np.prod(one.grid) // 4
        for start, end in one.spans:
            assert (prompt.tokens[start:end] == ids[one.kind]).all() and not covered[start:end].any()
            covered[start:end] = True
    assert covered.sum() == np.isin(prompt.tokens, list(ids.values())).sum()
    assert [one.kind for one in prompt.media] == ["image", "image", "video"]
    assert len(prompt.media[2].spans) == prompt.media[2].grid[0] == 3  # one span for each pair of frames


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, (608, 896)),
        ({"resize_shape": (300, 500)}, (288, 512)),
        ({"resize_shape": (10, 10)}, (256, 256)),
        ({"max_pixels": 100_000}, (256, 384)),
        ({"min_pixels": 1_000_000}, (832, 1248)),
        ({"max_pixels": 1}, (32, 32)),
        ({"min_pixels": 500_000, "max_pixels": 500_000}, (576, 864)),
        ({"resize_shape": (900, 600), "max_pixels": 100_000}, (384, 256)),
    ],
    ids=str,
)
def test_a_pictures_size_is_what_was_asked(roomy: Any, settings: dict[str, Any], expected: tuple[int, int]) -> None:
    prompt = picture(roomy, blank(900, 600), **settings)
    assert side(prompt) == expected
    assert prompt.media[0].size == (600, 900)  # the original's


def test_bounds_that_contradict_each_other_are_refused(roomy: Any) -> None:
    for face, source in ((picture, blank(64, 64)), (video, CLIP)):
        with pytest.raises(ValueError, match="min_pixels=2000, max_pixels=1000: expected 0 < min_pixels <= max_pixels"):
            face(roomy, source, min_pixels=2000, max_pixels=1000)


def test_a_thin_picture_is_named_and_may_be_resized(roomy: Any, tmp_path: Path) -> None:
    path = tmp_path / "thin.png"
    blank(201, 1).save(path)
    with pytest.raises(MediaError, match=r"thin\.png: a picture of 201 x 1 pixels is too thin.*resize_shape"):
        picture(roomy, path)
    assert side(picture(roomy, path, resize_shape=(64, 640))) == (96, 832)
    with pytest.raises(MediaError, match="too thin"):
        video(roomy, np.zeros((2, 40, 8040, 3), np.uint8))


def test_a_tiny_picture_is_enlarged(roomy: Any) -> None:
    prompt = picture(roomy, blank(1, 1))
    assert side(prompt) == (256, 256) and prompt.media[0].size == (1, 1)


def test_a_huge_picture_is_noticed(roomy: Any, capsys: pytest.CaptureFixture[str]) -> None:
    picture(roomy, blank(2048, 2048))
    assert capsys.readouterr() == ("", "")  # 4,096 tokens
    picture(roomy, blank(2080, 2048))
    out, error = capsys.readouterr()
    assert out == ""
    assert error == (
        "mlx_vlgen: a picture of 2080 x 2048 pixels becomes 4,160 tokens; "
        "max_pixels (--max-pixels) makes it smaller: 4194304 gives 4,096\n"
    )
    picture(roomy, blank(2080, 2048), max_pixels=4194304)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("settings", "frames"),
    [({}, 6), ({"num_frames": 2}, 2), ({"num_frames": 9}, 10), ({"max_frames": 4}, 4), ({"max_frames": 99}, 6)],
    ids=str,
)
def test_frames_are_chosen_as_asked(roomy: Any, settings: dict[str, Any], frames: int) -> None:
    assert video(roomy, CLIP, **settings).media[0].grid[0] * 2 == frames


def test_the_rate_of_frames_gives_them_their_times(qwen: Any) -> None:
    def times(prompt: Prompt) -> list[str]:
        return re.findall(r"<([0-9.]+) seconds>", qwen.tokenizer.decode(prompt.tokens))

    assert times(video(qwen, CLIP, video_fps=1.0)) == ["0.5", "2.5", "4.5"]
    assert times(video(qwen, CLIP)) == ["0.2", "1.2", "2.2"]  # two a second; 0.25 is written as 0.2
    assert times(video(qwen, CLIP[:5], video_fps=1.0)) == ["0.5", "2.5", "4.0"]  # the last frame twice


def test_a_videos_frames_are_bounded_one_by_one_and_together(roomy: Any) -> None:
    frames = np.zeros((8, 600, 900, 3), np.uint8)
    assert side(video(roomy, frames)) == (608, 896)
    assert side(video(roomy, frames, max_pixels=100_000)) == (256, 384)
    assert side(video(roomy, frames, min_pixels=1_000_000)) == (832, 1248)
    assert side(video(roomy, frames, resize_shape=(300, 500))) == (288, 512)
    tight = Qwen3VLProcessor(
        roomy.tokenizer, None, roomy.image_settings, dataclasses.replace(roomy.video_settings, max_pixels=8 * 100_000)
    )
    prompt = tight.prepare(roomy.placeholders["video"], MediaInputs(videos=[frames], max_pixels=1 << 24))
    assert side(prompt) == (256, 384)


def test_one_frame_is_a_video(roomy: Any) -> None:
    prompt = video(roomy, CLIP[:1])
    assert prompt.media[0].grid[0] == 1 and side(prompt) == (96, 160)
