"""How far `mlx_vlgen.plan` is off what was measured, and where its formulas break: the tables in docs/scaling.md.

    python benchmarks/scaling.py [--write]
    python benchmarks/scaling.py --measure

Measurements are those of results/cpu.json and scaling.json. --measure makes those of two ranks on this machine
anew, in a minute.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from compare_workloads import workloads
from scaling_simulation import simulated_tables
from shapes import SIZES, shape

from mlx_vlgen._runtime import mx, tree_flatten
from mlx_vlgen.models.base import Model
from mlx_vlgen.notices import rewriting_notices
from mlx_vlgen.plan.command import as_table
from mlx_vlgen.plan.costs import Costs, costs_of, rank_costs
from mlx_vlgen.plan.estimate import REQUEST, Load, Seconds, picture_seconds, prompt_seconds, step_seconds, sums_seconds
from mlx_vlgen.plan.machines import Chip, Link, Machines, parse
from mlx_vlgen.plan.picture import Picture
from mlx_vlgen.plan.planning import make_plan
from mlx_vlgen.plan.source import model_of

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/scaling.md"
MEASURED = ROOT / "benchmarks/scaling.json"

QWEN3_14B = {
    "model_type": "qwen3", "hidden_size": 5120, "intermediate_size": 17408, "num_hidden_layers": 40,
    "num_attention_heads": 40, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "rms_norm_eps": 1e-6,
    "rope_theta": 1e6, "max_position_embeddings": 40960, "tie_word_embeddings": False,
}  # fmt: skip
QWEN3_TINY = QWEN3_14B | {
    "hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 32768, "tie_word_embeddings": True,
}  # fmt: skip
"""What one rank and two are measured with."""

CPU_SHAPE = shape(512, 1536, 8, 4, 2, 256, 6, 151936)
"""Of benchmarks/compare_checkpoint.py's "cpu"."""


@dataclass(frozen=True)
class Line:
    """measured, predicted: seconds, or tokens a second."""

    title: str
    unit: str
    measured: float
    predicted: float

    @property
    def error(self) -> float:
        return self.predicted / self.measured - 1


@cache
def configuration(name: str) -> dict[str, Any]:
    if name in ("cpu", "4b", "tiny", "Qwen3-14B"):
        return {"cpu": CPU_SHAPE, "4b": SIZES["4b"], "tiny": QWEN3_TINY, "Qwen3-14B": QWEN3_14B}[name]
    found: dict[str, Any] = json.loads((ROOT / "tests/published/configs.json").read_text(encoding="utf-8"))[name]
    return found


@cache
def costs(name: str, bits: int | None, dtype: str, ranks: int = 1) -> Costs:
    model = model_of(configuration(name) | {"dtype": dtype}, bits)
    whole = costs_of(model)
    return whole if ranks == 1 else rank_costs(model, whole, 0, ranks)


