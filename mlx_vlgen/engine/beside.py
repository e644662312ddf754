"""Pictures through a tower on a CPU: each core takes some. Half of a tower's time there goes into what runs on one
thread, powers and sums; so two cores took 0.75 of the time for twelve pictures."""

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from functools import cache, partial
from queue import SimpleQueue

from .._runtime import blas_threads, mx
from ..inputs.prompt import Media
from ..models.base import Features, Model

LEAST = 3 * 128 * 128
"""Pixel values for each core, below which one core takes all."""

_Task = tuple[Future[list[Features]], Callable[[], list[Features]]]

_stream = mx.new_thread_local_stream(mx.default_device())


def encode(model: Model, media: Sequence[Media]) -> list[Features]:
    """`Model.encode` of media of one group, on a CPU evaluated."""
    count = len(media) if mx.default_device().type.name == "cpu" else 1
    parts = split([medium.pixels.size for medium in media], min(count, _cores()))
    if len(parts) == 1:
        return model.encode(media)
    later: list[Future[list[Features]]] = [Future() for _ in parts[1:]]
    with blas_threads(max(1, _cores() // len(parts))):
        for part, future in zip(parts[1:], later, strict=True):
            _workers().put((future, partial(_evaluated, model, media[part])))
        try:
            encoded = _evaluated(model, media[parts[0]])
        finally:
            wait(later)  # whatever happens here, nothing goes on behind it
    return [*encoded, *(features for part in later for features in part.result())]


def split(sizes: Sequence[int], count: int) -> list[slice]:
    """At most `count` runs of neighbours with about equally many values, each at least `LEAST`."""
    count = max(1, min(count, sum(sizes) // LEAST))
    ends: list[int] = []
    values = 0
    for place, size in enumerate(sizes[:-1], 1):
        values += size
        if values * count >= sum(sizes) * (len(ends) + 1):
            ends.append(place)
    return [slice(start, end) for start, end in zip([0, *ends], [*ends, len(sizes)], strict=True)]


def _evaluated(model: Model, media: Sequence[Media]) -> list[Features]:
    with mx.stream(_stream):
        encoded = model.encode(media)
        mx.eval([[features.embeds, *features.deepstack] for features in encoded])
        return encoded


@cache
def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def _workers() -> "SimpleQueue[_Task]":
    """Where threads take what they do. They never end: each has a stream of MLX that is not freed, and a thread that
    ends frees compiled functions of MLX's, for which it is too late when Python ends."""
    tasks: SimpleQueue[_Task] = SimpleQueue()
    for _ in range(_cores() - 1):
        threading.Thread(target=_work, args=(tasks,), name="mlx_vlgen tower", daemon=True).start()
    return tasks


def _work(tasks: "SimpleQueue[_Task]") -> None:
    while True:
        future, task = tasks.get()
        try:
            future.set_result(task())
        except BaseException as error:  # it is raised where the result is taken
            future.set_exception(error)
        del future, task  # they hold pictures and features
