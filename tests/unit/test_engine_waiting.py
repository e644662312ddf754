"""Requests are read outside the loop: who is slow stops nobody, and little is read ahead."""

import io
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from invariants.family import Family
from invariants.play import Heard, Row, Wrapped, ask_for, check, collect, play_and_check
from parity import media

from mlx_vlgen import MediaInputs, Request, SamplingParams, TokenIterator, generate
from mlx_vlgen._runtime import mx
from mlx_vlgen.engine import waiting
from mlx_vlgen.engine.scheduler import READ_AHEAD
from mlx_vlgen.errors import MediaError, QueueFullError


@pytest.fixture(scope="module")
def family(load_family: Callable[[str], Family]) -> Family:
    return load_family("qwen3_vl")


class SlowFile(io.BytesIO):
    """Its first bytes come once it is `opened`."""

    def __init__(self, data: bytes):
        super().__init__(data)
        self.opened = threading.Event()

    def read(self, size: int | None = -1) -> bytes:
        assert self.opened.wait(60)
        return super().read(size)


def test_a_slow_file_stops_nobody(family: Family, pictures: Path) -> None:
    """Neither rows that decode nor those that come later; it is answered when it is there."""
    file = SlowFile((pictures / "upright.png").read_bytes())
    slow, live, late = Row(family.asks["upright"], media=file), Row(family.asks["words5"]), Row(family.asks["img1"])
    with TokenIterator(family.model, family.processor) as iterator:
        ids = [iterator.add(row.request) for row in (live, slow, late)]
        heard = {id: Heard() for id in ids}
        for id, result in iterator:
            heard[id].add(result)
            if heard[ids[0]].finish_reason and heard[ids[2]].finish_reason:
                file.opened.set()
    check(family, [live, slow, late], [heard[id] for id in ids])


def test_one_request_starts_no_thread(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading.Thread, "start", lambda thread: pytest.fail("a thread was started"))
    result = generate(family.model, family.processor, family.asks["words5"].text, max_tokens=2)
    assert result.tokens == family.answer(family.asks["words5"]).tokens[:2]


def test_little_is_read_ahead(family: Family) -> None:
    """However many wait, and whatever rows that decode take."""
    read: list[int] = []

    def prepare(*args: Any, **keywords: Any) -> Any:
        read.append(1)
        return family.processor.prepare(*args, **keywords)

    with TokenIterator(family.model, Wrapped(family.processor, prepare=prepare), max_batch_size=2) as iterator:
        for _ in range(30):
            iterator.add(ask_for(family, "words5").request)
        for count, _ in enumerate(iterator, 1):
            assert len(read) <= 2 + count // 8 + READ_AHEAD + 1


def test_pictures_that_mlx_still_has_to_compute(family: Family) -> None:
    """Only the thread that made them can: they are when they are added."""
    picture = mx.array(media.picture("upright"))
    rows = [Row(family.asks["upright"], media=MediaInputs(images=[picture + 0])) for _ in range(3)]
    messages = [{"role": "user", "content": [{"type": "image", "image": picture + 0}]}]
    with TokenIterator(family.model, family.processor) as iterator:
        ids = [iterator.add(row.request) for row in rows]
        last = iterator.add(Request(messages, sampling=SamplingParams(max_tokens=1)))
        heard = collect(iterator)
    check(family, rows, [heard[id] for id in ids])
    assert heard[last].finish_reason == "length"


