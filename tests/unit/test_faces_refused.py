"""What `generate`, `stream_generate` and `batch_generate` refuse, and with which message."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from face_prompts import Loaded, ask, formatted
from invariants.family import Family
from parity import media

from mlx_vlgen import batch_generate, generate, stream_generate
from mlx_vlgen.errors import MediaError, PromptError, UnsupportedError
from mlx_vlgen.options import OPTIONS


@pytest.fixture(scope="module")
def vl(load_family: Callable[[str], Family]) -> Loaded:
    family = load_family("qwen3_vl")
    return family.model, family.processor


@pytest.mark.parametrize("face", [generate, stream_generate, batch_generate])
@pytest.mark.parametrize(
    ("keyword", "near"),
    [("max_new_tokens", "max_tokens"), ("temp", "temperature"), ("topp", "top_p"), ("stops", "stop"), ("zzz", None)],
)
def test_an_unknown_keyword_is_a_type_error_with_the_nearest_name(
    vl: Loaded, face: Callable[..., Any], keyword: str, near: str | None
) -> None:
    expected = re.escape(f"unknown keyword '{keyword}'" + (f"; did you mean '{near}'?" if near else "")) + "$"
    with pytest.raises(TypeError, match=expected):
        call(face, vl, **{keyword: 1})


def call(face: Callable[..., Any], vl: Loaded, **keywords: Any) -> Any:
    if face is batch_generate:
        return batch_generate(*vl, prompts=[formatted(vl)], **keywords)
    return face(*vl, formatted(vl), **keywords)


def test_singular_and_plural_are_told_apart(vl: Loaded) -> None:
    with pytest.raises(TypeError, match="'images'; did you mean 'image'"):
        generate(*vl, formatted(vl), images=[])
    with pytest.raises(TypeError, match="'video'; did you mean 'videos'"):
        batch_generate(*vl, prompts=[formatted(vl)], video=None)


@pytest.mark.parametrize("face", [generate, stream_generate, batch_generate])
def test_a_prompt_cache_of_another_kind_is_refused(vl: Loaded, face: Callable[..., Any]) -> None:
    with pytest.raises(TypeError, match=r"^prompt_cache=9: expected a PrefixCache"):
        call(face, vl, prompt_cache=9)
    call(face, vl, prompt_cache=None, max_tokens=1)


@pytest.mark.parametrize("face", [generate, stream_generate, batch_generate])
def test_none_stands_for_every_default(vl: Loaded, face: Callable[..., Any]) -> None:
    call(face, vl, **{option.name: None for option in OPTIONS if option.name != "max_tokens"}, max_tokens=1)


@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        ({"max_tokens": "5"}, TypeError, "max_tokens='5': expected a whole number"),
        ({"max_tokens": 1.5}, TypeError, "max_tokens=1.5: expected a whole number"),
        ({"max_tokens": True}, TypeError, "max_tokens=True: expected a whole number"),
        ({"max_tokens": -1}, ValueError, "max_tokens=-1: expected at least 0"),
        ({"temperature": "warm"}, TypeError, "temperature='warm': expected a number"),
        ({"temperature": float("nan")}, ValueError, "temperature=nan: expected a finite number"),
        ({"temperature": -0.1}, ValueError, "temperature=-0.1: expected at least 0"),
        ({"top_p": 1.1}, ValueError, "top_p=1.1: expected 0 to 1"),
        ({"top_k": -2}, ValueError, "top_k=-2: expected"),
        ({"stop": ""}, ValueError, "stop: an empty string"),
        ({"stop": [5]}, TypeError, "stop=5: expected text"),
        ({"eos_tokens": [1.5]}, TypeError, "eos_tokens=1.5: expected a token's text or id"),
        ({"max_time": 0}, ValueError, "max_time=0: expected more than 0"),
        ({"skip_special_tokens": "yes"}, TypeError, "skip_special_tokens='yes': expected True or False"),
        ({"enable_thinking": 1}, TypeError, "enable_thinking=1: expected True or False"),
        ({"resize_shape": 224}, ValueError, "resize_shape=224: expected 2 numbers"),
        ({"resize_shape": (0, 5)}, ValueError, "resize_shape=0: expected more than 0"),
        ({"max_pixels": 0}, ValueError, "max_pixels=0: expected more than 0"),
        ({"max_frames": 0}, ValueError, "max_frames=0: expected more than 0"),
        ({"video_fps": 0.0}, ValueError, "video_fps=0.0: expected more than 0"),
        ({"prefill_step_size": 0}, ValueError, "prefill_step_size=0: expected more than 0"),
    ],
)
@pytest.mark.parametrize("face", [generate, stream_generate, batch_generate])
def test_bad_values_are_refused_by_name_before_anything_runs(
    vl: Loaded, face: Callable[..., Any], keywords: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        call(face, vl, **keywords)


def test_a_list_where_one_value_belongs_is_refused(vl: Loaded) -> None:
    with pytest.raises(TypeError, match=re.escape("temperature=[0.5]: expected a number")):
        generate(*vl, formatted(vl), temperature=[0.5])
    with pytest.raises(TypeError, match=re.escape("max_pixels=[4096, 4096]: expected a whole number")):
        batch_generate(*vl, prompts=[formatted(vl)] * 2, max_pixels=[4096, 4096])


def test_numpys_numbers_are_numbers(vl: Loaded) -> None:
    result = generate(*vl, formatted(vl), max_tokens=np.int64(3), temperature=np.float32(0.5), seed=np.int32(1))
    assert result.generation_tokens == 3


def test_a_model_and_a_processor_that_are_swapped_are_told_so(vl: Loaded) -> None:
    model, processor = vl
    for face in (generate, stream_generate, batch_generate):
        with pytest.raises(TypeError, match="model and processor may be swapped"):
            face(processor, model, prompts="Hello") if face is batch_generate else face(processor, model, "Hello")


def test_audio_is_refused(vl: Loaded) -> None:
    for face in (generate, stream_generate):
        with pytest.raises(UnsupportedError, match=r"^audio: this model does not hear"):
            face(*vl, formatted(vl), audio="a.wav")
    with pytest.raises(UnsupportedError, match=r"^audios: this model does not hear"):
        batch_generate(*vl, prompts=[formatted(vl)], audios=["a.wav"])
    with pytest.raises(UnsupportedError, match="audio was given, and this model takes only text, pictures and vid"):
        generate(*vl, ask({"type": "audio", "audio": "a.wav"}))


def test_no_audio_is_none(vl: Loaded) -> None:
    for face in (generate, stream_generate):
        for audio in ([], (), None):
            assert face(*vl, formatted(vl), audio=audio, max_tokens=1)
    for audios in ([], None, [None, None], [[], None]):
        assert len(batch_generate(*vl, audios=audios, prompts=[formatted(vl)] * 2, max_tokens=1).texts) == 2
    with pytest.raises(ValueError, match=r"^audios: 1 given for 2 prompts"):
        batch_generate(*vl, audios=[None], prompts=[formatted(vl)] * 2)


@pytest.mark.parametrize("prompt", [None, 5, b"bytes", [], ()])
def test_what_is_no_prompt_is_told_so(vl: Loaded, prompt: Any) -> None:
    with pytest.raises(PromptError, match=r"^a prompt is a string, a message or a list of messages; this is a"):
        generate(*vl, prompt)


def test_media_that_do_not_fit_the_prompt_are_counted(vl: Loaded) -> None:
    with pytest.raises(PromptError, match=re.escape("has 0 placeholders <|image_pad|> and 1 picture was given")):
        generate(*vl, formatted(vl), media.picture("plain"))
    with pytest.raises(PromptError, match=re.escape("has 2 placeholders <|image_pad|> and 1 picture was given")):
        generate(*vl, formatted(vl, 2), media.picture("plain"))
    with pytest.raises(PromptError, match=re.escape("has 1 placeholder <|video_pad|> and 0 videos were given")):
        generate(*vl, formatted(vl, video="clip.mp4"))


def test_a_stream_raises_what_is_wrong_with_its_request(vl: Loaded) -> None:
    with pytest.raises(MediaError, match=r"nowhere\.png: no such file"):
        list(stream_generate(*vl, formatted(vl, 1), "nowhere.png"))
