"""`mlx-vlgen plan`: flags to a plan, a plan to a table or JSON."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from ..errors import UnsupportedError
from ..flags import Parser
from ..inputs.files import reading
from .estimate import Estimate, Load, Seconds, forward_bytes
from .machines import parse
from .planning import Plan, make_plan, what_would_fit
from .source import find_source, read_model

TITLES = ("WAY", "MEMORY A MACHINE", "ROWS", "1 ROW", "{batch} ROWS", "FIRST TOKEN", "WITH A PICTURE", "BOUND BY")


def run_plan(parser: Parser, arguments: Sequence[str] | None) -> int:
    args = parser.parse(arguments)
    try:
        machines = parse(args.machines)
    except UnsupportedError as error:
        parser.error(str(error))
    if not (match := re.fullmatch(r"(\d+)[x×](\d+)", args.picture)) or not (int(match[1]) and int(match[2])):
        parser.error(f'--picture {args.picture}: expected WIDTHxHEIGHT in pixels, as "1024x768"')
    size = int(match[1]), int(match[2])
    source = find_source(args.model)

    def build(bits: int | None) -> Any:
        return read_model(source, bits)

    load = Load(args.context, args.prompt, args.batch)
    with reading(source, "does not describe a model"):
        plan = make_plan(build, machines, load, args.quantize, size)
        instead = [] if plan.possible else list(what_would_fit(build, plan, args.quantize, size))
    if args.json:
        print(json.dumps(as_json(args.model, plan, instead)))
    else:
        print("\n".join(as_table(args.model, plan, instead)))
    return 0


def as_table(name: str, plan: Plan, instead: Sequence[str]) -> Iterator[str]:
    costs, load = plan.costs, plan.load
    yield (
        f"{name} on {plan.machines}: {_gigabytes(costs.stored)} of weights, "
        f"{_gigabytes(costs.cache(load.context))} of cache for a row of {load.context:,} tokens, "
        f"{_gigabytes(forward_bytes(costs, load))} for forwards"
    )
    asked = f"First token: after {load.prompt:,} tokens of text"
    if costs.tower is not None and load.picture is not None:
        read = "x".join(map(str, load.picture.size))
        asked += f"; with a picture, read at {read}, before them, which is {load.picture.tokens:,} tokens"
    yield asked + ". Rows of one batch: tokens/s of all together."
    yield ""
    rows = [tuple(title.format(batch=load.batch) for title in TITLES), *(_row(way, load.batch) for way in plan.ways)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
    yield ""
    yield from _verdict(plan, instead)


def _row(way: Estimate, batch: int) -> tuple[str, ...]:
    if way.refused is not None:
        return (way.way, way.refused, *[""] * (len(TITLES) - 2))
    memory = f"{_gigabytes(way.needed)} of {_gigabytes(way.usable)}"
    if not way.fits:
        return (way.way, f"{memory}: too much", *[""] * (len(TITLES) - 2))
    few = f", {way.together} at once" if way.together < batch else ""
    picture = "" if way.first_picture is None else _seconds(way.first_picture)
    return (
        way.way, memory, f"{way.rows:,}", f"{_rate(way.row_rate)} tok/s", f"{_rate(way.batch_rate)} tok/s{few}",
        _seconds(way.first), picture, way.row.bound,
    )  # fmt: skip


def _verdict(plan: Plan, instead: Sequence[str]) -> Iterator[str]:
    """Which way is best and why, or what would fit."""
    row, batch = plan.best_row, plan.best_batch
    if row is None or batch is None:
        yield f"It does not fit on {plan.machines} in a way that this package runs."
        for way in plan.ways:
            if way.fits:
                yield f"It would by {way.way}, which is not there yet."
        yield f"It would fit on {'; or '.join(instead)}." if instead else "It fits on no number of these machines."
        return
    others = [way for way in plan.ways if way.fits and way is not row and way.row.total > row.row.total * 1.01]
    yield f"Best for one row: {row.way}, {_rate(row.row_rate)} tokens/s. {_why(row.row, others)}"
    if plan.machines.count > 1 or plan.load.batch > 1:
        text = f"Best for {plan.load.batch} rows: {batch.way}, {_rate(batch.batch_rate)} tokens/s together"
        if batch.together < plan.load.batch:
            text += f", {batch.together} at a time, for which there is room"
        yield text + "."


def _why(seconds: Seconds, others: Sequence[Estimate]) -> str:
    parts = {name: part for name, part in asdict(seconds).items() if part >= 0.005 * seconds.total}
    text = f"A token takes {_milliseconds(seconds.total)}: " + ", ".join(
        f"{name} {_milliseconds(part)}" for name, part in parts.items()
    )
    for way in others:
        text += f"; {way.way} {_milliseconds(way.row.total)}, of which {way.row.bound} "
        text += _milliseconds(getattr(way.row, way.row.bound))
    return text + "."


def as_json(name: str, plan: Plan, instead: Sequence[str]) -> dict[str, Any]:
    """Bytes, seconds, tokens a second."""
    machines, load = plan.machines, plan.load
    best_row, best_batch = plan.best_row, plan.best_batch
    return {
        "model": name,
        "machines": {
            "count": machines.count, "chip": machines.chip.name, "memory": machines.memory, "usable": machines.usable,
            "link": machines.link.name if machines.count > 1 else None,
        },
        "weights": plan.costs.stored,
        "cache": plan.costs.cache(load.context),
        "forwards": forward_bytes(plan.costs, load),
        "asked": {
            "context": load.context, "prompt": load.prompt, "batch": load.batch,
            "picture_tokens": load.picture.tokens if load.picture and plan.costs.tower else None,
        },
        "ways": [_way_as_json(way) for way in plan.ways],
        "best": {
            "row": best_row.way if best_row else None,
            "batch": best_batch.way if best_batch else None,
        },
        "would_fit": list(instead),
    }  # fmt: skip


def _way_as_json(way: Estimate) -> dict[str, Any]:
    found: dict[str, Any] = {"way": way.way, "fits": way.fits, "refused": way.refused}
    if way.refused is None:
        found |= {"needed": way.needed, "rows": way.rows}
    if way.fits:
        found |= {
            "tokens_per_second": way.row_rate,
            "batch_rows": way.together,
            "batch_tokens_per_second": way.batch_rate,
            "first_token": way.first.total,
            "first_token_with_picture": way.first_picture.total if way.first_picture else None,
            "seconds": asdict(way.row),
            "bound": way.row.bound,
        }
    return found


def _gigabytes(size: float) -> str:
    return (
        f"{size / 1e9:,.0f} GB" if size >= 1e11 else f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.0f} MB"
    )


def _rate(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.1f}"


def _seconds(seconds: Seconds) -> str:
    return f"{seconds.total:.2f} s" if seconds.total < 100 else f"{seconds.total:,.0f} s"


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms" if seconds < 0.1 else f"{seconds * 1e3:,.0f} ms"
