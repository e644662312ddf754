"""Granite 4 Vision: pictures whole and in tiles, whose features enter the text decoder before several of its layers.
Each of its projectors looks at a square of patches with a few queries.

Source: transformers' Granite4VisionForConditionalGeneration; Li et al. 2023 on the Q-Former (arXiv 2301.12597).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from .._runtime import mx, nn
from ..errors import LoadError
from ..inputs.prompt import Media
from .attention import attention, merge_heads, split_heads
from .base import Features
from .layers import ACTIVATIONS
from .llava_next import end_lines, unpadded
from .vision_language import VisionLanguageModel, encode_squares
from .vit import CLIPVision, Tower, plain_vision

HEAD_SIZE = 64
"""Of a Q-Former, whatever its configuration says of heads."""
CORNERS = ((0, 0), (0, 1), (1, 0), (1, 1))
"""Row and column of the patch, in squares of two a side, that each of the spatial projectors begins with."""


class AddNorm(nn.Module):
    """A layer, and the norm of its sum with what went before."""

    def __init__(self, inputs: int, outputs: int, eps: float):
        super().__init__()
        self.dense, self.LayerNorm = nn.Linear(inputs, outputs), nn.LayerNorm(outputs, eps=eps)

    def __call__(self, x: mx.array, before: mx.array) -> mx.array:
        return self.LayerNorm(self.dense(x) + before)


class Projections(nn.Module):
    def __init__(self, size: int):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(size, size) for _ in range(3))


class QFormerAttention(nn.Module):
    """x (B, N, d) -> the same, after it attended to `context` (B, K, d)."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.attention, self.output = Projections(size), AddNorm(size, size, eps)
        self._heads = size // HEAD_SIZE

    def __call__(self, x: mx.array, context: mx.array) -> mx.array:
        layers = self.attention
        parts = (layers.query(x), layers.key(context), layers.value(context))
        q, k, v = (split_heads(part, self._heads) for part in parts)
        return self.output(merge_heads(attention(q, k, v, q.shape[-1] ** -0.5)), x)


class Intermediate(nn.Module):
    def __init__(self, size: int, inner: int):
        super().__init__()
        self.dense = nn.Linear(size, inner)


class QFormerLayer(nn.Module):
    def __init__(self, size: int, inner: int, eps: float, activation: str, crosses: bool):
        super().__init__()
        self.attention = QFormerAttention(size, eps)
        if crosses:
            self.crossattention = QFormerAttention(size, eps)
        self.intermediate_query, self.output_query = Intermediate(size, inner), AddNorm(inner, size, eps)
        self._activation = ACTIVATIONS[activation]

    def __call__(self, x: mx.array, context: mx.array) -> mx.array:
        x = self.attention(x, x)
        x = self.crossattention(x, context) if "crossattention" in self else x
        return self.output_query(self._activation(self.intermediate_query.dense(x)), x)


class QFormerEncoder(nn.Module):
    def __init__(self, config: Mapping[str, Any], size: int, eps: float):
        super().__init__()
        inner, activation = config.get("intermediate_size", 3072), config.get("hidden_act", "gelu")
        every = config.get("cross_attention_frequency", 1)
        self.layer = [
            QFormerLayer(size, inner, eps, activation, crosses=index % every == 0)
            for index in range(config.get("num_hidden_layers", 1))
        ]


class QFormer(nn.Module):
    """queries (B, N, d), context (B, K, d) -> (B, N, d)."""

    def __init__(self, config: Mapping[str, Any], size: int):
        super().__init__()
        eps = config.get("layer_norm_eps", 1e-12)
        self.layernorm, self.encoder = nn.LayerNorm(size, eps=eps), QFormerEncoder(config, size, eps)

    def __call__(self, queries: mx.array, context: mx.array) -> mx.array:
        x = self.layernorm(queries)
        for layer in self.encoder.layer:
            x = layer(x, context)
        return x


