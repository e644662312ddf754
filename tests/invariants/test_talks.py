"""Talks about anything: what they share is reused, and every answer is what it is from scratch."""

import random
from collections.abc import Callable
from typing import Any

import pytest
from parity import media
from parity.expected import families

from mlx_vlgen import MediaInputs, PrefixCache, Request, SamplingParams, apply_chat_template
from mlx_vlgen.engine import batch

from .family import Family
from .test_reuse import PICTURES, assert_equal, little_counts, picture, run  # noqa: F401, a fixture that all tests use

pytestmark = pytest.mark.slow

REFUSE_TALKS = {"paligemma", "paligemma2"}
NAMES = {"image": PICTURES, "video": tuple(media.CLIPS), "audio": tuple(media.SOUNDS)}
MAKERS: dict[str, Callable[[str], Any]] = {"image": picture, "video": media.clip, "audio": media.sound}
WORDS = ("Why", "And this?", "What differs between all of these? Look with care.")

Part = tuple[str, str]
"""A kind of media and which of them, or "text" and what it says."""


def drawn_turn(rng: random.Random, kinds: list[str]) -> list[Part]:
    drawn = [rng.choice(kinds) for _ in range(rng.choice([0, 1, 1, 2]) if kinds else 0)]
    parts: list[Part] = [(kind, rng.choice(NAMES[kind])) for kind in drawn]
    parts.insert(rng.randint(0, len(parts)), ("text", rng.choice(WORDS)))
    return parts


def talk(family: Family, turns: list[list[Part]]) -> Request:
    messages: list[dict[str, Any]] = []
    for turn in turns:
        if messages:
            messages.append({"role": "assistant", "content": "It is fine."})
        content = [{"type": "text", "text": name} if kind == "text" else {"type": kind} for kind, name in turn]
        messages.append({"role": "user", "content": content})
    text = apply_chat_template(family.processor, family.model.config, messages)
    images, videos, audios = (
        [MAKERS[kind](name) for turn in turns for part, name in turn if part == kind] for kind in MAKERS
    )
    fps = media.CLIP_FPS if videos else None
    inputs = MediaInputs(images=images, videos=videos, audios=audios, video_fps=fps)
    return Request(text, inputs, SamplingParams(max_tokens=3))


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", sorted({*families()} - {"demo"} - REFUSE_TALKS))
def test_talks_that_share_turns(load_family: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one to three turns, drawn from the same few, alone and together, with little room and with much."""
    family, rng = load_family(name), random.Random(name)
    kinds = [kind for kind in MAKERS if kind in family.processor.placeholders]
    for _ in range(12):
        monkeypatch.setattr(batch, "LOOKAHEAD", rng.random() < 0.5)
        cache, chunk = PrefixCache(rng.choice([None, None, 60_000, 400_000])), rng.choice([5, 17, 2048])
        turns = [drawn_turn(rng, kinds) for _ in range(3)]
        for _ in range(rng.randint(2, 4)):
            talks = [[rng.choice(turns) for _ in range(rng.randint(1, 3))] for _ in range(rng.randint(1, 3))]
            requests = [talk(family, one) for one in talks]
            answers = run(family.model, family, requests, cache, prefill_step_size=chunk)
            for request, heard in zip(requests, answers, strict=True):
                [alone] = run(family.model, family, [request], None)
                assert heard.finish_reason == alone.finish_reason
                if alone.finish_reason != "error":  # a family's limit, which both name
                    assert_equal(heard, alone)
                else:
                    assert str(heard.results[-1].error) == str(alone.results[-1].error)
