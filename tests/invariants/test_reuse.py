"""A request has the same answer with and without what is reused, and what is reused is not computed again."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
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
from mlx_vlgen.engine import batch, disk, prefix, scheduler, store
from mlx_vlgen.engine.drafters import PromptLookup
from mlx_vlgen.engine.kv_settings import SINKS, KVSettings
from mlx_vlgen.engine.modes import Beams
from mlx_vlgen.inputs.prompt import Prompt
from mlx_vlgen.inputs.tensors import pack

from .family import Family, variants_slow
from .play import TOLERANCE, Heard, Wrapped, collect
from .test_one_answer import usable_caches

LoadFamily = Callable[[str], Family]
# Full layers with M-RoPE, sliding ones, recurrent ones, chunked ones, those that attend to pictures; text.
DETAILED = ("qwen3_vl", "gemma3", "qwen3_5", "llama4", "mllama", "llama")
TOKENS = SamplingParams(max_tokens=4)
PICTURES = ("upright", "upright inverted", "small", "small inverted")


def picture(name: str) -> np.ndarray:
    """One of parity.media, or another of its size."""
    pixels: np.ndarray = media.picture(name.removesuffix(" inverted"))
    return 255 - pixels if name.endswith(" inverted") else pixels


@pytest.fixture(autouse=True)
def little_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny prompts are long enough, and have several blocks."""
    for module in (prefix, store, scheduler, disk):
        for name, value in (("LEAST", 2), ("BLOCK", 16)):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(disk, "LEAST_FREE", 0)


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
    images = [picture(name) for _, names in turns for name in names]
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
    if isinstance(cache, PrefixCache):
        cache.flush()
    return [heard[id] for id in ids]


def assert_equal(one: Heard, other: Heard, tolerance: float = TOLERANCE) -> None:
    assert one.finish_reason == other.finish_reason, (one.results[-1].error, other.results[-1].error)
    assert one.tokens == other.tokens
    assert np.abs(np.stack(one.scores) - np.stack(other.scores)).max() < tolerance


def cached(heard: Heard) -> int:
    return heard.results[-1].cached_tokens


def sees(family: Family) -> bool:
    return "image" in family.processor.placeholders


