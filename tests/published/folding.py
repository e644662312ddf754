"""Names of tensors folded to patterns: `layers.{0-27}.mlp.up_proj.weight` stands for 28 tensors of one shape."""

import itertools
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

Shape = tuple[int, ...]
Index = tuple[int, ...]


def fold(shapes: Mapping[str, Shape]) -> list[str]:
    """Lines of a pattern and a shape: "lm_head.weight 151936x2048". A shape of () is left out."""
    groups: dict[tuple[str, Shape], list[Index]] = defaultdict(list)
    for name, shape in shapes.items():
        parts = name.split(".")
        pattern = ".".join("{}" if part.isdigit() else part for part in parts)
        groups[pattern, tuple(shape)].append(tuple(int(part) for part in parts if part.isdigit()))
    return [
        " ".join(filter(None, (pattern.format(*(f"{{{_ranges(axis)}}}" for axis in box)), "x".join(map(str, shape)))))
        for (pattern, shape), indices in sorted(groups.items())
        for box in _boxes(indices)
    ]


def unfold(lines: Iterable[str]) -> dict[str, Shape]:
    """Each tensor's shape by its name."""
    shapes = {}
    for line in lines:
        pattern, _, sizes = line.partition(" ")
        pieces = pattern.replace("}", "{").split("{")
        axes = [[piece] if position % 2 == 0 else _numbers(piece) for position, piece in enumerate(pieces)]
        shape = tuple(map(int, sizes.split("x"))) if sizes else ()
        shapes |= {"".join(parts): shape for parts in itertools.product(*axes)}
    return shapes


def first_layers(lines: Iterable[str], count: int) -> Iterator[str]:
    """The lines without the text decoder's layers from the `count`th on."""
    for line in lines:
        layers = re.search(r"\.(?:layers|blocks)\.\{(.*?)\}", line)
        if layers is None or re.search(r"visual|vision|audio", line):
            yield line
        elif chosen := [int(number) for number in _numbers(layers[1]) if int(number) < count]:
            yield line[: layers.start(1)] + _ranges(chosen) + line[layers.end(1) :]


def read_sections(path: Path) -> dict[str, list[str]]:
    """The lines of each section of a file, by its heading "== …". Headings in a row share their lines. A line that
    begins with a number has so many parts of the one before."""
    sections: dict[str, list[str]] = {}
    headings: list[str] = []
    lines: list[str] = []
    for line in path.read_text("utf-8").splitlines():
        if line.startswith("== "):
            if lines:
                headings, lines = [], []
            headings.append(line.removeprefix("== "))
        else:
            shared, _, rest = line.partition(" ")
            if shared.isdigit():
                rest = ".".join([*lines[-1].split(".")[: int(shared)], rest])
            lines.append(rest if shared.isdigit() else line)
        sections |= dict.fromkeys(headings, lines)
    return sections


def write_sections(path: Path, sections: Mapping[str, list[str]]) -> None:
    """Sections with the same lines are written once."""
    headings: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for heading, lines in sections.items():
        headings[tuple(lines)].append(heading)
    texts = [
        line for lines, names in headings.items() for line in [*(f"== {name}" for name in names), *_shortened(lines)]
    ]
    path.write_text("\n".join(texts) + "\n", "utf-8")


def _shortened(lines: Iterable[str]) -> Iterator[str]:
    before: list[str] = []
    for line in lines:
        parts = line.split(".")
        pairs = enumerate(zip(before[:-1], parts[:-1], strict=False))
        shared = next((at for at, (old, new) in pairs if old != new), min(len(before), len(parts)) - 1)
        yield f"{shared} {'.'.join(parts[shared:])}" if shared > 0 else line
        before = parts


def _boxes(indices: Iterable[Index]) -> Iterator[tuple[list[int], ...]]:
    """Indices as few products of sets, each of its axes in order."""
    rests: dict[int, set[Index]] = defaultdict(set)
    for index in indices:
        if not index:
            yield ()
            return
        rests[index[0]].add(index[1:])
    alike: dict[frozenset[Index], list[int]] = defaultdict(list)
    for first, rest in sorted(rests.items()):
        alike[frozenset(rest)].append(first)
    for tails, firsts in alike.items():
        for box in _boxes(tails):
            yield (firsts, *box)


def _ranges(numbers: Iterable[int]) -> str:
    """ "0-2,4", or "0-62%4=0+1+2" for those up to 62 that leave 0, 1 or 2 when divided by 4."""
    chosen = sorted(numbers)
    first, last = chosen[0], chosen[-1]
    runs: list[list[int]] = []
    for number in chosen:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    if len(runs) > 2:
        for period in range(2, 9):
            rests = sorted({number % period for number in chosen})
            if chosen == [number for number in range(first, last + 1) if number % period in rests]:
                return f"{first}-{last}%{period}={'+'.join(map(str, rests))}"
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def _numbers(ranges: str) -> list[str]:
    numbers: list[int] = []
    for run in ranges.split(","):
        span, _, periodic = run.partition("%")
        first, _, last = span.partition("-")
        period, _, rests = periodic.partition("=")
        chosen = {int(rest) for rest in rests.split("+")} if periodic else {0}
        numbers += [n for n in range(int(first), int(last or first) + 1) if n % int(period or 1) in chosen]
    return [str(number) for number in numbers]
