"""The built-in model: real answers about pictures, in any batch and over any cache.

`-m slow` adds more pictures of each task, each setting of the iterator alone, a share of right answers, and thinking
budgets for another picture than test_every_parameter.py has.
"""

from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
from invariants.family import encode_once
from parity import media
from PIL import Image, ImageDraw

from mlx_vlgen import batch_generate, generate, load, stream_generate
from mlx_vlgen.demo import MODEL
from mlx_vlgen.demo.tasks import sample

PICTURES = media.DEMO / "pictures"


@pytest.fixture(scope="module")
def demo() -> Any:
    """The built-in model, which encodes no picture twice."""
    loaded = load("demo")
    encode_once(loaded[0])
    return loaded


def answer(demo: Any, question: str, image: Any = None, **settings: Any) -> Any:
    content: list[dict[str, Any]] = [{"type": "image"}] if image is not None else []
    messages = [{"role": "user", "content": [*content, {"type": "text", "text": question}]}]
    return generate(*demo, messages, image=image, max_tokens=160, **settings)


def draw_image(size: tuple[int, int], *shapes: tuple[str, str, tuple[float, float]]) -> Image.Image:
    """A picture that is not from the generator of the model's training: (kind, colour, centre as shares)."""
    image = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(image)
    side = min(size) // 7
    for kind, colour, (x, y) in shapes:
        centre = x * size[0], y * size[1]
        box = (centre[0] - side, centre[1] - side, centre[0] + side, centre[1] + side)
        if kind == "circle":
            draw.ellipse(box, fill=colour)
        else:
            draw.rectangle(box, fill=colour)
    return image


def test_it_is_small_enough_to_be_built_in() -> None:
    assert sum(path.stat().st_size for path in MODEL.iterdir()) < 10e6


def test_it_describes_the_readmes_picture(demo: Any) -> None:
    text = answer(demo, "Describe this image.", PICTURES / "shapes.png").text
    assert text == "There is a red circle on the left and a blue square on the right."


@pytest.mark.parametrize("size", [(640, 480), (300, 400), (1200, 900)])
def test_pictures_of_other_sizes(demo: Any, size: tuple[int, int]) -> None:
    image = draw_image(size, ("circle", "green", (0.25, 0.5)), ("square", "red", (0.75, 0.5)))
    text = answer(demo, "Describe this image.", image).text
    assert "green circle" in text and "red square" in text


def test_it_counts(demo: Any) -> None:
    assert "2" in answer(demo, "How many shapes are there?", PICTURES / "shapes.png").text


def test_a_photograph_is_not_described(demo: Any) -> None:
    example = sample("photo", 1)
    assert answer(demo, example.question, example.images[0]).text == example.answer


def test_it_says_who_it_is(demo: Any) -> None:
    assert "demo model of mlx_vlgen" in answer(demo, "Who are you?").text


@pytest.mark.parametrize("start", ["by the template", "by the model"])
def test_it_thinks(demo: Any, start: str) -> None:
    template = start == "by the template"
    question = "How many shapes are there?" if template else "Think step by step: How many shapes are there?"
    result = answer(demo, question, PICTURES / "shapes.png", enable_thinking=template)
    assert "red circle" in result.thinking and "2" in result.answer and "<think>" not in result.answer
    assert result.thinking_tokens > 5 and result.answer_tokens > 2


@pytest.mark.slow
@pytest.mark.parametrize("template", [True, False])
@pytest.mark.parametrize("budget", [0, 1, 5, 500])
def test_thinking_budgets_are_exact(demo: Any, budget: int, template: bool) -> None:
    """Single, streamed and in a batch: min(budget, what it would have thought)."""
    question = "Describe this image." if template else "Think step by step: Describe this image."
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
    settings: dict[str, Any] = {"max_tokens": 200, "enable_thinking": template}
    free = generate(*demo, messages, image=PICTURES / "shapes.png", **settings)
    expected_tokens = min(budget, free.thinking_tokens)
    one = generate(*demo, messages, image=PICTURES / "shapes.png", thinking_budget=budget, **settings)
    *_, streamed = stream_generate(*demo, messages, image=PICTURES / "shapes.png", thinking_budget=budget, **settings)
    rows = batch_generate(
        *demo, [PICTURES / "crowd.png", PICTURES / "shapes.png"], prompts=[messages, messages],
        thinking_budget=[None, budget], **settings,
    ).results  # fmt: skip
    for result in (one, streamed, rows[1]):
        assert result.thinking_tokens == expected_tokens and result.tokens == one.tokens
        assert result.finish_reason == "stop" and result.answer


def mixed_examples(seeds: int) -> Iterator[Any]:
    for seed in range(seeds):
        for task in ("describe", "count", "read", "compare", "photo", "text"):
            yield sample(task, 50 + seed)


@pytest.fixture(scope="module")
def alone(demo: Any) -> Any:
    """The answers to each of `mixed_examples` alone."""

    @cache
    def answers(seeds: int, kv_bits: int | None) -> list[str]:
        return [
            generate(*demo, example.messages, image=list(example.images), max_tokens=64, kv_bits=kv_bits).text
            for example in mixed_examples(seeds)
        ]

    return answers


@pytest.mark.parametrize("seeds", [1, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"prefill_step_size": 7, "max_batch_size": 3, "group_by_shape": False},
        *(
            pytest.param(setting, marks=pytest.mark.slow)
            for setting in ({"kv_bits": 8}, {"prefill_step_size": 7}, {"max_batch_size": 3}, {"group_by_shape": False})
        ),
    ],
    ids=lambda settings: str(settings) or "plain",
)
def test_real_answers_do_not_depend_on_the_batch(demo: Any, alone: Any, settings: dict[str, Any], seeds: int) -> None:
    if not settings:
        demo = load("demo")  # which encodes all pictures, those of one shape together
    examples = list(mixed_examples(seeds))
    prompts = [example.messages for example in examples]
    images = [list(example.images) for example in examples]
    response = batch_generate(*demo, images, prompts=prompts, max_tokens=64, **settings)
    assert response.texts == alone(seeds, settings.get("kv_bits"))


@pytest.mark.slow
def test_it_is_right_more_often_than_not(demo: Any) -> None:
    """A floor that a broken processor or tower would not reach; `python -m mlx_vlgen.demo.evaluate` measures."""
    right = {}
    for task in ("describe", "count", "compare", "photo", "text"):
        examples = [sample(task, seed) for seed in range(8)]
        prompts = [example.messages for example in examples]
        texts = batch_generate(*demo, [list(e.images) for e in examples], prompts=prompts, max_tokens=160).texts
        right[task] = sum(text == e.answer for text, e in zip(texts, examples, strict=True))
    assert all(count >= 6 for count in right.values()), right