@pytest.mark.parametrize("name", variants_slow(families()))
def test_every_family_goes_on_with_a_talk(load_family: LoadFamily, name: str) -> None:
    """A second turn, with a new picture, as from scratch; and the first one again."""
    family, cache = load_family(name), PrefixCache()
    pictures = (("upright",), ("small",)) if sees(family) else ((), ())
    first = talk(family, [("What is on this picture?", pictures[0])])
    [heard] = run(family.model, family, [first], cache)
    second = replace(first, prompt=first.prompt + heard.text + " And what else is there?")  # type: ignore[operator]
    for request, anew in zip((second, first), run(family.model, family, [second, first], None), strict=True):
        [reused] = run(family.model, family, [request], cache)
        assert_equal(reused, anew)


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


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("name", DETAILED)
def test_an_answer_that_its_token_ends(
    load_family: LoadFamily, name: str, ahead: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step that was begun for it in vain is not what is stored."""
    monkeypatch.setattr(batch, "LOOKAHEAD", ahead)
    family, cache = load_family(name), PrefixCache()
    plain = talk(family, [("What is it?", ("upright",) if sees(family) else ())])
    tokens = run(family.model, family, [plain], None)[0].tokens
    end = next(count for count in range(1, len(tokens)) if tokens[count] not in tokens[:count])
    ended = SamplingParams(max_tokens=len(tokens) + 3, eos_tokens=[tokens[end]])
    other = talk(family, [("And who are you?", ())])
    heard, _ = run(family.model, family, [replace(plain, sampling=ended), other], cache)
    assert heard.finish_reason == "stop"
    following = going_on(family, plain, heard, " And then what?")
    [reused] = run(family.model, family, [following], cache)
    assert cached(reused) == len(following.prompt.tokens) - count_of(family, " And then what?") - 1  # type: ignore[union-attr]
    assert_equal(reused, run(family.model, family, [following], None)[0])


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
@pytest.mark.parametrize(("chunk", "all_rows"), [(7, True), (2048, False)])
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
    for heard, anew in zip(reused, run(family.model, family, questions, None), strict=True):
        assert_equal(heard, anew)
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


@pytest.mark.parametrize("name", ["mllama", "molmo2"])
def test_what_sees_a_later_picture_is_no_other_talks(load_family: LoadFamily, name: str) -> None:
    """Two talks that begin with one picture and differ in the second, which the first positions may attend to."""
    family, cache = load_family(name), PrefixCache()
    for other in ("upright", "upright inverted"):
        request = talk(family, [("What is it?", ("small",)), ("And this?", (other,))])
        [heard] = run(family.model, family, [request], cache)
        following = going_on(family, request, heard, " And then what?")
        [reused] = run(family.model, family, [following], cache)
        assert cached(reused) > heard.results[-1].prompt_tokens
        assert_equal(reused, run(family.model, family, [following], None)[0])


# On disk


@pytest.mark.parametrize("name", DETAILED)
def test_another_process_goes_on_from_disk(load_family: LoadFamily, name: str, tmp_path: Path) -> None:
    """With whole files and damaged ones: what is wrong is computed again, and deleted."""
    family = load_family(name)
    first = talk(family, [("What is it?", ("upright",) if sees(family) else ())])
    kv = KVSettings(bits=8, group_size=32, start=9)
    for request in (first, *([replace(first, kv=kv)] if kv in usable_caches(family) else [])):
        folder = tmp_path / f"{request.kv.bits}"
        [heard] = run(family.model, family, [request], PrefixCache(disk=folder))
        files = [path for _, _, path in disk.Disk(folder).files()]
        assert files and folder.stat().st_mode & 0o777 == 0o700
        assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
        second = going_on(family, request, heard, " And then what?")
        alone = run(family.model, family, [second], None)[0]
        known = len(second.prompt.tokens) - 1 - count_of(family, " And then what?")  # type: ignore[union-attr]
        for reused in run(family.model, family, [second] * 3, PrefixCache(disk=folder)):  # two threads read
            assert cached(reused) >= known
            assert_equal(reused, alone, 0.2 / 2**8 if request.kv.bits and name == "gemma3" else TOLERANCE)
        for damage in (lambda data: data[:-3], lambda data: data + b"x", lambda data: b"", lambda data: b"\xff" * 99):
            for _, _, path in disk.Disk(folder).files():
                path.write_bytes(damage(path.read_bytes()))
            damaged = run(family.model, family, [second], PrefixCache(disk=folder))[0]
            assert cached(damaged) == 0
            assert_equal(damaged, alone)


def test_a_file_under_another_name_is_not_read(load_family: LoadFamily, tmp_path: Path) -> None:
    family = load_family("qwen3_vl")
    requests = [talk(family, [("What is it?", (name,))]) for name in ("upright", "large")]
    run(family.model, family, requests[:1], PrefixCache(disk=tmp_path / "one"))
    run(family.model, family, requests[1:], PrefixCache(disk=tmp_path / "two"))
    ones, twos = (sorted(path for _, _, path in disk.Disk(tmp_path / name).files()) for name in ("one", "two"))
    for one, two in zip(ones, twos, strict=False):
        one.write_bytes(two.read_bytes())
    [heard] = run(family.model, family, requests[:1], PrefixCache(disk=tmp_path / "one"))
    assert_equal(heard, run(family.model, family, requests[:1], None)[0])


def test_the_disk_has_its_bounds(load_family: LoadFamily, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    family = load_family("llama")
    requests = [talk(family, [(f"{word} can you do for me today, my friend?", ())]) for word in "abcdef"]

    def size(cache: PrefixCache, count: int = 6) -> int:
        for request in requests[:count]:
            run(family.model, family, [request], cache)
        return sum(size for _, size, _ in disk.Disk(tmp_path).files())

    monkeypatch.setattr(disk, "LEAST_FREE", 1 << 60)
    assert size(PrefixCache(disk=tmp_path)) == 0
    monkeypatch.setattr(disk, "LEAST_FREE", 0)
    one = size(PrefixCache(disk=tmp_path), 1)
    assert 0 < size(PrefixCache(disk=tmp_path, disk_bytes=3 * one)) <= 3 * one
    newest = run(family.model, family, requests[-1:], PrefixCache(disk=tmp_path))[0]
    assert cached(newest) == newest.results[-1].prompt_tokens - 1
    PrefixCache(disk=tmp_path).clear()
    assert size(PrefixCache(disk=tmp_path), 0) == 0

    def full(*args: Any) -> None:
        raise RuntimeError("no space left")

    monkeypatch.setattr(disk.mx, "save_safetensors", full)
    assert size(PrefixCache(disk=tmp_path)) == 0 and not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="disk_bytes=5 does nothing without disk"):
        PrefixCache(disk_bytes=5)


def test_memory_that_lacks_deletes_nothing_and_a_folder_that_cannot_be_made_is_told(
    load_family: LoadFamily, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    family = load_family("llama")
    request = talk(family, [("What can you do for me today?", ())])
    run(family.model, family, [request], PrefixCache(disk=tmp_path))
    files = sorted(tmp_path.iterdir())

    def starved(*arrays: Any) -> None:
        raise RuntimeError("[malloc] Unable to allocate 1234 bytes.")

    found = disk.Disk(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(disk.mx, "eval", starved)
        blocks = [block for path in files if (block := _block(path))]
        assert blocks and not found.load(blocks)
    assert sorted(tmp_path.iterdir()) == files
    (tmp_path / "file").touch()
    assert not store.cache_on_disk(tmp_path / "file" / "folder").on_disk
    assert "reused by this process only" in capsys.readouterr().err


def _block(path: Path) -> Any:
    parent = bytes.fromhex(disk.mx.load(str(path), return_metadata=True)[1]["parent"])
    return disk._read(path, parent, bytes.fromhex(path.stem[17:]))


# A then B then A


Ask = tuple[int, tuple[str, ...], int, int, bool]
"""How many turns, the picture of each, the cache's number, the face's, whether in another process."""

asks = st.tuples(
    st.integers(1, 2), st.lists(st.sampled_from(PICTURES), min_size=2, max_size=2).map(tuple), st.integers(0, 99),
    st.integers(0, 3), st.booleans(),
)  # fmt: skip
mixes = st.tuples(
    st.sampled_from(DETAILED),
    st.lists(asks, min_size=2, max_size=6),
    st.sampled_from([None, None, 0, 40_000, 400_000]),
    st.sampled_from([5, 2048]),
    st.sampled_from([None, "whole", "full", "small"]),
)
Mix = tuple[str, list[Ask], int | None, int, str | None]
DISK_BYTES = {"whole": None, "full": 0, "small": 60_000}

_alone: dict[Any, GenerationResult] = {}


@settings(max_examples=settings().max_examples // 10)
@given(mix=mixes)
def test_never_a_stale_answer(load_family: LoadFamily, mix: Mix) -> None:
    any_mix(load_family, mix)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@settings(max_examples=5 * settings().max_examples)
@given(mix=mixes)
def test_never_a_stale_answer_in_many_mixes(load_family: LoadFamily, mix: Mix) -> None:
    any_mix(load_family, mix)


def any_mix(load_family: LoadFamily, mix: Mix) -> None:
    """The same words about other pictures, in every face, with what is stored going out in between, and coming back
    from a disk."""
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:  # a thread may write still when an answer is wrong
        answer_mix(load_family, mix, folder)


def answer_mix(load_family: LoadFamily, mix: Mix, folder: str) -> None:
    name, drawn, max_bytes, chunk, disk = mix
    family = load_family(name)

    def new_cache() -> PrefixCache:
        return PrefixCache(max_bytes, folder, DISK_BYTES[disk]) if disk else PrefixCache(max_bytes)

    cache = new_cache()
    caches = [kv for kv in usable_caches(family) if not kv.max_size or name == "llama"]
    for count, names, number, face, elsewhere in drawn:
        if elsewhere:
            cache.flush()
            cache = new_cache()
        shown = [(one,) if sees(family) else () for one in names[:count]]
        request = talk(family, [("What is it?", pictures) for pictures in shown])
        kv = caches[number % len(caches)]
        keywords = {"kv_bits": kv.bits, "kv_group_size": kv.group_size, "quantized_kv_start": kv.start,
                    "max_kv_size": kv.max_size, "max_tokens": 3}  # fmt: skip
        key = name, tuple(shown), kv, FACES[face] is _by_tensors  # whose floats a quantized cache may round otherwise
        images = list(request.media.images)
        if key not in _alone:
            _alone[key] = next(FACES[3 if key[-1] else 0](family, request.prompt, images, keywords))
        settings = {**keywords, "prompt_cache": cache, "prefill_step_size": chunk}
        for result in FACES[face](family, request.prompt, images, settings):
            assert result.tokens == _alone[key].tokens
            ours, alone = np.array(result.logprobs), np.array(_alone[key].logprobs)
            assert np.abs(ours - alone).max() < (0.2 / 2**kv.bits if kv.bits and name == "gemma3" else TOLERANCE)
    cache.flush()


def _by_generate(family: Family, prompt: Any, images: Any, keywords: Any) -> Iterator[GenerationResult]:
    yield generate(family.model, family.processor, prompt, images, **keywords)


def _by_stream(family: Family, prompt: Any, images: Any, keywords: Any) -> Iterator[GenerationResult]:
    yield list(stream_generate(family.model, family.processor, prompt, images, **keywords))[-1]


def _by_batch(family: Family, prompt: Any, images: Any, keywords: Any) -> Iterator[GenerationResult]:
    both = {"images": [images, images], "prompts": [prompt, prompt], "logprobs": True}
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
