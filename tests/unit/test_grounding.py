"""Boxes and points in answers, as each family's documentation writes them, in pixels of the picture; and drawn."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from invariants.family import Family
from PIL import Image

import mlx_vlgen
from mlx_vlgen.grounding import Box, Mark, Point, Polygon, draw, for_model, parse
from mlx_vlgen.inputs.prompt import MediaInputs

SIZE = (2000, 500)
CAT = Box(200, 100, 400, 250, "cat")  # a tenth of the width, a fifth of the height, …

ANSWERS: dict[str, tuple[str | None, str, list[Mark]]] = {
    "Qwen2-VL": (
        "qwen2_vl",
        "The <|object_ref_start|>cat<|object_ref_end|> is at <|box_start|>(100,200),(200,500)<|box_end|>.",
        [CAT],
    ),
    "Qwen2-VL, several": (
        None,
        "<|object_ref_start|>cat<|object_ref_end|><|box_start|>(100,200),(200,500)<|box_end|>"
        "<|box_start|>(0,0),(1000,1000)<|box_end|><|point_start|>(500,500)<|point_end|>"
        "<|quad_start|>(0,0),(100,0),(100,1000),(0,1000)<|quad_end|>",
        [
            CAT,
            Box(0, 0, 2000, 500, "cat"),
            Point(1000, 250, "cat"),
            Polygon(((0, 0), (200, 0), (200, 500), (0, 500)), "cat"),
        ],
    ),
    "Qwen3-VL": (
        "qwen3_vl",
        '```json\n[{"bbox_2d": [100, 200, 200, 500], "label": "cat"}, {"point_2d": [500, 500], "label": "nose"}]\n```',
        [CAT, Point(1000, 250, "nose")],
    ),
    "Qwen3-VL, points": (
        "qwen3_vl",
        '<points x1="100" y1="200" x2="50" y2="100" alt="eyes">eyes</points>',
        [Point(200, 100, "eyes"), Point(100, 50, "eyes")],
    ),
    "cut": (None, '[\n{"bbox_2d": [100, 200, 200, 500], "label": "cat"},\n{"bbox_2d": [1, 2', [CAT]),
    "nested": (None, '{"found": {"things": [{"label": "cat", "bbox_2d": [[100, 200, 200, 500]]}]}}', [CAT]),
    "PaliGemma": (
        None,
        "<loc0256><loc0512><loc0768><loc1023> big cat ; <loc0000><loc0000><loc0512><loc0512> dog",
        [Box(1000, 125, 1023 / 1024 * 2000, 375, "big cat"), Box(0, 0, 1000, 250, "dog")],
    ),
    "Gemma": (
        "gemma4",
        '[{"box_2d": [200, 100, 500, 200], "label": "cat"}, {"point": [500, 100], "label": "ear"}]',
        [CAT, Point(200, 250, "ear")],
    ),
    "GLM": ("glm4v", "It is <|begin_of_box|>[[100, 200, 200, 500]]<|end_of_box|>", [Box(200, 100, 400, 250)]),
    "GLM's final answer": ("glm4v", "<|begin_of_box|>42<|end_of_box|>", []),
    "InternVL": (
        None,
        "<ref>cat</ref><box>[[100, 200, 200, 500], [0, 0, 500, 500]]</box>",
        [CAT, Box(0, 0, 1000, 250, "cat")],
    ),
    "Molmo": (None, '<point x="10.0" y="20.5" alt="cat">the cat</point>', [Point(200, 102.5, "cat")]),
    "LFM2-VL": ("lfm2_vl", '[{"label": "cat", "bbox": [0.1, 0.2, 0.2, 0.5]}]', [CAT]),
    "fractions": (None, '{"label": "cat", "bbox_2d": [0.1, 0.2, 0.2, 0.5]}', [CAT]),
    "pixels": (None, '{"label": "a", "bbox": [1500, 20, 1800, 50]}', [Box(1500, 20, 1800, 50, "a")]),
    "turned and outside": ("qwen3_vl", '{"bbox_2d": [200, 1200, -5, 500]}', [Box(0, 250, 400, 500)]),
    "malformed": (
        None,
        '{"bbox_2d": [1, 2, 3]} {"bbox_2d": [1, 2, 3, NaN]} {"bbox_2d": [1, 2, true, 4]} {"bbox": "x"}'
        " <|box_start|>(1,2),(3<|box_end|> <loc0001><loc0002> <point x='1'> {\"bbox\": [5, 5, 5, 9]}",
        [],
    ),
}


def rounded(mark: Mark) -> tuple[Any, ...]:
    values = [number for point in mark.points for number in point] if isinstance(mark, Polygon) else vars(mark).values()
    return type(mark), *(round(value, 6) if isinstance(value, float) else value for value in values), mark.label


@pytest.mark.parametrize("name", ANSWERS)
def test_documented_answers(name: str) -> None:
    format, text, expected = ANSWERS[name]
    assert list(map(rounded, parse(text, SIZE, format=format))) == list(map(rounded, expected))


def test_pixels_of_the_resized_picture(load_family: Callable[[str], Family]) -> None:
    text = '{"bbox_2d": [100, 100, 200, 250], "label": "cat"}'
    with pytest.raises(ValueError, match="qwen2_5_vl answers in pixels of the resized picture: give input_size="):
        parse(text, SIZE, format="qwen2_5_vl")
    assert parse(text, SIZE, format="qwen2_5_vl", input_size=(1000, 500)) == [CAT]
    family, picture = load_family("qwen2_5_vl"), Image.new("RGB", (300, 200))
    for settings in ({}, {"max_pixels": 20000}, {"resize_shape": (90, 400)}):
        media = MediaInputs(images=[picture], **settings)
        prompt = family.processor.prepare([{"role": "user", "content": "Where?"}], media)
        patch = family.processor.image_settings.patch
        height, width = (count * patch for count in prompt.media[0].grid[1:])
        (box,) = for_model(family.model, family.processor, media)(
            json.dumps({"bbox_2d": [0, 0, width, height]}), (300, 200)
        )
        assert box == Box(0, 0, 300, 200)


texts = st.lists(
    st.sampled_from([text for _, text, _ in ANSWERS.values()])
    | st.sampled_from(
        ["{", "[", "]", "}", '"bbox_2d": ', "<point ", 'x="', "1e999", "<box>", "(1,2)", "<loc0001>", ","]
    )
    | st.text(max_size=5)
    | st.floats().map(json.dumps),
    max_size=8,
).map("".join)
sides = st.integers(1, 5000)


@given(text=texts, size=st.tuples(sides, sides), format=st.sampled_from([None, "qwen3_vl", "lfm2_vl", "gemma3"]))
def test_any_text(text: str, size: tuple[int, int], format: str | None) -> None:
    for mark in parse(text, size, format=format):
        if isinstance(mark, Box):
            assert 0 <= mark.x1 < mark.x2 <= size[0] and 0 <= mark.y1 < mark.y2 <= size[1]
        for x, y in [(mark.x, mark.y)] if isinstance(mark, Point) else mark.points if isinstance(mark, Polygon) else []:
            assert 0 <= x <= size[0] and 0 <= y <= size[1]


@pytest.mark.parametrize("level", [0, 128, 255])
def test_lines_show_on_any_ground(level: int) -> None:
    picture = Image.new("RGB", (300, 200), (level,) * 3)
    drawn = np.asarray(draw(picture, [Box(50, 40, 250, 150, "a"), Point(150, 90)])).astype(int)
    assert np.all(np.asarray(picture) == level)  # a copy was drawn on
    changed = np.abs(drawn - level).max(axis=2) > 90  # a line that can be seen
    assert (
        changed[95, 45:56].any() and changed[145:156, 150].any() and changed[90, 150] and not changed[60:80, 80].any()
    )


@pytest.mark.parametrize("size", [(1, 1), (3, 400), (4000, 20)])
def test_marks_fit_on_any_picture(size: tuple[int, int]) -> None:
    box, corner = Box(0, 0, *map(float, size), "a label\nof 東京 " + "x" * 99), Point(*map(float, size), "é")
    drawn = draw(Image.new("L", size), [box, corner, Polygon(((0, 0), (1, 0), (0, 1)), "p")])
    assert drawn.size == size and drawn.mode == "RGB"


def test_the_module_is_there_without_its_import() -> None:
    assert mlx_vlgen.grounding.parse is parse


def test_an_answer_may_name_the_picture() -> None:
    """Molmo2's: the picture's number, and then each point's number, x and y."""
    text = '<points coords="1 1 100 200 2 500 500;2 3 005 1000" alt="eyes">eyes</points><points coords="0.5 1 2 3"/>'
    assert parse(text, SIZE) == [Point(200, 100, "eyes", 0), Point(1000, 250, "eyes", 0)]
    assert parse(text, SIZE, index=1) == [Point(10, 500, "eyes", 1)]
    assert parse(text, SIZE, index=2) == []
    assert parse('<points coords="1 1 2" alt="x">', SIZE) == []
    assert parse('{"point_2d": [500, 500]}', SIZE, index=3) == [Point(1000, 250)]
