"""Promise 2: the same request gives the same log-probabilities and tokens however it is asked.

Each test runs rows through the token iterator and compares them with a plain loop (family.py): one forward for the
whole prompt over unbatched caches, then one token at a time.

`-m slow` adds the families that are not in `DETAILED`, other draws of rows, more mixes, more sizes of batches and
chunks, all requests by the three faces, rows that come and go on a fast BLAS, and real draws and texts on MLX's BLAS.
"""

import io
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from parity import media
from PIL import Image

from mlx_vlgen import SamplingParams, TokenIterator, batch_generate, generate, stream_generate
from mlx_vlgen.engine.cache import check as check_cache
from mlx_vlgen.engine.kv_settings import KVSettings
from mlx_vlgen.errors import UnsupportedError

from .family import STEPS, Ask, Family
from .play import TOLERANCE, Heard, Row, check, play, play_and_check

VISION = ("qwen3_vl", "qwen3_vl_moe")
TEXT = ("llama", "qwen3", "qwen3_moe", "gemma3_text", "lfm2")  # gemma3_text has sliding layers, lfm2 recurrent ones
RANDOM = VISION + TEXT  # random weights, whose draws all differ
FAMILIES = (*RANDOM, "demo")
DETAILED = ("qwen3_vl", "gemma3_text", "lfm2")  # the others run test_families.py, and this file with -m slow

REAL = ("text", "img1", "video", "img_video", "shapes", "print")  # what the built-in model is sure of

CHUNKS = (1, 3, 7, 64, 2048)
SAMPLERS: tuple[dict[str, Any], ...] = (
    {"temperature": 0.8},
    {"temperature": 1.3, "top_k": 7},
    {"temperature": 1.0, "top_p": 0.7},
    {"temperature": 0.9, "min_p": 0.05},
    {"temperature": 1.1, "top_k": 40, "top_p": 0.9, "min_p": 0.01},
    {"temperature": 0.0},
    {"temperature": 1.0, "typical_p": 0.8},
    {"temperature": 1.2, "top_n_sigma": 1.0, "xtc_probability": 0.5, "xtc_threshold": 0.01},
    {"repetition_penalty": 1.3, "repetition_context_size": None},
    {"temperature": 0.9, "repetition_penalty": 1.5, "repetition_context_size": 3, "frequency_penalty": 0.4},
    {"presence_penalty": 1.5},
    {"logit_bias": {5: 4.0, 9: -50.0}},
)
CACHES = (
    KVSettings(),
    KVSettings(bits=8, group_size=32),
    KVSettings(bits=4, group_size=32),
    KVSettings(bits=8, group_size=32, start=9),
    KVSettings(max_size=12),
)


@pytest.fixture(scope="module")
def family(request: pytest.FixtureRequest, load_family: Callable[[str], Family]) -> Family:
    """The checkpoint that the test is parametrised with."""
    return load_family(request.param)


slow = pytest.mark.slow


def each(names: Sequence[str]) -> pytest.MarkDecorator:
    marked = [name if name in DETAILED else pytest.param(name, marks=slow) for name in names]
    return pytest.mark.parametrize("family", marked, indirect=True)


every_family, every_random_family, every_vision_family = each(FAMILIES), each(RANDOM), each(VISION)


def drawn_rows(family: Family, count: int, seed: int, **of_row: tuple[int, int]) -> list[Row]:
    """Rows of all kinds in random order, asking for 1 to `STEPS` tokens. of_row: bounds of `joins` and `leaves`."""
    draw = np.random.default_rng(seed)
    asks = list(family.asks.values())
    return [
        Row(
            asks[i % len(asks)],
            SamplingParams(max_tokens=int(draw.integers(1, STEPS + 1))),
            **{name: int(draw.integers(low, high)) for name, (low, high) in of_row.items()},
        )
        for i in draw.permutation(max(count, len(asks)))[:count].tolist()
    ]


