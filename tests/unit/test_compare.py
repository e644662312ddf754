"""`benchmarks/compare.py`: the tables of the pages and the chart are what the results give, and what is pure in it."""

import copy
import importlib
import json
import math
import shutil
import signal
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import mlx_vlgen

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"
REFERENCE = ROOT / "tests" / "parity" / "reference"
REMEDY = "make them with `python benchmarks/compare.py --write benchmarks/results/*.json`"


@pytest.fixture(scope="module")
def compare() -> Iterator[SimpleNamespace]:
    """The modules beside the command, by the last part of their names."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        names = ("checkpoint", "floors", "report", "workloads")
        modules = {name: importlib.import_module(f"compare_{name}") for name in names}
        yield SimpleNamespace(command=importlib.import_module("compare"), **modules)


def results() -> dict[str, Any]:
    """Two workloads, of three engines, one of which fails once."""
    first = {
        "name": "first-3", "title": "first token, 3 words", "kind": "first", "floor": 0.05, "cache": 1e6,
        "engines": {
            "ours": {"figures": [0.1, 0.3, 0.2], "peak": 3e6, "resident": 41e6},
            "mlx-vlm": {"figures": [0.4, 0.4, 0.5], "peak": 5e6},
            "transformers": {"figures": [0.8, 0.8]},
        },
    }  # fmt: skip
    batch = {
        "name": "batch-8", "title": "8 rows", "kind": "batch", "floor": 400.0, "cache": 0.0,
        "engines": {
            "ours": {"figures": [100.0]},
            "mlx-vlm": {"figures": [50.0, 40.0, 60.0]},
            "transformers": {"figures": [], "reason": "it <broke>"},
        },
    }  # fmt: skip
    run = {
        "shape": "cpu", "bits": None, "dtype": "float32", "rates": {"bandwidth": 1e10, "flops": 2e11},
        "notes": [], "workloads": [first, batch],
    }  # fmt: skip
    return {
        "preset": "cpu", "date": "2026-01-02", "repeat": 3, "runs": [run],
        "machine": {"cpu": "A CPU", "cores": 2, "memory": 16, "system": "Linux, Python 3.12.1", "gpu": None},
        "versions": {"ours": {"mlx-vlgen": "1.0", "mlx": "0.1"}, "mlx-vlm": {"mlx-vlm": "2.0", "mlx": "0.1"}},
    }  # fmt: skip


def test_the_pages_and_the_chart_are_what_the_results_give(compare: Any) -> None:
    every = compare.report.read(list(compare.report.RESULTS.glob("*.json")))
    for name, make in compare.report.PAGES.items():
        assert compare.report.written((ROOT / name).read_text(encoding="utf-8")) == make(every), (name, REMEDY)
    if every:
        assert compare.report.CHART.read_text(encoding="utf-8") == compare.report.chart(every), REMEDY


def test_the_report_says_medians_ratios_floors_and_reasons(compare: Any) -> None:
    assert (
        compare.report.report(results())
        == f"""\
A CPU, 2 cores, 16 GB, Linux, Python 3.12.1. mlx-vlgen 1.0, mlx 0.1, mlx-vlm 2.0. 2026-01-02, medians of 3.

Shape cpu, float32: 10.0 GB/s and 200 GFLOP/s measured.

|  | ours | mlx-vlm | ratio | transformers | ratio | floor | ratio |
|---|---:|---:|---:|---:|---:|---:|---:|
| first token, 3 words | 0.200 s | 0.400 s | 0.50 | 0.800 s (of 2) | 0.25 | 0.0500 s | 4.00 |
| 8 rows | 100 tok/s (of 1) | 50.0 tok/s | 2.00 |  |  | 400 tok/s | 0.25 |

{compare.report.MEMORY}

| MB | ours | mlx-vlm | ratio | resident: ours | cache |
|---|---:|---:|---:|---:|---:|
| first token, 3 words | 2.00 | 4.00 | 0.50 | 40.0 | 1.00 |

