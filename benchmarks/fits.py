"""Which model fits which Mac: the tables in docs/models.md and README, computed from published configurations.

    python benchmarks/fits.py [--write]

Each model is built from its config.json without weights, with its text layers at 4 bits in groups of 64 and all else
in bfloat16, as conversions for MLX are. Metal lets models use two thirds of a Mac's memory, three quarters of more than
36 GB (`recommendedMaxWorkingSetSize`); beside weights and KV cache a gibibyte is left for forwards.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlx_vlgen._runtime import mx
from mlx_vlgen.loading.footprint import Footprint
from mlx_vlgen.loading.quantization import Quantization, quantize_layers
from mlx_vlgen.models import find

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "tests/published/configs.json"
MACS = (8, 16, 24, 32, 36, 48, 64, 96, 128, 192, 256, 512)
"""GB of memory that Macs come with."""

SHORT, LONG = 4096, 65536
"""Tokens of a talk: about four pictures of a megapixel, and five of 12 megapixels, in Qwen3-VL."""

BEGIN, END = "<!-- fits: made by benchmarks/fits.py -->\n", "<!-- end of fits -->"
DEFAULT = "Qwen3-VL-"
"""The models of README's table."""


def usable(memory: int) -> int:
    """Bytes for models on a Mac with so many GB."""
    return memory * 10**9 * 2 // 3 if memory <= 36 else memory * 10**9 * 3 // 4


def smallest(footprint: Footprint, positions: int) -> int | None:
    """GB of the smallest Mac that has room for it with a talk of so many positions."""
    return next((memory for memory in MACS if footprint.needed(positions) <= usable(memory)), None)


def footprint(config: dict[str, Any]) -> Footprint:
    model = find(config).model_class()(config)
    if config["model_type"] == "gemma3":
        del model.language_model.lm_head  # as loading does where there is none in the files, as in all published ones
    model.set_dtype(mx.bfloat16)
    quantize_layers(model, Quantization.parse(4))
    return Footprint.of(model)


def footprints(begin: str = "") -> dict[str, Footprint]:
    """By name, of those that begin so, the smallest first; without the other forms of a configuration, whose names go
    on after a comma."""
    configs = json.loads(CONFIGS.read_text())
    found = {name: footprint(config) for name, config in configs.items() if name.startswith(begin) and "," not in name}
    return dict(sorted(found.items(), key=lambda item: item[1].weights))


def whole_table(found: dict[str, Footprint]) -> Iterator[str]:
    yield f"| model, text at 4 bits | weights | cache, 1,000 tokens | smallest Mac: {SHORT:,} tokens | {LONG:,} |"
    yield "|---|---:|---:|---:|---:|"
    for name, model in found.items():
        macs = [f"{memory} GB" if (memory := smallest(model, length)) else "none" for length in (SHORT, LONG)]
        cache = (model.cache(2 * LONG) - model.cache(LONG)) / LONG / 1e3
        yield f"| {name} | {model.weights / 1e9:.1f} GB | {cache:.0f} MB | {macs[0]} | {macs[1]} |"


def short_table(found: dict[str, Footprint]) -> Iterator[str]:
    """For each size of Mac for which it is another one, the largest of the default models."""
    yield "| memory of the Mac | model | download | longest talk, in tokens |"
    yield "|---|---|---:|---:|"
    before = ""
    models = {name: model for name, model in found.items() if name.startswith(DEFAULT)}
    for memory in MACS:
        fitting = [name for name, model in models.items() if model.needed(2 * SHORT) <= usable(memory)]
        if fitting and fitting[-1] != before:
            before = fitting[-1]
            tokens = models[before].positions(usable(memory), 262_144) or 0
            default = " (the default)" if before == "Qwen3-VL-2B-Instruct" else ""
            size = models[before].weights / 1e9
            yield (
                f"| {memory} GB | `mlx-community/{before}-4bit`{default} | {size:.1f} GB | {tokens // 1000 * 1000:,} |"
            )


def tables() -> dict[Path, str]:
    """Each page's."""
    found = footprints()
    return {
        ROOT / "docs/models.md": "\n".join(whole_table(found)) + "\n",
        ROOT / "README.md": "\n".join(short_table(found)) + "\n",
    }


def written(page: Path) -> str:
    return page.read_text().partition(BEGIN)[2].partition(END)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="into the pages, between their marks")
    args = parser.parse_args()
    for page, table in tables().items():
        print(f"{page.name}\n{table}")
        if args.write:
            head, _, rest = page.read_text().partition(BEGIN)
            page.write_text(head + BEGIN + table + END + rest.partition(END)[2])


if __name__ == "__main__":
    main()
