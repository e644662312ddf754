"""Every row that was added gets one last result, whatever fails, wherever, and whoever closes the iterator."""

import itertools
import random
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from chain_model import Chain, Letters
from hypothesis import given
from hypothesis import strategies as st

from mlx_vlgen import GenerationResult, MediaInputs, Request, SamplingParams, TokenIterator
from mlx_vlgen._runtime import mx
from mlx_vlgen.engine import batch
from mlx_vlgen.engine import iterator as loop
from mlx_vlgen.engine.intake import Intake
from mlx_vlgen.engine.modes import Beams, Guidance
from mlx_vlgen.inputs.prompt import Media, Prompt
from mlx_vlgen.models.base import Embedded, Features

SIZE = 6


class Fault(Exception):
    pass


PLACES = (
    "forward", "encode", "embed", "prepare", "tokenizer", "decode", "sampler", "processor", "criterion", "allowed",
    "fed", "met", "drafter", "propose", "update", "progress",
)  # fmt: skip
FAULTS: tuple[Callable[[], BaseException], ...] = (
    Fault,
    StopIteration,
    lambda: RuntimeError("[malloc] Unable to allocate 1234 bytes."),
    KeyboardInterrupt,
)


class Mines:
    """Calls that raise. At each place the n-th call raises what `laid` says of (place, n)."""

    def __init__(self, laid: Mapping[tuple[str, int], Callable[[], BaseException]]):
        self._laid = dict(laid)
        self._calls: Counter[str] = Counter()
        self.armed = False

    def step(self, place: str) -> None:
        self._calls[place] += self.armed
        if fault := self._laid.get((place, self._calls[place])):
            raise fault()

    def at(self, place: str, result: Callable[..., Any]) -> Callable[..., Any]:
        def stepping(*args: Any, **named: Any) -> Any:
            self.step(place)
            return result(*args, **named)

        return stepping


class Mined(Chain):
    def __init__(self, mines: Mines):
        super().__init__(np.random.default_rng(1).normal(size=(SIZE, SIZE)) * 2)
        self._mines = mines

    def encode(self, media: Sequence[Media]) -> list[Features]:
        self._mines.step("encode")
        return [Features(mx.zeros((1, 1))) for _ in media]

    def embed(self, prompt: Prompt, features: Sequence[Features]) -> Embedded:
        self._mines.step("embed")
        return super().embed(prompt, features)

    def __call__(self, inputs: Embedded, cache: Sequence[Any], at: mx.array | None = None) -> mx.array:
        self._mines.step("forward")
        return super().__call__(inputs, cache, at)


class MinedLetters(Letters):
    """Reads letters, and a picture for each "a" among them."""

    def __init__(self, mines: Mines):
        super().__init__(SIZE)
        self._mines, self._tokenizer = mines, self.tokenizer
        self._tokenizer.decode = mines.at("decode", self._tokenizer.decode)
        del self.tokenizer

    def __getattr__(self, name: str) -> Any:
        if name != "tokenizer":
            raise AttributeError(name)
        self._mines.step("tokenizer")
        return self._tokenizer

    def prepare(self, prompt: str, media: MediaInputs, **_: Any) -> Prompt:
        self._mines.step("prepare")
        pixels = np.zeros((1, 3), np.float32)
        pictures = [Media("image", pixels, (1, 1, 1), ((i, i + 1),), (1, 1)) for i, c in enumerate(prompt) if c == "a"]
        return Prompt(np.array([ord(letter) - 97 for letter in prompt], np.int32), tuple(pictures))


