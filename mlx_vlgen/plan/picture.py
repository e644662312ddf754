"""What a picture costs: its patches, the tokens that it becomes, and the tower that reads them, by the configuration.

How a family cuts large pictures into tiles is in its processor, not in its configuration: of such families one tile is
counted.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .._runtime import tree_flatten
from ..models.base import Model
from ..models.configuration import thinker_config

ONCE = ("merger", "project", "connector", "multi_modal", "embed_vision", "mlp1", "aligner")
"""Parts of the names of what computes with a token that a picture becomes, and not with a patch."""

BOUNDED = ("pixtral", "mistral3", "lighton_ocr")
"""Families that read pictures at their size, up to `image_size`."""

UNTOLD = ("mllama", "minicpmv4_6", "minicpmv4_7", "idefics2", "molmo2")
"""Families whose configuration does not say how many tokens a picture becomes."""


@dataclass(frozen=True)
class Picture:
    """patches: of a picture or tile, which see each other. tokens: that it becomes. size: in pixels, as it is read."""

    patches: int
    tokens: int
    size: tuple[int, int]

    @classmethod
    def of(cls, config: Mapping[str, Any], width: int, height: int) -> "Picture | None":
        """None where the configuration does not tell."""
        vision = _vision(config)
        family = config["model_type"]
        patch = _side(vision.get("patch_size", vision.get("spatial_patch_size")))
        merge, side = _merge(config, vision), _side(vision.get("image_size"))
        if family == "qwen2_vl":  # some of its configurations leave out what transformers assumes
            patch, merge = patch or 14, merge or 2
        if not patch or family in UNTOLD:
            return None
        if family in BOUNDED or "spatial_merge_size" in vision or (merge and side is None):
            merge = merge or 1
            step = patch * merge
            scale = min(1.0, side / max(width, height)) if side and family in BOUNDED else 1.0
            if most := vision.get("default_output_length"):  # Gemma 4 makes pictures smaller
                scale = min(1.0, math.sqrt(most * step**2 / (width * height)))
            columns, rows = (max(1, round(length * scale / step)) for length in (width, height))
            return cls(columns * rows * merge**2, columns * rows, (columns * step, rows * step))
        fixed = next((part[key] for part in (config, vision) for key in _FIXED if part.get(key)), None)
        if side is None:
            return cls(fixed, fixed, (patch * math.isqrt(fixed),) * 2) if fixed else None
        patches = (side // patch) ** 2
        return cls(patches, fixed or math.ceil(patches / (merge or 1) ** 2), (side, side))


_FIXED = ("mm_tokens_per_image", "image_seq_length", "num_image_tokens")


@dataclass(frozen=True)
class Tower:
    """bytes: of its parameters. hidden: its width. patch_flops: of a patch, token_flops: of a token that a picture
    becomes, pair_flops: of a pair of patches in all layers."""

    bytes: int
    layers: int
    hidden: int
    patch_flops: float
    token_flops: float
    pair_flops: float

    @classmethod
    def of(cls, model: Model) -> "Tower | None":
        prefix = model.text_prefix
        parameters = {
            name: tensor
            for name, tensor in tree_flatten(model.parameters())
            if prefix and not name.startswith(prefix) and "audio" not in name
        }
        if not _vision(model.config) or not parameters:
            return None
        matrices = {name: tensor for name, tensor in parameters.items() if tensor.ndim > 1 and "pos" not in name}
        once = sum(tensor.size for name, tensor in matrices.items() if any(part in name for part in ONCE))
        blocks = {
            int(found[1]): min(tensor.shape)
            for name, tensor in matrices.items()
            if tensor.ndim == 2 and (found := re.search(r"\.(\d+)\.", name)) and not any(part in name for part in ONCE)
        }
        return cls(
            bytes=sum(tensor.nbytes for tensor in parameters.values()),
            layers=len(blocks),
            hidden=max(blocks.values(), default=0),
            patch_flops=2 * (sum(tensor.size for tensor in matrices.values()) - once),
            token_flops=2 * once,
            pair_flops=4 * sum(blocks.values()),
        )

    def activations(self, picture: Picture, itemsize: int) -> int:
        """Bytes that are alive at once while it reads a picture, as benchmarks/memory.py counts them: in a layer 10
        times a patch's width, and 12 times in its inner one."""
        return picture.patches * 22 * self.hidden * itemsize

    def flops(self, picture: Picture) -> float:
        patches = picture.patches
        return patches * (self.patch_flops + patches * self.pair_flops) + picture.tokens * self.token_flops


def _vision(config: Mapping[str, Any]) -> Mapping[str, Any]:
    vision: Mapping[str, Any] = thinker_config(config).get("vision_config") or {}
    return vision


def _side(value: Any) -> int | None:
    """Of a square, which some write as two sides."""
    if isinstance(value, list | tuple):
        value = value[0]
    return value if isinstance(value, int) else None


def _merge(config: Mapping[str, Any], vision: Mapping[str, Any]) -> int | None:
    """How many patches a side become one token."""
    for settings in (vision, config):
        for name in ("spatial_merge_size", "scale_factor", "downsample_factor", "pooling_kernel_size"):
            if isinstance(settings.get(name), int):
                return int(settings[name])
    ratio = config.get("downsample_ratio") or vision.get("pixel_shuffle_ratio")
    return round(1 / ratio) if ratio else None
