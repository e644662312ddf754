"""The least time that a workload can take on a machine: bytes over bandwidth, operations over the matmul rate.

Costs are counted from a checkpoint's files in the Hub's layout; the two rates are measured by a worker in the same run.
A floor counts the weights once a forward, keys and values once a step, and products of matrices; nothing else.
"""

import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SEES = ("visual", "vision", "projector", "connector")
"""Parts of the names of tensors that only pictures need."""


@dataclass(frozen=True)
class Rates:
    """bandwidth: bytes a second that are read from memory. flops: operations a second of a large product."""

    bandwidth: float
    flops: float


@dataclass(frozen=True)
class Row:
    """One request. tokens: of its prompt, with the pictures'. patches: of each picture or tile, whose patches attend to
    each other."""

    tokens: int
    patches: Sequence[int] = ()


def headers(folder: Path) -> dict[str, tuple[tuple[int, ...], int]]:
    """Shape and bytes of each tensor in a folder's safetensors files."""
    out = {}
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as opened:
            [length] = struct.unpack("<Q", opened.read(8))
            header = json.loads(opened.read(length))
        for name, entry in header.items():
            if name != "__metadata__":
                begin, end = entry["data_offsets"]
                out[name] = tuple(entry["shape"]), end - begin
    return out


def is_seeing(name: str) -> bool:
    return any(part in name for part in SEES)


@dataclass(frozen=True)
class Costs:
    """What a forward reads and computes.

    weight_bytes: of the text layers and the head, read once a forward. cache_bytes: of a token in one layer. windows:
    positions that each layer sees. token_flops: of the text layers, a token; head_flops: of its logits; pair_flops: of
    one layer's attention, a pair of tokens. patch_flops: of the tower and the projector, a patch; patch_pair_flops: of
    all its attention, a pair of patches.
    """

    weight_bytes: float
    cache_bytes: float
    windows: Sequence[float]
    token_flops: float
    head_flops: float
    pair_flops: float
    patch_flops: float
    patch_pair_flops: float

    @classmethod
    def of(cls, original: Path, served: Path, width: int) -> "Costs":
        """original: the float checkpoint in the Hub's layout. served: what is run, maybe quantized. width: bytes of a
        float."""
        config = json.loads((original / "config.json").read_text(encoding="utf-8"))
        text, vision = config["text_config"], config["vision_config"]
        shapes = {name: shape for name, (shape, _) in headers(original).items() if len(shape) > 1}
        words = [shape for name, shape in shapes.items() if not is_seeing(name) and ".layers." in name]
        sizes = {name: size for name, (_, size) in headers(served).items() if not is_seeing(name)}
        if any("lm_head" in name for name in sizes):  # then a forward reads a row of the embeddings only
            sizes = {name: size for name, size in sizes.items() if "embed_tokens" not in name}

        merged = vision.get("spatial_merge_size", config.get("scale_factor", 4)) ** 2  # patches of a feature
        tower = {name: math.prod(shape) for name, shape in shapes.items() if is_seeing(name) and "pos" not in name}
        per_patch = sum(
            size / (merged if "merger" in name or not ("visual" in name or "vision" in name) else 1)
            for name, size in tower.items()
        )
        depth = vision.get("depth", vision.get("num_hidden_layers"))
        sliding = text.get("sliding_window", math.inf) if config["model_type"] == "gemma3" else math.inf
        return cls(
            weight_bytes=sum(sizes.values()),
            cache_bytes=2 * text["num_key_value_heads"] * text["head_dim"] * width,
            windows=[sliding if (i + 1) % 6 else math.inf for i in range(text["num_hidden_layers"])],
            token_flops=2 * sum(map(math.prod, words)),
            head_flops=2 * text["vocab_size"] * text["hidden_size"],
            pair_flops=4 * text["num_attention_heads"] * text["head_dim"],
            patch_flops=2 * per_patch,
            patch_pair_flops=4 * vision["hidden_size"] * depth,
        )

    def cache(self, tokens: int) -> float:
        """Bytes of the keys and values of a row."""
        return sum(self.cache_bytes * min(window, tokens) for window in self.windows)

    def prompt_flops(self, row: Row) -> float:
        pairs = sum(row.tokens * min(window, row.tokens / 2) for window in self.windows)
        seen = sum(patches * (self.patch_flops + patches * self.patch_pair_flops) for patches in row.patches)
        return row.tokens * self.token_flops + self.head_flops + pairs * self.pair_flops + seen

    def prompt_seconds(self, rows: Sequence[Row], rates: Rates) -> float:
        """To the first tokens of rows that are read together."""
        return max(sum(map(self.prompt_flops, rows)) / rates.flops, self.weight_bytes / rates.bandwidth)

    def step_seconds(self, tokens: Sequence[int], rates: Rates) -> float:
        """Of a step that decodes a token for each row. tokens: how many each row has."""
        read = self.weight_bytes + sum(map(self.cache, tokens))
        computed = len(tokens) * (self.token_flops + self.head_flops)
        return max(read / rates.bandwidth, computed / rates.flops)


def floor(costs: Costs, rates: Rates, workload: Mapping[str, Any], rows: Sequence[Row]) -> float | None:
    """In the workload's unit, seconds or tokens a second; None where there is none."""
    new = workload["new"]
    if workload["kind"] == "first":
        return costs.prompt_seconds(rows, rates)
    if workload["kind"] == "decode":
        return 1 / costs.step_seconds([row.tokens + new // 2 for row in rows], rates)
    if workload["kind"] != "batch":
        return None
    seconds = 0.0
    for begin in range(0, len(rows), workload["together"]):
        batch = rows[begin : begin + workload["together"]]
        step = costs.step_seconds([row.tokens + new // 2 for row in batch], rates)
        seconds += costs.prompt_seconds(batch, rates) + (new - 1) * step
    return len(rows) * new / seconds
