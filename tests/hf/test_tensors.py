"""Prompts as tensors and back: nothing is lost, and for Qwen and GLM they are those of transformers."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from parity import expected, media
from parity.layouts import REFERENCE, assemble, read_json
from parity.recipe import holds_audio
from parity.recipes import recipes

from mlx_vlgen._runtime import mx
from mlx_vlgen.errors import PromptError, UnsupportedError
from mlx_vlgen.inputs.processor import Processor
from mlx_vlgen.inputs.prompt import Media, MediaInputs, Prompt
from mlx_vlgen.inputs.tensors import pack, unpack
from mlx_vlgen.loading.checkpoint import read_config
from mlx_vlgen.models import find

FAMILIES = expected.families()
SEEING = [name for name in FAMILIES if expected.record(name)["processor"]]
GRIDDED = ["qwen3_vl", "qwen2_vl", "qwen2_5_vl", "glm4v"]
MIXES = ["qwen2_5_vl", "llava_onevision", "smolvlm", "pixtral", "gemma4"]


@cache
def processor(family: str) -> Processor:
    """A family's, from a checkpoint without weights."""
    with TemporaryDirectory() as place:
        folder = media.DEMO / "model"
        if family != "demo":
            config = read_json(REFERENCE / family / "config.json")
            folder = assemble(recipes()[family], config, {}, "v5", Path(place) / family)
        loaded: Processor = find(read_config(folder)).load_processor(folder, read_config(folder))
    return loaded


@cache
def prompts(family: str) -> dict[str, Prompt]:
    """The prompts of a family's cases."""
    prepared = {}
    for name, case in expected.record(family)["cases"].items():
        inputs = MediaInputs(
            images=[media.picture(item) for item in case["images"]],
            videos=[media.clip(item) for item in case["videos"]],
            audios=[media.sound(item) for item in case.get("audios", ())],
            video_fps=media.CLIP_FPS if case["videos"] else None,
            use_audio_in_video=bool(case.get("audios")) and not holds_audio(case["messages"]),
        )
        prepared[name] = processor(family).prepare(case["text"], inputs)
    return prepared


def pad_token(family: str) -> int:
    token: int = processor(family).tokenizer.pad_token_id
    return token


def summary(family: str, prompt: Prompt) -> tuple[Any, ...]:
    """All of a prompt that a model takes, but for pixels' values."""
    shapes = [processor(family).pixel_values(item).shape for item in prompt.media]
    parts = [(item.kind, item.grid, item.spans, item.seconds, item.extent) for item in prompt.media]
    return prompt.tokens.tolist(), prompt.tokens.dtype, prompt.two_way, shapes, parts


def same(family: str, one: Prompt, other: Prompt) -> bool:
    """Whether they are the same to a model."""
    pixels = zip(*(map(processor(family).pixel_values, prompt.media) for prompt in (one, other)), strict=True)
    return summary(family, one) == summary(family, other) and all((item == back).all() for item, back in pixels)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_of_every_case_comes_back_as_it_was(family: str) -> None:
    rows = list(prompts(family).values())
    back = unpack(processor(family), pack(processor(family), rows, pad_token(family)))
    assert len(rows) == len(back) and all(same(family, row, other) for row, other in zip(rows, back, strict=True))


@given(data=st.data())
@pytest.mark.parametrize("family", MIXES)
def test_any_mix_of_rows_comes_back_as_it_was(family: str, data: st.DataObject) -> None:
    names = data.draw(st.lists(st.sampled_from(sorted(prompts(family))), min_size=1, max_size=4))
    rows = [prompts(family)[name] for name in names]
    max_length = data.draw(st.none() | st.integers(0, 600))
    how = {"padding": True if max_length is None else "max_length", "max_length": max_length}
    multiple = data.draw(st.none() | st.integers(1, 64))
    tensors = pack(processor(family), rows, pad_token(family), pad_to_multiple_of=multiple, **how)
    longest = max(len(item.tokens) for item in rows)
    assert longest <= tensors["input_ids"].shape[1] < max(longest, max_length or 0) + (multiple or 1)
    assert (tensors["attention_mask"].sum(axis=1) == [len(item.tokens) for item in rows]).all()
    mixed = {name: mx.array(value) if data.draw(st.booleans()) else value for name, value in tensors.items()}
    back = unpack(processor(family), mixed)
    assert len(rows) == len(back) and all(same(family, row, other) for row, other in zip(rows, back, strict=True))


