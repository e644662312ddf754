"""A request has the same answer with and without what is reused, and what is reused is not computed again."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from parity import media
from parity.expected import families

from mlx_vlgen import (
    GenerationResult,
    MediaInputs,
    PrefixCache,
    Request,
    SamplingParams,
    TokenIterator,
    apply_chat_template,
    batch_generate,
    generate,
    stream_generate,
)
from mlx_vlgen.engine import prefix, scheduler, store
from mlx_vlgen.engine.kv_settings import SINKS, KVSettings
from mlx_vlgen.engine.modes import Beams
from mlx_vlgen.engine.speculative import PromptLookup
from mlx_vlgen.inputs.prompt import Prompt
from mlx_vlgen.inputs.tensors import pack

from .family import Family
from .play import TOLERANCE, Heard, Wrapped, collect
from .test_one_answer import usable_caches

LoadFamily = Callable[[str], Family]
DETAILED = ("qwen3_vl", "gemma3", "qwen3_5", "llama")  # full layers with M-RoPE, sliding ones, recurrent ones, text
TOKENS = SamplingParams(max_tokens=4)
PICTURES = ("upright", "large", "small", "plain")


@pytest.fixture(autouse=True)
def little_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny prompts are long enough, and have several blocks."""
    for module in (prefix, store, scheduler):
        for name, value in (("LEAST", 2), ("BLOCK", 16)):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, value)


Turn = tuple[str, tuple[str, ...]]
"""What is asked, and the pictures before it."""


def talk(family: Family, turns: Sequence[Turn], answer: str = "It is fine.") -> Request:
    """The last of these turns, after the others with an answer each."""
    messages: list[dict[str, Any]] = []
    for text, names in turns:
        if messages:
            messages.append({"role": "assistant", "content": answer})
        parts = [{"type": "image"} for _ in names]
        content: Any = [*parts, {"type": "text", "text": text}] if parts else text
        messages.append({"role": "user", "content": content})
    text = apply_chat_template(family.processor, family.model.config, messages)
    images = [media.picture(name) for _, names in turns for name in names]
    return Request(text, MediaInputs(images=images), TOKENS)


class Counted:
    """A model that counts the tokens of its forwards, and the media that it encodes."""

    def __init__(self, model: Any):
        self.tokens = self.encoded = self.forwards = 0

        def forward(inputs: Any, cache: Any, at: Any = None) -> Any:
            self.tokens += inputs.tokens.size
            self.forwards += 1
            return model(inputs, cache, at)

        def encode(group: Sequence[Any]) -> Any:
            self.encoded += len(group)
            return model.encode(group)

        self.model = Wrapped(model, forward=forward, encode=encode)


def run(
    model: Any, family: Family, requests: Sequence[Request], cache: PrefixCache | bool | None, **named: Any
) -> list[Heard]:
    """All of them in one iterator."""
    with TokenIterator(model, family.processor, reuse=cache or False, **named) as iterator:
        ids = [iterator.add(request) for request in requests]
        heard = collect(iterator)
    return [heard[id] for id in ids]


def assert_equal(one: Heard, other: Heard, tolerance: float = TOLERANCE) -> None:
    assert one.finish_reason == other.finish_reason, (one.results[-1].error, other.results[-1].error)
    assert one.tokens == other.tokens
    assert np.abs(np.stack(one.scores) - np.stack(other.scores)).max() < tolerance


def cached(heard: Heard) -> int:
    return heard.results[-1].cached_tokens


def sees(family: Family) -> bool:
    return "image" in family.processor.placeholders


@pytest.mark.parametrize("name", families())
def test_every_family_goes_on_with_a_talk(load_family: LoadFamily, name: str) -> None:
    """A second turn, with a new picture, as from scratch; and the first one again."""
    family, cache = load_family(name), PrefixCache()
    pictures = (("upright",), ("small",)) if sees(family) else ((), ())
    first = talk(family, [("What is on this picture?", pictures[0])])
    [heard] = run(family.model, family, [first], cache)
    second = replace(first, prompt=first.prompt + heard.text + " And what else is there?")  # type: ignore[operator]
    for request in (second, first):
        [reused], [alone] = run(family.model, family, [request], cache), run(family.model, family, [request], None)
        assert_equal(reused, alone)


