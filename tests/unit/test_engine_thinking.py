"""Thinking blocks: opened by the prompt or by the model, closed by the model or by the budget, exactly."""

import copy
from collections.abc import Iterable

import numpy as np
import pytest
from chain_model import Chain, Letters
from hypothesis import given
from hypothesis import strategies as st

from mlx_vlgen import Request, SamplingParams, TokenIterator
from mlx_vlgen.engine import batch
from mlx_vlgen.engine.request import Row
from mlx_vlgen.engine.thinking import Marks, Thinking
from mlx_vlgen.inputs.prompt import Prompt

OPEN, CLOSE, SINGLE = 1, 2, Marks((1,), (2,))
LONG = Marks((1, 3), (2, 4, 5))
WORDS = st.integers(6, 9)


def run(marks: Marks, prompt: list[int], wanted: Iterable[int], budget: int | None, steps: int) -> Thinking:
    """A model that wants to say `wanted`, and is forced where the budget says so."""
    thinking = Thinking(marks, prompt, budget)
    left = list(wanted)
    for _ in range(steps):
        forced = thinking.forced
        if forced is not None:
            thinking.add(forced)
            continue
        if not left:
            break
        token = left.pop(0)
        thinking.add(token)
    return thinking


def parts(thinking: Thinking) -> tuple[list[int], list[int]]:
    """The tokens inside, and those after the last block."""
    blocks, (begin, end) = thinking.ranges(over=True)
    return [t for start, stop in blocks for t in thinking._tokens[start:stop]], thinking._tokens[begin:end]


@pytest.mark.parametrize("marks", [SINGLE, LONG], ids=["one token", "several tokens"])
@pytest.mark.parametrize("opened_by_prompt", [True, False])
@given(thought=st.lists(WORDS, max_size=12), answer=st.lists(WORDS, max_size=5), budget=st.none() | st.integers(0, 14))
def test_a_budget_is_exact(
    marks: Marks, opened_by_prompt: bool, thought: list[int], answer: list[int], budget: int | None
) -> None:
    prompt = [9, *marks.start] if opened_by_prompt else [9]
    wanted = [*([] if opened_by_prompt else marks.start), *thought, *marks.end, *answer]
    thinking = run(marks, prompt, wanted, budget, steps=100)
    assert thinking.count == (len(thought) if budget is None else min(budget, len(thought)))
    inside, after = parts(thinking)
    assert inside == thought[: thinking.count]
    if budget is None or budget > len(thought):
        assert after == answer


def test_a_block_closed_in_the_prompt_is_closed() -> None:
    assert not Thinking(SINGLE, [OPEN, 7, CLOSE, 8]).inside
    assert Thinking(SINGLE, [OPEN, 7, CLOSE, OPEN]).inside
    assert not Thinking(SINGLE, [7]).inside


def test_marks_that_share_tokens_do_not_run_into_each_other() -> None:
    """What ended the opening mark begins no closing one."""
    thinking = run(Marks((1, 2), (2, 1)), [9], [1, 2, 1, 7], None, 4)
    assert thinking.inside and thinking.count == 2
    assert run(Marks((1, 2), (2, 5)), [9], [1, 2], 0, 2).forced == 2


def test_a_second_block_has_what_the_first_left() -> None:
    thinking = run(SINGLE, [9], [OPEN, 6, 6, CLOSE, 7, OPEN, 6, 6, 6], budget=3, steps=50)
    assert thinking.count == 3 and not thinking.inside


@given(tokens=st.lists(st.integers(1, 6), max_size=20), budget=st.integers(0, 6), marks=st.sampled_from([SINGLE, LONG]))
def test_rows_that_do_not_wait_are_never_forced_next(tokens: list[int], budget: int, marks: Marks) -> None:
    """Where `undecided` is false, whatever the unread token turns out to be, the one after it is free; where it is true
    and there is a `decider`, that tells which."""
    thinking = run(marks, [9], [], budget, 0)
    for token in tokens:
        if thinking.forced is None and not thinking.undecided:
            for unread in range(1, 7):
                ahead = run(marks, [9], thinking._tokens, budget, len(thinking._tokens))
                ahead.add(unread)
                assert ahead.forced is None
        elif thinking.undecided and (decider := thinking.decider):
            mark, forces = decider
            for unread in range(1, 7) if thinking.forced is None else [thinking.forced]:
                ahead = copy.deepcopy(thinking)
                ahead.add(unread)
                assert ahead.forced == (marks.end[0] if (unread == mark) == forces else None)
        thinking.add(token if thinking.forced is None else thinking.forced)


def test_a_budget_with_tokens_that_are_read_a_step_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same tokens as where each is read before the next is drawn, and no row waits for its token."""
    size, steps = 8, 30
    processor = Letters(size)
    processor.tokenizer.encode = lambda text, **_: [ord(letter) - 97 for letter in text]
    logits = np.random.default_rng(0).normal(size=(size, size)) * 2

    def answers(lookahead: bool) -> list[list[int]]:
        monkeypatch.setattr(batch, "LOOKAHEAD", lookahead)
        settings = {"thinking_start_token": "b", "thinking_end_token": "c", "temperature": 1.0, "max_tokens": steps}
        with TokenIterator(Chain(logits), processor) as iterator:
            for budget in (None, *range(8)):
                sampling = SamplingParams(thinking_budget=budget, seed=3, **settings)
                iterator.add(Request(Prompt(np.array([1], dtype=np.int32)), sampling=sampling))
            last = dict(iterator)
        assert all(result.error is None for result in last.values())
        assert [last[i].thinking_tokens for i in range(1, 9)] == [min(i, last[0].thinking_tokens) for i in range(8)]
        return [last[i].tokens for i in sorted(last)]

    read_at_once = answers(False)
    monkeypatch.setattr(Row, "needs_token", property(lambda row: False))
    assert answers(True) == read_at_once
