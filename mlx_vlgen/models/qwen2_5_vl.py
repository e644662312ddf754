"""Qwen2.5-VL: most layers of its tower attend within windows, and a video's positions tell the time.

Source: Bai et al. 2025 (arXiv 2502.13923); transformers' Qwen2_5_VLForConditionalGeneration. Parameter names are those
of checkpoints converted for MLX.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from .._runtime import mx, nn
from ..inputs.prompt import Normalization
from .attention import GATED, MLP, VisionAttention, Windows
from .grids import Grids
from .layers import PatchEmbedding, merge_order, pace, rotary_2d
from .mrope import MRopeModel, MRopeVisionConfig, VisionBlock
from .qwen2_vl import PatchMerger, text_arguments


@dataclass(frozen=True)
class Qwen2_5_VLVisionConfig(MRopeVisionConfig):
    intermediate_size: int = 3420
    hidden_act: str = "silu"
    out_hidden_size: int = 3584
    window_size: int = 112
    fullatt_block_indexes: Sequence[int] = (7, 15, 23, 31)
    tokens_per_second: float = 4


def vision_block(config: Qwen2_5_VLVisionConfig, attention: Sequence[str]) -> VisionBlock:
    hidden = config.hidden_size
    mlp = MLP(hidden, config.intermediate_size, config.hidden_act, GATED)
    return VisionBlock(partial(nn.RMSNorm, hidden, eps=1e-6), VisionAttention(hidden, config.num_heads, attention), mlp)


def window_order(rows: int, columns: int, side: int) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """A grid of tokens cut into windows of `side` x `side`, smaller ones at its right and lower edge.

    Returns the tokens (rows * columns,) in an order in which those of a window lie together and windows of equal size
    after each other; and of each size how many windows there are, and tokens in each.
    """
    row, column = np.indices((rows, columns)).reshape(2, -1)
    window = row // side * -(-columns // side) + column // side
    sizes = np.bincount(window)
    order = np.lexsort((window, sizes[window]))
    return order, [(int(np.sum(sizes == size)), int(size)) for size in np.unique(sizes)]


class Order(NamedTuple):
    """Tokens and patches of a frame in the order of its windows, and these in patches."""

    tokens: np.ndarray
    patches: np.ndarray
    windows: Windows


class VisionTower(nn.Module):
    """attention: the names of its layers, as `VisionAttention` takes them."""

    def __init__(self, config: Qwen2_5_VLVisionConfig, attention: Sequence[str] = ("qkv", "proj")):
        super().__init__()
        hidden = config.hidden_size
        self.merge, self.head_size = config.spatial_merge_size, hidden // config.num_heads
        self._window = config.window_size // config.patch_size // self.merge  # tokens a side
        self._full = frozenset(config.fullatt_block_indexes)
        self.patch_embed = PatchEmbedding(
            config.in_channels, config.temporal_patch_size, config.patch_size, hidden, bias=False
        )
        self.blocks = [vision_block(config, attention) for _ in range(config.depth)]
        self.merger = PatchMerger(nn.RMSNorm(hidden, eps=1e-6), hidden, self.merge, config.out_hidden_size)

    def __call__(
        self, pixels: mx.array, grids: Grids, normalization: Normalization | None = None
    ) -> tuple[mx.array, list[mx.array]]:
        orders = {(rows, columns): self._order(rows, columns) for _, rows, columns in grids.runs}
        windows = [(count, orders[rows, columns].windows) for count, rows, columns in grids.runs]

        def sort(x: mx.array, rows: int, columns: int) -> mx.array:
            return x[:, mx.array(orders[rows, columns].patches)]

        def sort_back(x: mx.array, rows: int, columns: int) -> mx.array:
            return x[:, mx.array(np.argsort(orders[rows, columns].tokens))]

        places = grids.places(lambda *size: merge_order(size[0], size[1], self.merge)[:, orders[size].patches])
        cos, sin = rotary_2d(places, self.head_size)
        x = grids.map(self.patch_embed(pixels, normalization), sort)
        for index, block in enumerate(self.blocks):
            before, x = x, block(x, cos, sin, grids.frames if index in self._full else windows)
            pace(before, x)
        return grids.map(self.merger(x), sort_back), []

    def _order(self, rows: int, columns: int) -> Order:
        unit = self.merge**2  # the patches of a token lie together, and move together
        tokens, runs = window_order(rows // self.merge, columns // self.merge, self._window)
        patches = (tokens[:, None] * unit + np.arange(unit)).reshape(-1)
        return Order(tokens, patches, [(count, size * unit) for count, size in runs])


class Qwen2_5_VL(MRopeModel):
    renames = (*MRopeModel.renames, ("model.", "language_model.model."))

    def __init__(self, config: dict[str, Any]):
        vision = Qwen2_5_VLVisionConfig.from_dict(config["vision_config"])
        super().__init__(
            config, text_arguments(config), VisionTower(vision), (16, 24, 24), interleaved=False,
            tokens_per_second=vision.tokens_per_second,
        )  # fmt: skip
