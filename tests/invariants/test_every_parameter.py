"""Every keyword over `generate`, `stream_generate` and `batch_generate`, one entry each: the three give one answer,
the value has an effect, and nothing of it is left for the next call.

On the built-in model with real questions, and on a tiny random one, untied, where every log-probability of a stream is
compared with the plain loop's (family.py) too. Nothing here knows what the built-in model answers. `-m slow` adds the
built-in model's streams and batches, and a picture that is thought about.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import pytest
from parity import media

from mlx_vlgen import GenerationResult, apply_chat_template, batch_generate, generate, stream_generate
from mlx_vlgen.engine.kv_settings import KVSettings
from mlx_vlgen.errors import UnsupportedError
from mlx_vlgen.options import _CALLABLES, DRAFTS, ENGINE, KV_CACHE, MEDIA, OPTIONS

from .family import Ask, Family
from .play import TOLERANCE

HEARD = "use_audio_in_video"  # for models that hear: see test_omni
KEYWORDS = [*(option.name for option in OPTIONS if option.name != HEARD), *_CALLABLES]
OF_THE_BATCH = [option.name for option in MEDIA + DRAFTS + ENGINE if option.name != HEARD]
OF_A_ROW = [name for name in KEYWORDS if name not in OF_THE_BATCH]
GROUPS = len(OF_A_ROW) // 3
STEPS, SHORT = 12, 3  # enough for a penalty and a guess to show; enough for what an earlier call left behind
DEFAULTS = {"repetition_context_size": 20}  # whose None means another thing than its default


@dataclass(frozen=True)
class Question:
    text: str
    images: tuple[str, ...] = ()
    videos: tuple[str, ...] = ()

    @property
    def messages(self) -> list[dict[str, Any]]:
        parts = [{"type": "image"} for _ in self.images] + [{"type": "video"} for _ in self.videos]
        return [{"role": "user", "content": [*parts, {"type": "text", "text": self.text}]}]

    @property
    def pictures(self) -> list[np.ndarray] | None:
        return [media.picture(name) for name in self.images] or None

    @property
    def clips(self) -> list[np.ndarray] | None:
        return [media.clip(name) for name in self.videos] or None


SHAPES = Question("Describe this image.", images=("shapes.png",))
TRIO = Question("How many shapes are there?", images=("trio.png",))
CLIP = Question("Describe this video.", videos=("odd_clip",))
WHO = Question("Who are you?")


@dataclass(frozen=True)
class Entry:
    """A keyword's value. beside: what it is compared with has this too. shows: the field of the result, or "calls" (of
    the progress callback), that differs without the keyword; "refused": without it the call is refused."""

    value: Any
    beside: Mapping[str, Any] = field(default_factory=dict)
    shows: str = "tokens"
    question: Question = SHAPES


def table(family: Family, plain: GenerationResult) -> dict[str, Entry]:
    """plain: the default answer to WHO."""
    pad = family.processor.tokenizer.convert_tokens_to_ids("<|vision_pad|>")
    hot = {"temperature": 8.0, "seed": 1}  # a confident model too draws anything
    quantized = {"kv_bits": 4, "kv_group_size": 32}
    marks = {"thinking_start_token": "<|im_start|>", "thinking_end_token": "</think>"}  # open since the prompt
    small = {"max_pixels": 2048}
    forced = {"logit_bias": {pad: 1000.0}, "max_tokens": 3}
    return {
        "max_tokens": Entry(3, question=WHO),
        "sampling": Entry("instruct", hot, question=WHO),
        "temperature": Entry(8.0, {"seed": 1}, question=WHO),
        "top_p": Entry(0.3, hot, question=WHO),
        "top_k": Entry(5, hot, question=WHO),
        "min_p": Entry(0.9, hot, question=WHO),
        "typical_p": Entry(0.2, hot, question=WHO),
        "top_n_sigma": Entry(1.0, hot, question=WHO),
        "xtc_probability": Entry(1.0, {**hot, "xtc_threshold": 0.001}, question=WHO),
        "xtc_threshold": Entry(0.001, {**hot, "xtc_probability": 1.0}, question=WHO),
        "repetition_penalty": Entry(1000.0),
        "repetition_context_size": Entry(None, {"repetition_penalty": 1000.0, "max_tokens": 40}, question=WHO),
        "presence_penalty": Entry(100.0),
        "frequency_penalty": Entry(100.0),
        "thinking_budget": Entry(3, {"enable_thinking": True}),
        "thinking_start_token": Entry("<|im_start|>", {**marks, "thinking_start_token": "<think>"}, "thinking", WHO),
        "thinking_end_token": Entry(" stop thinking", {**marks, "thinking_budget": 3}, question=WHO),
        "json_schema": Entry({"type": "integer"}, question=WHO),
        "regex": Entry("[0-9]+", question=WHO),
        "grammar": Entry("start: /[0-9]+/", question=WHO),
        "choices": Entry(["12", "345"], question=WHO),
        "seed": Entry(2, hot, question=WHO),
        "eos_tokens": Entry([plain.tokens[3]], question=WHO),
        "stop": Entry(["\0", plain.text[5:7]], {}, "text", WHO),
        "max_time": Entry(1e-6, question=WHO),
        "skip_special_tokens": Entry(True, forced, "text", WHO),
        "include_eos": Entry(True, {"logit_bias": {min(family.ends): 1000.0}}, "text", WHO),
        "resize_shape": Entry((64, 160), shows="logprobs"),
        "min_pixels": Entry(20_000, shows="prompt_tokens"),
        "max_pixels": Entry(4096, shows="prompt_tokens"),
        "video_fps": Entry(0.5, small, "logprobs", CLIP),
        "num_frames": Entry(2, small, "prompt_tokens", CLIP),
        "max_frames": Entry(3, small, "prompt_tokens", CLIP),
        "draft_model": Entry(family.model, shows="drafted_tokens"),
        "num_draft_tokens": Entry(1, {"draft_model": family.model}, "drafted_tokens"),
        "prompt_lookup": Entry(2, shows="drafted_tokens"),
        "kv_bits": Entry(4, {"kv_group_size": 32}, "logprobs"),
        # Heads of 32, which the tiny model has, take no other group than 32.
        "kv_group_size": Entry(32, {"kv_bits": 4}, "logprobs" if family.name == "demo" else "refused", WHO),
        "quantized_kv_start": Entry(9, quantized, "logprobs"),
        "max_kv_size": Entry(16, shows="logprobs"),
        "enable_thinking": Entry(True, shows="prompt_tokens"),
        "prefill_step_size": Entry(32, shows="calls"),
        "logits_processors": Entry([lambda tokens, logits: -logits], question=WHO),
        "sampler": Entry(lambda scores: scores.argmin(axis=-1), question=WHO),
        "stopping_criteria": Entry([lambda tokens, logits: tokens.size >= plain.prompt_tokens + 4], question=WHO),
        "logprobs": Entry(False, shows="logprobs", question=WHO),
        "top_logprobs": Entry(3, {}, "top_logprobs", WHO),
        "logit_bias": Entry({pad: 1000.0}, question=WHO),
    }


@dataclass
class Outcome:
    """What a face tells about one request. calls: of the progress callback. scores: of every token, from a stream."""

    result: GenerationResult
    calls: list[tuple[int, int]] = field(default_factory=list)
    scores: list[np.ndarray] = field(default_factory=list)


class Case:
    """A family with its table."""

    def __init__(self, family: Family):
        self.family = family
        for question in (SHAPES, WHO):  # before any keyword is given
            self.default(question), self.default(question, SHORT)
        self.entries = table(family, self.default(WHO).result)

    def settings(self, name: str) -> dict[str, Any]:
        """The keywords of an entry."""
        return {"max_tokens": STEPS, **self.entries[name].beside, name: self.entries[name].value}

    def generate(self, question: Question, settings: Mapping[str, Any]) -> Outcome:
        outcome = Outcome(GenerationResult())
        outcome.result = generate(
            self.family.model,
            self.family.processor,
            question.messages,
            question.pictures,
            video=question.clips,
            prompt_progress_callback=lambda *now: outcome.calls.append(now),
            **settings,
        )
        return outcome

    def stream(self, question: Question, settings: Mapping[str, Any]) -> Outcome:
        outcome, pieces = Outcome(GenerationResult()), []
        loaded = self.family.model, self.family.processor
        for outcome.result in stream_generate(
            *loaded, question.messages, question.pictures, video=question.clips, **settings
        ):
            pieces.append(outcome.result.text)
            if outcome.result.logprobs is not None:
                outcome.scores.append(np.array(outcome.result.logprobs))
        outcome.result.text = "".join(pieces)
        return outcome

    def batch(
        self, questions: Sequence[Question], rows: Sequence[Mapping[str, Any]], **shared: Any
    ) -> list[GenerationResult]:
        """rows: each one's keywords."""
        rows = [{"logprobs": True, **row} for row in rows]  # which generate has without being asked
        if not rows:
            shared = {"logprobs": True, **shared}
        names = dict.fromkeys(name for row in rows for name in row)
        return batch_generate(
            self.family.model,
            self.family.processor,
            [question.pictures for question in questions],
            prompts=[question.messages for question in questions],
            videos=[question.clips for question in questions],
            **shared,
            **{name: [row.get(name, DEFAULTS.get(name)) for row in rows] for name in names},
        ).results

    @cache  # noqa: B019  a case lives as long as the module's tests
    def single(self, name: str) -> Outcome:
        """The entry's answer from `generate`, which all others must equal."""
        return self.generate(self.entries[name].question, self.settings(name))

    @cache  # noqa: B019
    def default(self, question: Question, steps: int = STEPS) -> Outcome:
        return self.generate(question, {"max_tokens": steps})

    def check_untouched(self, question: Question) -> None:
        """A call without any keyword gives what it gave before all others."""
        check_equal(self.generate(question, {"max_tokens": SHORT}).result, self.default(question, SHORT).result)


