"""Hundreds of requests through one iterator: all end, in their turn, each with its answer, and nothing is left.

`-m slow` has five hundred, and a thousand prompts at once.
"""

import gc
import itertools
import random
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import pytest

from mlx_vlgen import GenerationResult, MediaInputs, Request, SamplingParams, TokenIterator
from mlx_vlgen._runtime import mx
from mlx_vlgen.engine import cache as kv
from mlx_vlgen.engine.kv_settings import KVSettings
from mlx_vlgen.engine.scheduling import is_out_of_memory

from .family import Family
from .play import Row, Wrapped, play

LONGEST = 9
SLOTS, CHUNK, BUDGET = 12, 96, 600
CROWD_SLOTS = 8

ASKS = ("img1", "upright", "img2", "text", "words2", "words5", "word", "dialogue")
DRAWS: tuple[dict[str, Any], ...] = ({}, {}, {"temperature": 0.9, "seed": 1}, {"repetition_penalty": 1.4})
CACHES = (*[KVSettings()] * 6, KVSettings(bits=8, group_size=32), KVSettings(max_size=12))
FAULTS = ("processor", "criterion", "picture", "placeholder")


@pytest.fixture(scope="module")
def family(load_family: Callable[[str], Family]) -> Family:
    return load_family("qwen3_vl")


@dataclass(eq=False)
class Course:
    """One request of the soak and what came out. row: as it would be alone and without its fault. leaves: another
    thread cancels it after so many tokens, 0 as soon as it is added. comes: how many results the others have given."""

    row: Row
    fault: str | None
    leaves: int | None
    comes: int
    elsewhere: bool  # whether another thread adds it
    media: MediaInputs
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    reserve: int = 0
    ends: list[GenerationResult] = field(default_factory=list)

    @property
    def request(self) -> Request:
        sampling, half = self.row.sampling, self.row.sampling.max_tokens // 2
        if self.fault == "processor":
            sampling = replace(sampling, logits_processors=[failing(half, lambda logits: logits)])
        if self.fault == "criterion":
            sampling = replace(sampling, stopping_criteria=[failing(half, lambda logits: False)])
        return Request(self.row.ask.text, self.media, sampling, self.row.kv)


def failing(after: int, result: Callable[[mx.array], Any]) -> Callable[[mx.array, mx.array], Any]:
    """A user's function that fails when it has been called so many times."""
    calls = itertools.count()

    def function(tokens: mx.array, logits: mx.array) -> Any:
        if next(calls) == after:
            raise ArithmeticError("mine")
        return result(logits)

    return function


def courses(family: Family, rng: random.Random, count: int) -> list[Course]:
    planned, comes = [], 0
    for _ in range(count):
        ask = family.asks[rng.choice(ASKS)]
        sampling = SamplingParams(max_tokens=rng.choice((1, 3, 6, LONGEST)), **rng.choice(DRAWS))
        row = Row(ask, sampling, rng.choice(CACHES))
        if rng.random() < 0.2:
            end = tokens_alone(family, replace(row, sampling=replace(row.sampling, max_tokens=LONGEST)))[4]
            row = replace(row, sampling=replace(row.sampling, eos_tokens=[end]))
        fault = rng.choice(FAULTS) if rng.random() < 0.08 else None
        media = replace(ask.media)
        if fault == "picture":
            media = replace(media, images=[b"no picture"] * max(1, len(media.images)))
        elif fault == "placeholder":
            media = replace(media, images=[*media.images, b""])
        leaves = rng.randrange(4) if rng.random() < 0.1 else None
        comes += rng.choice((0, 0, 0, 0, 2, 20))  # bursts, and pauses in which rows run out
        planned.append(Course(row, fault, leaves, comes, rng.random() < 0.3, media))
    return planned