@every_family
def test_answers_are_clear(family: Family) -> None:
    """No reference answer hangs on a near-tie, which rounding could tip."""
    for ask in family.asks.values():
        best = np.sort(family.answer(ask).scores, axis=1)[:, -2:]
        assert (best[:, 1] - best[:, 0]).min() > 1e-3, ask.name


@every_family
@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=slow)])
@pytest.mark.parametrize("count", [1, 2, 3, 5, 9])
def test_mixed_batch(family: Family, count: int, seed: int) -> None:
    """Rows of unlike lengths and media, shuffled."""
    play_and_check(family, drawn_rows(family, count, seed))


@every_family
def test_every_request_in_one_batch(family: Family) -> None:
    play_and_check(family, [Row(ask) for ask in family.asks.values()])


@every_family
def test_rows_of_equal_length(family: Family) -> None:
    """No padding, and so no mask array: a separate path. One row leaves early, and one of another length joins."""
    rows = [Row(family.asks[name]) for name in ("words11", "turned11", "words11")]
    play_and_check(family, rows)
    leaver = Row(family.asks["turned11"], SamplingParams(max_tokens=4))
    joiner = Row(family.asks["words5"], joins=13)
    play_and_check(family, [*rows, leaver])
    play_and_check(family, [*rows, leaver, joiner])


@every_family
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=slow), pytest.param(2, marks=slow)])
def test_late_joins(family: Family, seed: int) -> None:
    """Rows come while others decode, and leave by their length."""
    play_and_check(family, drawn_rows(family, 7, seed, joins=(0, 30)))


@every_family
@pytest.mark.parametrize("chunk", [1, 7, 2048])
def test_late_joins_during_chunked_prefill(family: Family, chunk: int) -> None:
    play_and_check(family, drawn_rows(family, 5, 11, joins=(0, 15)), prefill_step_size=chunk)


@every_family
@pytest.mark.parametrize("chunk", [3, 512])
def test_rows_that_join_in_mid_prefill(family: Family, chunk: int) -> None:
    """While rows decode prompts are computed in other chunks and pictures encoded one by one; others come meanwhile."""
    long = Ask("repeated", family.asks["words16"].text * 10)
    rows = [Row(family.asks["words5"]), Row(long, joins=1), *drawn_rows(family, 5, 12, joins=(2, 12))]
    play_and_check(family, rows, decode_prefill_size=chunk)


@every_family
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=slow), pytest.param(2, marks=slow)])
def test_neighbours_are_cancelled(family: Family, seed: int) -> None:
    """At every possible step, in waves, while others join."""
    rows = drawn_rows(family, 8, seed, joins=(0, 12), leaves=(1, STEPS))
    play_and_check(family, [row if i % 2 else Row(row.ask, joins=row.joins) for i, row in enumerate(rows)])


@every_random_family
@pytest.mark.parametrize("chunk", [1, 7, 64, *(pytest.param(chunk, marks=slow) for chunk in (3, 2048))])
def test_prefill_chunks(family: Family, chunk: int) -> None:
    """Borders fall inside pictures and videos; several rows queue for their turn."""
    names = ("img2", "img_video", "text", "words11") if family.name in VISION else ("long", "short", "words11")
    rows = [Row(family.asks[name]) for name in names]
    play_and_check(family, rows, prefill_step_size=chunk)
    play_and_check(family, rows[:1], prefill_step_size=chunk)


@every_vision_family
def test_every_border_inside_a_picture(family: Family) -> None:
    """A chunk ends at each position of a prompt in turn."""
    ask = family.asks["upright"]
    length = len(family.processor.prepare(ask.text, ask.media).tokens)
    for chunk in range(1, length + 1):
        play_and_check(family, [Row(ask, SamplingParams(max_tokens=2))], prefill_step_size=chunk)


@every_family
def test_packs(family: Family) -> None:
    """A prefill step that is smaller than, as large as and larger than the pack that waits: three rows of 5 words."""
    rows = [Row(family.asks[name]) for name in ("words5", "turned5", "words2", "words5")]
    length = len(family.processor.prepare(rows[0].ask.text, rows[0].ask.media).tokens)
    for step in (length - 1, length, 3 * length - 1, 3 * length, 3 * length + 1, 4 * length, 100 * length):
        play_and_check(family, rows, prefill_step_size=step)


