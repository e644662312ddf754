"""What `compare.py` measured, as tables and a chart: nothing here measures, and equal results give equal text."""

import json
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

Results = Mapping[str, Any]
"""As `compare.py --json` writes them."""

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
CHART = RESULTS / "speed.svg"
BEGIN, END = "<!-- speed: made by benchmarks/compare.py -->\n", "<!-- end of speed -->"
UNITS = {"start": " s", "call": " x", "first": " s", "decode": " tok/s", "batch": " tok/s", "gap": " s"} | {
    "turn": " s",
    "questions": " tok/s",
}
MEMORY = (
    "Peak memory above the weights and the final cache: on the device, and of the whole process (its resident set, "
    "without the weights where they are in it)."
)
READING = (
    "Made by `benchmarks/compare.py`: random weights of a real shape, the engines in turn, each in a process of its "
    "own. A ratio is ours over the column before it: for seconds less is better, for tokens a second more. The floor "
    "is what reading the weights or multiplying the matrices takes alone, at the rates measured in the run."
)
NOTHING = "Nothing is measured yet.\n"
ALT = "Speed beside others"
SHORT = ("picture", "turn", "questions", "decode-1", "batch-8", "sizes-64", "unlike-64", "start")
"""The workloads that the README names."""
RATES = ("decode", "batch", "questions")
"""Kinds of workload of which more is better."""


def three(value: float) -> str:
    """Three significant digits."""
    if value == 0:
        return "0"
    return f"{value:,.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def median(cell: Mapping[str, Any] | None) -> float | None:
    """Of an engine's figures at a workload; None where it has none."""
    return statistics.median(cell["figures"]) if cell and cell["figures"] else None


def ratio(ours: float | None, theirs: float | None) -> float | None:
    """Ours over theirs, times and rates alike."""
    return ours / theirs if ours is not None and theirs else None


def figure(row: Mapping[str, Any], engine: str, repeat: int) -> str:
    cell = row["engines"].get(engine)
    value = median(cell)
    if cell is None or value is None:
        return ""
    count = len(cell["figures"])
    note = f" (of {count})" if count < repeat and row["kind"] != "call" else ""
    if "median" in cell:
        note += f" (median {three(cell['median'])})"
    return three(value) + UNITS[row["kind"]] + note


