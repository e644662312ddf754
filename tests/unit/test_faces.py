"""`generate` and `stream_generate`: every form of a prompt and of media, and the results."""

import inspect
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from face_prompts import QUESTION, SHORT, Loaded, ask, formatted, png
from invariants.family import Family
from parity import media
from PIL import Image

from mlx_vlgen import GenerationResult, generate, stream_generate
from mlx_vlgen.options import _CALLABLES, OPTIONS


@pytest.fixture(scope="module")
def vl(load_family: Callable[[str], Family]) -> Loaded:
    family = load_family("qwen3_vl")
    return family.model, family.processor


# Prompts and media


def test_a_string_messages_and_a_single_message_are_one_request(vl: Loaded) -> None:
    picture = media.picture("plain")
    string = generate(*vl, formatted(vl, 1), picture, **SHORT)
    assert string.tokens == generate(*vl, [{"role": "user", "content": QUESTION}], picture, **SHORT).tokens
    assert string.tokens == generate(*vl, {"role": "user", "content": QUESTION}, picture, **SHORT).tokens
    assert string.tokens == generate(*vl, ask({"type": "image", "image": picture}), **SHORT).tokens
    assert string.tokens == generate(*vl, ask({"type": "image"}), image=[picture], **SHORT).tokens
    assert string.tokens != generate(*vl, formatted(vl), **SHORT).tokens


@pytest.mark.parametrize(
    "form",
    [
        lambda path: str(path),
        lambda path: path,
        lambda path: path.read_bytes(),
        lambda path: io.BytesIO(path.read_bytes()),
        lambda path: Image.open(path),
        lambda path: np.asarray(Image.open(path)),
        lambda path: path.as_uri(),
        lambda path: [path],
        lambda path: (path,),
    ],
    ids=["str", "Path", "bytes", "file", "PIL", "array", "file URL", "list", "tuple"],
)
def test_every_form_of_a_picture_is_the_same_picture(vl: Loaded, pictures: Path, form: Callable[[Path], Any]) -> None:
    expected = generate(*vl, formatted(vl, 1), media.picture("large"), **SHORT).tokens
    assert generate(*vl, formatted(vl, 1), form(pictures / "large.png"), **SHORT).tokens == expected


def test_every_form_of_a_video_is_the_same_video(vl: Loaded, tmp_path: Path) -> None:
    clip = media.clip("clip")
    frames = [Image.fromarray(frame) for frame in clip]
    files = []
    for number, frame in enumerate(frames):
        files.append(tmp_path / f"{number}.png")
        frame.save(files[-1])
    forms = [clip, [clip], frames, [frames], list(clip), files, [str(file) for file in files], tmp_path, str(tmp_path)]
    answers = [
        generate(*vl, formatted(vl, video=form), video=form, video_fps=media.CLIP_FPS, **SHORT).tokens for form in forms
    ]
    assert answers == [answers[0]] * len(forms)
    assert generate(*vl, ask({"type": "video", "video": files}), video_fps=2, **SHORT).tokens == answers[0]
    assert generate(*vl, formatted(vl, video=clip), video=clip, video_fps=1, **SHORT).prompt_tokens > 0


def test_two_videos_are_two_and_frames_are_one(vl: Loaded) -> None:
    clip = media.clip("clip")
    one = generate(*vl, formatted(vl, video=clip), video=clip, **SHORT).prompt_tokens
    text = generate(*vl, formatted(vl), **SHORT).prompt_tokens
    two = generate(*vl, formatted(vl, video=[clip, clip]), video=[clip, clip], **SHORT).prompt_tokens
    assert two - one == one - text > 0


def test_pictures_and_a_video_go_together(vl: Loaded) -> None:
    clip, pictures = media.clip("odd_clip"), [media.picture("plain"), media.picture("upright")]
    string = formatted(vl, 2, clip)
    expected = generate(*vl, string, pictures, video=clip, **SHORT)
    parts = [{"type": "image", "image": picture} for picture in pictures]
    assert generate(*vl, ask(*parts, {"type": "video", "video": clip}), **SHORT).tokens == expected.tokens
    assert expected.image_sizes == [(64, 96), (112, 64)]


def test_media_are_read_in_the_order_of_the_prompt(vl: Loaded) -> None:
    plain, large = media.picture("plain"), media.picture("large")
    result = generate(*vl, ask({"type": "image", "image": plain}, {"type": "image"}), image=large, **SHORT)
    assert result.image_sizes == [(64, 96), (130, 150)]


