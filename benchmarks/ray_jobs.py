"""Rows a second of a batch job over Ray's actors, beside the local command's, which runs in turn.

    python benchmarks/ray_jobs.py [--pictures 300] [--repeats 3] [--actors 1 2 4] [--model demo]

Speeds are the command's: from the first loaded model on, so that Ray's start and the models' loading are left out.
Needs the extra `ray`.
"""

import argparse
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageDraw

COLOURS = ("red", "blue", "green", "yellow", "black")


def draw(folder: Path, count: int) -> None:
    folder.mkdir()
    for number in range(count):
        image = Image.new("RGB", (64, 64), "white")
        shape = ImageDraw.Draw(image).ellipse if number % 2 else ImageDraw.Draw(image).rectangle
        shape((5 + number % 7, 5 + number % 13, 40 + number % 17, 40 + number % 11), fill=COLOURS[number % 5])
        image.save(folder / f"{number:05}.png")


def rows_per_second(folder: Path, model: str, actors: int) -> float:
    """actors: 0 for the local command."""
    for path in folder.glob("out.jsonl*"):
        path.unlink()
    more = ["--ray", "--actors", str(actors)] if actors else []
    command = [sys.executable, "-m", "mlx_vlgen.batch", "photos", "-o", "out.jsonl", "--model", model, *more]
    said = subprocess.run(command, cwd=folder, stderr=subprocess.PIPE, text=True, check=True).stderr
    found = re.search(r"([\d.,]+) rows/s", said)
    assert found, said
    return float(found[1].replace(",", ""))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--actors", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--model", default="demo")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        draw(folder / "photos", args.pictures)
        speeds: dict[int, list[float]] = {actors: [] for actors in [0, *args.actors]}
        for _ in range(args.repeats):
            for actors, found in speeds.items():
                found.append(rows_per_second(folder, args.model, actors))
                print(f"{actors or 'local'}: {found[-1]:.1f} rows/s", flush=True)
        for actors, found in speeds.items():
            median, local = statistics.median(found), statistics.median(speeds[0])
            print(f"{actors or 'local'}: median {median:.1f} rows/s, {median / local:.2f} of local")


if __name__ == "__main__":
    main()
