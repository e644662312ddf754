"""What `compare.py` measures. Imported by every engine's process too: numpy and Pillow, nothing else."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

Kind = Literal["start", "call", "first", "decode", "batch", "gap", "turn", "questions"]
"""start: from the start of a process to its imports' end, s. call: the first call after load, in parts of the second.
first: seconds to the first token. decode: tokens a second after the first. batch: tokens a second from nothing to the
last token of all rows. gap: the longest wait between two tokens of a row while others are read, s. turn: seconds to the
first token of a second question, in the way that a chat asks it. questions: as batch, all about one picture."""

Size = tuple[int, int]
"""(width, height)."""


@dataclass(frozen=True)
class Workload:
    """words: tokens of text of each prompt, about. sizes: of its pictures; in a batch, of one picture a row; of a turn,
    those of the first question and the second, `later` of them. jpeg: the picture is a file. new: tokens a row.
    together: rows that run at once. grouped: whether mlx-vlm may put rows in groups by their pictures' shapes, as it
    does by default: those of unlike shapes then run one group after another. resumed: what is reused comes from
    disk."""

    name: str
    title: str
    kind: Kind
    words: int = 3
    sizes: Sequence[Size] = ()
    jpeg: bool = False
    new: int = 4
    rows: int = 1
    together: int = 1
    grouped: bool = True
    later: int = 0
    resumed: bool = False

    @property
    def apart(self) -> bool:
        """Whether mlx-vlm runs one row after another."""
        return self.grouped and self.kind == "batch" and 1 < len(set(self.sizes)) == self.rows

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def text(words: int) -> str:
    """A prompt of about so many tokens."""
    return "Describe this:" + " the" * (words - 3)


def pictures(workload: dict[str, Any], folder: Path) -> list[Any]:
    """A PIL picture or the path of a JPEG for each of the sizes; no two are alike."""
    return [picture(index, tuple(size), workload["jpeg"], folder) for index, size in enumerate(workload["sizes"])]


def picture(seed: int, size: Size, jpeg: bool, folder: Path) -> Any:
    rng = np.random.default_rng(seed)
    if not jpeg:
        return Image.fromarray(rng.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8))
    path = folder / f"{size[0]}x{size[1]}-{seed}.jpg"
    if not path.exists():  # soft colours: noise would make a file that no camera makes
        small = rng.integers(0, 255, (size[1] // 16, size[0] // 16, 3), dtype=np.uint8)
        Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(path, quality=90)
    return str(path)


def mixed(count: int, least: int, step: int) -> list[Size]:
    """So many sizes, no two alike; in an order that puts unlike ones together."""
    side = int(count**0.5)
    sizes = [(least + step * (i % side), least + step * (i // side)) for i in range(count)]
    return [sizes[(i * 27) % count] for i in range(count)]


def workloads(small: bool) -> dict[str, Workload]:
    """By name. small: for two cores, up to 4k tokens and 2 megapixels."""
    long, jpeg, edge = (4096, (1632, 1224), 256) if small else (16384, (4000, 3000), 448)
    megapixels = f"{jpeg[0] * jpeg[1] / 1e6:.0f}-megapixel"
    steps = 16 if small else 64
    unlike = mixed(64, 192, 24) if small else mixed(64, 224, 32)
    every = [
        Workload("start", "start of the process and imports", "start"),
        Workload("call", "first call after load, in parts of the second", "call", words=512),
        Workload("first-3", "first token, 3 words", "first"),
        Workload("first-512", "first token, 512 tokens", "first", words=512),
        Workload("first-4k", "first token, 4k tokens", "first", words=4096),
        Workload("first-16k", "first token, 16k tokens", "first", words=16384),
        Workload("picture", "first token, 1024 x 1024 picture", "first", sizes=[(1024, 1024)]),
        Workload("jpeg", f"first token, {megapixels} JPEG file", "first", sizes=[jpeg], jpeg=True),
        Workload(
            "turn", "second question about a 1024 x 1024 picture, first token", "turn", sizes=[(1024, 1024)], new=8
        ),
        Workload(
            "resume", "the same, what is reused read from disk", "turn", sizes=[(1024, 1024)], new=8, resumed=True
        ),
        Workload(
            "another", "second question, about another 1024 x 1024 picture beside it, first token", "turn",
            sizes=[(1024, 1024)] * 2, new=8, later=1,
        ),
        Workload(
            "questions", "ten questions about one 1024 x 1024 picture", "questions",
            sizes=[(1024, 1024)], new=16, rows=10, together=10,
        ),
        Workload("ten", f"first token, ten {edge} x {edge} pictures", "first", sizes=[(edge, edge)] * 10),
        Workload("decode-1", "decode, 1 row", "decode", words=64, new=2 * steps),
        Workload("decode-8", "8 rows of text, with their prompts", "batch", new=steps, rows=8, together=8),
        Workload("decode-32", "32 rows of text, with their prompts", "batch", new=steps // 2, rows=32, together=32),
        Workload(
            "batch-8", f"8 rows, a {edge} x {edge} picture each", "batch",
            sizes=[(edge, edge)] * 8, new=steps // 2, rows=8, together=8,
        ),
        Workload(
            "sizes-64", "64 rows, a picture of another size each, 8 at once", "batch",
            sizes=unlike, new=4 if small else 8, rows=64, together=8,
        ),
        Workload(
            "unlike-64", "64 rows of 64 sizes, mlx-vlm with group_by_shape=False", "batch",
            sizes=unlike, new=4 if small else 8, rows=64, together=8, grouped=False,
        ),
        Workload(
            "gap", f"longest gap of a row while {long // 1024}k tokens and ten pictures come", "gap",
            words=long, sizes=[(edge, edge)] * 10, new=4096,
        ),
    ]  # fmt: skip
    return {workload.name: workload for workload in every}


CHECKS = [
    Workload("text", "", "decode", new=16),
    Workload("picture", "", "decode", sizes=[(256, 256)], new=16),
]
"""Short greedy answers that all engines should agree on in float32."""
