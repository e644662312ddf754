"""A checkpoint's chat template is a program from elsewhere: it ends soon, stays small, and says what is wrong."""

import resource
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from invariants.family import Family
from parity.templates import CONVERSATIONS, text_part, turn

from mlx_vlgen import apply_chat_template
from mlx_vlgen.errors import PromptError
from mlx_vlgen.inputs import template_budget, template_sandbox
from mlx_vlgen.inputs.processor import Processor

LoadFamily = Callable[[str], Family]
HI = [{"role": "user", "content": "Hi"}]
LONG = "{% set s = 'a' * 900000 %}"
NAMESPACE = "{% set ns = namespace(s='ab', l=[1], t=(1,), n=3) %}"
SIXTY = "{% for i in range(60) %}"

SLOW = {
    "nested": "{% for i in range(10**4) %}{% for j in range(10**4) %}{% endfor %}{% endfor %}",
    "filtered": "{% for i in range(10**4) %}{% for j in range(10**5) if false %}{% endfor %}{% endfor %}",
    "macro": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "filters": "{% for i in range(10**5) %}{% set x = range(10**5) | map('string') | list %}{% endfor %}",
    "unique": "{% for i in range(10**4) %}{% set x = range(10**5) | unique | list %}{% endfor %}",
    "recursive": "{% for x in [[]] * 9999 recursive %}{{ loop([[]] * 99) if loop.depth < 9 }}{% endfor %}",
}
LARGE = {
    "range": "{% for i in range(10**9) %}{% endfor %}",
    "times": "{{ 'a' * 10**10 }}",
    "constant": "{{ 'a' * 10000000000 }}",
    "list": "{{ [0] * 10**10 }}",
    "doubled": NAMESPACE + SIXTY + "{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s }}",
    "added": NAMESPACE + SIXTY + "{% set ns.s = ns.s + ns.s %}{% endfor %}{{ ns.s }}",
    "nested lists": NAMESPACE + SIXTY + "{% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ ns.l }}",
    "nested tuples": NAMESPACE + SIXTY + "{% set ns.t = (ns.t, ns.t) %}{% endfor %}{{ {ns.t: 1} }}",
    "nested mappings": NAMESPACE + SIXTY + "{% set ns.l = {'a': ns.l, 'b': ns.l} %}{% endfor %}{{ ns.l | tojson }}",
    "numbers": NAMESPACE + SIXTY + "{% set ns.n = ns.n * ns.n %}{% endfor %}{{ ns.n }}",
    "power": "{{ 2 ** 10**10 }}",
    "center": "{{ 'a' | center(10**10) }}",
    "ljust": "{{ 'a'.ljust(10**10) }}",
    "percent": "{{ '%10000000000d' % 5 }}",
    "starred": "{{ '%*d' % (10**9, 5) }}",
    "format": "{{ '{:10000000000}'.format(5) }}",
    "format in format": "{{ '{:{w}}'.format(5, w=10**9) }}",
    "format filter": "{{ '%10000000000d' | format(5) }}",
    "formats": LONG + "{{ ('{0}' * 1000).format(s) }}",
    "indent": "{{ 'a' | indent(10**10, true) }}",
    "tojson": "{{ [1] | tojson(indent=10**9) }}",
    "separators": LONG + "{{ range(10**5) | list | tojson(separators=(s, s)) }}",
    "replace": LONG + "{{ s | replace('a', s) }}",
    "replace by name": LONG + "{{ s | replace(new=s, old='a') }}",
    "replace method": LONG + "{{ s.replace('a', s) }}",
    "join": LONG + "{{ range(10**5) | join(s) }}",
    "join method": LONG + "{{ s.join(s) }}",
    "buffer": LONG + "{% set x %}{% for i in range(10**5) %}{{ s }}{% endfor %}{% endset %}{{ x | length }}",
    "output": LONG + "{% for i in range(10**5) %}{{ s }}{% endfor %}",
    "batch": "{{ [1] | batch(10**10, 'x') | list }}",
    "bytes": "{{ 'a'.encode().center(10**10) }}",
    "whole number": "{{ (5).to_bytes(10**10) }}",
    "tabs": "{{ ('\t' * 10**5).expandtabs(10**5) }}",
    "variables": LONG + "".join(f"{{% set a{i} = s[{i}:] %}}" for i in range(400)),
    "endless macro": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "backwards": LONG + "{{ s.rfind('b' + s[:450000]) }}",
    "strip": LONG + "{{ s.strip('b' * 450000) }}",
    "trim": LONG + "{{ s | trim('b' * 450000) }}",
    "round": "{{ 3 | round(-10**9) }}",
    "round up": "{{ 3 | round(10**9, 'ceil') }}",
    "safe": LONG + "{{ ('a' | safe).join(range(10**5) | map('replace', 0, s)) }}",
    "safe center": "{{ ('a' | safe).center(10**10) }}",
    "sum": "{{ [[1]] | sum(start=[]) }}",
}
BROKEN = {
    "unfinished": "{% if %}",
    "no such filter": "{{ messages | nonesuch }}",
    "parentheses": "{{ " + "(" * 9000 + "1" + ")" * 9000 + " }}",
    "deep": "{% for i in messages %}" * 1000 + "{% endfor %}" * 1000,
    "too deep for Python": "{% for i in messages %}" * 30 + "{% endfor %}" * 30,
    "long": "{{ messages }}" * 5000,
}