class WindowProjector(nn.Module):
    """Patches (B, side * side, d) -> (B, side * side / 4, text d): a window of them becomes a quarter as many tokens.

    window: its side. corner: tokens begin as this patch of each square of two a side; None: as the mean of all four.
    """

    def __init__(
        self, config: Mapping[str, Any], window: int, size: int, text: int, corner: tuple[int, int] | None = None
    ):
        super().__init__()
        self._window, self._corner = window, corner
        self.qformer = QFormer(config, size)
        self.norm = nn.LayerNorm(size, eps=1e-6)
        self.query = mx.zeros((1, (window // 2) ** 2, size))
        self.image_positions = mx.zeros((1, window**2, size))
        self.out_linear = nn.Linear(size, text)

    def __call__(self, patches: mx.array, side: int) -> mx.array:
        batch, _, size = patches.shape
        squares = self.norm(patches).reshape(batch, side // 2, 2, side // 2, 2, size)
        tokens = (
            squares.mean(axis=(2, 4)) if self._corner is None else squares[:, :, self._corner[0], :, self._corner[1]]
        )
        context = cut_windows(squares.reshape(batch, side, side, size), self._window) + self.image_positions
        out = self.qformer(self.query + cut_windows(tokens, self._window // 2), context)
        count, queries = side // self._window, self._window // 2
        out = out.reshape(batch, count, count, queries, queries, size).swapaxes(2, 3)
        return self.out_linear(out.reshape(batch, -1, size))


def cut_windows(grid: mx.array, side: int) -> mx.array:
    """(B, R, C, d) -> (B * windows, side * side, d), in reading order."""
    batch, rows, columns, size = grid.shape
    parts = grid.reshape(batch, rows // side, side, columns // side, side, size).swapaxes(2, 3)
    return parts.reshape(-1, side * side, size)


class Granite4Vision(VisionLanguageModel):
    renames = (
        ("model.vision_tower.vision_model.", "vision_tower.vision_model."),
        ("model.vision_tower.", "vision_tower.vision_model."),
        ("model.language_model.", "language_model.model."),
        ("lm_head.", "language_model.lm_head."),
        ("model.", ""),
    )
    text_types = ("granite",)
    scales_logits = True

    def __init__(self, config: dict[str, Any]):
        text = dict(config["text_config"])
        if text.get("model_type") == "granite4_vision_text":
            text["model_type"] = "granite"
        tied = config.get("tie_word_embeddings", text.get("tie_word_embeddings", False))
        super().__init__(config, text | {"tie_word_embeddings": tied})
        vision = config["vision_config"]
        self.vision_tower = Tower(plain_vision(vision))
        size = self.vision_tower.vision_model.hidden_size
        self._first = int(isinstance(self.vision_tower.vision_model, CLIPVision))  # drops the class token
        strategy = "default" if self._first else "full"
        stated = config.get("vision_feature_select_strategy", "default")
        if stated != strategy:
            raise LoadError(
                f"vision_feature_select_strategy is {stated!r}; with this checkpoint's vision tower it is {strategy!r}."
            )
        self._side = vision["image_size"] // vision["patch_size"]
        window = window_side(config.get("downsample_rate"), self._side)
        layers = [(source, target) for source, target in config.get("deepstack_layer_map") or ()]
        spatial = config.get("spatial_target_layers") or (12, 15, 18, 21)
        if len(spatial) != len(CORNERS):
            raise LoadError(f"spatial_target_layers is {spatial}; expected {len(CORNERS)} layers of the text decoder.")
        self._sources = [source for source, _ in layers] + [config.get("spatial_vision_layer", -1)] * len(CORNERS)
        self._targets = [target - 1 for target in (*(target for _, target in layers), *spatial)]
        arguments = config.get("qformer_config") or {}, window, size, self.hidden_size
        self.layerwise_projectors = [WindowProjector(*arguments) for _ in layers]
        self.spatial_projectors = [WindowProjector(*arguments, corner) for corner in CORNERS]
        self.image_newline = mx.zeros(self.hidden_size)

    @property
    def deepstack_layers(self) -> Sequence[int]:
        targets: list[int] = self._targets
        return targets

    def encode(self, media: Sequence[Media]) -> list[Features]:
        """All of a picture's features are deepstack: at its tokens the embeddings are zeros."""
        squares = encode_squares(media, self._project)  # (media * squares, n, layers * d)
        squares = squares.reshape(len(media), -1, *squares.shape[1:])
        return [self._pack(picture, medium.grid) for picture, medium in zip(squares, media, strict=True)]

    def _project(self, pixels: mx.array) -> mx.array:
        states = self.vision_tower.vision_model.states(pixels, self._sources)
        projectors = (*self.layerwise_projectors, *self.spatial_projectors)
        parts = [project(x[:, self._first :], self._side) for project, x in zip(projectors, states, strict=True)]
        return mx.concatenate(parts, axis=-1)

    def _pack(self, squares: mx.array, grid: tuple[int, ...]) -> Features:
        """(1 + tiles, n, layers * d): the whole picture, then the lines of its tiles."""
        count = len(self._sources)
        lines = end_lines(unpadded(squares[1:], grid), mx.tile(self.image_newline, count))
        packed = mx.concatenate([squares[0], lines])
        deepstack: list[mx.array] = [*mx.split(packed, count, axis=-1)]
        return Features(mx.zeros_like(deepstack[0]), deepstack)


def window_side(rate: Any, side: int) -> int:
    """Of a downsample_rate, as "4/8". LoadError for one that is no half, or leaves part of `side` patches out."""
    queries, _, window = str(rate).partition("/")
    if not window.isdigit() or str(int(window) // 2) != queries or int(window) % 2 or side % int(window):
        raise LoadError(
            f"downsample_rate is {rate!r} with {side} patches a side; expected a half as 'queries/window', whose "
            "window divides the side."
        )
    return int(window)
