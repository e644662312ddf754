"""M-RoPE, rotary positions in time, row and column: the rotary module, the positions of a prompt, and the base class of
the families that have it (Qwen's, GLM's and ERNIE's)."""

import math
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, ClassVar

import numpy as np

from .._mlx_lm import ArraysCache, initialize_rope
from .._runtime import mx, nn
from ..inputs.prompt import Media, Prompt
from .attention import MLP, Frames, VisionAttention
from .backbone import Angles
from .base import Embedded, Features
from .configuration import BaseConfig, rope_type
from .grids import Grids
from .layers import rotate
from .vision_language import VisionLanguageModel, join_pixels, place_deepstack, scatter_features


class Rotary(Angles):
    """cos and sin (B, 1, L, D / 2) for tokens whose three rotary positions differ."""


class MRope(nn.Module):
    """Replaces mlx-lm's `self_attn.rope` and keeps no state: what to rotate by comes as the offset.

    An offset is an int or (B,) where all three axes run on together (text, and every decoded token: there MLX's kernel
    rotates), or a `Rotary` that the forward computed once for all layers.
    Source: Qwen3-VL's interleaved M-RoPE (transformers' Qwen3VLTextRotaryEmbedding): frequency i turns with
    time, except that of the first 3 * section[1] those with i % 3 == 1 turn with the row, and likewise the column.
    dims: how many of a head's values are rotated, the first ones.
    traditional: pairs are neighbours (GLM), as in mx.fast.rope; otherwise they are the two halves.
    axes: (dims / 2,), the axis that turns each frequency, where that is otherwise than `section` and `interleaved` say.
    yarn: settings of YaRN, as `configuration.yarn_settings` gives them.
    """

    def __init__(
        self,
        dims: int,
        base: float,
        section: Sequence[int],
        interleaved: bool = True,
        traditional: bool = False,
        yarn: Mapping[str, Any] | None = None,
        axes: np.ndarray | None = None,
    ):
        super().__init__()
        self.dims, self.base, self.traditional = dims, base, traditional
        self._yarn = None if yarn is None else initialize_rope(dims, base, traditional, dict(yarn))
        half = np.arange(dims // 2)
        if axes is not None:
            pass
        elif interleaved:
            axes = np.where((half % 3 > 0) & (half < 3 * np.asarray(section)[half % 3]), half % 3, 0)
        else:
            axes = np.repeat(np.arange(3), section)
        self._axes = mx.array(axes)
        frequencies = mx.array(base ** -(half.astype(np.float32) * 2 / dims), dtype=mx.float32)
        self._frequencies = frequencies if self._yarn is None else 1 / self._yarn._freqs
        self._attention_scaling = 1.0 if self._yarn is None else self._yarn.mscale

    def angles(self, positions: mx.array) -> Rotary:
        """positions (3, B, L)."""
        selected = positions[self._axes].transpose(1, 2, 0).astype(mx.float32)  # (B, L, D / 2)
        angle = (selected * self._frequencies)[:, None]
        return Rotary(mx.cos(angle) * self._attention_scaling, mx.sin(angle) * self._attention_scaling)

    def offset(self, inputs: Embedded, cache: Sequence[Any]) -> "int | mx.array | Rotary":
        """What a forward of `inputs` after `cache` is rotated by, the same in all layers."""
        if inputs.positions is not None:
            return self.angles(inputs.positions)
        first = next(layer_cache for layer_cache in cache if not isinstance(layer_cache, ArraysCache))
        offset: int | mx.array = first.offset + inputs.delta
        if isinstance(offset, float) or (isinstance(offset, mx.array) and mx.issubdtype(offset.dtype, mx.floating)):
            running = mx.array(offset).reshape(-1, 1) + mx.arange(len(inputs))  # (B, L)
            return self.angles(mx.broadcast_to(running, (3, *running.shape)))
        return offset

    def __call__(self, x: mx.array, offset: "int | mx.array | Rotary" = 0) -> mx.array:
        if isinstance(offset, Rotary):
            if self.dims == x.shape[-1]:
                return rotate(x, offset.cos, offset.sin, self.traditional)
            first = rotate(x[..., : self.dims], offset.cos, offset.sin, self.traditional)
            return mx.concatenate([first, x[..., self.dims :]], axis=-1)
        if self._yarn is not None:
            rotated: mx.array = self._yarn(x, offset=offset)
            return rotated
        return mx.fast.rope(x, self.dims, traditional=self.traditional, base=self.base, scale=1.0, offset=offset)


def rotary_positions(prompt: Prompt, merge: int, tokens_per_second: float | None = None) -> tuple[np.ndarray, int]:
    """M-RoPE positions (3, L) int32 of a prompt, and how far they are ahead of plain ones after it.

    Text moves all three axes on together. A picture stands still in time and spreads over row and column, and so does
    each group of a video's frames; the text after it starts past its longer side, even where a long video's last time
    is later. The groups of one span are apart in time: by one, or by their seconds times `tokens_per_second`, rounded
    down. Decoded tokens run on from the last text, as they would if they stood in the prompt.
    Source: `get_rope_index` of transformers' Qwen2VLModel, Qwen2_5_VLModel (which counts in float32) and Qwen3VLModel;
    its delta starts past the largest position, which `generate` there does not use.
    """
    positions = np.empty((3, len(prompt.tokens)), dtype=np.int32)
    spans = sorted((*span, index) for index, media in enumerate(prompt.media) for span in media.spans)
    after, position = 0, 0
    for start, end, index in spans:
        positions[:, after:start] = position + np.arange(start - after)
        position += start - after
        media = prompt.media[index]
        rows, columns = (side // merge for side in media.grid[1:])
        time, row, column = np.indices(((end - start) // (rows * columns), rows, columns)).reshape(3, -1)
        if tokens_per_second is not None and media.kind == "video":
            time = (time.astype(np.float32) * np.float32(tokens_per_second * np.float32(media.seconds))).astype(int)
        positions[:, start:end] = position + np.stack([time, row, column])
        position += max(rows, columns)
        after = end
    positions[:, after:] = position + np.arange(len(prompt.tokens) - after)
    return positions, position - after


@dataclass(frozen=True)
class MRopeVisionConfig(BaseConfig):
    """What the towers of these families have in common."""

    depth: int = 32
    hidden_size: int = 3584
    num_heads: int = 16
    in_channels: int = 3
    patch_size: int = 14
    spatial_merge_size: int = 2
    temporal_patch_size: int = 2


class VisionBlock(nn.Module):
    """A layer of their towers. norm: makes a norm of states (..., d)."""

    def __init__(self, norm: Callable[[], nn.Module], attn: VisionAttention, mlp: MLP):
        super().__init__()
        self.norm1, self.norm2 = norm(), norm()
        self.attn, self.mlp = attn, mlp

    def __call__(self, x: mx.array, cos: mx.array, sin: mx.array, frames: Frames) -> mx.array:
        x = x + self.attn(self.norm1(x), cos, sin, frames)
        return x + self.mlp(self.norm2(x))


def encode_grids(media: Sequence[Media], tower: nn.Module) -> list[Features]:
    """Features of media of any grids. tower: see `MRopeModel`."""
    pixels, grids = join_pixels(media), Grids.of(medium.grid for medium in media)
    embeds, deepstack = tower(pixels.reshape(1, len(pixels), -1), grids, media[0].normalization)
    counts = [math.prod(medium.grid) // tower.merge**2 for medium in media]
    layers = [cut_features(layer[0], counts) for layer in (embeds, *deepstack)]
    return [Features(first, others) for first, *others in zip(*layers, strict=True)]


def cut_features(x: mx.array, counts: Sequence[int]) -> list[mx.array]:
    """Features (N, d) of some media: so many of each. Copies, for parts of x would hold the memory of all of it."""
    return [mx.contiguous(x[end - count : end]) for count, end in zip(counts, accumulate(counts), strict=True)]


class MRopeModel(VisionLanguageModel):
    """A family gives the arguments of its text decoder, its tower and its M-RoPE.

    tower: pixels (1, N, patch) of pictures and groups of frames one after another, each in merge order; `Grids` of
    them; their normalization -> features (1, N / merge^2, d), and the same for each deepstack layer. Frames do not
    attend to each other.
    section: how many frequencies time, rows and columns have, where the configuration is silent.
    interleaved, traditional: see `MRope`. axes: gives its axes for a section.
    tokens_per_second: see `rotary_positions`.
    """

    packed: ClassVar[Container[str]] = ("image", "video")
    renames: Sequence[tuple[str, str]] = (
        ("model.visual.", "vision_tower."),
        ("visual.", "vision_tower."),
        ("model.language_model.", "language_model.model."),
        ("lm_head.", "language_model.lm_head."),
    )

    def __init__(
        self,
        config: dict[str, Any],
        text: dict[str, Any],
        tower: nn.Module,
        section: Sequence[int],
        interleaved: bool,
        tokens_per_second: float | None = None,
        traditional: bool = False,
        axes: Callable[[Sequence[int]], np.ndarray] | None = None,
    ):
        super().__init__(config, text)
        self.vision_tower = tower
        self._tokens_per_second = tokens_per_second
        scaling = text["rope_scaling"]
        section = scaling.get("mrope_section", section)
        yarn = scaling if rope_type(scaling) == "yarn" else None
        rotary_dims = int(text["head_dim"] * text.get("partial_rotary_factor", 1.0))
        self._rope = MRope(
            rotary_dims, text["rope_theta"], section, interleaved, traditional, yarn, axes and axes(section)
        )
        for layer in self.body.layers:
            if "self_attn" in layer:
                layer.self_attn.rope = self._rope

    def positions(self, prompt: Prompt) -> tuple[np.ndarray, float]:
        """See `rotary_positions`."""
        return rotary_positions(prompt, self.vision_tower.merge, self._tokens_per_second)

    def encode(self, media: Sequence[Media]) -> list[Features]:
        return encode_grids(media, self.vision_tower)

    def embed(self, prompt: Prompt, features: Sequence[Features]) -> Embedded:
        tokens = mx.array(prompt.tokens)[None]
        embeds = scatter_features(self.embed_tokens(tokens), prompt, [medium.embeds for medium in features])
        # Text alone could run on from the cache; positions rotate it by the same sums as in a pack with pictures.
        positions, delta = self.positions(prompt)
        return Embedded(tokens, embeds, mx.array(positions)[:, None], delta, place_deepstack(prompt, features))

    def position_delta(self, prompt: Prompt) -> float:
        return self.positions(prompt)[1]

    def forward(self, inputs: Embedded, cache: Sequence[Any], at: mx.array | None = None) -> mx.array:
        text, offset = self.language_model, self._rope.offset(inputs, cache)
        return self.driver.logits(text, self.driver.hidden_states(text, inputs, cache, at, offset))
