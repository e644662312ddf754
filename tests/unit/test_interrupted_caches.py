"""Ctrl-C while a cache that outlives it changes: its books are right afterwards, and nobody waits for a lock.

A signal is heeded where a function begins and after each call, so that is where KeyboardInterrupt is raised here.
"""

import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import numpy as np
import pytest

from mlx_vlgen import PrefixCache
from mlx_vlgen._runtime import mx
from mlx_vlgen.engine import blocks, store
from mlx_vlgen.engine.blocks import Block, FeatureCache
from mlx_vlgen.inputs import expansions
from mlx_vlgen.inputs.expansions import Expansion, Expansions
from mlx_vlgen.models.base import Features

FILES = {module.__file__ for module in (blocks, store, expansions, threading)}

Use = Callable[[Any], None]


def ctrl_c_at(time: int, use: Use, cache: Any) -> bool:
    """Use a cache; whether the `time`-th moment at which Ctrl-C may come was one of it."""
    left = time

    def press(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal left
        left -= event in ("call", "c_return") and frame.f_code.co_filename in FILES
        if left == 0:
            sys.setprofile(None)
            raise KeyboardInterrupt

    before = sys.getprofile()
    sys.setprofile(press)
    try:
        use(cache)
    except KeyboardInterrupt:
        return True
    finally:
        sys.setprofile(before)
    return False


def use_expansions(cache: Expansions) -> None:
    for key in (1, 2, 1, 3, 4, 2):
        cache.get(key, lambda size=key: Expansion("", (1,), np.zeros(size, np.uint8), (), (1, 1)))  # type: ignore[misc]


def use_features(cache: FeatureCache) -> None:
    for key in (b"a", b"b", b"c", b"a"):
        cache.add(key, Features(mx.zeros((4, 1))))
        cache.get(key)


def use_prefixes(cache: PrefixCache) -> None:
    units = np.zeros((1, 2), np.uint64)
    for name in (b"b", b"c", b"b"):
        cache.add([Block(key, parent, units, [], {0: [mx.zeros(9)]}) for parent, key in ((b"", b"a"), (b"a", name))])


def held(cache: Any) -> int:
    """The bytes of what a cache has, one by one."""
    if isinstance(cache, PrefixCache):
        assert {key for siblings in cache._following.values() for key in siblings} == set(cache._blocks)
        return sum(block.nbytes for block in cache._blocks.values())
    size = blocks._size if isinstance(cache, FeatureCache) else lambda made: made.nbytes
    return sum(map(size, cache._entries.values()))


@pytest.mark.parametrize(
    ("make", "use"),
    [
        (lambda: Expansions(6), use_expansions),
        (lambda: FeatureCache(40), use_features),
        (lambda: PrefixCache(max_bytes=110), use_prefixes),
    ],
    ids=["expansions", "features", "prefixes"],
)
def test_ctrl_c_at_any_moment(make: Callable[[], Any], use: Use) -> None:
    time = 0
    while ctrl_c_at(time := time + 1, use, cache := make()):
        assert cache.nbytes == held(cache)
        other = threading.Thread(target=use, args=(cache,), daemon=True)
        other.start()
        other.join(10)
        assert not other.is_alive() and cache.nbytes == held(cache)
    assert time > 20