def decimal(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Markdown, without the columns that are empty."""
    full = [i for i in range(len(header)) if i == 0 or any(line[i] for line in lines)]
    rows = [[line[i] for i in full] for line in [header, *lines]]
    rule = "|---|" + "---:|" * (len(full) - 1)
    head, *body = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join([head, rule, *body]) + "\n"


def speed_table(run: Mapping[str, Any], repeat: int) -> str:
    lines = []
    for row in run["workloads"]:
        ours, peer, other = (median(row["engines"].get(name)) for name in ("ours", "mlx-vlm", "transformers"))
        lines.append([
            row["title"], *(figure(row, name, repeat) for name in ("ours", "mlx-vlm")), decimal(ratio(ours, peer)),
            figure(row, "transformers", repeat), decimal(ratio(ours, other)),
            three(row["floor"]) + UNITS[row["kind"]] if row["floor"] else "", decimal(ratio(ours, row["floor"])),
        ])  # fmt: skip
    header = ["", "ours", "mlx-vlm", "ratio", "transformers", "ratio", "floor", "ratio"]
    return table(header, lines)


def above_cache(row: Mapping[str, Any], engine: str, kind: str) -> float | None:
    """An engine's peak in bytes above its weights and the final cache: that of one row where it runs them apart."""
    peak, cache = row["engines"].get(engine, {}).get(kind), row.get("apart", {}).get(engine, row["cache"])
    return None if peak is None else max(0.0, peak - cache)


def memory_table(run: Mapping[str, Any]) -> str:
    lines = []
    for row in run["workloads"]:
        line = [row["title"]]
        for kind in ("peak", "resident"):
            ours, peer, other = (above_cache(row, name, kind) for name in ("ours", "mlx-vlm", "transformers"))
            cells = ["" if value is None else three(value / 1e6) for value in (ours, peer, other)]
            line += [*cells[:2], decimal(ratio(ours, peer)), cells[2]]
        if any(line[1:]):
            lines.append([*line, three(row["cache"] / 1e6)])
    names = ("ours", "mlx-vlm", "ratio", "transformers")
    header = ["MB", *names, *(f"resident: {name}" for name in names), "cache"]
    return table(header, lines) if lines else ""


def reasons(run: Mapping[str, Any]) -> Iterator[str]:
    """Why cells are empty: each reason of an engine once."""
    where: dict[tuple[str, str], list[str]] = {}
    for row in run["workloads"]:
        for engine, cell in row["engines"].items():
            if reason := cell.get("reason"):
                where.setdefault((engine, reason), []).append(row["title"])
    for (engine, reason), titles in where.items():
        yield f"- {engine}, {'everything' if len(titles) == len(run['workloads']) else '; '.join(titles)}: {reason}\n"


def about(results: Results) -> str:
    """The machine, the packages and the day."""
    machine = results["machine"]
    packages: dict[str, str] = {}
    for versions in results["versions"].values():
        packages |= versions
    hardware = f"{machine['gpu']}, " if machine["gpu"] else ""
    hardware += f"{machine['cpu']}, {machine['cores']} cores"
    named = ", ".join(f"{name} {version}" for name, version in packages.items())
    return f"{hardware}, {machine['memory']} GB, {machine['system']}. {named}. {results['date']}"


def heading(run: Mapping[str, Any]) -> str:
    weights = f"{run['bits']}-bit" if run["bits"] else run["dtype"]
    return f"shape {run['shape']}, {weights}"


def report(results: Results) -> str:
    """All of one file, in markdown."""
    out = f"{about(results)}, medians of {results['repeat']}.\n"
    for run in results["runs"]:
        rates = run["rates"]
        measured = ""
        if rates:
            measured = f": {three(rates['bandwidth'] / 1e9)} GB/s and {three(rates['flops'] / 1e9)} GFLOP/s measured"
        out += f"\n{heading(run).capitalize()}{measured}.\n\n{speed_table(run, results['repeat'])}"
        if memory := memory_table(run):
            out += f"\n{MEMORY}\n\n{memory}"
        if notes := "".join([*reasons(run), *(f"- {note}\n" for note in run["notes"])]):
            out += f"\n{notes}"
    return out


def section(every: Sequence[Results]) -> str:
    """All that docs/speed.md says."""
    if not every:
        return NOTHING
    return f"![{ALT}](../{CHART.relative_to(ROOT).as_posix()})\n\n{READING}\n\n" + "\n".join(map(report, every))


def summary(every: Sequence[Results]) -> str:
    """What the README says: the chart, and a few rows of each run."""
    if not every:
        return NOTHING
    out = f"![{ALT}]({CHART.relative_to(ROOT).as_posix()})\n"
    for results in every:
        for run in results["runs"]:
            short = {**run, "workloads": [row for row in run["workloads"] if row["name"] in SHORT]}
            where = results["machine"]["gpu"] or f"{results['machine']['cpu']}, {results['machine']['cores']} cores"
            out += f"\n{where}, {heading(run)}, medians of {results['repeat']}:\n\n"
            out += speed_table(short, results["repeat"])
    return out


# The chart

WIDTH, LABELS, LINE = 840, 370, 24
LEAST, MOST = 1 / 16, 16
STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#1f2328}.grid{stroke:#8c959f;stroke-opacity:.35}"
    ".one{stroke:#8c959f}.ours{fill:#1f6feb}.mlx-vlm{fill:#d9730d}.transformers{fill:#a04bc9}.floor{fill:#7d8590}"
    "@media(prefers-color-scheme:dark){text{fill:#e6edf3}.ours{fill:#58a6ff}.mlx-vlm{fill:#f0883e}"
    ".transformers{fill:#d2a8ff}.floor{fill:#9198a1}}"
)


