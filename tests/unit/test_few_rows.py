"""Few rows times large weights on x86 CPUs: what MLX's products give, of weights that lie in memory in another way."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from invariants.family import Family

from mlx_vlgen import load
from mlx_vlgen._runtime import blas, mx, nn
from mlx_vlgen.models import few_rows
from mlx_vlgen.models.building import building_only
from mlx_vlgen.models.few_rows import hasten_few_rows, turned
from mlx_vlgen.models.x86 import on_x86

pytestmark = pytest.mark.skipif(not on_x86(mx.float32), reason="MLX multiplies fast here")


class Layers(nn.Module):
    def __init__(self, inputs: int, outputs: int, bias: bool) -> None:
        super().__init__()
        self.plain, self.table = nn.Linear(inputs, outputs, bias=bias), nn.Embedding(outputs, inputs)
        self.packed = nn.QuantizedLinear(64, 32)


@given(
    inputs=st.integers(1, 300),
    outputs=st.integers(1, 600),
    batch=st.integers(1, 120),
    length=st.integers(1, 2),
    bias=st.booleans(),
    preloaded=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_products_are_those_of_mlx(
    inputs: int, outputs: int, batch: int, length: int, bias: bool, preloaded: bool, seed: int
) -> None:
    mx.random.seed(seed)
    layers, x = Layers(inputs, outputs, bias), mx.random.normal((batch, length, inputs))
    ids = mx.array([[0, outputs - 1]])
    expected = layers.plain(x), layers.table.as_linear(x), layers.table(ids)
    sgemv = few_rows._sgemv() if preloaded else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(few_rows, "LARGE", 1)
        patch.setattr(few_rows, "_sgemv", lambda: sgemv)
        patch.setattr(few_rows, "blas", lambda: "a fast one" if preloaded else None)
        hasten_few_rows(layers)
        found = layers.plain(x), layers.table.as_linear(x), layers.table(ids)
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape and one.dtype == other.dtype
        assert mx.abs(one - other).max().item() < 1e-4
    assert type(layers.packed) is nn.QuantizedLinear


@pytest.mark.parametrize(("shape", "moved"), [((700, 300), True), ((300, 300), True), ((299, 300), False)])
def test_weights_with_more_rows_than_columns_are_turned(shape: tuple[int, int], moved: bool) -> None:
    weight = mx.random.normal(shape)
    other = turned(weight)
    assert (other == weight).all().item()
    assert np.array(other, copy=False).flags.f_contiguous == moved


@pytest.mark.parametrize("tied", [True, False])
def test_tables_that_are_only_looked_up_stay_as_they_lie(tied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(few_rows, "LARGE", 1)
    network = nn.Module()
    network.embed_tokens, network.embed_tokens_per_layer = nn.Embedding(512, 8), nn.Embedding(512, 32)
    if not tied:
        network.lm_head = nn.Linear(8, 512, bias=False)
    hasten_few_rows(network)
    by_columns = {
        name for name, layer in network.children().items() if np.array(layer.weight, copy=False).flags.f_contiguous
    }
    assert by_columns == {"embed_tokens" if tied else "lm_head"}


@pytest.mark.parametrize("rows", [1, few_rows.ROWS, few_rows.ROWS + 1])
def test_only_few_rows_leave_mlx(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(few_rows, "LARGE", 1)
    layers, left = Layers(8, 16, bias=False), []
    hasten_few_rows(layers)
    multiply = few_rows._multiply
    monkeypatch.setattr(few_rows, "_multiply", lambda *arrays: (left.append(1), multiply(*arrays)))
    layers.plain(mx.ones((rows, 8)))
    assert len(left) == (rows if rows <= few_rows.ROWS else 0)
    with building_only():
        layers.plain(mx.ones((1, 8)))
    layers.plain.set_dtype(mx.float16)
    layers.plain(mx.ones((1, 8), mx.float16))
    layers.plain(mx.ones((1, 8)))
    assert len(left) == (rows if rows <= few_rows.ROWS else 0)


def test_views_of_weights_are_read_as_they_lie() -> None:
    matrix, out = np.random.default_rng(3).random((20, 10), np.float32)[::2, ::2], np.empty(10, np.float32)
    few_rows._multiply(matrix, np.ones(5, np.float32), out)
    assert np.allclose(out, matrix.sum(axis=1))


def test_the_blas_is_the_one_that_mlx_has() -> None:
    assert (few_rows._sgemv() is None) == (blas() is None)


@pytest.mark.parametrize("name", ["qwen3_vl", "gemma3", "mllama"])
def test_a_model_that_is_loaded_says_the_same(
    load_family: Callable[[str], Family], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Token by token, which are few rows."""
    family = load_family(name)
    monkeypatch.setattr(few_rows, "LARGE", 1)
    other = Family.load(name, family.folder)
    kinds = {type(layer) for layer in other.model.text_decoder().modules()}
    assert kinds & {few_rows._Linear, few_rows._Embedding}
    for ask in list(family.asks.values())[:3]:
        alone, fast = family._plain_loop(ask, None), other._plain_loop(ask, None)
        assert alone.tokens == fast.tokens and np.abs(alone.scores - fast.scores).max() < 1e-4


def test_a_lazy_model_is_first_used_by_another_thread(
    load_family: Callable[[str], Family], monkeypatch: pytest.MonkeyPatch
) -> None:
    family = load_family("qwen3_vl")
    monkeypatch.setattr(few_rows, "LARGE", 1)
    model, processor = load(family.folder, lazy=True)
    other = Family(family.name, family.folder, model, processor)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(other._plain_loop, family.asks["words5"], None).result()
    assert answer.tokens == family._plain_loop(family.asks["words5"], None).tokens