def going_on(family: Family, request: Request, heard: Heard, text: str) -> Request:
    """The next turn, with the very tokens of the last answer."""
    prompt = request.prompt
    if not isinstance(prompt, Prompt):
        prompt = family.processor.prepare(prompt, request.media)
    more = family.processor.tokenizer.encode(text, add_special_tokens=False)
    tokens = np.array([*prompt.tokens.tolist(), *heard.tokens, *more], np.int32)
    return replace(request, prompt=replace(prompt, tokens=tokens), media=None)


def count_of(family: Family, text: str) -> int:
    return len(family.processor.tokenizer.encode(text, add_special_tokens=False))


@pytest.mark.parametrize("name", DETAILED)
@pytest.mark.parametrize("number", range(5))
def test_the_next_turn_costs_what_is_new(load_family: LoadFamily, name: str, number: int) -> None:
    """With every kind of cache. What is not computed again are the prompt and the answer, but its last token."""
    family, cache = load_family(name), PrefixCache()
    if number >= len(caches := usable_caches(family)[3:]):
        pytest.skip("no such cache")
    kv = caches[number]
    if kv.max_size:
        kv = replace(kv, max_size=SINKS + 40)
    counted = Counted(family.model)
    request = replace(talk(family, [("What is it?", ("upright",) if sees(family) else ())]), kv=kv)
    for text in (" And then what?", " Is that all?"):
        [heard] = run(counted.model, family, [request], cache)
        request = going_on(family, request, heard, text)
        known = len(request.prompt.tokens) - count_of(family, text) - 1  # type: ignore[union-attr]
    before = counted.tokens, counted.encoded
    [reused] = run(counted.model, family, [request], cache)
    assert cached(reused) == known
    assert counted.encoded == before[1]
    tried = 4 * SINKS + 1 if kv != KVSettings() else 0  # tokens with which the cache is tried out
    new = len(request.prompt.tokens) - known  # type: ignore[union-attr]
    assert counted.tokens - before[0] <= new + len(reused.tokens) + tried
    [alone] = run(family.model, family, [request], None)
    assert_equal(reused, alone, 0.2 / 2**kv.bits if kv.bits and "gemma3" in name else TOLERANCE)


@pytest.mark.parametrize("name", ["qwen3_vl", "gemma3", "qwen3_5"])
def test_a_new_picture_costs_that_picture(load_family: LoadFamily, name: str) -> None:
    family, cache = load_family(name), PrefixCache()
    counted = Counted(family.model)
    turns: list[Turn] = [("What is it?", ("upright",)), ("And this?", ("large",)), ("And here?", ("small",))]
    for number in range(1, 4):
        before = counted.encoded
        [reused] = run(counted.model, family, [talk(family, turns[:number])], cache)
        assert_equal(reused, run(family.model, family, [talk(family, turns[:number])], None)[0])
        if name == "qwen3_vl":
            assert counted.encoded - before == 1


@pytest.mark.parametrize("name", DETAILED)
@pytest.mark.parametrize("chunk", [7, 2048])
@pytest.mark.parametrize("all_rows", [False, True])
def test_rows_that_begin_alike_are_computed_once(
    load_family: LoadFamily, name: str, chunk: int, all_rows: bool
) -> None:
    """Ten questions about one picture: one encoding, one prefill of what they share. Also where only what rows share
    is stored, and not all of them are inside together."""
    family = load_family(name)
    counted = Counted(family.model)
    names = ("upright",) if sees(family) else ()
    opening = "Look at this picture with care and then answer what is asked about it."
    questions = [talk(family, [(f"{opening} {n} {'and so on ' * (n % 3)}?", names)]) for n in range(10)]
    prompts = [family.processor.prepare(question.prompt, question.media) for question in questions]
    cache = PrefixCache() if all_rows else True
    reused = run(counted.model, family, questions, cache, prefill_step_size=chunk, max_batch_size=10 if all_rows else 3)
    for request, heard in zip(questions, reused, strict=True):
        assert_equal(heard, run(family.model, family, [request], None)[0])
    assert counted.encoded == len(names)
    shared = sum(map(cached, reused))
    assert shared > 0.6 * sum(len(prompt.tokens) for prompt in prompts[1:])