def of_transformers(family: str, names: list[str]) -> dict[str, np.ndarray]:
    """What its processor returns for these cases, from the reference of its ids, grids and pixels."""
    tokenizer = processor(family).tokenizer
    cases = [expected.case(family, name) for name in names]
    longest = max(len(case.ids) for case in cases)
    pads = [longest - len(case.ids) for case in cases]
    ids = [np.concatenate([np.full(pad, pad_token(family)), case.ids]) for pad, case in zip(pads, cases, strict=True)]
    mask = [np.repeat([0, 1], [pad, len(case.ids)]) for pad, case in zip(pads, cases, strict=True)]
    tensors = {"input_ids": np.stack(ids), "attention_mask": np.stack(mask)}
    image, video = (
        tokenizer.convert_tokens_to_ids(processor(family).placeholders[kind]) for kind in ("image", "video")
    )
    types = (tensors["input_ids"] == image) * 1 + (tensors["input_ids"] == video) * 2
    if family == "glm4v":  # features of a clip are called pictures' and told apart by what stands around all of them
        begin, end = tokenizer.convert_tokens_to_ids(["<|begin_of_video|>", "<|end_of_video|>"])
        inside = (tensors["input_ids"] == begin).cumsum(axis=1) > (tensors["input_ids"] == end).cumsum(axis=1)
        types *= 1 + inside
    tensors["mm_token_type_ids"] = types
    for key, grids, kind in (("", "image", "images"), ("_videos", "video", "videos")):
        expected_media = [expected.pixels(family, item) for case in cases for item in getattr(case, kind)]
        if expected_media:
            tensors[f"pixel_values{key}"] = np.concatenate([item.normalised for item in expected_media])
            tensors[f"{grids}_grid_thw"] = np.array([item.grid for item in expected_media])
    if family == "qwen2_5_vl" and "pixel_values_videos" in tensors:
        tensors["second_per_grid_ts"] = np.full(len(tensors["video_grid_thw"]), 2 / media.CLIP_FPS)
    return tensors


ROWS_TOGETHER = (["text"], ["img1", "text", "img2"], ["video", "img1"], ["img_video", "video_img"])


@pytest.mark.parametrize(("family", "names"), [
    (family, names) for family in GRIDDED for names in ROWS_TOGETHER
    if set(names) <= expected.record(family)["cases"].keys()
])  # fmt: skip
def test_qwens_and_glms_tensors_are_those_of_transformers(family: str, names: list[str]) -> None:
    theirs = of_transformers(family, names)
    ours = pack(processor(family), [prompts(family)[name] for name in names], pad_token(family))
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert (ours[name].shape, ours[name].dtype) == (value.shape, value.dtype), name
        near = 0.03 if name.startswith("pixel") else 0  # a level of a clip's, see test_parity
        assert np.abs(ours[name] - value).max() <= near, name
    back = unpack(processor(family), theirs)
    assert [summary(family, item) for item in back] == [summary(family, prompts(family)[name]) for name in names]
    assert [item.size for prompt in back for item in prompt.media] == [(0, 0)] * sum(len(p.media) for p in back)


def test_padding_goes_where_it_is_asked_for() -> None:
    rows = [prompts("demo")["text"], prompts("demo")["shapes"]]
    right = pack(processor("demo"), rows, 7, side="right", pad_to_multiple_of=64)
    count = len(rows[0].tokens)
    assert right["input_ids"].shape[1] % 64 == 0
    assert right["input_ids"][0, :count].tolist() == rows[0].tokens.tolist()
    assert (right["input_ids"][0, count:] == 7).all() and (right["attention_mask"][0, count:] == 0).all()
    with pytest.raises(PromptError, match="padding=True"):
        pack(processor("demo"), rows, 7, padding=False)
    with pytest.raises(PromptError, match="pad_token"):
        pack(processor("demo"), rows, None)
    assert pack(processor("demo"), rows[:1], None, padding=False)["input_ids"].shape == (1, count)


# -- what does not fit together


def batch() -> dict[str, Any]:
    """A row of words and one with a picture."""
    return dict(pack(processor("demo"), [prompts("demo")["text"], prompts("demo")["shapes"]], pad_token("demo")))


def test_lists_are_taken_too_and_rows_may_differ_in_length() -> None:
    rows = [prompts("demo")["text"], prompts("demo")["shapes"]]
    tensors = {name: value.tolist() for name, value in batch().items()}
    tensors["input_ids"] = [row.tokens.tolist() for row in rows]
    del tensors["attention_mask"], tensors["mm_token_type_ids"]
    back = unpack(processor("demo"), tensors)
    assert all(same("demo", row, other) for row, other in zip(rows, back, strict=True))


@pytest.mark.parametrize(
    ("mask", "message"),
    [([1, 1, 0], 'padding_side = "left"'), ([0, 1, 0, 1], 'padding_side = "left"'), ([0, 0], "the prompt is empty")],
)
def test_a_mask_that_is_not_padding_on_the_left_is_refused(mask: list[int], message: str) -> None:
    with pytest.raises(PromptError, match=message):
        unpack(processor("demo"), {"input_ids": [[5] * len(mask)], "attention_mask": [mask]})


Tensors = dict[str, Any]