def predicted(point: Mapping[str, Any], name: str, dtype: str, machines: Machines) -> float:
    """By the formulas of the command, for a measurement."""
    part = costs(name, point.get("bits"), dtype, machines.count)
    rows, new, chip = point.get("rows", 1), point.get("new", 1), machines.chip

    def link(tokens: int, rows: int) -> Seconds:
        if machines.count == 1:
            return Seconds()
        return sums_seconds(part, machines.link, machines.count, tokens, rows)

    step = step_seconds(part, chip, rows, point["tokens"] + new // 2) + link(rows, rows)
    first = REQUEST + prompt_seconds(part, chip, point["tokens"]) + link(point["tokens"], 1)
    for width, height in point.get("pictures", []):
        pixels = width * height if point.get("jpeg") else 0
        load = Load(picture=Picture.of(configuration(name), width, height), pixels=pixels)
        first += picture_seconds(part, chip, load)
    if point["kind"] == "first":
        return first.total
    if point["kind"] == "decode":
        return rows / step.total
    return rows * new / (rows * first.total + (new - 1) * step.total)


def lines_of(points: Sequence[Mapping[str, Any]], name: str, dtype: str, machines: Machines | None) -> Iterator[Line]:
    for point in points:
        where = machines or parse(point["machines"])
        unit = "s" if point["kind"] == "first" else "tok/s"
        yield Line(point["title"], unit, point["measured"], predicted(point, point.get("model", name), dtype, where))


def cpu_lines() -> Iterator[Line]:
    """Of results/cpu.json, with the bandwidth and the matmul rate that were measured in that run."""
    [run] = json.loads((ROOT / "benchmarks/results/cpu.json").read_text(encoding="utf-8"))["runs"]
    chip = Chip("cpu", run["rates"]["bandwidth"], run["rates"]["flops"], None, "local")
    position = 2 * 2 * 128 * 8 * 4  # bytes in the caches of that shape
    points = []
    for measured in run["workloads"]:
        workload, figures = workloads(small=True)[measured["name"]], measured["engines"]["ours"]["figures"]
        if workload.kind not in ("first", "decode", "batch") or not figures or workload.rows == 64:
            continue
        points.append({
            "title": workload.title, "kind": workload.kind, "rows": workload.rows, "new": workload.new,
            "tokens": int(measured["cache"] / position / workload.rows) - workload.new,
            "pictures": workload.sizes[: 1 if workload.rows > 1 else None], "jpeg": workload.jpeg,
            "measured": statistics.median(figures),
        })  # fmt: skip
    yield from lines_of(points, "cpu", "float32", Machines(1, chip, 20 * 10**9, parse("M1 8GB, local").link))


def local_lines() -> Iterator[Line]:
    """Of one rank and two, with the rates that each had while the other used the machine too."""
    found = results()["local"]
    for point in found["points"]:
        link = Link("local", found["link_bandwidth"], found["latency"])
        chip = Chip("cpu", point["bandwidth"], point["flops"], None, "local")
        tries = f", of {len(point['all'])} tries {min(point['all']):.0f} to {max(point['all']):.0f}"
        told = point | {"title": point["title"] + tries}
        yield from lines_of([told], "tiny", "float32", Machines(point["ranks"], chip, 20 * 10**9, link))


def h100_lines() -> Iterator[Line]:
    yield from lines_of(results()["h100"]["points"], "4b", "bfloat16", parse("H100"))


def published_lines() -> Iterator[Line]:
    yield from lines_of(results()["published"]["points"], "", "bfloat16", None)


def results() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(MEASURED.read_text(encoding="utf-8"))
    return found


def rows(lines: Iterable[Line]) -> Iterator[str]:
    """Of the table in docs/scaling.md."""
    for line in lines:
        measured, formula = (f"{value:.3g} {line.unit}" for value in (line.measured, line.predicted))
        yield f"| {line.title} | {measured} | {formula} | {line.error:+.0%} |"


def error_table() -> Iterator[str]:
    found = results()
    for title, lines in (
        ('2 CPU cores, float32, the shape "cpu" (results/cpu.json)', list(cpu_lines())),
        (found["local"]["about"], list(local_lines())),
        (found["h100"]["about"], list(h100_lines())),
        (found["published"]["about"], list(published_lines())),
    ):
        yield f"{title[0].upper()}{title[1:]}:\n"
        yield "| | measured | formula | error |"
        yield "|---|---:|---:|---:|"
        yield from rows(lines)
        for unit, what in (("tok/s", "rates"), ("s", "first tokens")):
            errors = [abs(line.error) for line in lines if line.unit == unit]
            if errors:
                yield f"\nMedian error of {what}: {statistics.median(errors):.0%}, largest {max(errors):.0%}."
        yield ""


def example() -> Iterator[str]:
    """What the command prints, of lines that fit a page."""

    def build(bits: int | None) -> Model:
        return model_of(configuration("Qwen3-VL-235B-A22B-Instruct"), bits)

    plan = make_plan(build, parse("4x M3 Ultra 192GB, rdma"), Load(), 8, (1024, 1024))
    for line in as_table("Qwen3-VL-235B-A22B-Instruct", plan, ()):
        parts = textwrap.wrap(line, 116) if len(line) > 116 else [line]
        yield from (f"    {part}".rstrip() for part in parts)


def simulation() -> Iterator[str]:
    def cut(name: str) -> Callable[[int], Costs]:
        return lambda ranks: costs(name, 4, "bfloat16", ranks)

    with rewriting_notices(lambda text: ""):
        yield from simulated_tables(cut("Qwen3-VL-235B-A22B-Instruct"), cut("Qwen3-VL-32B-Instruct"))


def make_checkpoint(folder: Path) -> None:
    """QWEN3_TINY with random weights, and the built-in model's tokenizer, which its vocabulary holds."""
    from mlx_vlgen.demo import MODEL as DEMO

    model = model_of(QWEN3_TINY | {"dtype": "float32"})
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())))
    for path in DEMO.iterdir():
        if path.suffix in (".json", ".jinja") and path.name != "generation_config.json":
            shutil.copy(path, folder)
    (folder / "config.json").write_text(json.dumps(QWEN3_TINY), encoding="utf-8")


