"""The gate for token ids: none but the model's reaches MLX, which would read, or write, memory that is not its."""

import math
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from chain_model import Chain, Letters
from conftest import LoadFamily
from invariants.family import Family

import mlx_vlgen
from mlx_vlgen import Request, SamplingParams, TokenIterator
from mlx_vlgen._runtime import mx
from mlx_vlgen.engine.cache import make_cache
from mlx_vlgen.engine.drafters import DraftModel, PromptLookup
from mlx_vlgen.engine.intake import end_tokens
from mlx_vlgen.engine.kv_settings import KVSettings
from mlx_vlgen.engine.modes import Guidance, Past
from mlx_vlgen.errors import LoadError, PromptError
from mlx_vlgen.inputs.prompt import Media, Prompt
from mlx_vlgen.models.base import Embedded
from mlx_vlgen.results import GenerationResult

FAR = 576 + 10**5
"""Past the built-in model's 576 tokens by so much that MLX kills the process."""


@pytest.fixture(scope="module")
def demo(load_family: LoadFamily) -> Family:
    return load_family("demo")


def ids(*tokens: int) -> Prompt:
    return Prompt(np.array(tokens, np.int32))


def last(model: Any, processor: Any, *requests: Request) -> list[GenerationResult]:
    """The last result of each."""
    with TokenIterator(model, processor) as iterator:
        place = [iterator.add(request) for request in requests]
        results = dict(iter(iterator))
    return [results[id] for id in place]


KILLERS = f"""
import numpy as np
from mlx_vlgen import Request, TokenIterator, generate, load
from mlx_vlgen.inputs.prompt import Prompt

model, processor = load("demo")
far = {FAR}

def request():
    with TokenIterator(model, processor) as iterator:
        iterator.add(Request(Prompt(np.array([1, far]))))
        raise next(iterator)[1].error

for name, call in {{
    "logit_bias": lambda: generate(model, processor, "hi", logit_bias={{far: 50.0}}, max_tokens=2),
    "prompt": request,
    "input_ids": lambda: model.generate(input_ids=[[1, far, 3]], max_new_tokens=2),
    "bos_token_id": lambda: model.generate(bos_token_id=far, max_new_tokens=2),
    "negative_prompt_ids": lambda: model.generate(
        input_ids=[[1, 2]], negative_prompt_ids=[[far]], guidance_scale=2.0, max_new_tokens=2
    ),
}}.items():
    try:
        call()
        print(name, "was taken")
    except ValueError as error:
        assert str(error).startswith(f"{{name}}: {{far}} is no token of this model: expected ids, "), error
        assert "from 0 to 575" in str(error)
"""


