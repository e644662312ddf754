"""generate, stream_generate, batch_generate: what they take, what they give back, what they refuse."""

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from invariants.family import Family
from parity import media
from PIL import Image

from mlx_vlgen import GenerationResult, apply_chat_template, batch_generate, generate, stream_generate
from mlx_vlgen.errors import MediaError, PromptError, UnsupportedError
from mlx_vlgen.options import LATER, OPTIONS

Loaded = tuple[Any, Any]

SHORT = {"max_tokens": 6}
QUESTION = "What is this?"


@pytest.fixture(scope="module")
def vl(load_family: Callable[[str], Family]) -> Loaded:
    family = load_family("qwen3_vl")
    return family.model, family.processor


def ask(*parts: dict[str, Any], text: str = QUESTION) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


def formatted(vl: Loaded, images: int = 0, video: Any = None, text: str = QUESTION) -> str:
    return apply_chat_template(vl[1], vl[0].config, text, num_images=images, video=video)


def png(name: str) -> bytes:
    out = io.BytesIO()
    Image.fromarray(media.picture(name)).save(out, "PNG")
    return out.getvalue()


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


# What is refused


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
def test_keywords_still_to_come_are_refused_by_name_and_their_defaults_accepted(
    vl: Loaded, face: Callable[..., Any]
) -> None:
    for name in LATER:
        with pytest.raises(UnsupportedError, match=f"^{name}=9: this version does not have it yet"):
            call(face, vl, **{name: 9})
    call(face, vl, **dict.fromkeys(LATER), max_tokens=1)
    call(face, vl, **LATER, max_tokens=1)


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


# Batches


def test_a_batch_gives_each_prompt_what_it_gets_alone(vl: Loaded) -> None:
    pictures = [media.picture("plain"), [media.picture("large"), media.picture("small")], None]
    prompts = [formatted(vl, 1), formatted(vl, 2), [{"role": "user", "content": "Hello"}]]
    response = batch_generate(*vl, images=pictures, prompts=prompts, **SHORT)
    alone = [generate(*vl, prompt, image, **SHORT) for prompt, image in zip(prompts, pictures, strict=True)]
    assert response.texts == [result.text for result in alone] == [result.text for result in response.results]
    assert [result.tokens for result in response.results] == [result.tokens for result in alone]
    assert response.image_sizes == [[(64, 96)], [(130, 150), (30, 40)], []]
    apart = batch_generate(*vl, images=pictures, prompts=prompts, group_by_shape=False, **SHORT)
    assert apart.texts == response.texts


def test_videos_come_one_a_prompt(vl: Loaded) -> None:
    clip = media.clip("clip")
    prompts = [formatted(vl, video=clip), formatted(vl)]
    response = batch_generate(*vl, prompts=prompts, videos=[clip, None], **SHORT)
    assert response.texts[0] == generate(*vl, prompts[0], video=clip, **SHORT).text


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("max_tokens", [1, 4, 7]),
        ("temperature", [None, 0.8, 1.5]),
        ("top_p", [1.0, 0.5, 0.9]),
        ("top_k", [0, 3, -1]),
        ("min_p", [0.0, 0.3, 0.1]),
        ("seed", [1, 2, 1]),
        ("stop", [["a"], None, ["e", "o"]]),
        ("eos_tokens", [[5], None, ["<|im_end|>"]]),
        ("max_time", [None, 60.0, 60]),
        ("skip_special_tokens", [True, False, True]),
        ("include_eos", [True, False, None]),
        ("logits_processors", [[lambda tokens, logits: -logits], None, []]),
        ("sampler", [lambda scores: scores.argmin(axis=-1), None, None]),
        ("stopping_criteria", [[lambda tokens, logits: True], None, []]),
        ("logprobs", [True, False, True]),
        ("top_logprobs", [0, 2, 1]),
        ("enable_thinking", [False, None, False]),
    ],
)
def test_every_keyword_takes_one_value_a_row(vl: Loaded, name: str, values: list[Any]) -> None:
    prompts = [formatted(vl, text=text) for text in ("One", "Two words", "And three words")]
    common = {"temperature": 0.9, "seed": 5, "max_tokens": 8}
    common = {key: value for key, value in common.items() if key != name}
    if name == "sampler":
        common.pop("temperature")
    response = batch_generate(*vl, prompts=prompts, **common, **{name: values})
    for prompt, value, result in zip(prompts, values, response.results, strict=True):
        alone = generate(*vl, prompt, **common, **{name: value})
        assert (result.text, result.tokens, result.finish_reason) == (alone.text, alone.tokens, alone.finish_reason)
        assert (result.logprobs is None) == (alone.logprobs is None)
        assert [id for id, _ in result.top_logprobs or ()] == [id for id, _ in alone.top_logprobs or ()]


