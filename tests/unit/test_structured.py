"""Answers of a given form: what is held to, what is refused, and all else that a row may ask for beside it."""

import copy
import gc
import json
import random
import re
import sys
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import tokenizers
from invariants.family import Family
from transformers import PreTrainedTokenizerFast

from mlx_vlgen import (
    GenerationResult,
    Request,
    SamplingParams,
    TokenIterator,
    batch_generate,
    generate,
    stream_generate,
)
from mlx_vlgen._runtime import mx
from mlx_vlgen.engine.drafters import PromptLookup
from mlx_vlgen.engine.modes import Beams
from mlx_vlgen.engine.structured import Constraint, Form, Forms
from mlx_vlgen.engine.text import TextStream
from mlx_vlgen.errors import PromptError, UnsupportedError

SHAPE = {
    "type": "object",
    "properties": {"sides": {"type": "integer", "minimum": 10, "maximum": 99}},
    "required": ["sides"],
    "additionalProperties": False,
}
LIST = r"[a-z]{3,6}( [a-z]{3,6}){3}"
SUM = 'start: NUMBER ("+" NUMBER)+\nNUMBER: /[0-9]{1,2}/'
CHOICES = ["a red circle", "a red square", "é 😀"]
FORMS: dict[str, Any] = {"json_schema": SHAPE, "regex": LIST, "grammar": SUM, "choices": CHOICES}
MAX_TOKENS = 60  # tokens, where a test says no other number
HOT = {"temperature": 3.0, "seed": 5}


@pytest.fixture(scope="module")
def demo(load_family: Callable[[str], Family]) -> Family:
    return load_family("demo")


def allowed_by(constraint: Constraint, size: int) -> np.ndarray:
    """(size,) bool."""
    return np.unpackbits(constraint.allowed(size), count=size, bitorder="little").astype(bool)


def is_of(name: str, text: str) -> bool:
    """By other means than the engine's."""
    if name == "json_schema":
        value = json.loads(text)
        return list(value) == ["sides"] and value["sides"] in range(10, 100)
    if name == "choices":
        return text in CHOICES
    return re.fullmatch({"regex": LIST, "grammar": r"[0-9]{1,2}(\+[0-9]{1,2})+"}[name], text) is not None


def say(family: Family, text: str = "Describe a shape.", **keywords: Any) -> GenerationResult:
    keywords = {"max_tokens": MAX_TOKENS, **keywords}
    return generate(family.model, family.processor, [{"role": "user", "content": text}], **keywords)


def say_all(family: Family, rows: Sequence[Mapping[str, Any]]) -> list[GenerationResult]:
    """rows: each row's keywords."""
    listed = {name: [row.get(name) for row in rows] for name in dict.fromkeys(name for row in rows for name in row)}
    return batch_generate(
        family.model,
        family.processor,
        prompts=[[{"role": "user", "content": "Describe a shape."}] for _ in rows],
        **{"max_tokens": MAX_TOKENS, **listed},
    ).results


def form(family: Family, **keywords: Any) -> Form:
    requested = SamplingParams(**keywords).form
    assert requested
    return Forms.of(family.processor.tokenizer).get(*requested)


def facts(result: GenerationResult) -> tuple[Any, ...]:
    return result.tokens, result.text, result.finish_reason, result.thinking, result.answer


# Answers


@pytest.mark.parametrize("settings", [{}, HOT], ids=["greedy", "drawn"])
@pytest.mark.parametrize("name", FORMS)
def test_every_face_gives_one_answer_of_the_form(demo: Family, name: str, settings: dict[str, Any]) -> None:
    keywords = {name: FORMS[name], **settings}
    answer = say(demo, **keywords)
    assert answer.finish_reason == "stop" and is_of(name, answer.text)
    assert answer.tokens[-1] in demo.ends
    messages = [{"role": "user", "content": "Describe a shape."}]
    stream = list(stream_generate(demo.model, demo.processor, messages, **keywords, max_tokens=MAX_TOKENS))
    assert ("".join(part.text for part in stream), stream[-1].tokens) == (answer.text, answer.tokens)
    assert facts(say_all(demo, [{}, keywords])[1]) == facts(answer)


