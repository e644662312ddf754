"""Beam search against all paths of a chain whose probabilities are known, and one answer in every company."""

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from chain_model import Chain, Letters
from chi_square import limit, statistic
from invariants.family import Family

from mlx_vlgen import GenerationResult, Request, SamplingParams, TokenIterator
from mlx_vlgen.engine.beam import Hypotheses
from mlx_vlgen.engine.kv_settings import KVSettings
from mlx_vlgen.engine.modes import Beams, Guidance
from mlx_vlgen.engine.request import Row
from mlx_vlgen.inputs.prompt import Prompt

LoadFamily = Callable[[str], Family]


def run(family: Any, requests: Sequence[Request], joins: int = 0) -> list[GenerationResult]:
    """joins: how many results the first gives before the others come."""
    ended: dict[int, GenerationResult] = {}
    texts: dict[int, str] = defaultdict(str)
    with TokenIterator(family.model, family.processor) as iterator:
        ids = [iterator.add(requests[0])]
        late = list(requests[1:])
        while True:
            if late and not joins:
                ids += [iterator.add(request) for request in late]
                late = []
            try:
                id, result = next(iterator)
            except StopIteration:
                if not late:
                    break
                joins = 0
                continue
            joins = max(0, joins - 1)
            texts[id] += result.text
            if result.finish_reason:
                ended[id] = replace(result, text=texts[id])
    for result in ended.values():
        if result.error:
            raise result.error
    return [ended[id] for id in ids]


def chain(size: int, seed: int) -> Any:
    logits = np.random.default_rng(seed).normal(size=(size, size)) * 2
    return SimpleNamespace(model=Chain(logits), processor=Letters(size), logits=logits)


def beam_request(beams: Beams, tokens: int, ends: Sequence[int] = (), **more: Any) -> Request:
    prompt = Prompt(np.array([0], dtype=np.int32))
    sampling = SamplingParams(max_tokens=tokens, **more)
    return Request(prompt, sampling=sampling, end_tokens=frozenset(ends), beams=beams)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("seed", range(4))
def test_as_many_beams_as_paths_find_the_best_of_all(seed: int, penalty: float) -> None:
    """Every text of 4 tokens over an alphabet of 3, where "c" ends one earlier."""
    family = chain(3, seed)
    steps = log_softmax(family.logits)
    paths = {}
    for path in product(range(3), repeat=4):
        text = path[: path.index(2) + 1] if 2 in path else path
        score = sum(steps[a, b] for a, b in zip((0, *text[:-1]), text, strict=True))
        paths[text] = score / len(text) ** penalty
    best = sorted(paths, key=lambda text: -paths[text])[:5]
    beams = Beams(81, penalty, early_stopping="never", returned=5)
    result = run(family, [beam_request(beams, 4, ends=[2])])[0]
    texts = [tuple(beam.tokens) for beam in result.beams]  # equal steps in another order are ties
    assert np.allclose([paths[text] for text in texts], [paths[text] for text in best], atol=1e-5)
    assert np.allclose([beam.score for beam in result.beams], [paths[text] for text in texts], atol=1e-5)
    assert len(set(texts)) == 5
    assert result.finish_reason == ("stop" if texts[0][-1] == 2 else "length")
    assert result.text == "".join(chr(97 + token) for token in texts[0] if token != 2)


def test_one_beam_a_step_is_greedy() -> None:
    family = chain(7, 1)
    greedy = run(family, [replace(beam_request(Beams(1), 12), beams=None)])[0]
    assert list(run(family, [beam_request(Beams(1), 12)])[0].tokens) == list(greedy.tokens)


def test_a_sampled_beam_is_drawn_by_its_probability() -> None:
    family = chain(4, 3)
    likely = np.exp(log_softmax(family.logits))[0]
    counts = np.zeros(4)
    rows = [beam_request(Beams(1, sample=True), 1, seed=seed) for seed in range(1500)]
    for result in run(family, rows):
        counts[result.beams[0].tokens[0]] += 1
    assert statistic(counts, likely * 1500) < limit(3)


def results_of(family: Any, request: Request) -> list[GenerationResult]:
    with TokenIterator(family.model, family.processor) as iterator:
        iterator.add(request)
        return [result for _, result in iterator]