- transformers, 8 rows: it <broke>
"""
    )


def test_the_chart_is_read_in_light_and_dark(compare: Any) -> None:
    text = compare.report.chart([results()])
    root = ElementTree.fromstring(text)
    assert "prefers-color-scheme:dark" in text
    dots = [node for node in root if node.tag.endswith("circle") and float(node.attrib["cy"]) > 30]
    assert [node.attrib["class"] for node in dots] == ["transformers", "mlx-vlm", "ours", "mlx-vlm", "ours"]
    x = [float(node.attrib["cx"]) for node in dots]
    assert x[0] > x[1] > x[2] == x[4] and x[1] == x[3], "0.8 s and 0.4 s beside 0.2 s; half the rate is twice the time"
    bars = [float(node.attrib["x"]) for node in root if node.attrib.get("class") == "floor"]
    assert all(bar < x[2] for bar in bars[1:])
    assert max(x) < float(root.attrib["width"])


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (0.01234, "0.0123"), (0.5, "0.500"), (17.04, "17.0"), (1234.5, "1,234")]
)
def test_three_digits(compare: Any, value: float, text: str) -> None:
    assert compare.report.three(value) == text


def test_floors_are_bytes_over_bandwidth_or_operations_over_rate(compare: Any) -> None:
    costs = compare.floors.Costs(
        weight_bytes=1000, cache_bytes=2, windows=[math.inf, 4], token_flops=50, head_flops=10, pair_flops=3,
        patch_flops=7, patch_pair_flops=5,
    )  # fmt: skip
    rates = compare.floors.Rates(bandwidth=100, flops=10)
    row = compare.floors.Row(20, [6, 2])
    assert costs.cache(20) == 2 * (20 + 4)
    flops = 20 * 50 + 10 + 3 * (20 * 10 + 20 * 4) + 6 * (7 + 6 * 5) + 2 * (7 + 2 * 5)
    assert costs.prompt_seconds([row], rates) == flops / 10
    assert costs.prompt_seconds([compare.floors.Row(1)], compare.floors.Rates(100, 1e9)) == 1000 / 100
    step = (1000 + 2 * (22 + 4)) / 100

    def floor(kind: str, rows: int = 1) -> Any:
        workload = {"kind": kind, "new": 4, "together": 1}
        return compare.floors.floor(costs, rates, workload, [row] * rows)

    assert floor("first") == flops / 10
    assert floor("decode") == pytest.approx(1 / step)
    assert floor("batch", rows=2) == pytest.approx(2 * 4 / (2 * (flops / 10 + 3 * step)))
    assert floor("gap") is None


def test_sixty_four_sizes_are_all_unlike(compare: Any) -> None:
    for small in (True, False):
        [sizes] = [one.sizes for one in compare.workloads.workloads(small).values() if one.name == "sizes-64"]
        assert len(set(sizes)) == 64


def test_engines_take_turns_and_one_that_fails_stops_no_other(compare: Any) -> None:
    asked: list[tuple[str, bool]] = []

    class Engine:
        fresh = True

        def __init__(self, name: str, answers: int, tokens: int) -> None:
            self.engine, self.answers, self.tokens = name, answers, tokens

        def ask(self, do: str, memory: bool = False, **question: Any) -> dict[str, Any]:
            if do == "rest":
                return {}
            asked.append((self.engine, memory))
            if asked.count((self.engine, memory)) > self.answers:
                raise compare.command.Failed("out of memory in /home/me/a-b/c.py:3")
            return {"seconds": 0.5, "tokens": self.tokens, "peak": 7 if memory else None, "prompt_tokens": 11}

    workload = compare.workloads.Workload("decode-1", "", "decode", new=5)
    engines = [Engine("ours", 9, 4), Engine("mlx-vlm", 1, 4), Engine("transformers", 9, 3)]
    cells = compare.command.alternate(engines, workload, 2, math.inf)
    assert asked[:3] == [("ours", True), ("mlx-vlm", True), ("transformers", True)]
    assert asked[3:] == [("ours", False), ("mlx-vlm", False)] * 2
    assert cells["ours"] == {"figures": [8.0, 8.0], "peak": 7, "prompt_tokens": 11}
    assert cells["mlx-vlm"]["reason"] == "out of memory in c.py:3" and cells["mlx-vlm"]["figures"] == []
    assert cells["transformers"]["reason"] == "3 tokens where 4 were asked for"
    assert len(compare.command.alternate(engines[:1], workload, 9, deadline=0)["ours"]["figures"]) == 1


@pytest.mark.parametrize("family", ["qwen3_vl", "gemma3", "smolvlm"])
def test_tensors_are_those_that_transformers_has(compare: Any, family: str) -> None:
    """By the references, whose names are transformers 5's: Gemma's tower lies a level deeper on the Hub."""
    config = json.loads((REFERENCE / family / "config.json").read_text(encoding="utf-8"))
    expected = json.loads((REFERENCE / family / "shapes.json").read_text(encoding="utf-8"))
    made = compare.checkpoint.FAMILIES[family].tensors(config)
    named = {name.replace("vision_tower.vision_model", "vision_tower"): list(shape) for name, shape in made.items()}
    assert named == expected


@pytest.mark.parametrize("shape", ["tiny", "gemma3-4b", "smolvlm-0.5b"])
def test_a_checkpoint_answers_a_picture(compare: Any, shape: str, tmp_path: Path) -> None:
    """Of each family, made small."""
    config = copy.deepcopy(compare.checkpoint.SHAPES[shape])
    config["text_config"] |= {
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "vocab_size": 2000,
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 6,
    }
    if shape != "tiny":
        config["vision_config"] |= {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1}
        config["vision_config"] |= {"num_attention_heads": 2}
    else:
        config["vision_config"]["out_hidden_size"] = 64
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(compare.checkpoint.SHAPES, "test", config)
        folder = compare.checkpoint.make(tmp_path / "checkpoint", "test", "float32", None)
    settings = folder / "preprocessor_config.json"
    settings.write_text(settings.read_text(encoding="utf-8").replace("2048", "512"), encoding="utf-8")  # fewer tiles
    model, processor = mlx_vlgen.load(folder)
    assert len(processor.tokenizer) == 2000
    picture = np.zeros((64, 96, 3), np.uint8)
    messages = [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": "What?"}]}]
    result = mlx_vlgen.generate(model, processor, messages, max_tokens=3)
    assert result.generation_tokens == 3


def command(*arguments: str) -> list[str]:
    return [sys.executable, str(BENCHMARKS / "compare.py"), "--preset", "tiny", "--repeat", "1", *arguments]


@pytest.mark.slow
def test_the_tiny_preset_runs_with_ours_alone(compare: Any, tmp_path: Path) -> None:
    """And says why another engine has no figures."""
    file = tmp_path / "results" / "tiny.json"
    broken = shutil.which("false") or "false"
    others = ("--peer", broken, "--transformers", str(tmp_path / "python"))
    done = subprocess.run(command("--json", str(file), *others), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    measured = json.loads(file.read_text(encoding="utf-8"))
    assert done.stdout == compare.report.report(measured)
    for row in measured["runs"][0]["workloads"]:
        assert len(row["engines"]["ours"]["figures"]) == 1, row
        assert row["engines"]["mlx-vlm"]["reason"] == "the process ended"
        assert row["engines"]["transformers"]["reason"].startswith("its Python does not start")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="reads /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_no_process(number: signal.Signals, tmp_path: Path) -> None:
    with subprocess.Popen(
        command("--checkpoint", str(tmp_path / "here")), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stderr
        next(line for line in process.stderr if "loaded" in line)
        process.send_signal(number)
        process.communicate(timeout=30)
    assert process.returncode == 128 + number
    commands = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    assert not [line for line in commands if str(tmp_path).encode() in line]


def test_a_row_that_runs_alone_keeps_one_cache(compare: Any) -> None:
    known = compare.workloads.workloads(small=True)
    assert [name for name, workload in known.items() if workload.apart] == ["sizes-64"]
    row = {"cache": 80.0, "apart": {"mlx-vlm": 10.0}, "engines": {"ours": {"peak": 100}, "mlx-vlm": {"peak": 100}}}
    assert [compare.report.above_cache(row, name, "peak") for name in ("ours", "mlx-vlm")] == [20, 90]
