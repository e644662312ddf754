"""Seconds and bytes of a model on some machines: cut by tensors, by layers, or whole on each. See docs/scaling.md."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields

from .costs import Costs
from .machines import Chip, Link, Machines
from .picture import Picture

SHARE = 0.8
"""Of a chip's memory and units at their best, what kernels reach."""

LAYER_SECONDS = 1e-4
"""That a forward takes for a layer beside reading and multiplying: kernels start, small ones run."""

PIXEL_SECONDS = 2.5e-8
"""Of a pixel of a JPEG, to decode and resize it on the CPU."""

CHUNK = 2048
"""Tokens of a prompt that are computed at once: `prefill_step_size`."""

HEADER = 1024
"""Bytes that rank 0 sends before each forward."""

MARGIN = 1 << 30
"""Bytes for what a forward of text needs beside weights and caches, as in `loading.footprint`."""

WAYS = ("alone", "tensor", "pipeline", "data")


@dataclass(frozen=True)
class Seconds:
    """What a forward takes. memory: where reading takes longer than multiplying, matmul: where not. layers: for each
    layer beside that. link: between machines. host: on the CPU."""

    memory: float = 0
    matmul: float = 0
    layers: float = 0
    link: float = 0
    host: float = 0

    @classmethod
    def of(cls, chip: Chip, read: float, flops: float, layers: float) -> "Seconds":
        """Of so many bytes, operations and layers on one chip."""
        memory, matmul = read / (chip.bandwidth * SHARE), flops / (chip.flops * SHARE)
        return cls(memory * (memory >= matmul), matmul * (memory < matmul), layers * LAYER_SECONDS)

    @property
    def total(self) -> float:
        return sum(self._parts().values())

    @property
    def bound(self) -> str:
        """What takes most."""
        parts = self._parts()
        return max(parts, key=lambda name: parts[name])

    def _parts(self) -> dict[str, float]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def __add__(self, other: "Seconds") -> "Seconds":
        return Seconds(*(mine + its for mine, its in zip(self._parts().values(), other._parts().values(), strict=True)))

    def __mul__(self, factor: float) -> "Seconds":
        return Seconds(*(part * factor for part in self._parts().values()))


REQUEST = Seconds(host=0.008)
"""Of a request, before its prompt is computed and until its token is out: template, tokens, text."""


@dataclass(frozen=True)
class Load:
    """What is asked. context: positions of a row's cache. prompt: tokens of a prompt without a picture. batch: rows.
    picture: what stands before the prompt in the other case; pixels: of it, as it comes."""

    context: int = 4096
    prompt: int = 512
    batch: int = 8
    picture: Picture | None = None
    pixels: int = 0


@dataclass(frozen=True)
class Estimate:
    """How one way does.

    needed: bytes of the fullest machine with one row, of so many `usable`. rows: of the context, that fit into all
    machines. row: a token of one row. batch: a token of each of `together` rows. first: of a prompt, first_picture:
    with the picture before it. refused: why it is not possible; then nothing else says anything.
    """

    way: str
    needed: int = 0
    usable: int = 0
    rows: int = 0
    together: int = 0
    row: Seconds = Seconds()
    batch: Seconds = Seconds()
    first: Seconds = Seconds()
    first_picture: Seconds | None = None
    refused: str | None = None

    @property
    def fits(self) -> bool:
        return self.refused is None and self.rows > 0

    @property
    def row_rate(self) -> float:
        """Tokens a second."""
        return 1 / self.row.total

    @property
    def batch_rate(self) -> float:
        return self.together / self.batch.total


def step_seconds(costs: Costs, chip: Chip, rows: int, positions: int) -> Seconds:
    """A token of each of so many rows of so many positions, on one machine."""
    read = sum(layer.read(rows) for layer in costs.layers) + costs.head + rows * costs.cache(positions)
    seen = sum(layer.flops + layer.pair_flops * min(layer.window, positions) for layer in costs.layers)
    return Seconds.of(chip, read, rows * (seen + costs.head_flops), len(costs.layers))


def prompt_seconds(costs: Costs, chip: Chip, tokens: int) -> Seconds:
    """A prompt up to its first token, on one machine."""
    chunks = math.ceil(tokens / CHUNK)
    read = chunks * sum(layer.read(tokens / chunks) for layer in costs.layers) + costs.head
    flops = sum(layer.prompt_flops(tokens) for layer in costs.layers) + costs.head_flops
    return Seconds.of(chip, read, flops, chunks * len(costs.layers))


def picture_seconds(costs: Costs, chip: Chip, load: Load) -> Seconds:
    """A picture through the tower, and before that from its file."""
    if costs.tower is None or load.picture is None:
        return Seconds()
    tower = Seconds.of(chip, costs.tower.bytes, costs.tower.flops(load.picture), costs.tower.layers)
    return tower + Seconds(host=PIXEL_SECONDS * load.pixels)