def test_what_would_kill_the_process_is_refused_by_name() -> None:
    """In a separate process, which ends where the gate fails."""
    ran = subprocess.run([sys.executable, "-c", KILLERS], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (0, ""), ran.stderr


NONE = (576, 577, 586, 10**12, -1, -577, True, 1.0, "5", None)
"""What is no id of the built-in model's."""


@pytest.mark.parametrize("token", NONE, ids=repr)
@pytest.mark.parametrize("name", ["logit_bias", "eos_tokens", "end_tokens"])
def test_what_is_no_token_is_refused_by_name(demo: Family, name: str, token: Any) -> None:
    if name == "eos_tokens" and isinstance(token, str):
        token = "several words of text"
    sampling = {"logit_bias": {"logit_bias": {token: 1.0}}, "eos_tokens": {"eos_tokens": [token]}}.get(name, {})
    ends = frozenset([token]) if name == "end_tokens" else None
    good = Request("Hello", sampling=SamplingParams(max_tokens=2))
    bad = Request("Hello", sampling=SamplingParams(max_tokens=2, **sampling), end_tokens=ends)
    first, result, other = last(demo.model, demo.processor, good, bad, good)
    assert isinstance(result.error, PromptError) and str(result.error).startswith(f"{name}: ")
    assert first.tokens == other.tokens and first.error is None  # its neighbours are answered


def picture(*spans: tuple[int, int]) -> Media:
    return Media("image", np.zeros((4, 1536), np.float32), (1, 2, 2), spans, (32, 32))


def prompts() -> Iterator[tuple[Prompt, str]]:
    yield Prompt(np.array([1, 576])), "576 is no token of this model"
    yield Prompt(np.array([2**32 + 5])), "4294967301 is no token"
    yield ids(3, -1), "-1 is no token"
    yield Prompt(np.array([1.0, 2.0])), "1.0 is no token"
    yield Prompt(np.array([True])), "True is no token"
    yield Prompt(np.array([[1, 2]])), "expected a numpy array of ids"
    yield Prompt([1, 2]), "expected a numpy array of ids"  # type: ignore[arg-type]
    for span in ((1, 4), (-1, 2), (2, 2), (2, 1)):
        yield Prompt(np.array([1, 2, 3]), media=(picture(span),)), r"a span .* outside its 3 tokens"
        yield Prompt(np.array([1, 2, 3]), two_way=(span,)), r"a span .* outside its 3 tokens"


@pytest.mark.parametrize(("prompt", "says"), list(prompts()), ids=lambda value: str(value)[:60])
def test_a_ready_prompt_is_checked_too(demo: Family, prompt: Prompt, says: str) -> None:
    short = SamplingParams(max_tokens=1)
    bad = Request(prompt, sampling=short)
    negative = Request(ids(1, 2), sampling=short, guidance=Guidance(2.0, prompt))
    results = last(demo.model, demo.processor, bad, negative)
    for name, result in zip(("prompt", "negative_prompt_ids"), results, strict=True):
        assert isinstance(result.error, PromptError)
        with pytest.raises(PromptError, match=f"^{name}: .*{says}"):
            raise result.error


def test_a_past_is_shorter_than_its_prompt(demo: Family) -> None:
    past = Past(make_cache(demo.model.cache_layout()), 3, 0, KVSettings())
    [result] = last(demo.model, demo.processor, Request(ids(1, 2, 3), past=past))
    with pytest.raises(PromptError, match=r"^past: it holds 3 positions and the prompt has 3"):
        raise result.error  # type: ignore[misc]


# -- how many tokens there are


@pytest.mark.parametrize("name", ["demo", "llama", "qwen2_vl", "gemma3"])
def test_vocab_size_is_the_number_of_logits(load_family: LoadFamily, name: str) -> None:
    model = load_family(name).model
    logits = model(Embedded(mx.array([[1]])), make_cache(model.cache_layout()))
    assert model.vocab_size == logits.shape[-1] >= len(load_family(name).processor.tokenizer)


def test_vocab_size_of_quantized_layers(load_family: LoadFamily) -> None:
    family = load_family("llama")
    model, _ = mlx_vlgen.load(family.folder, quantization={"bits": 4, "group_size": 32})
    assert model.vocab_size == family.model.vocab_size


def test_a_padded_vocabularys_ids_are_legal() -> None:
    """The layers have more rows than the tokenizer has tokens."""
    chain = Chain(np.eye(26)[[*range(1, 26), 0]] * 9)  # every letter is followed by the next one
    sampling = SamplingParams(max_tokens=3, logit_bias={25: 0.5}, eos_tokens=[24])
    [result] = last(chain, Letters(20), Request(ids(21), sampling=sampling))
    assert result.error is None and result.tokens == [22, 23, 24] and result.finish_reason == "stop"


def test_end_tokens_of_a_checkpoint_that_its_layers_do_not_have_end_nothing() -> None:
    chain = Chain(np.eye(4))
    chain.generation_config["eos_token_id"] = [2, 4, -1]
    assert end_tokens(chain, Letters(4)) == {2}
    for wrong in ("a", [1, "a"], 1.5, True):
        chain.generation_config["eos_token_id"] = wrong
        with pytest.raises(LoadError, match=r"eos_token_id"):
            TokenIterator(chain, Letters(4)).add(Request(ids(1)))
            end_tokens(chain, Letters(4))


# -- guesses


class Guesses:
    """Always the same."""

    def __init__(self, propose: Callable[[], Any]):
        self._propose = propose

    def read(self, prompt: Prompt) -> None:
        pass

    def propose(self, tokens: Sequence[int], max_tokens: int) -> Any:
        return self._propose()

    def update(self, num_proposed: int, num_accepted: int) -> None:
        pass


@pytest.mark.parametrize("guess", [576, FAR, -1, "a"], ids=str)
def test_a_drafters_guesses_are_tokens(demo: Family, guess: Any) -> None:
    sampling = SamplingParams(max_tokens=4)
    good = Request("Hello", sampling=sampling, drafter=lambda: Guesses(lambda: [1]))
    bad = Request("Hello", sampling=sampling, drafter=lambda: Guesses(lambda: [1, guess]))
    first, result = last(demo.model, demo.processor, good, bad)
    assert first.error is None and first.generation_tokens == 4
    assert "the drafter's guesses: " in str(result.error) and repr(guess) in str(result.error)


def test_a_drafters_error_is_its_rows(demo: Family) -> None:
    def fail() -> Any:
        raise ZeroDivisionError("mine")

    sampling = SamplingParams(max_tokens=4)
    good = Request("Hello", sampling=sampling, drafter=lambda: Guesses(lambda: [1]))
    bad = Request("Hello", sampling=sampling, drafter=lambda: Guesses(fail))
    first, result = last(demo.model, demo.processor, good, bad)
    assert first.error is None and isinstance(result.error, ZeroDivisionError)


def test_a_draft_models_error_is_its_rows() -> None:
    """Of all for which it guesses together, and of nobody else."""

    class Failing(Chain):
        def forward(self, inputs: Any, cache: Any, at: Any = None) -> Any:
            if len(inputs.tokens) > 1:
                raise ZeroDivisionError("mine")
            return super().forward(inputs, cache, at)

    target, draft = Chain(np.eye(8)), Failing(np.eye(8))
    plain = Request(ids(0), sampling=SamplingParams(max_tokens=12))
    drafted = replace(plain, drafter=lambda: DraftModel(draft))
    *good, first, second = last(target, Letters(8), plain, replace(plain, drafter=PromptLookup), drafted, drafted)
    assert [result.generation_tokens for result in good] == [12, 12]
    assert isinstance(first.error, ZeroDivisionError) and isinstance(second.error, ZeroDivisionError)


def test_a_draft_model_with_fewer_rows_guesses_what_it_can() -> None:
    """As among models of one tokenizer whose vocabularies are padded differently."""
    size = 8
    following = np.eye(size)[[1, 2, 3, 7, 5, 6, 0, 4]] * 9  # 0 1 2 3 7 4 5 6 0 ...
    target, draft = Chain(following), Chain(following[:6, :6])
    request = Request(ids(0), sampling=SamplingParams(max_tokens=12))
    [plain] = last(target, Letters(size), request)
    guessed = Request(ids(0), sampling=SamplingParams(max_tokens=12), drafter=lambda: DraftModel(draft))
    [result] = last(target, Letters(size), guessed)
    assert result.error is None and result.tokens == plain.tokens
    assert 7 in result.tokens and result.drafted_tokens > 0
    unread = Request(ids(7), sampling=SamplingParams(max_tokens=2), drafter=lambda: DraftModel(draft))
    [refused] = last(target, Letters(size), unread)
    assert "the draft model's prompt: 7 is no token" in str(refused.error)


# -- numbers


@pytest.mark.parametrize("temperature", [5e-324, 1e-39, 1.2e-38])
def test_a_temperature_too_small_for_float32_is_greedy(demo: Family, temperature: float) -> None:
    text = demo.processor.format([{"role": "user", "content": "Hello"}])[0].text
    plain = mlx_vlgen.generate(demo.model, demo.processor, text, max_tokens=4)
    warm = {"temperature": temperature, "max_tokens": 4, "seed": 1}
    assert mlx_vlgen.generate(demo.model, demo.processor, text, **warm).tokens == plain.tokens
    sampling = {"do_sample": True, "temperature": temperature, "max_new_tokens": 4}
    prompt = demo.processor.tokenizer.encode(text)
    for more in ({}, {"num_beams": 2}, {"no_repeat_ngram_size": 9}):
        greedy = demo.model.generate([prompt], max_new_tokens=4, do_sample=False, **more)
        assert demo.model.generate([prompt], **sampling, **more).tolist() == greedy.tolist()


@pytest.mark.parametrize("temperature", [1e-30, 1e-20])
def test_the_smallest_temperature_that_draws(demo: Family, temperature: float) -> None:
    greedy = mlx_vlgen.generate(demo.model, demo.processor, "Hello", max_tokens=8)
    drawn = mlx_vlgen.generate(demo.model, demo.processor, "Hello", max_tokens=8, temperature=temperature)
    assert drawn.tokens == greedy.tokens


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e39, 10**400], ids=lambda value: str(value)[:5])
@pytest.mark.parametrize("name", ["temperature", "repetition_penalty", "presence_penalty", "frequency_penalty"])
def test_numbers_that_float32_cannot_hold_are_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"^{name}="):
        SamplingParams(**{name: value})


@pytest.mark.parametrize("bias", [math.nan, math.inf, 1e39, "2", True, None], ids=str)
def test_a_bias_is_a_number(bias: Any) -> None:
    with pytest.raises(ValueError, match=r"^logit_bias: .* for 5: expected a finite number, or -inf"):
        SamplingParams(logit_bias={5: bias})


def test_a_bias_of_minus_infinity_forbids_a_token(demo: Family) -> None:
    first = mlx_vlgen.generate(demo.model, demo.processor, "Hello", max_tokens=1).tokens[0]
    other = mlx_vlgen.generate(demo.model, demo.processor, "Hello", max_tokens=1, logit_bias={first: -math.inf})
    assert other.tokens != [first]
    with pytest.raises(ValueError, match=r"^logit_bias="):
        SamplingParams(logit_bias=[5])  # type: ignore[arg-type]
