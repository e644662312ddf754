"""`batch_generate`: each row as it is alone, a value for each row, and rows that fail."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from face_prompts import QUESTION, SHORT, Loaded, formatted
from invariants.family import Family
from parity import media
from PIL import Image

from mlx_vlgen import batch_generate, generate
from mlx_vlgen._runtime import mx
from mlx_vlgen.errors import MediaError, PromptError


@pytest.fixture(scope="module")
def vl(load_family: Callable[[str], Family]) -> Loaded:
    family = load_family("qwen3_vl")
    return family.model, family.processor


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
    common = {"temperature": 0.9, "seed": 5, "max_tokens": 8, "logprobs": True}
    common = {key: value for key, value in common.items() if key != name}
    if name == "sampler":
        common.pop("temperature")
    response = batch_generate(*vl, prompts=prompts, **common, **{name: values})
    for prompt, value, result in zip(prompts, values, response.results, strict=True):
        alone = generate(*vl, prompt, **common, **{name: value})
        assert (result.text, result.tokens, result.finish_reason) == (alone.text, alone.tokens, alone.finish_reason)
        assert (result.logprobs is None) == (alone.logprobs is None)
        assert [id for id, _ in result.top_logprobs or ()] == [id for id, _ in alone.top_logprobs or ()]


def test_scores_are_held_where_they_are_asked_for(vl: Loaded) -> None:
    """All results are held until the last one is there: memory does not grow by a row of scores for each."""
    prompts = [formatted(vl, text=f"Word {number}") for number in range(24)]

    def held(**keywords: Any) -> tuple[list[bool], int]:
        mx.clear_cache()
        before = mx.get_active_memory()
        response = batch_generate(*vl, prompts=prompts, max_tokens=2, reuse=False, **keywords)
        grown = mx.get_active_memory() - before
        return [result.logprobs is not None for result in response.results], grown

    row = 4 * len(generate(*vl, prompts[0], max_tokens=1).logprobs)
    (unasked, little), (asked, much) = held(), held(logprobs=True)
    assert not any(unasked) and all(asked)
    assert little < 2 * row and much > 20 * row
    assert held(logprobs=[True, *[None] * 23])[0] == [True, *[False] * 23]


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