class Starved:
    """A model, its processor and the cache's evaluation, of which any call may lack memory, but only while other rows
    decode: a row that lacks it alone ends.

    returned: the courses that the engine put back into the queue for it; others may overtake them.
    """

    def __init__(self, family: Family, planned: Sequence[Course], monkeypatch: pytest.MonkeyPatch):
        self._family = family
        self._of_media = {id(course.media): course for course in planned}
        self._of_prompt: dict[int, Course] = {}
        self._prepared: list[Any] = []  # objects whose ids are used
        self.live = 0
        self._calls: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.returned: set[Course] = set()
        evaluate = kv.evaluate

        def evaluate_or_fail(*args: Any) -> None:
            self._perhaps("join", 20)
            evaluate(*args)

        monkeypatch.setattr(kv, "evaluate", evaluate_or_fail)
        self.processor = Wrapped(family.processor, prepare=self._prepare)
        self.model = Wrapped(family.model, forward=self._forward, encode=self._encode, embed=self._embed)

    def _perhaps(self, what: str, every: int, min_rows: int = 2, course: Course | None = None) -> None:
        if self.live < min_rows:
            return
        self._calls[what] += 1
        if self._calls[what] % every == every // 2:
            self.failed[what] += 1
            if course:
                self.returned.add(course)
            raise RuntimeError("[malloc] Unable to allocate 1234 bytes.")

    def _prepare(self, prompt: Any, media: MediaInputs, **keywords: Any) -> Any:
        prepared = self._family.processor.prepare(prompt, media, **keywords)
        self._prepared.append(prepared)
        for part in (prepared, *prepared.media):
            self._of_prompt[id(part)] = self._of_media[id(media)]
        return prepared

    def _encode(self, media: Sequence[Any]) -> Any:
        self._perhaps("encode", 10, course=self._of_prompt[id(media[0])] if len(media) == 1 else None)
        return self._family.model.encode(media)

    def _embed(self, prompt: Any, features: Any) -> Any:
        if course := self._of_prompt.get(id(prompt)):  # not what comes after a prefix that is reused
            self._perhaps("embed", 15, course=course)
        return self._family.model.embed(prompt, features)

    def _forward(self, inputs: Any, cache: Any, at: mx.array | None = None) -> mx.array:
        self._perhaps("prefill", 25) if at is not None else self._perhaps("decode", 20, min_rows=4)
        return self._family.model(inputs, cache, at=at)


@pytest.mark.parametrize(
    ("count", "reuse"), [(110, False), (60, True), pytest.param(500, True, marks=pytest.mark.slow)]
)
def test_a_soak(family: Family, monkeypatch: pytest.MonkeyPatch, count: int, reuse: bool) -> None:
    """reuse: of the few pictures that there are, which are then encoded too rarely to lack memory."""
    planned = courses(family, random.Random(5), count)
    expected = {course: single(family, course.row) for course in planned}
    active = settled()
    starved = Starved(family, planned, monkeypatch)
    order = soak(starved, planned, reuse)
    assert settled() - active < 1e6

    reasons = Counter(course.ends[0].finish_reason for course in planned)
    if not reuse:
        assert min(reasons[reason] for reason in ("stop", "length", "cancelled", "error")) > 3, reasons
        failed = [starved.failed[what] for what in ("encode", "embed", "prefill", "join", "decode")]
        assert min(failed) > 1, starved.failed
    for course in planned:
        [last] = course.ends
        tokens, text = expected[course]
        assert course.tokens == tokens[: len(course.tokens)]
        if last.finish_reason == "cancelled":
            assert course.leaves is not None
        elif last.finish_reason == "error":
            assert course.fault or is_out_of_memory(last.error), last.error
        else:
            assert course.fault not in ("picture", "placeholder")
            assert course.tokens == tokens and course.text == text
    in_turn = [id for id, course in order if course not in starved.returned]
    assert in_turn == sorted(in_turn)
    assert len(starved.returned) < count / 10 < len(in_turn)


def soak(starved: Starved, planned: Sequence[Course], reuse: bool) -> list[tuple[int, Course]]:
    """Run them all; ids and courses in the order of their first tokens."""
    named: dict[int, Course] = {}
    naming = threading.Lock()  # a row may speak before the thread that added it knows its id
    order: list[tuple[int, Course]] = []
    live: set[Course] = set()
    jobs: list[Future[None]] = []
    waiting, heard = iter(planned), 0
    coming = next(waiting)

    def add(course: Course) -> None:
        with naming:
            id = iterator.add(course.request)
            named[id] = course
        if course.leaves == 0:
            jobs.append(other.submit(iterator.cancel, id))

    with (
        ThreadPoolExecutor(1) as other,
        TokenIterator(
            starved.model,
            starved.processor,
            max_batch_size=SLOTS,
            kv_token_budget=BUDGET,
            prefill_step_size=CHUNK,
            reuse=reuse,
        ) as iterator,
    ):
        while coming or len(named) < len(planned) or any(not course.ends for course in planned):
            while coming and coming.comes <= heard:
                if coming.elsewhere:
                    jobs.append(other.submit(add, coming))
                else:
                    add(coming)
                coming = next(waiting, None)
            step = next(iterator, None)
            if step is None:  # nobody is there before the next one comes
                heard = coming.comes if coming else heard
                for job in list(jobs):
                    job.result()
                continue
            heard += 1
            id, result = step
            with naming:
                course = named[id]
            if result.token is not None:
                course.tokens.append(result.token)
                if len(course.tokens) == 1:
                    order.append((id, course))
                    live.add(course)
                    course.reserve = result.prompt_tokens + course.row.sampling.max_tokens
            course.text += result.text
            if len(course.tokens) == course.leaves:
                jobs.append(other.submit(iterator.cancel, id))
            if result.finish_reason is not None:
                course.ends.append(replace(result, logprobs=None, top_logprobs=None))
                live.discard(course)
            starved.live = len(live)
            assert len(live) <= SLOTS
            assert len(live) < 2 or sum(course.reserve for course in live) <= BUDGET
        for job in jobs:
            job.result()
        assert next(iterator, None) is None
    return order


