"""Promise 2 for every family that test_one_answer.py does not go through in all its detail.

A family is whatever has a reference in tests/parity. Rows are its parity cases, and words. `-m slow` draws for all of
them, and not for every fourth one, reads prompts in chunks of 1 and 64 tokens, and adds the built-in model and those
families that another one stands for.
"""

from collections.abc import Callable
from dataclasses import replace
from itertools import cycle

import pytest
from parity import expected

from mlx_vlgen import SamplingParams, TokenIterator
from mlx_vlgen.engine import prefill
from mlx_vlgen.engine.kv_settings import SINKS, KVSettings

from . import test_one_answer as thorough
from .family import STEPS, Ask, Family, variants_slow
from .play import Heard, Row, check, play_and_check
from .test_one_answer import SAMPLERS, drawn_rows, usable_caches

# The built-in model has its batches in unit/test_demo.py and, on a fast BLAS, in test_one_answer.py.
OTHERS = [
    *variants_slow(name for name in expected.families() if name not in (*thorough.DETAILED, "demo")),
    pytest.param("demo", marks=pytest.mark.slow),
]

pytestmark = pytest.mark.parametrize("family", OTHERS, indirect=True)


@pytest.fixture(scope="module")
def family(request: pytest.FixtureRequest, load_family: Callable[[str], Family]) -> Family:
    return load_family(request.param)


def test_one_batch(family: Family) -> None:
    """Every request at once: pictures, clips and words, of unlike lengths."""
    play_and_check(family, [Row(ask) for ask in family.asks.values()])


def test_coming_and_going(family: Family) -> None:
    """Rows join late, leave early and are cancelled, while prompts are read in chunks and some wait for a place."""
    rows = drawn_rows(family, 7, 3, joins=(0, 20), leaves=(1, STEPS))
    rows = [row if i % 3 else Row(row.ask, joins=row.joins) for i, row in enumerate(rows)]
    play_and_check(family, rows, prefill_step_size=13, max_batch_size=4)


@pytest.mark.parametrize("chunk", [7, *(pytest.param(chunk, marks=pytest.mark.slow) for chunk in (1, 64))])
def test_chunks(family: Family, chunk: int) -> None:
    """Borders fall inside pictures and clips."""
    longest = sorted(family.asks.values(), key=lambda ask: len(ask.images) + 2 * len(ask.videos + ask.audios))[-2:]
    play_and_check(family, [Row(ask) for ask in longest], prefill_step_size=chunk)


def test_streams_in_turn(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of a request is left on the model or the processor. Prompts are padded, as CUDA has them."""
    monkeypatch.setattr(prefill, "PROMPT_UNIT", 16)
    asks = sorted(family.asks.values(), key=lambda ask: -len(ask.images + ask.videos + ask.audios))[:2]
    heard = [Heard(), Heard()]
    with TokenIterator(family.model, family.processor) as one, TokenIterator(family.model, family.processor) as other:
        for stream, ask in zip((one, other), asks, strict=True):
            stream.add(Row(ask).request)
        for _ in range(STEPS):
            for stream, output in zip((one, other), heard, strict=True):
                if result := next(stream, None):
                    output.add(result[1])
    check(family, [Row(ask) for ask in asks], heard)


@pytest.mark.parametrize("every", [slice(1, None, 4), pytest.param(slice(None), marks=pytest.mark.slow)], ids=str)
def test_draws_and_caches(family: Family, every: slice) -> None:
    """Sampled rows and rows with quantized or bounded caches, each as alone."""
    caches = usable_caches(family)[2:]

    def cache_for(ask: Ask, settings: KVSettings) -> KVSettings:
        """With a bound that just holds what must all see each other in this prompt."""
        spans = family.processor.prepare(ask.text, ask.media).two_way
        longest = max((end - start for start, end in spans), default=0)
        return (
            settings
            if settings.max_size is None
            else replace(settings, max_size=max(settings.max_size, longest + SINKS))
        )

    rows = [
        Row(ask, SamplingParams(max_tokens=STEPS // 2, seed=i, **sampler), cache_for(ask, kv))
        for i, (ask, sampler, kv) in enumerate(zip(family.asks.values(), cycle(SAMPLERS), cycle(caches), strict=False))
    ]
    play_and_check(family, rows[every])