def test_who_waits_for_a_row_that_leaves_goes_on_without(load_family: LoadFamily) -> None:
    family = load_family("qwen3_vl")
    requests = [talk(family, [(f"Look at this picture with care. {n}", ("upright",))]) for n in range(3)]
    with TokenIterator(family.model, family.processor, reuse=PrefixCache(), prefill_step_size=5) as iterator:
        ids = [iterator.add(request) for request in requests]
        while not iterator._plan or not iterator._plan.waiting:
            iterator._advance()
        iterator.cancel(ids[0])
        heard = collect(iterator)
    assert heard[ids[0]].finish_reason == "cancelled"
    for id, request in zip(ids[1:], requests[1:], strict=True):
        assert_equal(heard[id], run(family.model, family, [request], None)[0])
    assert cached(heard[ids[2]]) > 0  # from the second one


def test_beams_guesses_and_draws(load_family: LoadFamily) -> None:
    """Other ways of decoding begin with what is known, and leave what they computed."""
    family, cache = load_family("qwen3_vl"), PrefixCache()
    plain = talk(family, [("What is on this picture?", ("upright",))])
    drawn = SamplingParams(max_tokens=6, temperature=1.0, seed=3)
    for request in (
        replace(plain, drafter=lambda: PromptLookup(3)),
        replace(plain, sampling=drawn),
        replace(plain, sampling=drawn, drafter=lambda: PromptLookup(3)),
        replace(plain, beams=Beams(3)),
    ):
        [first], [reused] = (run(family.model, family, [request], cache) for _ in range(2))
        [alone] = run(family.model, family, [request], None)
        assert cached(reused) == alone.results[-1].prompt_tokens - 1
        for heard in (first, reused):
            assert heard.tokens == alone.tokens
            assert [beam.score for beam in heard.results[-1].beams] == pytest.approx(
                [beam.score for beam in alone.results[-1].beams], abs=TOLERANCE
            )
        if not request.beams:
            assert_equal(reused, alone)


def test_the_least_recently_used_goes_first(load_family: LoadFamily) -> None:
    """Within max_bytes, and no block before those that it follows."""
    family = load_family("qwen3_vl")
    requests = [talk(family, [(f"{word} is on this picture? Say all that you see there.", ())]) for word in "abc"]
    whole = PrefixCache()
    run(family.model, family, requests[:1], whole)
    cache = PrefixCache(max_bytes=int(2.5 * whole.nbytes))
    for request in (*requests[:2], requests[0], requests[2]):
        run(family.model, family, [request], cache)
        assert cache.nbytes <= 2.5 * whole.nbytes
    reused = [run(family.model, family, [request], cache)[0] for request in (requests[0], requests[2])]
    assert all(cached(heard) == heard.results[-1].prompt_tokens - 1 for heard in reused)
    cache.clear()
    assert cache.nbytes == 0
    assert cached(run(family.model, family, requests[:1], cache)[0]) == 0
    nothing = PrefixCache(max_bytes=0)
    assert [cached(run(family.model, family, requests[:1], nothing)[0]) for _ in range(2)] == [0, 0]


def test_models_do_not_share(load_family: LoadFamily) -> None:
    family, cache = load_family("llama"), PrefixCache()
    request = talk(family, [("What can you do for me today?", ())])
    run(family.model, family, [request], cache)
    other = Wrapped(family.model)
    assert cached(run(other, family, [request], cache)[0]) == 0
    assert cached(run(other, family, [replace(request, kv=KVSettings(bits=8, group_size=32))], cache)[0]) == 0
    assert cached(run(family.model, family, [request], cache)[0]) > 0


@pytest.mark.parametrize("name", ["qwen3_vl", "gemma3"])
def test_a_picture_is_encoded_once(load_family: LoadFamily, name: str) -> None:
    """Wherever it stands: in rows that run together, and in later ones."""
    family, cache = load_family(name), PrefixCache()
    counted = Counted(family.model)
    parts = [{"type": "text", "text": "Look."}, {"type": "image"}, {"type": "text", "text": "What is it?"}]
    asked = [{"role": "user", "content": [dict(parts[0], text=word), *parts[1:]]} for word in ("One,", "Two,", "Red,")]
    texts = [apply_chat_template(family.processor, family.model.config, [message]) for message in asked]
    requests = [Request(text, media.picture("upright"), TOKENS) for text in texts]
    heard = [*run(counted.model, family, requests[:2], cache), *run(counted.model, family, requests[2:], cache)]
    assert counted.encoded == 1
    for request, reused in zip(requests, heard, strict=True):
        assert_equal(reused, run(family.model, family, [request], None)[0])