@every_family
@pytest.mark.parametrize("size", [1, 3, 32, pytest.param(2, marks=slow)])
def test_batch_sizes(family: Family, size: int) -> None:
    play_and_check(family, drawn_rows(family, 9, 5), max_batch_size=size)


@every_family
@pytest.mark.parametrize("budget", [1, 40, 150])
def test_small_kv_budget(family: Family, budget: int) -> None:
    play_and_check(family, drawn_rows(family, 6, 6, joins=(0, 9)), kv_token_budget=budget)


@every_random_family
def test_two_streams_in_turn(family: Family) -> None:
    """Nothing of a request is left on the model or the processor."""
    first, second = [family.asks[n] for n in (("img2", "video") if family.name in VISION else ("long", "words5"))]
    heard = [Heard(), Heard()]
    with TokenIterator(family.model, family.processor) as one, TokenIterator(family.model, family.processor) as other:
        one.add(Row(first).request)
        other.add(Row(second).request)
        for _ in range(STEPS):
            for stream, output in zip((one, other), heard, strict=True):
                if result := next(stream, None):
                    output.add(result[1])
    check(family, [Row(first), Row(second)], heard)


@every_family
def test_three_threads(family: Family) -> None:
    """One model, three iterators, each in its thread."""
    rows = drawn_rows(family, 9, 8, joins=(0, 8))
    start = threading.Barrier(3, timeout=30)

    def work(part: int) -> list[Heard]:
        start.wait()
        return play(family, rows[part::3])

    with ThreadPoolExecutor(3) as threads:
        for part, heard in enumerate(threads.map(work, range(3))):
            check(family, rows[part::3], heard)


def sampled(asks: Sequence[Ask], **of_row: int) -> list[Row]:
    """One row an ask, each with other sampling settings and another seed."""
    return [
        Row(ask, SamplingParams(max_tokens=STEPS, seed=i, **SAMPLERS[i % len(SAMPLERS)]), **of_row)
        for i, ask in enumerate(asks)
    ]


@every_random_family
def test_seeded_draws(family: Family) -> None:
    """A row draws the same alone, in any batch, in any place and joining late."""
    asks = list(family.asks.values())[:7]
    rows = sampled(asks)
    heard = play(family, rows)
    assert len({tuple(output.tokens) for output in heard}) == len(rows)
    check(family, rows, heard)
    play_and_check(family, rows[::-1], max_batch_size=3, prefill_step_size=7)
    play_and_check(family, [Row(row.ask, row.sampling, joins=4 * i) for i, row in enumerate(rows)])


@every_family
def test_seeds_matter(family: Family) -> None:
    """Equal seeds draw equally, other seeds otherwise, no seed otherwise each time."""
    ask = family.asks["words5"]
    params = [SamplingParams(max_tokens=STEPS, temperature=1.5, seed=seed) for seed in (1, 1, 2, None, None)]
    same, again, other, free, free_again = (
        output.tokens for output in play(family, [Row(ask, sampling) for sampling in params])
    )
    assert same == again
    assert len({tuple(tokens) for tokens in (same, other, free, free_again)}) == 4


@pytest.mark.parametrize(
    "family", ["gemma3_text", *(pytest.param(name, marks=slow) for name in ("qwen3_vl", "lfm2"))], indirect=True
)
def test_long_rows(family: Family) -> None:
    """Prompts and answers past the 256 positions by which caches grow, and many times past the window."""
    long = Ask("repeated", family.asks["words16"].text * 10)
    params = [SamplingParams(max_tokens=count, temperature=1.0, seed=count) for count in (262, 120, 40)]
    rows = [Row(family.asks["words5"], params[0]), Row(long, params[1]), Row(long, params[2], joins=150)]
    play_and_check(family, rows, prefill_step_size=100)