MISFITS: dict[str, tuple[Callable[[Tensors], Tensors], str]] = {
    "no ids": (lambda item: {"input_ids": None}, "input_ids are missing"),
    "placeholders alone": (
        lambda item: {"pixel_values": None, "image_grid_thw": None},
        "48 placeholders .* no image left",
    ),
    "pictures alone": (lambda item: {name: item[name][:1] for name in ROWS}, "1 more image than"),
    "pixels without their grid": (lambda item: {"image_grid_thw": None}, "without image_grid_thw"),
    "a grid without pixels": (lambda item: {"pixel_values": None}, "without pixel_values"),
    "a grid of another size": (lambda item: {"image_grid_thw": [[1, 4, 4]]}, "is not what image_grid_thw"),
    "a grid that is none": (lambda item: {"image_grid_thw": [1, 16, 16]}, "image_grid_thw: .* expected whole numbers"),
    "an empty grid": (lambda item: {"image_grid_thw": [[0, 4, 4]], "pixel_values": np.zeros((0, 8))}, "expected"),
    "one tensor cut short": (lambda item: {"input_ids": item["input_ids"][:, :-1]}, "rows of other lengths"),
    "rows cut short": (lambda item: {name: item[name][1:, :40] for name in ROWS}, "a row has .* without cutting rows"),
    "one row as it is": (lambda item: {"input_ids": np.arange(4)}, "a single row needs a list around it"),
    "fractions": (lambda item: {"input_ids": [[0.5]]}, "whole numbers"),
    "words": (lambda item: {"input_ids": [["a"]]}, "expected numbers"),
    "what is left out of a loss": (lambda item: {"input_ids": [[-100, 5]]}, "negative"),
    "a ragged list": (lambda item: {"image_grid_thw": [[1, 2], [1]]}, "numpy cannot read it"),
    "one number, repeated": (
        lambda item: {"pixel_values": np.broadcast_to(np.uint8(0), (10**5, 10**5, 3))},
        r"has the shape \(100000, 100000, 3\)",
    ),
    "half precision": (lambda item: {"pixel_values": mx.zeros((4, 4), mx.bfloat16)}, "pixels in float32"),
}
ROWS = ("input_ids", "attention_mask", "mm_token_type_ids")


@pytest.mark.parametrize("name", MISFITS)
def test_what_does_not_fit_together_is_refused(name: str) -> None:
    change, message = MISFITS[name]
    with pytest.raises(PromptError, match=message):
        unpack(processor("demo"), batch() | change(batch()))


def test_shapes_that_are_not_the_pixels_are_refused() -> None:
    tensors = pack(processor("pixtral"), [prompts("pixtral")["img2"]], pad_token("pixtral"))
    for name, change in (("image_shapes", 1), ("num_image_tokens", -1), ("num_image_tokens", 1)):
        with pytest.raises(PromptError, match=r"is not what|placeholders"):
            unpack(processor("pixtral"), {**tensors, name: tensors[name] + change})


def test_a_pace_that_is_no_row_of_numbers_is_refused() -> None:
    tensors = of_transformers("qwen2_5_vl", ["video_img"])
    with pytest.raises(PromptError, match="is not what video_grid_thw"):
        unpack(processor("qwen2_5_vl"), {**tensors, "second_per_grid_ts": 0.5})


def test_one_placeholder_for_both_kinds_needs_to_be_told_which() -> None:
    rows = [prompts("smolvlm")["img_video"]]
    tensors = pack(processor("smolvlm"), rows, pad_token("smolvlm"))
    del tensors["mm_token_type_ids"]
    with pytest.raises(PromptError, match="mm_token_type_ids"):
        unpack(processor("smolvlm"), tensors)
    alone = pack(processor("smolvlm"), [prompts("smolvlm")["video"]], pad_token("smolvlm"))
    del alone["mm_token_type_ids"]
    assert same("smolvlm", prompts("smolvlm")["video"], unpack(processor("smolvlm"), alone)[0])


def test_an_unknown_name_is_a_type_error_with_the_nearest_one() -> None:
    with pytest.raises(TypeError, match=r"unknown tensor 'image_grid_twh'; did you mean 'image_grid_thw'\?"):
        unpack(processor("demo"), {"input_ids": [[1]], "image_grid_twh": [[1, 2, 2]]})


def test_a_text_model_takes_no_pixels() -> None:
    with pytest.raises(UnsupportedError, match="takes only text"):
        unpack(
            processor("llama"),
            {**pack(processor("llama"), [prompts("llama")["short"]], 0), "pixel_values": np.zeros((1, 3))},
        )


def test_torchs_tensors_are_refused_by_name() -> None:
    torchs = type("Tensor", (), {"__module__": "torch"})()
    for ids in (torchs, [torchs]):
        with pytest.raises(UnsupportedError, match=r'input_ids is a tensor of torch: .*"mlx" or return_tensors="np"'):
            unpack(processor("demo"), {"input_ids": ids})


def test_media_are_named_in_the_order_of_their_places() -> None:
    kinds = [item.kind for item in unpack(processor("qwen3_vl"), of_transformers("qwen3_vl", ["video_img"]))[0].media]
    assert kinds == ["video", "image"]
    assert all(isinstance(item, Media) for item in prompts("qwen3_vl")["video_img"].media)