FACTS = (
    "tokens", "text", "finish_reason", "thinking", "answer", "thinking_tokens", "answer_tokens", "prompt_tokens",
    "generation_tokens", "unquantized_layers", "image_sizes",
)  # fmt: skip


def check_equal(one: GenerationResult, other: GenerationResult) -> None:
    """All but times and memory; log-probabilities within the tolerance."""
    assert one.error is None and other.error is None
    assert [getattr(one, name) for name in FACTS] == [getattr(other, name) for name in FACTS]
    assert (one.logprobs is None) == (other.logprobs is None)
    if one.logprobs is not None:
        assert np.abs(np.array(one.logprobs) - np.array(other.logprobs)).max() < TOLERANCE
    best, others = one.top_logprobs or [], other.top_logprobs or []
    assert [id for id, _ in best] == [id for id, _ in others]
    assert [value for _, value in best] == pytest.approx([value for _, value in others], abs=TOLERANCE)


def differs(one: Outcome, other: Outcome, field: str) -> bool:
    if field == "calls":
        return one.calls != other.calls
    first, second = getattr(one.result, field), getattr(other.result, field)
    if field != "logprobs":
        return bool(first != second)
    if first is None or second is None:
        return first is not second
    return bool(np.abs(np.array(first) - np.array(second)).max() > 100 * TOLERANCE)