# Results


def test_a_streams_pieces_join_to_the_answer(vl: Loaded) -> None:
    whole = generate(*vl, formatted(vl), max_tokens=20)
    steps = list(stream_generate(*vl, formatted(vl), max_tokens=20))
    assert "".join(step.text for step in steps) == whole.text
    assert [step.token for step in steps] == whole.tokens == steps[-1].tokens
    assert [step.generation_tokens for step in steps] == list(range(1, len(steps) + 1))
    assert [step.finish_reason for step in steps] == [None] * (len(steps) - 1) + [whole.finish_reason]
    assert all(step.total_tokens == step.prompt_tokens + step.generation_tokens for step in steps)
    assert whole.logprobs.shape[-1] == steps[-1].logprobs.shape[-1] and steps[0].logprobs is None


def test_no_tokens_wanted_give_an_empty_answer(vl: Loaded) -> None:
    result = generate(*vl, formatted(vl, 1), media.picture("plain"), max_tokens=0)
    assert (result.text, result.tokens, result.token, result.finish_reason) == ("", [], None, "length")
    assert result.prompt_tokens > 0 and result.generation_tokens == 0


def test_a_stop_string_ends_the_answer_before_it(vl: Loaded) -> None:
    whole = generate(*vl, formatted(vl), max_tokens=40).text
    stop = whole[5:7]
    cut = generate(*vl, formatted(vl), max_tokens=40, stop=stop)
    assert cut.text == whole[: whole.index(stop)] and cut.finish_reason == "stop"
    assert generate(*vl, formatted(vl), max_tokens=40, stop=["\0", stop]).text == cut.text


def test_verbose_prints_prompt_answer_and_statistics_on_stdout(vl: Loaded, capsys: pytest.CaptureFixture[str]) -> None:
    result = generate(*vl, formatted(vl), verbose=True, **SHORT)
    out, error = capsys.readouterr()
    statistics = (
        f"==========\nPrompt: {result.prompt_tokens} tokens, {result.prompt_tps:.3f} tokens-per-sec\n"
        f"Generation: {result.generation_tokens} tokens, {result.generation_tps:.3f} tokens-per-sec\n"
        f"Peak memory: {result.peak_memory:.3f} GB\n"
    )
    assert out == f"==========\nPrompt: {formatted(vl)}\n\n{result.text}\n{statistics}"
    assert error == ""
    generate(*vl, formatted(vl), **SHORT)
    assert capsys.readouterr().out == ""


def test_a_stream_prints_what_generate_does(vl: Loaded, capsys: pytest.CaptureFixture[str]) -> None:
    def timeless(out: str) -> str:
        return re.sub(r"\d+\.\d{3}", "", out)

    generate(*vl, formatted(vl, 1), media.picture("plain"), verbose=True, **SHORT)
    expected = capsys.readouterr().out
    assert re.search(r" GB\nPictures and video: encoded in \d+\.\d{3} s\n$", expected)
    assert len(list(stream_generate(*vl, formatted(vl, 1), media.picture("plain"), verbose=True, **SHORT))) == 6
    assert timeless(capsys.readouterr().out) == timeless(expected)


def test_verbose_shows_messages_without_the_bytes_of_their_pictures(
    vl: Loaded, capsys: pytest.CaptureFixture[str]
) -> None:
    messages = [{"role": "system", "content": "Be brief."}, *ask({"type": "image", "image": png("plain")})]
    generate(*vl, messages, verbose=True, **SHORT)
    out = capsys.readouterr().out
    assert out.startswith("==========\nPrompt: system: Be brief.\nuser: <image> What is this?\n\n")
    assert "PNG" not in out


def test_an_empty_result_has_the_documented_defaults() -> None:
    result = GenerationResult()
    assert (result.text, result.token, result.logprobs, result.tokens) == ("", None, None, [])
    assert (result.prompt_tokens, result.prompt_tps, result.peak_memory, result.finish_reason) == (0, 0.0, 0.0, None)


# Help


def test_help_names_every_keyword() -> None:
    text = inspect.getdoc(generate) or ""
    for name in (*(option.name for option in OPTIONS), *_CALLABLES, "video", "prompt_progress_callback"):
        assert re.search(rf"\b{name}\b", text), name