def test_rows_of_all_forms_and_none_run_together(demo: Family) -> None:
    """With penalties, biases, thinking and seeds beside them: each as alone."""
    rows: list[dict[str, Any]] = [
        {"json_schema": SHAPE, "repetition_penalty": 1.5, **HOT},
        {},
        {"regex": LIST, "presence_penalty": 1.0, "frequency_penalty": 0.5, "top_k": 5, **HOT},
        {"choices": CHOICES, "logit_bias": {7: 50.0}},
        {"grammar": SUM, "enable_thinking": True, "thinking_budget": 3, "top_p": 0.9, **HOT},
        {"json_schema": "{}", "max_tokens": 9, "min_p": 0.01, **HOT},
        {"regex": LIST, "logits_processors": [lambda tokens, logits: -logits]},
        {**HOT, "top_n_sigma": 1.0},
    ]
    for row, result in zip(rows, say_all(demo, rows), strict=True):
        assert result.error is None and facts(result) == facts(say(demo, **row))
        name = next((name for name in FORMS if name in row), None)
        if name and result.finish_reason == "stop" and "max_tokens" not in row:
            assert is_of(name, result.answer or "")


def test_what_is_whole_is_stop_and_what_is_cut_is_length(demo: Family) -> None:
    whole = {name: say(demo, **{name: value}) for name, value in FORMS.items()}
    lengths = {name: len(result.tokens) for name, result in whole.items()}
    rows = [
        {name: FORMS[name], "max_tokens": n}
        for name, length in lengths.items()
        for n in (1, length - 1, length, length + 1)
    ]
    for row, result in zip(rows, say_all(demo, rows), strict=True):
        name, count = next(iter(row)), row["max_tokens"]
        assert result.tokens == whole[name].tokens[:count]
        assert result.finish_reason == ("stop" if count >= lengths[name] else "length")


def test_log_probabilities_are_the_models_own(demo: Family) -> None:
    free, formed = say(demo, max_tokens=1), say(demo, max_tokens=1, grammar=SUM, top_logprobs=2)
    assert free.tokens != formed.tokens
    assert np.array_equal(np.array(free.logprobs), np.array(formed.logprobs))
    assert (formed.top_logprobs or [])[0][0] == free.tokens[0]


def test_any_json(demo: Family) -> None:
    rows = [{"json_schema": {}, "max_tokens": 30, "temperature": 1.5, "seed": seed} for seed in range(24)]
    whole = [result.text for result in say_all(demo, rows) if result.finish_reason == "stop"]
    assert len(whole) > 3 and all(json.loads(text) != "" for text in whole)


def test_a_deviation_is_that_of_the_allowed_tokens(demo: Family) -> None:
    """A hot draw within almost no deviations is the best one's: what is not allowed does not count."""
    keywords = {"regex": LIST}
    best, hot = say(demo, **keywords), {"temperature": 50.0, "seed": 1}
    assert say(demo, **keywords, **hot).tokens != best.tokens
    assert say(demo, **keywords, **hot, top_n_sigma=1e-6).tokens == best.tokens


# Where it ends


def test_a_stop_string_that_cuts_the_answer_is_no_stop(demo: Family) -> None:
    cut = say(demo, json_schema=SHAPE, stop=["sides"])
    assert cut.text.endswith('"') and cut.finish_reason == "length"
    whole = say(demo, regex="aaa( END)?", stop=[" END"], logit_bias={35: 0.0})
    assert (whole.text, whole.finish_reason) == ("aaa", "stop")
    assert say(demo, json_schema=SHAPE, stopping_criteria=[lambda tokens, logits: True]).finish_reason == "length"


def test_end_tokens_of_a_request_do_not_cut_it(demo: Family) -> None:
    """Not even those that are text, which the answer then does without until it is whole."""
    letters = [demo.processor.tokenizer.convert_tokens_to_ids(letter) for letter in "aeiou"]
    assert set(say(demo, regex="[a-z]{9}").tokens) & set(letters)
    result = say(demo, regex="[a-z]{9}", eos_tokens=letters)
    assert result.finish_reason == "stop" and re.fullmatch("[a-z]{9}", result.text)
    assert not set(result.tokens[:-1]) & set(letters)


def play(constraint: Constraint, tokens: list[int]) -> None:
    for token in tokens:
        assert allowed_by(constraint, 640)[token]
        constraint.add(token)


def test_only_the_rows_own_end_tokens_end_it(demo: Family) -> None:
    """llguidance knows the tokenizer's only."""
    tokenizer = demo.processor.tokenizer
    end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    assert end != tokenizer.eos_token_id
    constraint = Constraint(form(demo, regex="ab?"), frozenset({end}))
    assert not allowed_by(constraint, 640)[[end, tokenizer.eos_token_id]].any()
    play(constraint, tokenizer.encode("a"))
    assert allowed_by(constraint, 640)[end] and not allowed_by(constraint, 640)[tokenizer.eos_token_id]
    play(constraint, tokenizer.encode("b"))
    assert np.flatnonzero(allowed_by(constraint, 640)).tolist() == [end]