@every_vision_family
@pytest.mark.parametrize("group", [True, False])
@pytest.mark.parametrize("pixels", [1, 3 * 4096 * 1024])
def test_grouping_of_pictures(family: Family, group: bool, pixels: int) -> None:
    """Pictures of equal shape encoded together, in order, or one by one."""
    asks = [family.asks[name] for name in ("img2", "img1", "video", "upright", "img1", "img_video", "img2", "video")]
    play_and_check(family, [Row(ask) for ask in asks], group_by_shape=group, vision_batch_pixels=pixels)


@every_vision_family
def test_sources_of_one_picture(family: Family, pictures: Path) -> None:
    """A path, a string, bytes, an open file, a PIL picture and an array are the same picture."""
    path = pictures / "upright.png"
    with path.open("rb") as file:
        sources = [path, str(path), path.read_bytes(), io.BytesIO(path.read_bytes()), file, Image.open(path)]
        sources.append(media.picture("upright"))
        ask = family.asks["upright"]
        play_and_check(family, [Row(ask, media=source) for source in sources])


@every_family
@pytest.mark.parametrize("every", [2, pytest.param(1, marks=slow)])
def test_three_faces(family: Family, every: int) -> None:
    """`generate`, `stream_generate` and `batch_generate` give the iterator's text and tokens."""
    asks = [ask for ask in family.asks.values() if not ask.videos][::every]
    heard = play(family, [Row(ask) for ask in asks])
    for ask, output in zip(asks, heard, strict=True):
        images = [media.picture(name) for name in ask.images] or None
        whole = generate(family.model, family.processor, ask.text, images, max_tokens=STEPS)
        assert (whole.tokens, whole.text) == (output.tokens, output.text)
        assert np.abs(np.array(whole.logprobs) - output.scores[-1]).max() < TOLERANCE
        pieces = list(stream_generate(family.model, family.processor, ask.text, images, max_tokens=STEPS))
        assert ([piece.token for piece in pieces], "".join(piece.text for piece in pieces)) == (
            output.tokens,
            output.text,
        )
    batch = batch_generate(
        family.model,
        family.processor,
        images=[[media.picture(name) for name in ask.images] for ask in asks],
        prompts=[ask.text for ask in asks],
        max_tokens=STEPS,
    )
    assert batch.texts == [output.text for output in heard]
    assert [result.tokens for result in batch.results] == [output.tokens for output in heard]


def usable_caches(family: Family) -> list[KVSettings]:
    """Whole caches, mostly; and the others that the family's heads allow."""

    def fits(settings: KVSettings) -> bool:
        try:
            check_cache(family.model, settings)
        except UnsupportedError:
            return False
        return True

    return [KVSettings()] * 3 + [settings for settings in CACHES if fits(settings)]


@every_family
@pytest.mark.parametrize("chunk", [None, 7, pytest.param(1, marks=slow)])
def test_every_cache(family: Family, chunk: int | None) -> None:
    """Each kind of cache: alone in chunks, in a ragged batch, and rows of all kinds together."""
    caches = usable_caches(family)[3:]
    assert len(caches) >= 2
    names = [name for name in ("img2", "long", "words11", "text") if name in family.asks][:3]
    rows = [Row(family.asks[name], kv=settings, joins=5 * i) for settings in caches for i, name in enumerate(names)]
    if chunk is None:
        play_and_check(family, rows)
    else:
        play_and_check(family, [row for row in rows if row.joins == 0], prefill_step_size=chunk)


@slow  # in the default run by test_on_a_fast_blas, and test_families.py draws on MLX's BLAS
@pytest.mark.parametrize("family", ["demo"], indirect=True)
def test_real_draws(family: Family) -> None:
    """Questions that a person would ask the built-in model, with sampling settings of all kinds, and so hot that it
    says other things than it is sure of."""
    rows = sampled([family.asks[name] for name in ("text", "shapes", "print") * 4])
    hot = [replace(row.sampling, temperature=4 * row.sampling.temperature) for row in rows]
    play_and_check(family, [Row(row.ask, sampling) for row, sampling in zip(rows, hot, strict=True)])