# A then B then A


Ask = tuple[int, tuple[str, ...], int, int]
"""How many turns, the picture of each, the cache's number, the face's."""

asks = st.tuples(
    st.integers(1, 2), st.lists(st.sampled_from(PICTURES), min_size=2, max_size=2).map(tuple), st.integers(0, 99),
    st.integers(0, 3),
)  # fmt: skip
mixes = st.tuples(
    st.sampled_from(DETAILED),
    st.lists(asks, min_size=2, max_size=6),
    st.sampled_from([None, None, 0, 40_000, 400_000]),
    st.sampled_from([5, 2048]),
)
Mix = tuple[str, list[Ask], int | None, int]

_alone: dict[Any, GenerationResult] = {}


@settings(max_examples=settings().max_examples // 6)
@given(mix=mixes)
def test_never_a_stale_answer(load_family: LoadFamily, mix: Mix) -> None:
    any_mix(load_family, mix)


@pytest.mark.slow
@settings(max_examples=5 * settings().max_examples)
@given(mix=mixes)
def test_never_a_stale_answer_in_many_mixes(load_family: LoadFamily, mix: Mix) -> None:
    any_mix(load_family, mix)


def any_mix(load_family: LoadFamily, mix: Mix) -> None:
    """The same words about other pictures, in every face, with what is stored going out in between."""
    name, drawn, max_bytes, chunk = mix
    family, cache = load_family(name), PrefixCache(max_bytes=max_bytes)
    caches = [kv for kv in usable_caches(family) if not kv.max_size or name == "llama"]
    for count, names, number, face in drawn:
        shown = [(picture,) if sees(family) else () for picture in names[:count]]
        request = talk(family, [("What is it?", pictures) for pictures in shown])
        kv = caches[number % len(caches)]
        keywords = {"kv_bits": kv.bits, "kv_group_size": kv.group_size, "quantized_kv_start": kv.start,
                    "max_kv_size": kv.max_size, "max_tokens": 3}  # fmt: skip
        key = name, tuple(shown), kv
        images = list(request.media.images)
        if key not in _alone:
            _alone[key] = generate(family.model, family.processor, request.prompt, images, **keywords)
        settings = {**keywords, "prompt_cache": cache, "prefill_step_size": chunk}
        for result in FACES[face](family, request.prompt, images, settings):
            assert result.tokens == _alone[key].tokens
            ours, alone = np.array(result.logprobs), np.array(_alone[key].logprobs)
            assert np.abs(ours - alone).max() < (0.2 / 2**kv.bits if kv.bits and name == "gemma3" else TOLERANCE)


def _by_generate(family: Family, prompt: Any, images: Any, keywords: Any) -> Iterator[GenerationResult]:
    yield generate(family.model, family.processor, prompt, images, **keywords)


def _by_stream(family: Family, prompt: Any, images: Any, keywords: Any) -> Iterator[GenerationResult]:
    yield list(stream_generate(family.model, family.processor, prompt, images, **keywords))[-1]


def _by_batch(family: Family, prompt: Any, images: Any, keywords: Any) -> Iterator[GenerationResult]:
    both = {"images": [images, images], "prompts": [prompt, prompt]}
    yield from batch_generate(family.model, family.processor, **both, **keywords).results


def _by_tensors(family: Family, prompt: Any, images: Any, keywords: Any) -> Iterator[GenerationResult]:
    """`model.generate`, whose tokens are compared, and log-probabilities of the last."""
    prepared = family.processor.prepare(prompt, MediaInputs(images=images))
    inputs, keywords = pack(family.processor, [prepared], None), dict(keywords)
    count = keywords.pop("max_tokens")
    output = family.model.generate(**inputs, **keywords, max_new_tokens=count, return_dict_in_generate=True,
                                   output_logits=True)  # fmt: skip
    length = np.asarray(inputs["input_ids"]).shape[1]
    logits = np.array(output.logits[-1][0])
    yield GenerationResult(
        tokens=np.asarray(output.sequences)[0, length:].tolist(), logprobs=logits - np.logaddexp.reduce(logits)
    )


FACES = (_by_generate, _by_stream, _by_batch, _by_tensors)