def test_a_row_without_end_tokens_ends_when_it_is_whole(demo: Family) -> None:
    constraint = Constraint(form(demo, regex="ab?"), frozenset())
    letters = demo.processor.tokenizer.encode("ab")
    play(constraint, letters[:1])
    assert not constraint.over
    play(constraint, letters[1:])
    assert constraint.over
    with TokenIterator(demo.model, demo.processor) as iterator:
        iterator.add(Request("A", sampling=SamplingParams(regex="[ab]{3}"), end_tokens=frozenset()))
        *_, (_, last) = iterator
    assert (last.finish_reason, len(last.tokens), re.fullmatch("[ab]{3}", last.answer or "") is not None) == (
        "stop",
        3,
        True,
    )


@pytest.mark.parametrize("size", [500, 576, 640])
def test_a_vocabulary_may_be_larger_or_smaller_than_the_tokenizers(demo: Family, size: int) -> None:
    allowed = allowed_by(Constraint(form(demo, regex="(?s:.+)"), demo.ends), size)
    assert allowed.shape == (size,) and allowed[:256].any() and not allowed[576:].any()


def sentencepiece(strips: bool) -> Any:
    """A tokenizer of Llama 2's kind, which leaves out a text's first space, or of Gemma's, which does not."""
    pieces = '<s> </s> ▁ ▁▁ a b ab ▁a ▁ab abc 1 12 ▁1 " ▁" [ ▁[ ] , ,▁ ▁, é ▁é é" 😀 \n'.split(" ")
    vocabulary = dict.fromkeys(["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces])
    ids = {word: id for id, word in enumerate(vocabulary)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(ids, [], byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = tokenizers.normalizers.Replace(" ", "▁")
    parts = [tokenizers.decoders.Replace("▁", " "), tokenizers.decoders.ByteFallback(), tokenizers.decoders.Fuse()]
    tokenizer.decoder = tokenizers.decoders.Sequence([*parts, *[tokenizers.decoders.Strip(" ", 1, 0)] * strips])
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@pytest.mark.parametrize("strips", [True, False])
def test_texts_of_other_tokenizers_are_whole_too(strips: bool) -> None:
    """Random walks: what the tokens say is what the text says, also at its very beginning."""
    tokenizer = sentencepiece(strips)
    end, forms = tokenizer.eos_token_id, Forms.of(tokenizer)
    schema = json.dumps({"type": "array", "items": {"type": "string", "maxLength": 3}, "maxItems": 2})
    spaced = 0
    for form in [
        forms.get("regex", "[ab ]{1,5}é?"),
        forms.get("regex", "(?s:.{1,4})"),
        forms.get("json_schema", schema),
    ]:
        for seed in range(60):
            draw, text = random.Random(seed), TextStream(tokenizer)
            constraint, said = Constraint(form, frozenset({end})), ""
            token = -1
            while token != end:
                token = draw.choice(np.flatnonzero(allowed_by(constraint, len(tokenizer))).tolist())
                constraint.add(token)
                said += "" if token == end else text.add(token)
            said += text.finish()
            assert form.fits(said), constraint._answer
            spaced += said.startswith(" ")
    assert (spaced == 0) == strips


# Thinking


def test_what_is_thought_is_free(demo: Family) -> None:
    """In a block that the template opens, as long as it takes or by a budget."""
    free = say(demo, enable_thinking=True)
    for budget in (None, 0, 3):
        result = say(demo, enable_thinking=True, json_schema=SHAPE, thinking_budget=budget)
        assert result.finish_reason == "stop" and is_of("json_schema", result.answer or "")
        thought = free.thinking_tokens if budget is None else min(budget, free.thinking_tokens)
        assert result.thinking_tokens == thought and result.tokens[:thought] == free.tokens[:thought]


def test_a_model_may_open_the_block_itself_where_it_is_let_think(demo: Family) -> None:
    """The prompt is a formatted string that opens none: `enable_thinking` only says that it may."""
    template = "<|im_start|>user\nThink step by step: How many?<|im_end|>\n<|im_start|>assistant\n"
    ask = {"prompt": template, "choices": CHOICES, "max_tokens": MAX_TOKENS}
    opening = demo.processor.tokenizer.convert_tokens_to_ids("<think>")
    first = {"logit_bias": {opening: 30.0}, "thinking_budget": 4}
    free = generate(demo.model, demo.processor, enable_thinking=True, **first, **ask)
    assert free.tokens[0] == opening and free.thinking_tokens == 4
    assert free.finish_reason == "stop" and free.answer in CHOICES
    formed = generate(demo.model, demo.processor, **first, **ask)
    assert formed.thinking is None and formed.text in CHOICES


def test_an_end_token_does_not_cut_what_is_thought(demo: Family) -> None:
    ends = dict.fromkeys(demo.ends, 100.0)
    result = say(demo, enable_thinking=True, choices=CHOICES, logit_bias=ends, thinking_budget=5)
    assert (result.finish_reason, result.thinking_tokens) == ("stop", 5) and result.answer in CHOICES
    assert say(demo, enable_thinking=True, choices=CHOICES, max_tokens=2).finish_reason == "length"
    assert say(demo, enable_thinking=True, regex=".*", stop=[" "]).finish_reason == "length"
    assert say(demo, enable_thinking=True, choices=[" a "], thinking_budget=0).answer == " a "


def test_no_block_opens_inside_an_answer(demo: Family) -> None:
    """Marks that are ordinary words, or that the grammar asks for, are part of it."""
    keywords = {"thinking_start_token": "red", "thinking_end_token": "blue", "thinking_budget": 2}
    result = say(demo, choices=["a red circle"], **keywords)
    assert (result.text, result.thinking) == ("a red circle", None)
    result = say(demo, grammar='start: <think> "yes" </think> ("a"|"b")')
    assert re.fullmatch("<think>yes</think>[ab]", result.text) and result.thinking is None


# Other ways of decoding


def test_guesses_change_nothing(demo: Family) -> None:
    """Speculative decoding, in the midst of other rows: the answer is the same."""
    messages = [{"role": "user", "content": "1+2+3+1+2+3+1+2+3+1+2+3"}]
    rows: list[dict[str, Any]] = [{}, {"grammar": SUM}, {"grammar": SUM, **HOT}, {"regex": LIST, **HOT}]
    heard: list[dict[int, GenerationResult]] = []
    for drafter in (None, PromptLookup):
        with TokenIterator(demo.model, demo.processor) as iterator:
            for row in rows:
                iterator.add(Request(messages, sampling=SamplingParams(max_tokens=30, **row), drafter=drafter))
            heard.append(dict(iterator))
    for plain, guessed in zip(*(results.values() for results in heard), strict=True):
        assert guessed.error is None
        assert (guessed.tokens, guessed.finish_reason) == (plain.tokens, plain.finish_reason)


def test_beams_are_refused(demo: Family) -> None:
    with TokenIterator(demo.model, demo.processor) as iterator:
        iterator.add(Request("A", sampling=SamplingParams(regex=LIST), beams=Beams(2)))
        [(_, result)] = iterator
    assert isinstance(result.error, UnsupportedError) and "beam search does not go with regex" in str(result.error)


# Faults end one row only


def test_a_fault_ends_its_own_row(demo: Family) -> None:
    rows: list[dict[str, Any]] = [
        {"choices": CHOICES},
        {"regex": "("},
        {"json_schema": {"not": {}}},
        {"grammar": 'start: "a" <|im_end|> "b"'},  # nothing may come after a: the row ends there
        {"regex": LIST, "sampler": lambda scores: mx.array([568])},
        {"regex": "[a-z]{9}", "sampler": lambda scores: mx.array([40])},
    ]
    results = say_all(demo, rows)
    assert facts(results[0]) == facts(say(demo, choices=CHOICES))
    assert [type(result.error) for result in results[1:4]] == [PromptError, UnsupportedError, UnsupportedError]
    assert (results[3].text, "it is not whole" in str(results[3].error)) == ("a", True)
    assert results[4].finish_reason == "length"  # it drew the end where there was none
    assert "token 40 was drawn, which is not allowed" in str(results[5].error)


@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        ({"regex": "ab(c"}, PromptError, r"regex: unclosed group, at character 3 of 'ab\(c'"),
        ({"regex": "(?=a)b"}, UnsupportedError, "look-around, including look-ahead and look-behind, is not supported"),
        ({"regex": r"(a)\1"}, UnsupportedError, "backreferences are not supported, at character 4"),
        ({"regex": r"\bfoo"}, UnsupportedError, "lookarounds not supported"),
        ({"grammar": "start: foo"}, PromptError, 'grammar: line 1, column 8: unknown name: "foo"'),
        ({"grammar": 'one: "a"'}, PromptError, "grammar: no start rule found"),
        ({"grammar": 'start "a"'}, PromptError, "grammar: line 1, column 7: Expected token"),
        ({"grammar": "start: x\nx[temperature=0.5]: /a/"}, UnsupportedError, "attribute 'temperature' has no effect"),
        ({"grammar": 'start: x\nx[capture, stop="b"]: /a/'}, UnsupportedError, "attribute 'stop' has no effect"),
        (
            {"grammar": 'start: %json {"x-guidance": {"lenient": true}, "not": {}}'},
            UnsupportedError,
            r'keys: \["not"\]',
        ),
        ({"choices": ["\ud800"]}, PromptError, "choices: "),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else "",
)
def test_wrong_forms_are_refused_by_name(demo: Family, keywords: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        form(demo, **keywords)
    assert type(caught.value) is error


DRAFT_7 = "http://json-schema.org/draft-07/schema#"


@pytest.mark.parametrize(
    ("schema", "error", "message"),
    [
        (3, PromptError, "json_schema: expected a schema"),
        (False, PromptError, "the schema is false, by which nothing is valid"),
        ({"type": "strnig"}, PromptError, "Invalid type: strnig"),
        ({"properties": {"a/b": {"minLength": "3"}}}, PromptError, "at /properties/a~1b: .*minLength"),
        (
            {"properties": {"a": {"items": {"pattern": "x("}}}},
            PromptError,
            "at /properties/a/items: unclosed group, at c",
        ),
        ({"$defs": {"a": 3}}, PromptError, r"at /\$defs/a: expected a schema"),
        ({"allOf": [{"type": "integer", "minimum": 5, "maximum": 3}]}, PromptError, "at /allOf/0: Unsatisfiable"),
        ({"multipleOf": -2}, PromptError, "at /multipleOf: -2: expected more than 0"),
        ({"$ref": "#/$defs/a"}, PromptError, "/a' does not exist"),
        ({"$ref": "https://example.org/a.json"}, UnsupportedError, "does not fetch"),
        ({"not": {"type": "string"}}, UnsupportedError, "json_schema: 'not' cannot be enforced"),
        ({"items": {"uniqueItems": True}}, UnsupportedError, "at /items: 'uniqueItems' cannot be enforced"),
        ({"if": {}, "then": {}}, UnsupportedError, "'if' cannot be enforced"),
        ({"dependentRequired": {}}, UnsupportedError, "'dependentRequired' cannot be enforced"),
        ({"nullable": True}, UnsupportedError, "'nullable' cannot be enforced"),
        ({"properties": {"a": {"minLenght": 3}}}, UnsupportedError, "at /properties/a: 'minLenght' .* 'minLength'"),
        ({"x-guidance": {"lenient": True}, "type": "string"}, UnsupportedError, "'x-guidance' cannot be enforced"),
        ({"items": {"type": "string", "format": "zip"}}, UnsupportedError, "at /items: Unknown format: zip"),
        ({"type": "string", "pattern": "(?!a)b"}, UnsupportedError, "look-around"),
        ({"oneOf": [{"type": "number"}, {"type": "integer"}]}, UnsupportedError, "oneOf excludes .* use anyOf"),
        ({"patternProperties": {"^a": {}, "b$": {"type": "null"}}}, UnsupportedError, "not disjoint"),
        ({"properties": {"a": {}, "b": {}}, "minProperties": 1}, UnsupportedError, "only supported when all keys"),
        ({"type": "object", "minProperties": 2}, UnsupportedError, "at /minProperties: more keys than are named"),
        ({"exclusiveMinimum": True, "minimum": 3}, UnsupportedError, "at /exclusiveMinimum: True is draft 4's"),
        ({"enum": [1, {"a": 2**53 + 1}]}, UnsupportedError, f"at /enum/1/a: {2**53 + 1} is too large"),
        ({"minimum": 1e300, "type": "number"}, UnsupportedError, "Failed to generate"),
        ({"const": "a\0"}, UnsupportedError, "at /const: the control character"),
        ({"properties": {"\x7f": {}}}, UnsupportedError, "at /properties/0: the control character"),
        ({"$schema": "https://example.org/own"}, UnsupportedError, "only json-schema.org's are known"),
        ({"items": {"$schema": DRAFT_7}}, UnsupportedError, r"at /items: '\$schema' cannot be enforced"),
    ],
    ids=lambda value: json.dumps(value) if not isinstance(value, str | type) else "",
)
def test_what_cannot_be_held_to_is_refused_with_its_place(
    demo: Family, schema: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        form(demo, json_schema=json.dumps(schema))
    assert type(caught.value) is error


@pytest.mark.parametrize(
    ("schema", "valid", "invalid"),
    [
        ({"$schema": "http://json-schema.org/draft-04/schema#", "const": 3}, ["3"], ["4"]),
        ({"$schema": DRAFT_7, "items": [{"const": 1}], "additionalItems": False}, ["[1]"], ["[2]", "[1, 1]"]),
        ({"properties": {"a": {"const": 1}}}, ['{"b": 2}'], ['{"a": 2}', '{"\\u0061": 2}', '{"b":2,"a":1}']),
        ({"type": "string", "minLength": 2}, ['"éé"', '"\\n\\""'], ['"😀"', '"\\ud83d\\ude00"', '"\\u0061b"']),
        ({"type": "number"}, ["1", "-0.5e3"], ["01", "1.", "NaN"]),
        ({"title": "T", "x-order": 1, "examples": [2**60], "enum": ["a", None]}, ['"a"', "null"], ["1"]),
        ({"$id": "https://example.org/a", "$ref": "#/$defs/b", "$defs": {"b": {"const": 4}}}, ["4"], ["5"]),
        ({}, ['[1, {"a": 2, "b":[3,4]}]'], ["[1,\n2]", "[1 ,2]", "[1,  2]", "[ 1]", '{"a" : 1}', " [1]", "[1] "]),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else "",
)  # fmt: skip
def test_schemas_mean_what_they_say(demo: Family, schema: Any, valid: list[str], invalid: list[str]) -> None:
    compiled = form(demo, json_schema=schema)
    assert [text for text in (*valid, *invalid) if compiled.fits(text)] == valid


def test_choices_are_taken_word_for_word(demo: Family) -> None:
    choices = ["a", "ab", "", 'say "\n\\', "a|b", "start: x"]
    compiled = form(demo, choices=choices)
    assert [text for text in (*choices, "b", "aa", "say") if compiled.fits(text)] == choices


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"regex": "a", "choices": ["b"]}, "choices: only one of json_schema, regex, grammar, choices can be given"),
        ({"json_schema": "{"}, "json_schema: not JSON: Expecting property name"),
        ({"json_schema": {"const": {1}}}, "json_schema: not JSON: Object of type set"),
        ({"json_schema": {"minimum": float("nan")}}, "json_schema: not JSON"),
        ({"choices": []}, r"choices=\[\]: expected a list of strings"),
        ({"choices": "yes"}, "choices='yes': expected a list of strings"),
        ({"choices": ["a", 3]}, "choices=.*: expected a list of strings"),
    ],
    ids=lambda value: repr(value) if isinstance(value, dict) else "",
)
def test_what_is_no_form_is_refused_at_once(keywords: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SamplingParams(**keywords)


def test_without_the_package_it_is_named(demo: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance.hf", None)
    with pytest.raises(UnsupportedError, match=r'pip install "mlx-vlgen\[structured\]"'):
        Forms(demo.processor.tokenizer)


def test_tokenizers_that_it_does_not_know_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="Only fast tokenizers are supported"):
        Forms(object())


# Which forms stay compiled


def test_forms_are_compiled_once_and_kept_as_long_as_the_tokenizer(demo: Family) -> None:
    processor = copy.copy(demo.processor)
    processor.tokenizer = copy.deepcopy(demo.processor.tokenizer)
    before = dict(vars(demo.model))
    answer = generate(demo.model, processor, "A", regex=LIST, max_tokens=60)
    assert answer.text == generate(demo.model, processor, "A", regex=LIST, max_tokens=60).text
    assert vars(demo.model) == before
    forms = weakref.ref(Forms.of(processor.tokenizer))
    assert Forms.of(processor.tokenizer).get("regex", LIST) is Forms.of(processor.tokenizer).get("regex", LIST)
    assert Forms.of(processor.tokenizer) is not Forms.of(demo.processor.tokenizer)
    del processor
    gc.collect()
    assert forms() is None


def test_a_schema_changed_later_changes_nothing(demo: Family) -> None:
    schema = copy.deepcopy(SHAPE)
    request = Request("A", sampling=SamplingParams(json_schema=schema, max_tokens=80))
    schema.clear()
    with TokenIterator(demo.model, demo.processor) as iterator:
        iterator.add(request)
        assert is_of("json_schema", "".join(result.text for _, result in iterator))
