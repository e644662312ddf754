"""Twelve processes, step by step: where a sum over ranks takes other times than the planner's formulas say.

Each rank computes its half of a layer, then adds to a sum in as many messages as its algorithm has; a message starts
when its sender has the one before it. Times of computing and of messages vary; of experts, ranks have more or fewer.
"""

import math
import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from mlx_vlgen.plan.costs import Costs
from mlx_vlgen.plan.estimate import step_seconds, sums_seconds
from mlx_vlgen.plan.machines import CHIPS, LINKS, Chip, Link

COUNTS = (2, 4, 8, 12)
TOKENS = 40
"""Tokens that are simulated in each case."""


@dataclass(frozen=True)
class World:
    """How real machines differ from the formulas' equal ones.

    jitter: deviation of the logarithm of each message's latency, and of each computation; their mean stays. slow: how
    much longer the last rank computes than others. stall: the share of computations that something else on the machine
    interrupts, by `stalled` seconds.
    """

    jitter: float = 0
    slow: float = 0
    stall: float = 0
    stalled: float = 0


def simulate(compute: float, sums: int, size: float, link: Link, ranks: int, world: World, seed: int = 0) -> float:
    """Seconds of a forward in which each rank computes `compute` seconds in all, in as many equal parts as there are
    sums of `size` bytes; without any, it waits for nobody."""
    draw = random.Random(seed)

    def varied(seconds: float) -> float:
        return seconds * draw.lognormvariate(-(world.jitter**2) / 2, world.jitter) if world.jitter else seconds

    clocks = [0.0] * ranks
    part = compute / max(1, sums)
    for _ in range(max(1, sums)):
        for rank in range(ranks):
            clocks[rank] += varied(part) * (1 + world.slow * (rank == ranks - 1))
            if world.stall and draw.random() < world.stall:
                clocks[rank] += world.stalled
        if sums:
            clocks = (_mesh if link.mesh else _ring)(clocks, size, link, varied)
    return max(clocks) if sums else clocks[0]


def _ring(clocks: list[float], size: float, link: Link, varied: Callable[[float], float]) -> list[float]:
    """Each rank hands a part of the numbers to the next one, 2 (N - 1) times; it waits for the one before it."""
    count = len(clocks)
    for _ in range(2 * (count - 1)):
        sent = [clock + varied(link.latency) + size / count / link.bandwidth for clock in clocks]
        clocks = [max(clocks[rank], sent[rank - 1]) for rank in range(count)]
    return clocks


def _mesh(clocks: list[float], size: float, link: Link, varied: Callable[[float], float]) -> list[float]:
    """Each rank adds one part of the numbers, which all send it, and sends the sum of that part to all."""
    count = len(clocks)
    for _ in range(2):
        sent = (count - 1) / count * size / link.bandwidth
        arrivals = [[clock + varied(link.latency) + sent for clock in clocks] for _ in range(count)]
        clocks = [
            max(clocks[rank] if other == rank else arrivals[rank][other] for other in range(count))
            for rank in range(count)
        ]
    return clocks


WORLDS = {
    "equal machines": World(),
    "latencies and computing vary by 30%": World(jitter=0.3),
    "one machine computes 25% longer": World(slow=0.25),
    "1 in 200 computations waits 2 ms": World(stall=0.005, stalled=0.002),
}


def worlds_table(cut: Callable[[int], Costs], chip: Chip, links: Sequence[str], tokens: int) -> Iterator[str]:
    """Milliseconds a token. cut: rank 0 of so many."""
    yield f"| link, ranks | formula | {' | '.join(WORLDS)} |"
    yield f"|---|---:|{'---:|' * len(WORLDS)}"
    for name in links:
        for ranks in COUNTS:
            part, link = cut(ranks), LINKS[name]
            alone, sent = step_seconds(part, chip, 1, 4096), sums_seconds(part, link, ranks, 1, 1)
            size = part.width * part.itemsize
            others = sent.total - part.sums * link.sum_seconds(size, ranks)  # header, embeddings, logits
            formula = alone.total + sent.total
            cells = []
            for world in WORLDS.values():
                mean = others + statistics.fmean(
                    simulate(alone.total, part.sums, size, link, ranks, world, seed) for seed in range(tokens)
                )
                cells.append(f"{mean * 1e3:.1f} ({round(mean / formula - 1, 2) + 0.0:+.0%})")
            yield f"| {name}, {ranks} | {formula * 1e3:.1f} | {' | '.join(cells)} |"


