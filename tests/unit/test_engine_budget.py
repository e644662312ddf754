"""What rows may take of memory: bytes by layout and settings, row for row."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from chain_model import Chain, Letters

from mlx_vlgen import Request, SamplingParams, TokenIterator
from mlx_vlgen._runtime import mx
from mlx_vlgen.engine import budget, columns
from mlx_vlgen.engine import cache as kv
from mlx_vlgen.engine.budget import Budget, LayerSize, bytes_needed
from mlx_vlgen.engine.kv_settings import KVSettings
from mlx_vlgen.engine.modes import Beams, Guidance
from mlx_vlgen.engine.request import ROOM, Row
from mlx_vlgen.engine.states import FollowedCache
from mlx_vlgen.engine.text import TextStream
from mlx_vlgen.inputs.prompt import Prompt
from mlx_vlgen.models.base import Embedded, Followed, Full, LayerKind, Recurrent, Sliding

WHOLE, Q4, Q8, BOUNDED = KVSettings(), KVSettings(4, 32), KVSettings(8, 64, start=256), KVSettings(max_size=68)
STEP = columns.STEP


def filled(kind: LayerKind, settings: KVSettings, positions: int, rows: int = 1, dtype: Any = mx.float16) -> Any:
    """A cache of one layer of 3 heads, of 64 values a key and 128 a value, that so many tokens went through."""
    one = kv.make_cache([kind], settings, None if rows == 1 else [positions] * rows)
    for count in [min(positions, STEP), *[1] * max(0, positions - STEP)] if isinstance(kind, Sliding) else [positions]:
        one[0].update_and_fetch(mx.zeros((rows, 3, count, 64), dtype), mx.zeros((rows, 3, count, 128), dtype))
    if rows > 1:
        kv.finalize(one)
    return one[0]


def stateful(size: int, rows: int = 1) -> Any:
    cache = kv.make_cache([Recurrent(size)])[0]
    for place in range(size):
        cache[place] = mx.zeros((rows, 5, 7), mx.float32)
    return cache


SIZE = LayerSize(width=3 * (64 + 128), itemsize=2)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("settings", [WHOLE, Q4, Q8, BOUNDED], ids=str)
@pytest.mark.parametrize("kind", [Full(), Sliding(256)], ids=str)
def test_sizes_are_read_off_any_cache(kind: LayerKind, settings: KVSettings, rows: int) -> None:
    """However long, quantized or bounded it is, and of however many rows."""
    for positions in (3, 300):
        assert LayerSize.of(filled(kind, settings, positions, rows)) == SIZE
    assert LayerSize.of(filled(kind, settings, 3, rows, mx.float32)) == LayerSize(SIZE.width, 4)
    assert LayerSize.of(stateful(2, rows)) == LayerSize(state=2 * 5 * 7 * 4)


@pytest.mark.parametrize("settings", [WHOLE, Q4, Q8, BOUNDED], ids=str)
@pytest.mark.parametrize("kind", [Full(), Sliding(256)], ids=str)
def test_bytes_are_what_a_cache_holds(kind: LayerKind, settings: KVSettings) -> None:
    for positions in (STEP, 2 * STEP):
        assert bytes_needed({(kind, SIZE): 1}, settings, positions) == filled(kind, settings, positions).nbytes


def test_bytes_of_a_layout() -> None:
    """By hand: 3 full layers, 2 that slide, and a state, which is there once a row."""
    layers = {
        (Full(), LayerSize(100, 2)): 3,
        (Sliding(50), LayerSize(10, 2)): 2,
        (Recurrent(1), LayerSize(state=999)): 1,
    }
    assert bytes_needed(layers, WHOLE, 1000) == 3 * 1000 * 200 + 2 * 50 * 20 + 999
    assert bytes_needed(layers, WHOLE, 10) == 3 * 10 * 200 + 2 * 10 * 20 + 999
    assert bytes_needed(layers, BOUNDED, 1000) == 3 * 68 * 200 + 2 * 50 * 20 + 999
    packed = 100 + 2 * 2 * 100 // 64  # 8 bits a value, and 2 values of 2 bytes a group
    assert bytes_needed(layers, KVSettings(8, 64, start=200), 1000) == pytest.approx(
        3 * (200 * 200 + 800 * packed) + 2 * 50 * 20 + 999, rel=0.01
    )
    assert bytes_needed(layers, WHOLE, 2000) - bytes_needed(layers, WHOLE, 1000) == 3 * 1000 * 200


def row(**request: Any) -> Row:
    prompt = Prompt(np.zeros(40, np.int32))
    made = Request(prompt, **{"sampling": SamplingParams(max_tokens=60), **request})
    return Row(0, made, TextStream(), seed=0, prompt=prompt)


def test_each_row_needs_what_its_own_settings_take(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever came first; a beam is a sequence, and so is a negative prompt, which goes on as long as its row."""
    layout = [Full(), Full(), Sliding(256), Recurrent(2)]
    guided = row(guidance=Guidance(2.0, Prompt(np.zeros(7, np.int32))))
    guided.negative = row()
    guided.negative.prompt = Prompt(np.zeros(7, np.int32))
    monkeypatch.setattr(budget, "memory_available", lambda: 10_000)
    for first in (WHOLE, Q4, Q8, BOUNDED):
        kv_budget = Budget(layout, None)
        cache = [*(filled(kind, first, 300) for kind in layout[:3]), stateful(2)]
        kv_budget.learn(cache)
        assert kv_budget.limit == sum(layer.nbytes for layer in cache) + 8_000
        assert kv_budget.needed(row()) == 3 * 100 * SIZE.width * 2 + 280
        assert kv_budget.needed(row(kv=BOUNDED)) == (2 * 68 + 100) * SIZE.width * 2 + 280
        assert kv_budget.needed(row(kv=Q4)) == (2 * 100 * (4 + 2 * 16 / 32) / 8 + 100 * 2) * SIZE.width + 280
        assert kv_budget.needed(row(beams=Beams(3))) == 3 * kv_budget.needed(row())
        assert kv_budget.needed(guided) == kv_budget.needed(row()) + 3 * 67 * SIZE.width * 2 + 280