@pytest.fixture(scope="module")
def qwen(load_family: LoadFamily) -> Any:
    return load_family("qwen3_vl").processor


def render(qwen: Any, template: str, messages: Any = HI, **keywords: Any) -> str:
    return apply_chat_template(Processor(qwen.tokenizer, template), {}, messages, **keywords)


def test_it_has_a_second(qwen: Any) -> None:
    begun, threads = time.thread_time(), threading.active_count()
    with pytest.raises(
        PromptError, match=r"chat template takes more than 1\.0 seconds for this prompt: give the prompt"
    ):
        render(qwen, SLOW["nested"])
    assert 0.9 < time.thread_time() - begun < 1.5 and threading.active_count() == threads


@pytest.mark.parametrize("kind", SLOW)
def test_no_loop_runs_on(qwen: Any, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_budget, "SECONDS", 0.1)
    begun = time.thread_time()
    with pytest.raises(PromptError, match=r"takes more than 0\.1 seconds"):
        render(qwen, SLOW[kind])
    assert time.thread_time() - begun < 0.5


@pytest.mark.parametrize("kind", LARGE)
def test_nothing_large_is_made(qwen: Any, kind: str) -> None:
    begun, before = time.thread_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(PromptError, match="chat template"):
        render(qwen, LARGE[kind])
    assert time.thread_time() - begun < 1.5
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown * (1 if sys.platform == "darwin" else 1024) < 300e6


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_template_is_named(qwen: Any, kind: str) -> None:
    with pytest.raises(PromptError, match=r"this checkpoint's chat template (is broken: |has 70,000 characters)"):
        render(qwen, BROKEN[kind])


@pytest.mark.parametrize(
    "template",
    ["{{ ''.__class__.__mro__ }}", "{{ messages.append(1) }}", "{% set n = namespace(_a=1) %}", "{% include 'a' %}"],
)
def test_it_stays_in_its_box(qwen: Any, template: str) -> None:
    with pytest.raises(PromptError, match="the chat template refuses these messages"):
        render(qwen, template)


FEATURES = {
    "loop": "{% for m in messages %}{{ loop.index }}/{{ loop.length }}{{ loop.last }}{{ loop.revindex0 }}{% endfor %}",
    "controls": "{% for i in range(9) %}{% if i == 2 %}{% continue %}{% endif %}{% if i > 4 %}{% break %}{% endif %}"
    "{{ i }}{% endfor %}",
    "recursive": "{% for x in [[1, [2]], 3] recursive %}{{ loop(x) if x is sequence else x }},{% endfor %}",
    "namespace": "{% set ns = namespace(a=1) %}{% for i in range(3) %}{% set ns.a = ns.a + i %}{% endfor %}{{ ns.a }}",
    "dict": "{{ dict(a=1, b='x') | tojson }}{{ dict.fromkeys('ab') }}"
    "{% for k, v in {'a': 1}.items() %}{{ k }}{{ v }}{% endfor %}",
    "tojson": "{{ {'ü': [1, none, '<\">']} | tojson(indent=2) }}{{ [1, {}] | tojson(separators=(',', ':')) }}",
    "generation": "{% generation %}{{ messages[0].role }}{% endgeneration %}",
    "macros": "{% macro f(x, y='d') %}[{{ x }}{{ y }}{{ caller() if caller }}]{% endmacro %}{{ f(1) }}"
    "{% call f(2) %}c{% endcall %}",
    "filters": "{{ ' a b ' | trim | upper | replace('A', 'c') | default('x') }}{{ [3, 1] | sort | join('-') }}"
    "{{ 'a\nb' | indent(2) }}{{ 'x' | center(5) }}"
    "{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | list | length }}",
    "strings": "{{ 'a,b'.split(',')[-1] ~ 1 ~ none }}{{ '%s *-%03d 123456' % ('a', 7) }}{{ 'ab' * 3 }}"
    "{{ '{}:{b:>4} 123456 {{'.format(1, b=2) }}",
    "special tokens": "{{ eos_token }}|{{ pad_token }}|{{ bos_token is defined }}",
    "slices": "{{ messages[::-1] | length }}{{ 'abc'[1:] }}{{ (1, 2)[0] }}{{ 1 if 'a' in ('a', 'b') and 2 > 1 }}",
    "set block": "{% set x %}a{{ 1 }}{% endset %}{{ x }}{% filter upper %}b{% endfilter %}",
    "undefined": "{{ nothing }}{% for x in nothing %}{% endfor %}{{ nothing is defined }}{{ messages[9] is defined }}",
}


@pytest.mark.parametrize("feature", FEATURES)
def test_it_has_what_transformers_has(qwen: Any, feature: str) -> None:
    messages = [*HI, {"role": "assistant", "content": "Yes?"}, *HI]
    expected = qwen.tokenizer.apply_chat_template(messages, chat_template=FEATURES[feature], tokenize=False)
    budget = template_budget.Budget()
    made = template_sandbox.render(
        FEATURES[feature], budget, messages=messages, tools=None, **qwen.tokenizer.special_tokens_map
    )
    assert made == expected


def test_a_long_conversation_stays_far_below_the_budget(qwen: Any) -> None:
    messages = [turn(text_part("What is it? " * 50)), turn(text_part("A circle. " * 50), role="assistant")] * 500
    begun = time.thread_time()
    text = apply_chat_template(qwen, {}, [*messages, *CONVERSATIONS["string"].messages])
    assert len(text) > 500_000 and time.thread_time() - begun < 1