@pytest.fixture(scope="module")
def cases(load_family: Callable[[str], Family]) -> Callable[[str], Case]:
    @cache
    def case(name: str) -> Case:
        family = load_family(name)
        processor = copy.copy(family.processor)
        processor.chat_template = load_family("demo").processor.chat_template  # the published one knows no thinking
        return Case(Family(name, family.folder, family.model, processor))

    return case


@pytest.fixture
def case(request: pytest.FixtureRequest, cases: Callable[[str], Case]) -> Case:
    return cases(request.param)


on_both = pytest.mark.parametrize("case", ["demo", "qwen3_vl_moe"], indirect=True)
on_the_tiny_one = pytest.mark.parametrize(
    "case", [pytest.param("demo", marks=pytest.mark.slow), "qwen3_vl_moe"], indirect=True
)


@on_both
def test_every_keyword_has_an_entry(case: Case) -> None:
    assert set(case.entries) == set(KEYWORDS)


@on_the_tiny_one
@pytest.mark.parametrize("name", KEYWORDS)
def test_generate_and_stream_are_one_answer(case: Case, name: str) -> None:
    entry, outcome = case.entries[name], case.single(name)
    stream = case.stream(entry.question, case.settings(name))
    check_equal(stream.result, outcome.result)
    assert len(stream.scores) == (len(outcome.result.tokens) if case.settings(name).get("logprobs", True) else 0)
    case.check_untouched(WHO)