def rank(folder: Path) -> None:
    """One process of --measure: what rank 0 of so many sees."""
    import mlx_vlgen
    from mlx_vlgen.distributed.launch import join_group
    from mlx_vlgen.distributed.ranks import dismiss, follow, load_part

    group = join_group() if "MLX_RANK" in os.environ else None
    found = {"ranks": group.size() if group else 1}

    def median(run: Callable[[], mx.array], count: int) -> float:
        times = []
        for _ in range(count):
            begun = time.perf_counter()
            mx.eval(run())
            times.append(time.perf_counter() - begun)
        return statistics.median(times)

    def together() -> None:
        if group:
            mx.eval(mx.distributed.all_sum(mx.ones(1), group=group))

    if group:
        small, large = mx.ones(512), mx.ones(1 << 18)
        found["latency"] = median(lambda: mx.distributed.all_sum(small, group=group), 200) / (2 * group.size() - 2)
        found["large"] = median(lambda: mx.distributed.all_sum(large, group=group), 20)
    table, vector = np.ones((4096, 8192), np.float32), np.ones(4096, np.float32)  # MLX has no product with a vector
    square = mx.ones((1024, 1024))
    mx.eval(square)
    together()
    found["bandwidth"] = table.nbytes / median(lambda: mx.array(vector @ table), 12)
    together()
    found["flops"] = 2 * 1024**3 / median(lambda: square @ square, 8)
    together()
    model, processor = load_part(folder, group) if group else mlx_vlgen.load(folder)
    if group and group.rank():
        follow(model, group)
        return
    processor.tokenizer.eos_token = None
    rates = []
    for _ in range(3):
        times = []
        for _ in mlx_vlgen.stream_generate(model, processor, "the " * 32, max_tokens=24, temperature=0.0):
            times.append(time.perf_counter())
        rates.append((len(times) - 1) / (times[-1] - times[0]))
    found["rates"] = rates
    if group:
        dismiss(model)
    print(json.dumps(found))


def measure() -> dict[str, Any]:
    """One rank and two on this machine, each on one core, in turn."""
    with tempfile.TemporaryDirectory() as name:
        make_checkpoint(Path(name))
        found = [measure_ranks(Path(name), ranks) for _ in range(2) for ranks in (1, 2)]

    def middle(ranks: int, key: str) -> float:
        return statistics.mean(each[key] for each in found if each["ranks"] == ranks)

    latency, size = middle(2, "latency"), 4 * (1 << 18)
    return {
        "about": f"{os.cpu_count()} CPU cores, one a rank, float32, a Qwen3 of 45M weights, the load of the machine "
        f"{os.getloadavg()[0]:.1f}",
        "latency": latency,
        "link_bandwidth": size / max(1e-9, middle(2, "large") - 2 * latency),
        "points": [
            {
                "title": f"decode, {ranks} rank{'s' * (ranks > 1)}", "kind": "decode", "ranks": ranks, "tokens": 40,
                "new": 24, "bandwidth": middle(ranks, "bandwidth"), "flops": middle(ranks, "flops"),
                "all": (all_rates := [rate for each in found if each["ranks"] == ranks for rate in each["rates"]]),
                "measured": statistics.median(all_rates),
            }
            for ranks in (1, 2)
        ],
    }  # fmt: skip


def measure_ranks(folder: Path, ranks: int) -> dict[str, Any]:
    """What rank 0 of so many saw."""
    from mlx_vlgen.distributed.launch import free_addresses

    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    if ranks > 1:
        (folder / "hosts").write_text(json.dumps(free_addresses(ranks)), encoding="utf-8")
        environment["MLX_HOSTFILE"] = str(folder / "hosts")
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, "--rank", str(folder)],
            env=environment | ({"MLX_RANK": str(number)} if ranks > 1 else {}),
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(ranks)
    ]
    printed = [process.communicate(timeout=300)[0] for process in processes]
    found: dict[str, Any] = json.loads(printed[0])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="into docs/scaling.md, between the marks")
    parser.add_argument("--measure", action="store_true", help="one rank and two of this machine, into scaling.json")
    parser.add_argument("--rank", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rank:
        rank(args.rank)
        return
    if args.measure:
        found = results() | {"local": measure()}
        MEASURED.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    for name, table in (("example", example()), ("errors", error_table()), ("simulation", simulation())):
        text = "\n".join(table)
        print(text)
        if args.write:
            begin, end = f"<!-- {name}: made by benchmarks/scaling.py -->\n", f"<!-- end of {name} -->"
            head, _, rest = PAGE.read_text(encoding="utf-8").partition(begin)
            PAGE.write_text(f"{head}{begin}\n{text}\n{end}{rest.partition(end)[2]}", encoding="utf-8")


if __name__ == "__main__":
    main()