def sums_seconds(costs: Costs, link: Link, ranks: int, tokens: int, rows: int) -> Seconds:
    """What ranks say to each other in a forward of so many tokens in all: the header, the embeddings, a sum after each
    cut part of a layer, and each row's logits."""
    hidden = tokens * costs.width * costs.itemsize
    seconds = link.send_seconds(HEADER) + (1 + costs.sums) * link.sum_seconds(hidden, ranks)
    return Seconds(link=seconds + link.gather_seconds(rows * costs.vocabulary * costs.itemsize, ranks))


def _chunks(tokens: int) -> Iterator[int]:
    for begin in range(0, tokens, CHUNK):
        yield min(CHUNK, tokens - begin)


def whole(way: str, costs: Costs, machines: Machines, load: Load) -> Estimate:
    """The whole model on one machine, or on each, where rows are divided among them."""
    count, chip = (machines.count if way == "data" else 1), machines.chip
    each, needed = _room([costs], machines, load)
    together = min(load.batch, each * count)
    return Estimate(
        way, needed, machines.usable, each * count, together,
        row=step_seconds(costs, chip, 1, load.context),
        batch=step_seconds(costs, chip, math.ceil(together / count), load.context),
        first=prompt_seconds(costs, chip, load.prompt) + REQUEST,
        first_picture=_with_picture(costs, machines, load, lambda tokens: prompt_seconds(costs, chip, tokens)),
    )  # fmt: skip


def tensor(costs: Costs, machines: Machines, load: Load) -> Estimate:
    """Each layer cut over all machines. costs: of rank 0, which has most."""
    chip, link, ranks = machines.chip, machines.link, machines.count
    rows, needed = _room([costs], machines, load)
    together = min(load.batch, rows)

    def step(count: int) -> Seconds:
        return step_seconds(costs, chip, count, load.context) + sums_seconds(costs, link, ranks, count, count)

    def prompt(tokens: int) -> Seconds:
        links = (sums_seconds(costs, link, ranks, chunk, 1) for chunk in _chunks(tokens))
        return sum(links, prompt_seconds(costs, chip, tokens))

    return Estimate(
        "tensor", needed, machines.usable, rows, together, step(1), step(max(1, together)),
        prompt(load.prompt) + REQUEST,
        _with_picture(costs, machines, load, prompt),
    )  # fmt: skip


def pipeline(costs: Costs, machines: Machines, load: Load) -> Estimate:
    """Some layers on each machine, one after the other: the first has the last norm and the output layer, too."""
    count, chip, link = machines.count, machines.chip, machines.link
    stages = list(costs.stages(count))
    rows, needed = _room(stages, machines, load)
    together = min(load.batch, rows)

    def sent(tokens: int) -> Seconds:
        return Seconds(link=link.send_seconds(tokens * costs.width * costs.itemsize))

    header = Seconds(link=link.send_seconds(HEADER))

    def step(number: int) -> Seconds:
        times = (step_seconds(stage, chip, number, load.context) for stage in stages)
        return sum(times, header + sent(number) * count)  # once around

    def prompt(tokens: int) -> Seconds:
        """Chunks follow each other through the stages; of the last one the last state comes back."""
        chunks = math.ceil(tokens / CHUNK)
        times = [prompt_seconds(stage, chip, tokens) * (1 / chunks) for stage in stages]
        slowest = max(times, key=lambda time: time.total)
        moved = (header + sent(math.ceil(tokens / chunks))) * (count + chunks - 2)
        return sum(times, slowest * (chunks - 1) + moved + sent(1))

    return Estimate(
        "pipeline", needed, machines.usable, rows, together, step(1), step(max(1, together)),
        prompt(load.prompt) + REQUEST,
        _with_picture(costs, machines, load, prompt),
    )  # fmt: skip


def _with_picture(costs: Costs, machines: Machines, load: Load, prompt: Callable[[int], Seconds]) -> Seconds | None:
    if costs.tower is None or load.picture is None:
        return None
    return picture_seconds(costs, machines.chip, load) + prompt(load.picture.tokens + load.prompt) + REQUEST


def forward_bytes(costs: Costs, load: Load) -> int:
    """What a forward needs beside weights and caches: of a chunk of tokens, or of a picture in the tower."""
    if costs.tower is None or load.picture is None:
        return MARGIN
    return max(MARGIN, costs.tower.activations(load.picture, costs.itemsize))


def _room(parts: Sequence[Costs], machines: Machines, load: Load) -> tuple[int, int]:
    """How many rows of the context fit where each machine has one of these parts, and the bytes of the fullest with one
    row."""
    rows, needed = [], []
    for part in parts:
        cache, beside = max(1, part.cache(load.context)), part.stored + forward_bytes(part, load)
        rows.append(max(0, machines.usable - beside) // cache)
        needed.append(beside + cache)
    return min(rows), max(needed)