@pytest.mark.parametrize("ends", [[], [2]], ids=str)
def test_when_time_is_up_the_best_beam_so_far_is_handed_out_whole(
    ends: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if max_tokens had been as many tokens as it has."""
    family, steps = chain(3, 5), []
    monkeypatch.setattr(Row, "timed_out", property(lambda row: len(steps) >= 4))
    advance = Hypotheses.advance
    monkeypatch.setattr(Hypotheses, "advance", lambda *args: (steps.append(None), advance(*args))[1])
    *before, last = results_of(family, beam_request(Beams(3), 40, ends))
    monkeypatch.undo()
    expected = run(family, [beam_request(Beams(3), 4, ends)])[0]
    assert last.tokens == expected.tokens == last.beams[0].tokens
    assert [result.token for result in (*before, last)] == expected.tokens
    assert "".join(result.text for result in (*before, last)) == expected.text
    assert last.finish_reason == expected.finish_reason
    assert [beam.tokens for beam in last.beams] == [beam.tokens for beam in expected.beams]


def test_a_search_that_sleeps_stops_in_time() -> None:
    family = chain(3, 5)
    slow = lambda tokens, logits: (time.sleep(0.02), logits)[1]  # noqa: E731
    results = results_of(family, beam_request(Beams(2), 1000, max_time=0.5, logits_processors=[slow]))
    assert 1 < len(results) < 40 and results[-1].finish_reason == "length"
    assert results[-1].tokens == results[-1].beams[0].tokens == [result.token for result in results]


WHOLE = KVSettings()


@pytest.mark.parametrize(
    ("name", "kv"),
    [
        ("qwen3_vl", WHOLE),
        ("gemma3", WHOLE),
        ("qwen3_5", WHOLE),
        ("demo", KVSettings(8, 32)),
        ("llama", KVSettings(max_size=8)),
    ],
    ids=str,
)
def test_a_search_finds_the_same_in_any_company(name: str, kv: KVSettings, load_family: LoadFamily) -> None:
    family = load_family(name)
    names = [name for name in ("img1", "words5", "img2", "words16") if name in family.asks][:3]
    rows = [
        Request(
            family.asks[name].text,
            family.asks[name].media,
            SamplingParams(max_tokens=8),
            kv,
            beams=Beams(2 + place, 0.7, returned=2),
        )
        for place, name in enumerate(names)
    ]
    alone = [run(family, [row])[0] for row in rows]
    plain = replace(rows[0], beams=None, sampling=SamplingParams(max_tokens=12))
    for together in (run(family, rows), run(family, [plain, *rows], joins=3)[1:]):
        for one, other in zip(alone, together, strict=True):
            assert [beam.tokens for beam in one.beams] == [beam.tokens for beam in other.beams]
            assert np.allclose(
                [b.score for b in one.beams], [b.score for b in other.beams], atol=1e-2 if kv.bits else 1e-4
            )


def test_a_guided_row_is_the_same_in_any_company(load_family: LoadFamily) -> None:
    family = load_family("qwen3_vl")
    negative = family.processor.prepare(family.asks["words5"].text)
    seeing = family.processor.prepare(family.asks["img1"].text, family.asks["img1"].media)
    rows = [
        Request(ask.text, ask.media, SamplingParams(max_tokens=8), guidance=Guidance(scale, away))
        for ask, scale, away in (
            (family.asks["img1"], 1.5, negative),
            (family.asks["words16"], 3.0, seeing),
            (family.asks["words5"], 1.0, negative),
        )
    ]
    alone = [run(family, [row])[0] for row in rows]
    unguided = run(family, [replace(rows[2], guidance=None)])[0]
    assert list(alone[2].tokens) == list(unguided.tokens)  # a scale of 1 changes nothing
    assert list(alone[0].tokens) != list(run(family, [replace(rows[0], guidance=None)])[0].tokens)
    for together in (run(family, rows), run(family, [unguided_row(rows[0]), *rows], joins=2)[1:]):
        for one, other in zip(alone, together, strict=True):
            assert list(one.tokens) == list(other.tokens)
            assert np.abs(np.array(one.logprobs) - np.array(other.logprobs)).max() < 1e-4


def unguided_row(row: Request) -> Request:
    return replace(row, guidance=None, sampling=SamplingParams(max_tokens=12))
