"""Ctrl-C in the middle of a call of each face: it comes out, and the model is as it was before. `-m slow` has the
built-in model too."""

import gc
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from parity import media

from mlx_vlgen import GenerationResult, batch_generate, generate, stream_generate
from mlx_vlgen._runtime import mx

from .family import STEPS, Family
from .play import TOLERANCE

ENDLESS = 1_000_000
"""Tokens of an answer that Ctrl-C has to cut short. Without end tokens it takes longer than a test may: a signal finds
it running, however late it lands."""

Face = Callable[..., list[GenerationResult]]


def whole(family: Family, **settings: Any) -> list[GenerationResult]:
    return [generate(family.model, family.processor, family.asks["img1"].text, picture(family), **settings)]


def streamed(family: Family, **settings: Any) -> list[GenerationResult]:
    return list(stream_generate(family.model, family.processor, family.asks["img1"].text, picture(family), **settings))


def batched(family: Family, **settings: Any) -> list[GenerationResult]:
    asks = [family.asks[name] for name in ("img1", "words5", "words16")]
    images = [picture(family), None, None]
    return batch_generate(
        family.model, family.processor, images, prompts=[ask.text for ask in asks], logprobs=True, **settings
    ).results


def picture(family: Family) -> list[np.ndarray]:
    return [media.picture(name) for name in family.asks["img1"].images]


class Key:
    """Pressed at the `time`-th call of it, from wherever it is called: a callback, a criterion, a processor."""

    def __init__(self, time: int):
        self.left = time

    def press(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt

    def progress(self, done: int, total: int) -> None:
        self.press()

    def criterion(self, tokens: mx.array, logits: mx.array) -> bool:
        self.press()
        return False

    def processor(self, tokens: mx.array, logits: mx.array) -> mx.array:
        self.press()
        return logits


def in_prefill(family: Family) -> dict[str, Any]:
    return {"prompt_progress_callback": Key(2).progress, "prefill_step_size": 9}


def in_a_criterion(family: Family) -> dict[str, Any]:
    return {"stopping_criteria": [Key(4).criterion]}


def in_a_processor(family: Family) -> dict[str, Any]:
    return {"logits_processors": [Key(4).processor]}


def by_signal(family: Family) -> dict[str, Any]:
    """From another thread, at whatever point of the answer the main one is."""
    begun = threading.Event()

    def send() -> None:
        if begun.wait(60):
            os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=send, daemon=True).start()
    endless = {"logit_bias": dict.fromkeys(family.ends, -1e9), "max_tokens": ENDLESS}
    return {**endless, "prompt_progress_callback": lambda done, total: begun.set()}


@pytest.fixture(autouse=True)
def heeds_ctrl_c() -> Iterator[None]:
    """Python does not, where it was started in the background of a shell."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(params=[pytest.param("demo", marks=pytest.mark.slow), "qwen3_vl_moe"])
def family(request: pytest.FixtureRequest, load_family: Callable[[str], Family]) -> Family:
    return load_family(request.param)


def interrupt(family: Family, face: Face, how: Callable[[Family], dict[str, Any]]) -> None:
    with pytest.raises(KeyboardInterrupt):
        face(family, **{"max_tokens": STEPS, **how(family)})


@pytest.mark.parametrize("face", [whole, streamed, batched])
@pytest.mark.parametrize("how", [in_prefill, in_a_criterion, in_a_processor, by_signal])
def test_the_next_call_is_undisturbed(family: Family, face: Face, how: Callable[[Family], dict[str, Any]]) -> None:
    before = face(family, max_tokens=STEPS)
    interrupt(family, face, how)
    after = face(family, max_tokens=STEPS)
    assert [(r.tokens, r.text, r.finish_reason) for r in after] == [(r.tokens, r.text, r.finish_reason) for r in before]
    assert np.abs(np.array(after[-1].logprobs) - np.array(before[-1].logprobs)).max() < TOLERANCE


@pytest.mark.parametrize("face", [whole, streamed, batched])
@pytest.mark.parametrize("family", ["qwen3_vl_moe"], indirect=True)
def test_nothing_stays_in_memory(family: Family, face: Face) -> None:
    def active() -> int:
        gc.collect()  # the traceback of the error holds the frames, and they the caches
        return mx.get_active_memory()

    ways = (in_prefill, in_a_criterion, in_a_processor, by_signal)
    for how in ways:
        interrupt(family, face, how)
    before = active()
    for count in range(10):
        interrupt(family, face, ways[count % len(ways)])
    assert active() <= before


@pytest.mark.parametrize("family", ["qwen3_vl_moe"], indirect=True)
def test_leaving_a_stream_ends_it(family: Family) -> None:
    """Ctrl-C where its results are read: nothing of the engine is running then."""
    settings: dict[str, Any] = {"max_tokens": ENDLESS, "logit_bias": dict.fromkeys(family.ends, -1e9)}
    before, used = streamed(family, max_tokens=STEPS)[-1].tokens, mx.get_active_memory()
    for _ in range(10):
        with pytest.raises(KeyboardInterrupt):
            for result in stream_generate(family.model, family.processor, family.asks["words5"].text, **settings):
                if result.generation_tokens == 3:
                    raise KeyboardInterrupt
        del result
    gc.collect()
    assert mx.get_active_memory() <= used
    assert streamed(family, max_tokens=STEPS)[-1].tokens == before