def single(family: Family, row: Row) -> tuple[list[int], str]:
    """Its tokens and text when it runs alone."""
    sampling = row.sampling
    tokens = tokens_alone(family, replace(row, sampling=replace(sampling, max_tokens=LONGEST, eos_tokens=())))
    end = next((at for at, token in enumerate(tokens[: sampling.max_tokens]) if token in sampling.eos_tokens), None)
    answer = tokens[: sampling.max_tokens if end is None else end]
    return tokens[: len(answer) + (end is not None)], family.processor.tokenizer.decode(answer)


@cache
def tokens_alone(family: Family, row: Row) -> list[int]:
    [output] = play(family, [row])
    assert output.finish_reason == "length"
    return output.tokens


@pytest.mark.parametrize("count", [30, pytest.param(100, marks=pytest.mark.slow)])
def test_ten_times_as_many_prompts_take_the_same_memory(family: Family, count: int) -> None:
    few, many = crowd(family, count), crowd(family, 10 * count)
    assert many.ids == list(range(10 * count))
    assert many.bytes < few.bytes + 1e5
    assert many.pictures <= few.pictures <= CROWD_SLOTS + 1  # the last of these is read and finds that it has to wait


@dataclass
class Crowd:
    """ids in the order of their first tokens; bytes: peak memory; pictures whose pixels were in memory at once."""

    ids: list[int]
    bytes: int
    pictures: int


def crowd(family: Family, count: int) -> Crowd:
    """So many prompts at once, of which every fourth has a picture."""
    alive: list[weakref.ref[Any]] = []
    record = Crowd([], 0, 0)

    def prepare(*args: Any, **keywords: Any) -> Any:
        prompt = family.processor.prepare(*args, **keywords)
        alive.extend(weakref.ref(media.pixels) for media in prompt.media)
        alive[:] = [ref for ref in alive if ref() is not None]
        record.pictures = max(record.pictures, len(alive))
        return prompt

    processor, sampling = Wrapped(family.processor, prepare=prepare), SamplingParams(max_tokens=2)
    requests = [Row(family.asks[name], sampling).request for name in ("upright", "word", "words5", "words2")]
    active = settled()
    with TokenIterator(family.model, processor, max_batch_size=CROWD_SLOTS) as iterator:
        for index in range(count):
            iterator.add(requests[index % len(requests)])
        for id, result in iterator:
            assert result.finish_reason != "error", result.error
            if result.generation_tokens == 1:
                record.ids.append(id)
    record.bytes = mx.get_peak_memory() - active
    return record


@pytest.mark.parametrize("live", [1, 3])
def test_rows_go_on_while_a_long_prompt_is_read(family: Family, live: int) -> None:
    """Each has a token between any two chunks of it."""
    events: list[int] = []  # of the long prompt's chunks and the others' tokens, whose they are
    settings: dict[str, Any] = {"prefill_step_size": 8, "progress": lambda id, done, total: events.append(id)}
    with TokenIterator(family.model, family.processor, **settings) as iterator:
        short = [iterator.add(Row(family.asks["words5"], SamplingParams(max_tokens=60)).request) for _ in range(live)]
        for _ in range(3 * live):
            next(iterator)
        events.clear()
        long = iterator.add(Request(" The" * 100, sampling=SamplingParams(max_tokens=1)))
        last = None
        for id, result in iterator:
            events.append(id)
            if id == long:
                last = result
                break
    assert last and last.finish_reason == "length", last
    chunks = [at for at, id in enumerate(events) if id == long]
    assert len(chunks) > last.prompt_tokens / 8 > 10
    for first, second in itertools.pairwise(chunks[:-1]):  # the last is its token
        assert sorted(events[first + 1 : second]) == short


def settled() -> int:
    """Bytes of MLX that are in use when nothing runs."""
    gc.collect()
    mx.clear_cache()
    return mx.get_active_memory()