@dataclass
class Form:
    """A constraint that allows everything."""

    mines: Mines
    over = False

    def allowed(self, vocabulary: int) -> np.ndarray:
        self.mines.step("allowed")
        return np.full(-(-vocabulary // 8), 255, dtype=np.uint8)

    def add(self, token: int) -> None:
        self.mines.step("fed")

    def met(self, text: Any) -> bool:
        self.mines.step("met")
        return True


@dataclass
class Guesses:
    """A drafter, sometimes right, which also guesses what no token is."""

    mines: Mines

    def read(self, prompt: Prompt) -> None:
        self.mines.step("drafter")

    def propose(self, tokens: Sequence[int], max_tokens: int) -> list[int]:
        self.mines.step("propose")
        return [len(tokens) % SIZE, 2, SIZE + 1000][:max_tokens]

    def update(self, num_proposed: int, num_accepted: int) -> None:
        self.mines.step("update")


KINDS = ("plain", "seeing", "long", "user", "stop", "formed", "beams", "guided", "drafted", "timed")


def request(kind: str, mines: Mines) -> Request:
    plain = SamplingParams(max_tokens=6, temperature=1.0, seed=3)
    ends = frozenset([5] if kind in ("stop", "formed", "beams") else [])
    plain_request = Request({"seeing": "caab", "long": "bcd" * 5}.get(kind, "bcd"), sampling=plain, end_tokens=ends)
    match kind:
        case "user":
            user = {
                "logits_processors": [mines.at("processor", lambda tokens, logits: logits)],
                "sampler": mines.at("sampler", lambda scores: mx.argmax(scores, axis=-1)),
                "stopping_criteria": [mines.at("criterion", lambda tokens, scores: False)],
            }
            return replace(plain_request, sampling=replace(plain, **user))
        case "stop":
            return replace(plain_request, sampling=replace(plain, stop=["e", "bb"]))
        case "formed":
            return replace(plain_request, sampling=replace(plain, choices=["x"]))
        case "beams":
            criteria = [mines.at("criterion", lambda tokens, scores: False)]
            return replace(
                plain_request,
                beams=Beams(2),
                sampling=SamplingParams(max_tokens=4, stop=["e"], stopping_criteria=criteria),
            )
        case "guided":
            return replace(plain_request, guidance=Guidance(2.0, Prompt(np.array([3, 2, 1, 4, 2], np.int32))))
        case "drafted":
            return replace(plain_request, drafter=lambda: Guesses(mines))
        case "timed":
            return replace(plain_request, sampling=replace(plain, max_time=1e-4))
    return plain_request


@pytest.fixture(autouse=True)
def forms(monkeypatch: pytest.MonkeyPatch) -> None:
    """`Form` stands for what llguidance would make of a request's form."""

    def constraint(intake: Any, row: Any) -> Form | None:
        return Form(intake._model._mines) if row.sampling.form else None

    monkeypatch.setattr(Intake, "_constraint", constraint)


def mined(mines: Mines, **settings: Any) -> TokenIterator:
    progress = mines.at("progress", lambda *_: None)
    iterator = TokenIterator(Mined(mines), MinedLetters(mines), prefill_step_size=7, progress=progress, **settings)
    mines.armed = True
    return iterator


class Heard:
    """What came out for each row, in order."""

    def __init__(self) -> None:
        self.results: dict[int, list[GenerationResult]] = defaultdict(list)
        self.interrupted = 0

    def listen(self, iterator: TokenIterator, max_results: int = 10**6) -> bool:
        """Up to so many results; whether that is all. Ctrl-C comes through, and nothing else does."""
        for _ in range(max_results):
            try:
                step = next(iterator, None)
            except KeyboardInterrupt:
                self.interrupted += 1
                continue
            if step is None:
                return True
            self.results[step[0]].append(step[1])
        return False

    def close(self, iterator: TokenIterator) -> None:
        try:
            iterator.close()
        except KeyboardInterrupt:
            self.interrupted += 1

    def check(self, ids: Sequence[int]) -> None:
        assert sorted(self.results) == sorted(ids)
        for results in self.results.values():
            *before, last = results
            assert last.finish_reason is not None
            assert all(result.finish_reason is None for result in before)
            assert (last.finish_reason == "error") == (last.error is not None)


laid = st.dictionaries(st.tuples(st.sampled_from(PLACES), st.integers(1, 12)), st.sampled_from(FAULTS), max_size=4)
actions = st.lists(st.tuples(st.sampled_from(["add", "cancel", "close"]), st.integers(0, 12)), max_size=4)


@given(laid, st.lists(st.sampled_from(KINDS), min_size=1, max_size=5), actions, st.integers(1, 4))
def test_every_row_gets_one_last_result(
    laid: dict[tuple[str, int], Callable[[], BaseException]],
    kinds: list[str],
    actions: list[tuple[str, int]],
    slots: int,
) -> None:
    """Whatever fails, and whoever cancels, adds and closes in the middle of it."""
    mines, heard = Mines(laid), Heard()
    iterator = mined(mines, max_batch_size=slots)
    ids = [iterator.add(request(kind, mines)) for kind in kinds]
    closed = False
    for action, after in actions:
        heard.listen(iterator, after)
        if action == "cancel":
            iterator.cancel(ids[after % len(ids)])
        elif action == "close":
            heard.close(iterator)
            closed = True
        elif closed or heard.interrupted:
            with pytest.raises(RuntimeError, match="closed"):
                iterator.add(request("plain", mines))
        else:
            ids.append(iterator.add(request(KINDS[after % len(KINDS)], mines)))
    assert heard.listen(iterator)
    heard.close(iterator)
    heard.check(ids)


@pytest.mark.parametrize("seed", range(4))
def test_threads_that_add_cancel_and_close(seed: int) -> None:
    """One iterates, two meddle; what comes is handed to consumers, all of whom hear the end."""
    mines, heard = Mines({("forward", 9): Fault, ("criterion", 5): Fault}), Heard()
    iterator = mined(mines, max_batch_size=3)
    ids: list[int] = []

    def meddle(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(20):
            try:
                id = iterator.add(request(rng.choice(KINDS), mines))
            except RuntimeError:
                return
            ids.append(id)
            if rng.random() < 0.3:
                iterator.cancel(rng.choice(ids))
        if seed % 2:
            iterator.close()

    threads = [threading.Thread(target=meddle, args=(2 * seed + i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        heard.listen(iterator)
    for thread in threads:
        thread.join()
    heard.listen(iterator)
    heard.check(ids)


# One by one


def test_a_fault_of_a_forward_ends_the_rows_in_it_only() -> None:
    """Those of other batches, and those that come later, are answered."""
    mines = Mines({("forward", 5 if batch.LOOKAHEAD else 4): Fault})  # of the plain rows
    heard = Heard()
    with mined(mines) as iterator:
        lost = [iterator.add(request("plain", mines)) for _ in range(2)]
        unharmed = iterator.add(request("beams", mines))
        heard.listen(iterator, 4)
        late = iterator.add(request("plain", mines))
        heard.listen(iterator)
    heard.check([*lost, unharmed, late])
    assert [heard.results[id][-1].finish_reason == "error" for id in (*lost, unharmed, late)] == [
        True,
        True,
        False,
        False,
    ]
    error = heard.results[lost[0]][-1].error
    assert isinstance(error, Fault) and error.__traceback__ is None  # whose frames would keep the caches


def test_ctrl_c_ends_every_row_once() -> None:
    mines, heard = Mines({("forward", 3): KeyboardInterrupt}), Heard()
    iterator = mined(mines, max_batch_size=2)
    ids = [iterator.add(request(kind, mines)) for kind in ("plain", "long", "user", "beams")]
    with pytest.raises(KeyboardInterrupt):
        for id, result in iterator:
            heard.results[id].append(result)
    for id, result in iterator:
        heard.results[id].append(result)
    heard.check(ids)
    assert all(results[-1].finish_reason == "cancelled" for results in heard.results.values())
    with pytest.raises(RuntimeError, match="closed"):
        iterator.add(request("plain", mines))


def test_ctrl_c_in_the_middle_of_an_end() -> None:
    """The row has its last result, once, when the rest is read."""
    for place, count in itertools.product(("decode", "met"), (1, 2, 3, 4)):
        mines, heard = Mines({(place, count): KeyboardInterrupt}), Heard()
        iterator = mined(mines)
        ids = [iterator.add(request(kind, mines)) for kind in ("formed", "stop")]
        heard.listen(iterator)
        heard.check(ids)


def test_ctrl_c_while_closing() -> None:
    """What was left then is closed by whoever comes next."""
    mines, heard = Mines({("finish", 2): KeyboardInterrupt}), Heard()
    iterator = mined(mines)
    ids = [iterator.add(request("plain", mines)) for _ in range(3)]
    heard.listen(iterator, 1)
    for row in iterator._rows.values():
        row.text.finish = mines.at("finish", row.text.finish)  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        iterator.close()
    heard.listen(iterator)
    heard.check(ids)


def test_a_fault_of_the_loop_comes_out_and_ends_every_row(monkeypatch: pytest.MonkeyPatch) -> None:
    mines, heard = Mines({("plan", 3): Fault}), Heard()
    iterator = mined(mines, max_batch_size=2)
    monkeypatch.setattr(loop, "make_plan", mines.at("plan", loop.make_plan))
    ids = [iterator.add(request(kind, mines)) for kind in ("plain", "long", "beams")]
    with pytest.raises(Fault):
        heard.listen(iterator)
    heard.listen(iterator)
    heard.check(ids)
    assert all(isinstance(results[-1].error, Fault) for results in heard.results.values())


@pytest.mark.parametrize("count", [0, 1, 4])
def test_close_gives_every_row_its_last_result(count: int) -> None:
    mines, heard = Mines({}), Heard()
    with mined(mines, max_batch_size=2) as iterator:
        ids = [iterator.add(request(kind, mines)) for kind in ("plain", "long", "user", "beams", "seeing")]
        heard.listen(iterator, count)
    heard.listen(iterator)
    heard.check(ids)
    assert {results[-1].finish_reason for results in heard.results.values()} == {"cancelled"}
    iterator.close()
    assert list(iterator) == []


def test_add_after_close() -> None:
    iterator = mined(mines := Mines({}))
    iterator.close()
    with pytest.raises(RuntimeError, match="closed"):
        iterator.add(request("plain", mines))


@pytest.mark.parametrize("closes", ["progress", "processor"])
def test_close_from_inside_a_step(closes: str) -> None:
    """By the user's code that a step runs: the step ends, and no row is told twice."""
    mines, heard = Mines({}), Heard()
    iterator = mined(mines)

    class Closing(Mines):
        def step(self, place: str) -> None:
            if place == closes:
                iterator.close()

    mines.step = Closing({}).step  # type: ignore[method-assign]
    ids = [iterator.add(request(kind, mines)) for kind in ("user", "plain", "long")]
    heard.listen(iterator)
    heard.check(ids)


def test_close_while_another_thread_iterates() -> None:
    """The step under way ends first; the thread that iterates hears every row's end."""
    mines, heard = Mines({}), Heard()
    iterator = mined(mines)
    endless = replace(request("plain", mines), sampling=SamplingParams(max_tokens=10**6), end_tokens=frozenset())
    id = iterator.add(endless)
    consumer = threading.Thread(target=heard.listen, args=(iterator,))
    consumer.start()
    iterator.close()
    consumer.join(20)
    assert not consumer.is_alive()
    heard.check([id])


@pytest.mark.parametrize(
    ("place", "kind"),
    [
        ("decode", "plain"),
        ("fed", "formed"),
        ("allowed", "formed"),
        ("met", "formed"),
        ("propose", "drafted"),
        ("update", "drafted"),
        ("drafter", "drafted"),
        ("decode", "beams"),
        ("prepare", "plain"),
        ("progress", "plain"),
        ("progress", "long"),
        ("tokenizer", "plain"),
    ],
)
def test_a_fault_of_one_row_ends_that_row_only(place: str, kind: str) -> None:
    """Its neighbour, which steps with it, answers as if it were not there."""

    def play(mines: Mines) -> Heard:
        heard = Heard()
        with mined(mines) as iterator:
            for one_kind in (kind, kind):
                iterator.add(request(one_kind, mines))
            heard.listen(iterator)
        heard.check([0, 1])
        return heard

    undisturbed = play(Mines({}))
    heard = play(Mines({(place, 1): Fault}))
    ends = [results[-1] for results in heard.results.values()]
    failed = [isinstance(last.error, Fault) for last in ends]
    assert sorted(failed) == [False, True]
    unharmed = failed.index(False)
    assert list(ends[unharmed].tokens) == list(undisturbed.results[unharmed][-1].tokens)


def test_a_cancel_between_a_row_and_its_negative_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread cancels while the loop looks at one of the two: both leave together, and the others stay. It looks
    only where steps start ahead."""
    monkeypatch.setattr(batch, "LOOKAHEAD", True)
    mines, heard = Mines({}), Heard()
    with mined(mines) as iterator:
        guided, plain = (iterator.add(request(kind, mines)) for kind in ("guided", "plain"))
        heard.listen(iterator, 2)
        [rows] = [live.rows for live in iterator._executor.batches]
        kind = type(rows[0])
        due = kind.last_token_due.fget

        def cancelling(row: Any) -> bool:
            try:
                return bool(due(row))  # type: ignore[misc]
            finally:
                iterator.cancel(guided)

        monkeypatch.setattr(kind, "last_token_due", property(cancelling))
        heard.listen(iterator)
    heard.check([guided, plain])
    assert heard.results[guided][-1].finish_reason == "cancelled"
    assert heard.results[plain][-1].finish_reason in ("stop", "length")