def test_a_list_of_strings_is_one_value_for_all_rows(vl: Loaded) -> None:
    prompts = [formatted(vl, text=text) for text in ("One", "Two words")]
    response = batch_generate(*vl, prompts=prompts, max_tokens=30, stop=["a", "e"])
    assert response.texts == [generate(*vl, prompt, max_tokens=30, stop=["a", "e"]).text for prompt in prompts]


@pytest.mark.parametrize(
    "keywords",
    [
        {"images": ["a.png"]},
        {"images": ["a.png"] * 3},
        {"images": "a.png"},
        {"videos": ["a.mp4"]},
        {"temperature": [0.5]},
        {"max_tokens": [1, 2, 3]},
        {"stop": [["a"]]},
        {"enable_thinking": [True]},
    ],
    ids=str,
)
def test_lists_of_another_length_are_a_value_error_that_counts(vl: Loaded, keywords: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"^{next(iter(keywords))}: [13] given for 2 prompts; give one for each"):
        batch_generate(*vl, prompts=[formatted(vl), formatted(vl)], **keywords)


@pytest.mark.parametrize("prompts", [None, [], ()])
def test_no_prompts_give_an_empty_response(vl: Loaded, prompts: Any) -> None:
    response = batch_generate(*vl, prompts=prompts)
    assert (response.texts, response.results, response.image_sizes) == ([], [], [])
    assert (response.stats.prompt_tokens, response.stats.generation_tps) == (0, 0.0)


def test_one_prompt_need_not_be_listed(vl: Loaded) -> None:
    picture = media.picture("plain")
    for prompt in (formatted(vl, 1), {"role": "user", "content": QUESTION}):
        response = batch_generate(*vl, images=picture, prompts=prompt, **SHORT)  # type: ignore[arg-type]
        assert response.texts == [generate(*vl, prompt, picture, **SHORT).text]
        assert response.image_sizes == [(64, 96)]


def test_image_sizes_are_flat_where_each_prompt_has_one_picture(vl: Loaded) -> None:
    prompts, pictures = [formatted(vl, 1)] * 2, [media.picture("small"), media.picture("upright")]
    assert batch_generate(*vl, images=pictures, prompts=prompts, max_tokens=1).image_sizes == [(30, 40), (112, 64)]
    assert batch_generate(*vl, pictures, None, prompts, 1, track_image_sizes=False).image_sizes is None


def test_a_row_that_fails_leaves_the_others_answered(vl: Loaded, pictures: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    buffer = io.BytesIO()
    Image.fromarray(media.picture("large")).save(buffer, "JPEG")
    broken.write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    good = pictures / "plain.png"
    prompts: list[Any] = [formatted(vl, 1)] * 5 + [formatted(vl, 2), None, ""]
    images = [good, tmp_path / "missing.png", good, broken, good, good, None, None]
    response = batch_generate(*vl, images=images, prompts=prompts, **SHORT)
    expected = generate(*vl, prompts[0], good, **SHORT)
    assert [result.finish_reason == "error" for result in response.results] == [0, 1, 0, 1, 0, 1, 1, 1]
    for row in (0, 2, 4):
        assert (response.texts[row], response.results[row].tokens) == (expected.text, expected.tokens)
    errors = [result.error for result in response.results]
    assert isinstance(errors[1], MediaError) and "missing.png: no such file" in str(errors[1])
    assert isinstance(errors[3], MediaError) and "broken.jpg: the JPEG is truncated" in str(errors[3])
    assert isinstance(errors[5], PromptError) and isinstance(errors[6], PromptError)
    assert isinstance(errors[7], PromptError) and "the prompt is empty" in str(errors[7])
    assert [response.texts[row] for row in (1, 3, 5, 6, 7)] == [""] * 5
    assert response.stats.generation_tokens == 3 * expected.generation_tokens


def test_statistics_are_sums_over_the_rows(vl: Loaded, capsys: pytest.CaptureFixture[str]) -> None:
    response = batch_generate(*vl, prompts=[formatted(vl), formatted(vl, text="And this?")], verbose=True, **SHORT)
    stats, results = response.stats, response.results
    assert stats.prompt_tokens == sum(result.prompt_tokens for result in results)
    assert stats.generation_tokens == sum(result.generation_tokens for result in results)
    assert stats.prompt_tps == pytest.approx(stats.prompt_tokens / stats.prompt_time)
    assert stats.generation_tps == pytest.approx(stats.generation_tokens / stats.generation_time)
    assert stats.peak_memory == max(result.peak_memory for result in results) > 0
    assert f"\nGeneration: {stats.generation_tokens} tokens, {stats.generation_tps:.3f} tok" in capsys.readouterr().out


def test_an_empty_result_has_the_documented_defaults() -> None:
    result = GenerationResult()
    assert (result.text, result.token, result.logprobs, result.tokens) == ("", None, None, [])
    assert (result.prompt_tokens, result.prompt_tps, result.peak_memory, result.finish_reason) == (0, 0.0, 0.0, None)
