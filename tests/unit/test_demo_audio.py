"""The built-in ear: real answers about sounds, in any batch and over any cache."""

from typing import Any

import numpy as np
import pytest

from mlx_vlgen import batch_generate, generate, load
from mlx_vlgen.demo import AUDIO_MODEL
from mlx_vlgen.demo.sound.clips import RATE, tone
from mlx_vlgen.demo.sound.recordings import RECORDINGS

WORDS, BEEPS = RECORDINGS / "words.wav", RECORDINGS / "beeps.wav"


def beeps(count: int, hz: float, seconds: float = 0.2) -> tuple[np.ndarray, int]:
    """Unlike those of BEEPS: longer, with longer rests."""
    rest = np.zeros(RATE // 4, np.float32)
    return 0.3 * np.concatenate([part for _ in range(count) for part in (rest, tone(hz, seconds, "sine", 0.01))]), RATE


def noise(seconds: float) -> tuple[np.ndarray, int]:
    return 0.1 * np.random.default_rng(0).standard_normal(int(seconds * RATE)).astype(np.float32), RATE


QUESTIONS: list[tuple[Any, str, str]] = [
    (WORDS, "What is said?", "seven red dog"),
    (BEEPS, "How many beeps do you hear?", "three"),
    (beeps(1, 250.0, 0.8), "Is the tone high or low?", "low"),
    (beeps(2, 2000.0), "Is the tone high or low?", "high"),
    (WORDS, "How many words are said?", "three"),
    (beeps(5, 300.0), "How many beeps do you hear?", "five"),
    (noise(1.5), "What is said?", "I hear noise, not words."),
]


@pytest.fixture(scope="module")
def ear() -> Any:
    return load("demo-audio")


def ask(question: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "audio"}, {"type": "text", "text": question}]}]


def answers(ear: Any, **settings: Any) -> list[str]:
    clips, questions, _ = zip(*QUESTIONS, strict=True)
    prompts = [ask(question) for question in questions]
    return batch_generate(*ear, audios=list(clips), prompts=prompts, max_tokens=24, **settings).texts


def test_it_is_small_enough_to_be_built_in() -> None:
    assert sum(path.stat().st_size for path in AUDIO_MODEL.iterdir()) < 10e6
    assert all(path.stat().st_size < 60_000 for path in RECORDINGS.iterdir())


@pytest.mark.parametrize(("clip", "question", "answer"), QUESTIONS)
def test_it_hears(ear: Any, clip: Any, question: str, answer: str) -> None:
    assert generate(*ear, ask(question), audio=clip, max_tokens=24).text == answer


@pytest.mark.parametrize(
    "settings",
    [{"prefill_step_size": 7, "max_batch_size": 3}, {"kv_bits": 8, "group_by_shape": False, "reuse": False}],
    ids=str,
)
def test_real_answers_do_not_depend_on_the_batch(ear: Any, settings: dict[str, Any]) -> None:
    """Clips of other lengths beside each, in chunks that cut them, over a quantized cache."""
    assert answers(ear, **settings) == [answer for _, _, answer in QUESTIONS]


def test_questions_about_one_clip_share_what_it_took(ear: Any) -> None:
    questions = ["What is said?", "How many words are said?", "What is said?"]
    settings = {"audios": [WORDS] * 3, "prompts": [ask(question) for question in questions], "max_tokens": 24}
    first, *others = batch_generate(*ear, **settings).results
    assert [result.text for result in (first, *others)] == ["seven red dog", "three", "seven red dog"]
    assert all(result.cached_tokens > 20 for result in others)
    assert batch_generate(*ear, **settings, reuse=False).texts == ["seven red dog", "three", "seven red dog"]