def test_pixels_that_wait_stop_reading_ahead(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing else."""
    monkeypatch.setattr(waiting, "PIXEL_BYTES", 1)
    play_and_check(family, [Row(family.asks[name]) for name in ("img1", "words5", "upright", "img2", "img1")])


def test_pictures_of_a_row_that_cannot_come_in(family: Family) -> None:
    """Its drafter fails when the row is admitted; one with the same pictures is answered."""

    def fail() -> Any:
        raise ArithmeticError("mine")

    good = Row(family.asks["img1"])
    with TokenIterator(family.model, family.processor) as iterator:
        bad, id = iterator.add(replace(good.request, drafter=fail)), iterator.add(good.request)
        heard = collect(iterator)
    check(family, [good], [heard[id]])
    assert isinstance(heard[bad].results[-1].error, ArithmeticError)


def test_a_prepared_request(family: Family) -> None:
    """Read in the caller's thread, where its faults are raised; taken once."""
    row = Row(family.asks["img1"])
    with TokenIterator(family.model, family.processor) as iterator:
        with pytest.raises(MediaError):
            iterator.prepare(replace(row.request, media=MediaInputs(images=[b"no picture"])))
        prepared = iterator.prepare(row.request)
        id = iterator.add(prepared)
        with pytest.raises(RuntimeError, match="added before"):
            iterator.add(prepared)
        check(family, [row], [collect(iterator)[id]])
        with pytest.raises(RuntimeError, match="added before"):
            iterator.add(prepared)


def test_a_bounded_queue(family: Family) -> None:
    """Who finds it full is told so; a place is free again once a row has come in."""
    row = ask_for(family, "words5")
    with TokenIterator(family.model, family.processor, max_queue=2) as iterator:
        ids = [iterator.add(row.request) for _ in range(2)]
        with pytest.raises(QueueFullError, match="max_queue is 2"):
            iterator.add(row.request)
        next(iterator)
        ids.append(iterator.add(row.request))
        assert {id for id, _ in iterator} == set(ids)
    with pytest.raises(ValueError, match="max_queue=0"):
        TokenIterator(family.model, family.processor, max_queue=0)


def test_waiting_for_work(family: Family) -> None:
    """An iterator that serves waits for requests, and for nothing once it is closed."""
    row = ask_for(family, "words5")
    heard: list[Any] = []
    with TokenIterator(family.model, family.processor) as iterator:
        assert not iterator.wait(0.01)

        def serve() -> None:
            while iterator.wait():
                heard.extend(iterator)

        server = threading.Thread(target=serve)
        server.start()
        for count in (1, 2):
            iterator.add(row.request)
            while sum(result.finish_reason is not None for _, result in heard) < count:
                time.sleep(0.005)
        iterator.close()
        server.join(20)
    assert not server.is_alive()
    assert [result.token for _, result in heard] == 2 * family.answer(row.ask).tokens


def test_a_time_limit_holds_in_the_prefill_of_a_negative_prompt(load_family: Callable[[str], Family]) -> None:
    from mlx_vlgen.engine.modes import Guidance

    family = load_family("qwen3")
    prompt = family.processor.prepare(family.asks["words5"].text)
    negative = family.processor.prepare(family.asks["long"].text)
    chunks = []

    def forward(inputs: Any, *args: Any, **keywords: Any) -> Any:
        chunks.append(time.sleep(0.02))
        return family.model(inputs, *args, **keywords)

    request = Request(prompt, sampling=SamplingParams(max_time=0.1), guidance=Guidance(2.0, negative))
    with TokenIterator(Wrapped(family.model, forward=forward), family.processor, prefill_step_size=5) as iterator:  # type: ignore[arg-type]
        iterator.add(request)
        [(_, result)] = iterator
    assert (result.finish_reason, result.tokens) == ("length", []) and 1 < len(chunks) < 10


def test_python_ends_while_a_file_is_read() -> None:
    """Neither Ctrl-C nor the end of the program waits for it."""
    program = """
import sys, time
from chain_model import Chain, Letters
import numpy as np
from mlx_vlgen import Request, TokenIterator
from mlx_vlgen.inputs.prompt import Prompt
class Slow(Letters):
    def prepare(self, prompt, media, **_):
        time.sleep(600 if prompt == "slow" else 0)
        return Prompt(np.array([1, 2], np.int32))
iterator = TokenIterator(Chain(np.eye(4)), Slow(4))
for prompt in ("quick", "slow", "slow"):
    iterator.add(Request(prompt))
print(next(iterator)[0])
raise KeyboardInterrupt
"""
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, cwd=Path(__file__).parent
    )
    assert run.stdout == "0\n" and "KeyboardInterrupt" in run.stderr