@on_the_tiny_one
@pytest.mark.parametrize("name", KEYWORDS)
def test_the_value_has_an_effect(case: Case, name: str) -> None:
    entry = case.entries[name]
    without = {"max_tokens": STEPS, **entry.beside}
    if entry.shows == "refused":
        with pytest.raises(UnsupportedError):
            case.generate(entry.question, without)
    else:
        other = case.generate(entry.question, without) if entry.beside else case.default(entry.question)
        assert differs(case.single(name), other, entry.shows)


@pytest.mark.parametrize("case", ["qwen3_vl_moe"], indirect=True)
@pytest.mark.parametrize("name", [name for name in OF_A_ROW if name != "logprobs"])
def test_log_probabilities_are_the_plain_loops(case: Case, name: str) -> None:
    question, settings, family = case.entries[name].question, case.settings(name), case.family
    kv = KVSettings.of({option.name: settings[option.name] for option in KV_CACHE if option.name in settings})
    thinks = settings.get("enable_thinking", False)
    text = apply_chat_template(family.processor, family.model.config, question.messages, enable_thinking=thinks)
    outcome = case.stream(question, settings)
    plain = family.scores(Ask(name, text, question.images, question.videos), outcome.result.tokens, kv)
    assert np.abs(np.stack(outcome.scores) - plain).max() < TOLERANCE


@on_the_tiny_one
@pytest.mark.parametrize("group", range(GROUPS))
def test_rows_with_other_settings_beside_them(case: Case, group: int) -> None:
    """Keywords from all over the table, one a row: each is what `generate` gives for it alone."""
    names = OF_A_ROW[group::GROUPS]
    results = case.batch([case.entries[name].question for name in names], [case.settings(name) for name in names])
    for name, result in zip(names, results, strict=True):
        check_equal(result, case.single(name).result)
    case.check_untouched(WHO)


@on_the_tiny_one
@pytest.mark.parametrize("name", OF_THE_BATCH)
def test_batches_with_one_setting(case: Case, name: str) -> None:
    """Keywords that are not per row: the same for two neighbours."""
    questions = [WHO, case.entries[name].question, TRIO]
    settings = case.settings(name)
    results = case.batch(questions, [], **settings)
    check_equal(results[1], case.single(name).result)
    for place in (0, 2):
        check_equal(results[place], case.generate(questions[place], settings).result)
    case.check_untouched(SHAPES)


@pytest.mark.parametrize("case", ["demo"], indirect=True)
@pytest.mark.parametrize("opened", ["by the template", "by the model"])
@pytest.mark.parametrize("pictures", [["trio.png"], pytest.param(["trio.png", "hello.png"], marks=pytest.mark.slow)])
def test_thinking_budgets_are_exact(case: Case, pictures: list[str], opened: str) -> None:
    """Over pictures, single, streamed and all in one batch: min(budget, what it thinks without one)."""
    text = "Describe this image." if opened == "by the template" else "Think step by step: Describe this image."
    common = {"max_tokens": 200, "enable_thinking": opened == "by the template"}
    questions = [Question(text, images=(name,)) for name in pictures]
    budgets = (0, 1, 5, 500)
    pairs = [(question, budget) for question in questions for budget in budgets]
    free = {question: case.generate(question, common).result for question in questions}
    assert all(result.thinking_tokens > 5 for result in free.values())
    rows = case.batch(
        [question for question, _ in pairs], [{"thinking_budget": budget} for _, budget in pairs], **common
    )
    for (question, budget), row in zip(pairs, rows, strict=True):
        face = case.stream if budget in (0, 5) else case.generate
        single = face(question, {**common, "thinking_budget": budget}).result
        check_equal(row, single)
        assert single.thinking_tokens == min(budget, free[question].thinking_tokens)
        assert single.answer