def place(value: float) -> float:
    """Where on the logarithmic axis a time in parts of ours stands."""
    share = math.log(min(MOST, max(LEAST, value)) / LEAST) / math.log(MOST / LEAST)
    return LABELS + share * (WIDTH - LABELS - 20)


def relative_times(row: Mapping[str, Any]) -> dict[str, float]:
    """Of each engine and the floor, in parts of ours."""
    ours = median(row["engines"].get("ours"))
    others = {name: median(row["engines"].get(name)) for name in ("transformers", "mlx-vlm")} | {"floor": row["floor"]}
    if not ours or row["kind"] == "call":
        return {}
    is_rate = row["kind"] in RATES
    return {name: ours / value if is_rate else value / ours for name, value in others.items() if value}


def chart(every: Sequence[Results]) -> str:
    """An SVG: a line a workload, time on a logarithmic axis, ours at 1."""
    out: list[str] = []
    y = 58.0
    for results in every:
        machine = results["machine"]
        for run in results["runs"]:
            lines = [(row, marks) for row in run["workloads"] if (marks := relative_times(row))]
            if not lines:
                continue
            title = f"{machine['gpu'] or machine['cpu']}: {heading(run)}"
            out.append(f'<text x="8" y="{y:.0f}" font-weight="bold">{escape(title)}</text>')
            bottom = y + LINE * len(lines) + 12
            for value in (1 / 16, 1 / 4, 1, 4, 16):
                kind, x = "one" if value == 1 else "grid", place(value)
                label = f"{value:.0f}" if value >= 1 else f"1/{1 / value:.0f}"
                out.append(f'<line class="{kind}" x1="{x:.1f}" y1="{y + 10:.0f}" x2="{x:.1f}" y2="{bottom:.0f}"/>')
                out.append(f'<text x="{x:.1f}" y="{bottom + 14:.0f}" text-anchor="middle">{label}</text>')
            for row, marks in lines:
                y += LINE
                out.append(f'<text x="8" y="{y + 4:.0f}">{escape(row["title"])}</text>')
                out += [mark(name, place(value), y) for name, value in (marks | {"ours": 1.0}).items()]
            y += 62
    legend = []
    for i, name in enumerate(("ours", "mlx-vlm", "transformers", "floor")):
        legend.append(mark(name, LABELS + 10 + 110 * i, 20))
        legend.append(f'<text x="{LABELS + 20 + 110 * i}" y="24">{name}</text>')
    size = f'width="{WIDTH}" height="{y - 20:.0f}" viewBox="0 0 {WIDTH} {y - 20:.0f}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img"><title>Time in parts of ours</title>'
    caption = '<text x="8" y="24">time in parts of ours; right is slower</text>'
    return "\n".join([head, f"<style>{STYLE}</style>", caption, *legend, *out, "</svg>"]) + "\n"


def mark(name: str, x: float, y: float) -> str:
    """A dot, or a bar for the floor."""
    if name == "floor":
        return f'<rect class="floor" x="{x - 2:.1f}" y="{y - 8:.0f}" width="4" height="16"/>'
    return f'<circle class="{name}" cx="{x:.1f}" cy="{y:.0f}" r="5"/>'


def read(paths: Sequence[Path]) -> list[Results]:
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(paths)]


def written(page: str) -> str:
    """A page's text between its two marks."""
    return page.partition(BEGIN)[2].partition(END)[0]


def write(paths: Sequence[Path]) -> None:
    """Into the two pages, and the chart beside the results."""
    every = read(paths)
    for name, make in PAGES.items():
        page = ROOT / name
        before, begin, rest = page.read_text(encoding="utf-8").partition(BEGIN)
        if not begin:
            raise SystemExit(f"{name} has no line {BEGIN.strip()!r} to write after.")
        page.write_text(before + BEGIN + make(every) + END + rest.partition(END)[2], encoding="utf-8")
    if every:
        CHART.write_text(chart(every), encoding="utf-8")


PAGES = {"docs/speed.md": section, "README.md": summary}
"""What is written into each page."""