def ranks_table(cut: Callable[[int], Costs], chip: Chip, links: Sequence[str]) -> Iterator[str]:
    """By the formulas: tokens a second of one row, and what the ranks do not divide."""
    yield f"| ranks | weights a rank | cache a rank | sums | {' | '.join(links)} |"
    yield f"|---|---:|---:|---:|{'---:|' * len(links)}"
    whole = cut(1)
    for ranks in (1, 2, 4, 6, 8, 12, 16):
        part = cut(ranks)
        rates = []
        for name in links:
            time = step_seconds(part, chip, 1, 4096).total
            rates.append(1 / (time + (sums_seconds(part, LINKS[name], ranks, 1, 1).total if ranks > 1 else 0)))
        cells = " | ".join(f"{rate:.1f}" for rate in rates)
        stored, held = part.stored / whole.stored, part.cache(4096) / whole.cache(4096)
        yield f"| {ranks} | {stored:.0%} | {held:.0%} | {part.sums if ranks > 1 else 0} | {cells} |"


def experts_table(costs: Costs, rounds: int, seed: int = 0) -> Iterator[str]:
    """Of a layer with experts: how many a forward reads, by the formula, and drawn evenly or by a law in which some are
    liked more; and, were whole experts divided among 12 ranks, how much more than its share the busiest one reads."""
    layer = next(layer for layer in costs.layers if layer.of > 1)
    draw = random.Random(seed)
    likes = [1 / (number + 1) ** 0.7 for number in range(layer.of)]
    draw.shuffle(likes)
    yield "| rows | experts read, formula | drawn evenly | drawn unevenly | busiest of 12 ranks, evenly | unevenly |"
    yield "|---|---:|---:|---:|---:|---:|"
    for rows in (1, 8, 32):
        cells, busiest = [], []
        for weights in ([1.0] * layer.of, likes):
            distinct, excess = [], []
            for _ in range(rounds):
                # the k largest of log(u) / w are k experts drawn without returning any (Efraimidis and Spirakis 2006)
                chosen = {
                    expert
                    for _ in range(rows)
                    for expert in sorted(
                        range(layer.of), key=lambda expert: math.log(1 - draw.random()) / weights[expert], reverse=True
                    )[: layer.chosen]
                }
                loads = [sum(expert % 12 == rank for expert in chosen) for rank in range(12)]
                distinct.append(len(chosen))
                excess.append(max(loads) / (len(chosen) / 12))
            cells.append(f"{statistics.fmean(distinct):.0f}")
            busiest.append(f"{statistics.fmean(excess):.1f} x")
        formula = layer.of * (1 - (1 - layer.chosen / layer.of) ** rows)
        yield f"| {rows} | {formula:.0f} of {layer.of} | {' | '.join(cells)} | {' | '.join(busiest)} |"


def simulated_tables(
    large: Callable[[int], Costs], dense: Callable[[int], Costs], tokens: int = TOKENS, rounds: int = 40
) -> Iterator[str]:
    """large: rank 0 of so many of Qwen3-VL-235B-A22B at 4 bits; dense: of Qwen3-VL-32B at 4 bits."""
    chip = CHIPS["M3 Ultra"]
    links = ["nvlink", "thunderbolt 5 rdma", "thunderbolt 5", "10gbe"]
    yield "Qwen3-VL-235B-A22B at 4 bits on M3 Ultra, milliseconds a token of one row, and beside the formula:\n"
    yield from worlds_table(large, chip, links[1:3], tokens)
    for title, cut in (("Qwen3-VL-32B", dense), ("Qwen3-VL-235B-A22B", large)):
        yield f"\n{title} at 4 bits on M3 Ultra, tokens a second of one row by the formulas:\n"
        yield from ranks_table(cut, chip, links)
    yield "\nExperts of one layer of Qwen3-VL-235B-A22B:\n"
    yield from experts_table(large(1), rounds)