@slow  # in the default run by test_on_a_fast_blas
@pytest.mark.parametrize("family", ["demo"], indirect=True)
def test_real_texts_over_quantized_caches(family: Family) -> None:
    """On any BLAS they are those of the whole cache alone, also where rounding moves a log-probability."""
    for kv in (cache for cache in usable_caches(family) if cache.bits):
        rows = [Row(family.asks[name], kv=kv, joins=3 * i) for i, name in enumerate(REAL)]
        for row, output in zip(rows, play(family, rows), strict=True):
            assert output.tokens == family.answer(row.ask).tokens, (row.ask.name, kv)


Plan = tuple[str, list[dict[str, Any]], dict[str, Any]]


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """A family's name, rows as (number of the ask, and Row's other fields), and an iterator's settings."""
    row = st.fixed_dictionaries(
        {
            "ask": st.integers(0, 99),
            "max_tokens": st.integers(1, STEPS),
            "sampler": st.sampled_from([*SAMPLERS, {}, {}, {}]),
            "seed": st.integers(0, 2**63),
            "kv": st.integers(0, 99),
            "joins": st.integers(0, 25),
            "leaves": st.none() | st.integers(1, STEPS),
        }
    )
    iterator = st.fixed_dictionaries(
        {
            "prefill_step_size": st.sampled_from(CHUNKS) | st.integers(1, 200),
            "max_batch_size": st.sampled_from((1, 2, 3, 32)),
            "kv_token_budget": st.none() | st.integers(1, 300),
            "group_by_shape": st.booleans(),
            "vision_batch_pixels": st.sampled_from((1, 100_000, 10**9)),
        }
    )
    return draw(st.sampled_from(FAMILIES)), draw(st.lists(row, min_size=1, max_size=9)), draw(iterator)


@settings(max_examples=settings().max_examples // 16)
@given(plan=plans())
def test_any_mix(load_family: Callable[[str], Family], plan: Plan) -> None:
    """Whatever comes together: media, lengths, settings, joins, ends, chunks and limits."""
    any_mix(load_family, plan)


@slow
@settings(max_examples=settings().max_examples // 4)
@given(plan=plans())
def test_many_mixes(load_family: Callable[[str], Family], plan: Plan) -> None:
    any_mix(load_family, plan)


def any_mix(load_family: Callable[[str], Family], plan: Plan) -> None:
    name, rows, iterator = plan
    family = load_family(name)
    asks, caches = list(family.asks.values()), usable_caches(family)
    play_and_check(
        family,
        [
            Row(
                asks[row["ask"] % len(asks)],
                SamplingParams(max_tokens=row["max_tokens"], seed=row["seed"], **row["sampler"]),
                caches[row["kv"] % len(caches)],
                row["joins"],
                row["leaves"],
            )
            for row in rows
        ],
        **iterator,
    )


@pytest.mark.parametrize(
    "chosen",
    ["(every_request and (demo or gemma3_text)) or real_", pytest.param("late_joins and not chunked", marks=slow)],
    ids=["whole batches", "coming and going"],  # which `chosen` must not match
)
def test_on_a_fast_blas(chosen: str) -> None:
    """Greedy and sampled rows keep the tolerance on a BLAS whose sums depend on the shapes, and quantized caches the
    built-in model's texts."""
    environment = os.environ | {"MLX_VLGEN_BLAS": ""}
    probe = "from mlx_vlgen._runtime import blas; print(blas() or '')"
    process = subprocess.run([sys.executable, "-c", probe], env=environment, capture_output=True, text=True, check=True)
    if not process.stdout.strip():
        pytest.skip("no OpenBLAS, MKL or BLIS on this machine: MLX has only its BLAS")
    command = [sys.executable, "-m", "pytest", "-n0", "-q", "-x", "-p", "no:cacheprovider", "-m", "", "-k", chosen]
    run = subprocess.run([*command, __file__], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