def test_other_ranks_may_have_more_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """One whose cache another rank has takes nothing here."""
    monkeypatch.setattr(budget, "memory_available", lambda: 10_000)
    there, followed = kv.make_cache([Full()]), Followed(lambda *_: FollowedCache(0), fullest=1.5)
    there[0].advance(300)
    kv_budget = Budget([Full(), Full(), followed], None)
    kv_budget.learn([filled(Full(), WHOLE, 300), *there, FollowedCache(0)])
    assert kv_budget.needed(row()) == 1.5 * 100 * SIZE.width * 2


def test_an_answer_without_an_end_does_not_reserve_the_context(monkeypatch: pytest.MonkeyPatch) -> None:
    """But room for what it has, twice; a limit of positions is kept whatever comes."""
    monkeypatch.setattr(budget, "memory_available", lambda: 10_000)
    kv_budget = Budget([Full()], None)
    kv_budget.learn([filled(Full(), WHOLE, 3)])
    endless = row(sampling=SamplingParams(max_tokens=200_000))
    width = SIZE.width * 2
    assert kv_budget.needed(endless) == (40 + ROOM) * width
    endless.tokens = [1] * ROOM
    assert kv_budget.needed(endless) == (40 + 2 * ROOM) * width
    assert Budget([Full()], 1000).needed(endless) == 200_040


def test_a_budget_in_positions() -> None:
    kv_budget = Budget([Full()], 1000)
    kv_budget.learn([filled(Full(), WHOLE, 3)])
    assert (kv_budget.limit, kv_budget.needed(row()), kv_budget.needed(row(kv=Q4, beams=Beams(2)))) == (1000, 100, 200)


def test_memory_that_cannot_be_told_bounds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "memory_available", lambda: None)
    kv_budget = Budget([Full()], None)
    kv_budget.learn([filled(Full(), WHOLE, 3)])
    assert kv_budget.limit is None


@pytest.mark.parametrize(("free", "together"), [(1000, 2), (3000, 4), (10**6, 6)])
def test_rows_that_run_together_fit_into_free_memory(free: int, together: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 100 positions, 8 bytes each: that a cache allocates some at a time makes them no dearer."""
    monkeypatch.setattr(budget, "memory_available", lambda: free)
    sizes: list[int] = []

    class Counting(Chain):
        def __call__(self, inputs: Embedded, *args: Any, **named: Any) -> mx.array:
            sizes.append(len(inputs.tokens))
            return super().__call__(inputs, *args, **named)

    model = Counting(np.random.default_rng(0).normal(size=(5, 5)))
    request = Request(Prompt(np.zeros(40, np.int32)), sampling=SamplingParams(max_tokens=60))
    with TokenIterator(model, SimpleNamespace(tokenizer=Letters(5).tokenizer), prefill_step_size=40) as iterator:
        for _ in range(6):
            iterator.add(request)
        assert sum(1 for _ in iterator) == 6 * 60
    assert max(sizes) == together
