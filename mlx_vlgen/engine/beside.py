"""Pictures through a tower on a CPU: each core takes some. Half of a tower's time there goes into what runs on one
thread, powers and sums; so two cores took 0.75 of the time for twelve pictures."""

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from functools import cache, partial
from itertools import chain
from operator import itemgetter
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
    cores = _cores() if mx.default_device().type.name == "cpu" else 1
    parts = split([medium.pixels.size for medium in media], cores)
    if len(parts) == 1:
        return model.encode(media)
    later: list[Future[list[Features]]] = [Future() for _ in parts[1:]]
    with blas_threads(max(1, cores // len(parts))):
        tasks = [partial(_evaluated, model, [media[place] for place in part]) for part in parts]
        for task, future in zip(tasks[1:], later, strict=True):
            _workers().put((future, task))
        try:
            encoded = tasks[0]()
        finally:
            wait(later)  # whatever happens here, nothing goes on behind it
    features = [*encoded, *(features for part in later for features in part.result())]
    return [one for _, one in sorted(zip(chain(*parts), features, strict=True), key=itemgetter(0))]


def split(sizes: Sequence[int], count: int) -> list[list[int]]:
    """At most `count` parts, as places in order, with about equally many values, of about `LEAST` or more: the largest
    first, each to where least is."""
    count = max(1, min(count, len(sizes), sum(sizes) // LEAST))
    parts: list[list[int]] = [[] for _ in range(count)]
    for place in sorted(range(len(sizes)), key=sizes.__getitem__, reverse=True):
        min(parts, key=lambda part: sum(sizes[i] for i in part)).append(place)
    return [sorted(part) for part in parts]


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
