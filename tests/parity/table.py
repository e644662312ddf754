"""The table of families in docs/families.md, measured.

    cd tests && python -m parity.table [--write]

One line a reference, from what the tests of this folder compare: a column says yes only where a case shows it.
"float32" is the largest difference of any logit from transformers', over all cases and layouts, on the reference's
pixels, in parts of max(1, standard deviation); "bfloat16" the same with weights and computing in bfloat16, which is
what most people run. Lines of code are those of the family's files.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import mlx_vlgen
from mlx_vlgen.engine import cache
from mlx_vlgen.engine.kv_settings import KVSettings
from mlx_vlgen.errors import UnsupportedError
from mlx_vlgen.models import TEXT, find

from . import expected, ours
from .layouts import LAYOUTS, REFERENCE, read_json, write_checkpoint
from .sharding import CUT
from .weights import projection

PAGE = Path(__file__).parents[2] / "docs" / "families.md"
MEASURED = REFERENCE / "measured.json"
BEGIN, END = "<!-- families: made by tests/parity/table.py -->\n", "<!-- end of families -->"
HEADER = (
    "| family | `model_type` | pictures | several | video | sound | batch | quantized KV | sharding "
    "| float32 | bfloat16 | lines |\n"
    "|---|---|---|---|---|---|---|---|---|---:|---:|---:|\n"
)


@dataclass(frozen=True)
class Figures:
    """Largest differences, in parts of max(1, standard deviation)."""

    float32: float
    bfloat16: float | None  # MLX's CPU backend cannot compute routed experts so


def differences(loaded: ours.Loaded, reference: str) -> Iterator[float]:
    """Of each case: the whole prompt's logits, and the last position's, from transformers'."""
    for name in expected.record(reference)["cases"]:
        case = expected.case(reference, name)
        prompt = ours.prepare(loaded, case.text, case)
        pixels = ours.reference_pixels(reference, case, prompt)
        logits = ours.logits(loaded, ours.with_pixels(prompt, pixels)).astype(np.float64)
        worst = max(
            np.abs(logits[-1] - case.last).max(),
            np.abs(logits @ projection(len(case.last)) - case.projected).max(),
        )
        yield float(worst) / max(1.0, float(case.std))


def measure(reference: str) -> Figures:
    def worst(layout: Any, dtype: str) -> float:
        with tempfile.TemporaryDirectory() as folder:
            loaded = mlx_vlgen.load(write_checkpoint(reference, layout, Path(folder)), dtype=dtype)
            return max(differences(loaded, reference))

    try:
        rounded = worst("v5", "bfloat16")
    except RuntimeError as error:
        if "GatherMM" not in str(error) and "gather_mm" not in str(error):
            raise
        rounded = None
    return Figures(max(worst(layout, "float32") for layout in LAYOUTS), rounded)


def takes_quantized_cache(reference: str) -> bool:
    """Whether attention layers of this family can have one."""
    with tempfile.TemporaryDirectory() as folder:
        model, _ = ours.load(write_checkpoint(reference, "v5", Path(folder)))
        try:
            cache.check(model, KVSettings(bits=8, group_size=32))
        except UnsupportedError as error:
            return "does not divide" in str(error)  # the tiny heads' fault, not the family's
        return True


def lines_of(reference: str) -> int:
    """Lines of the family's two files; a text decoder has none."""
    family = find(config_of(reference))
    if family is TEXT:
        return 0
    modules = {place.partition(":")[0] for place in (family.model, family.processor)}
    root = Path(mlx_vlgen.__file__).parents[1]
    return sum(len((root / (name.replace(".", "/") + ".py")).read_text().splitlines()) for name in modules)


def config_of(reference: str) -> dict[str, Any]:
    return read_json(REFERENCE / reference / "config.json")


def row(reference: str, measured: dict[str, Any]) -> str:
    """One line of the table."""
    record = expected.record(reference)
    cases = record["cases"].values()

    def yes(shown: Any) -> str:
        return "yes" if shown else ""

    columns = [
        reference,
        f"`{config_of(reference)['model_type']}`",
        yes(any(case["images"] for case in cases)),
        yes(any(len(case["images"]) > 1 for case in cases)),
        yes(any(case["videos"] for case in cases)),
        yes(any(case.get("audios") for case in cases)),
        yes(record["batches"]),
        yes(measured["quantized_kv"]),
        yes(reference in CUT),
        f"{measured['float32']:.0e}",
        "" if measured["bfloat16"] is None else f"{measured['bfloat16']:.0e}",
        str(lines_of(reference) or ""),
    ]
    return f"| {' | '.join(columns)} |\n"


def table(measured: dict[str, dict[str, Any]]) -> str:
    """The whole table: vision-language families, then text decoders."""

    def order(reference: str) -> tuple[bool, str]:
        return find(config_of(reference)) is TEXT, reference

    return HEADER + "".join(row(name, measured[name]) for name in sorted(measured, key=order))


def written() -> str:
    """The page's text between its two marks."""
    return PAGE.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="into the page, and measured.json beside the references")
    args = parser.parse_args()
    measured = {}
    for name in expected.families():
        if name == "demo":
            continue
        figures = measure(name)
        measured[name] = {
            "float32": figures.float32, "bfloat16": figures.bfloat16, "quantized_kv": takes_quantized_cache(name),
        }  # fmt: skip
        print(name, measured[name], flush=True)
    print(table(measured))
    if args.write:
        MEASURED.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
        before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
        PAGE.write_text(before + BEGIN + table(measured) + END + rest.partition(END)[2], encoding="utf-8")


if __name__ == "__main__":
    main()
