"""Llama 3.2 Vision: a tower that sees a picture's tiles together, and Llama with layers between that attend to what it
gives.

Source: Llama Team 2024 (arXiv 2407.21783, section 7); transformers' MllamaForConditionalGeneration.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .._runtime import mx, nn
from ..errors import UnsupportedError
from ..inputs.prompt import Media, Prompt
from .attention import GATED, MLP, linear_without_bias, merge_heads, split_heads
from .base import CrossAttention, CrossStates, Embedded, Features, Full, LayerKind
from .configuration import Arguments, BaseConfig
from .mllama_vision import MllamaVisionConfig, VisionModel
from .text_attention import text_attention
from .vision_language import VisionLanguageModel, join_pixels, tower_input

MORE_EMBEDDINGS = 8
"""Rows of the embedding table past the output layer's; the first is the picture's placeholder."""


@dataclass(frozen=True)
class MllamaTextConfig(BaseConfig):
    vocab_size: int = 128256
    hidden_size: int = 4096
    hidden_act: str = "silu"
    num_hidden_layers: int = 40
    num_attention_heads: int = 32
    num_key_value_heads: int = 8
    intermediate_size: int = 14336
    rope_theta: float = 500000.0
    rms_norm_eps: float = 1e-5
    max_position_embeddings: int = 131072
    cross_attention_layers: Sequence[int] = (3, 8, 13, 18, 23, 28, 33, 38)


@dataclass
class Seen:
    """What one layer attends to in one forward of B rows of L tokens, in the place of its cache.

    keys, values: (B, H, K, D). mask: bool (B, 1, L or 1, K). some: (B, L or 1, 1), whether a token sees any picture.
    rows: (B, 1, 1), which rows have pictures.
    """

    keys: mx.array
    values: mx.array
    mask: mx.array
    some: mx.array
    rows: mx.array

    def make_mask(self, *_: Any, **__: Any) -> None:
        """For `backbone.Masks`: the mask is here."""


@dataclass
class Nothing:
    """The same where no row has pictures."""

    def make_mask(self, *_: Any, **__: Any) -> None:
        pass


class Attention(nn.Module):
    def __init__(self, config: MllamaTextConfig):
        super().__init__()
        hidden, size = config.hidden_size, config.hidden_size // config.num_attention_heads
        self.heads, self.kv_heads, self.scale = config.num_attention_heads, config.num_key_value_heads, size**-0.5
        self.q_proj = nn.Linear(hidden, self.heads * size, bias=False)
        self.k_proj, self.v_proj = (nn.Linear(hidden, self.kv_heads * size, bias=False) for _ in range(2))
        self.o_proj = nn.Linear(self.heads * size, hidden, bias=False)
        self.q_norm, self.k_norm = (nn.RMSNorm(size, eps=config.rms_norm_eps) for _ in range(2))

    def project(self, states: mx.array) -> tuple[mx.array, mx.array]:
        """(B, K, d) -> keys and values (B, H, K, D)."""
        k, v = split_heads(self.k_proj(states), self.kv_heads), split_heads(self.v_proj(states), self.kv_heads)
        return self.k_norm(k), v

    def __call__(self, x: mx.array, seen: Seen) -> mx.array:
        q = self.q_norm(split_heads(self.q_proj(x), self.heads))
        return self.o_proj(merge_heads(text_attention(q, seen.keys, seen.values, None, self.scale, seen.mask)))


class CrossLayer(nn.Module):
    """Both halves scaled by a gate. Rows without pictures go past it."""

    def __init__(self, config: MllamaTextConfig):
        super().__init__()
        hidden, eps = config.hidden_size, config.rms_norm_eps
        self.cross_attn = Attention(config)
        self.mlp = MLP(hidden, config.intermediate_size, config.hidden_act, GATED, linear_without_bias)
        self.input_layernorm, self.post_attention_layernorm = (nn.RMSNorm(hidden, eps=eps) for _ in range(2))
        self.cross_attn_attn_gate, self.cross_attn_mlp_gate = mx.zeros(1), mx.zeros(1)

    def __call__(self, x: mx.array, mask: None, seen: Seen | Nothing) -> mx.array:
        if isinstance(seen, Nothing):
            return x
        h = x + mx.tanh(self.cross_attn_attn_gate) * self.cross_attn(self.input_layernorm(x), seen)
        # transformers lets tokens before any picture attend to all of them, and leaves out their MLP only.
        h = h + mx.tanh(self.cross_attn_mlp_gate) * mx.where(seen.some, self.mlp(self.post_attention_layernorm(h)), 0)
        return mx.where(seen.rows, h, x)


class Mllama(VisionLanguageModel):
    text_types = ("llama",)
    renames = (
        ("vision_tower.", "vision_model."),
        ("model.vision_model.", "vision_model."),
        ("model.multi_modal_projector.", "multi_modal_projector."),
        ("model.language_model.", "language_model.model."),
        ("lm_head.", "language_model.lm_head."),
    )

    def __init__(self, config: dict[str, Any]):
        text: Arguments = MllamaTextConfig.complete(
            {key: value for key, value in config["text_config"].items() if value is not None}
        )
        super().__init__(config, text | {"model_type": "llama", "tie_word_embeddings": False})
        sizes = MllamaTextConfig.from_dict(text)
        vision = MllamaVisionConfig.from_dict(config["vision_config"])
        self._cross = tuple(sizes.cross_attention_layers)
        self._image: int = config.get("image_token_index", config.get("image_token_id", 128256))
        body = self.language_model.model
        body.embed_tokens = nn.Embedding(sizes.vocab_size + MORE_EMBEDDINGS, sizes.hidden_size)
        for layer in self._cross:
            body.layers[layer] = CrossLayer(sizes)
        self.vision_model = VisionModel(vision)
        self.multi_modal_projector = nn.Linear(vision.vision_output_dim, self.hidden_size)

    def published(self, name: str) -> tuple[str, ...]:
        return (name.replace("vision_model.", "vision_tower.", 1) if name.startswith("vision_model.") else name,)

    def cache_layout(self) -> list[LayerKind]:
        return [CrossAttention() if i in self._cross else Full() for i in range(len(self.body.layers))]

    def encode(self, media: Sequence[Media]) -> list[Features]:
        """All tiles of a picture, and as many blank ones as make the tower's number of tiles."""
        pixels = tower_input(join_pixels(media), media[0].normalization)
        states = self.vision_model(pixels.reshape(len(media), -1, *pixels.shape[1:]), media[0].grid)
        return [Features(picture) for picture in self.multi_modal_projector(states)]

    def embed(self, prompt: Prompt, features: Sequence[Features]) -> Embedded:
        tokens = mx.array(prompt.tokens)[None]
        if not features:
            return Embedded(tokens)
        groups = []
        for number, (medium, rows) in enumerate(zip(prompt.media, features, strict=True), 1):
            tile = mx.arange(len(rows.embeds)) // (len(rows.embeds) // self.vision_model.max_tiles)
            groups.append(mx.where(tile < medium.grid[0] * medium.grid[1], number, 0))
        states = mx.concatenate([rows.embeds for rows in features])[None]
        return Embedded(tokens, cross=CrossStates(states, mx.concatenate(groups)[None].astype(mx.int32)))

    def forward(self, inputs: Embedded, cache: Sequence[Any], at: mx.array | None = None) -> mx.array:
        layers: list[Any] = list(cache)
        if inputs.cross is None:
            for layer in self._cross:
                layers[layer] = later(cache[layer].joined())
        else:
            if any(layer.offset for i, layer in enumerate(cache) if i not in self._cross):
                raise UnsupportedError(
                    "past: tokens of this model attend to pictures that come after them, too: where there is a new "
                    "picture, leave the past out and give the whole prompt"
                )
            mask, some = visible(inputs.tokens == self._image, inputs.cross.groups)
            counts = (inputs.cross.groups >= 0).sum(axis=1)
            for layer in self._cross:
                keys, values = self.body.layers[layer].cross_attn.project(inputs.cross.states)
                cache[layer].write([keys, values, mask[:, 0, -1]], counts.tolist())
                layers[layer] = Seen(keys, values, mask, some, counts[:, None, None] > 0)
        h = self.driver.hidden_states(self.language_model, inputs, layers, at)
        return self.driver.logits(self.language_model, h)


def later(joined: Sequence[mx.array] | None) -> Seen | Nothing:
    """What tokens after all pictures attend to: `CrossCache.joined`."""
    if joined is None:
        return Nothing()
    keys, values, last = joined
    return Seen(keys, values, last[:, None, None], mx.array([[[True]]]), last.any(axis=1)[:, None, None])


def visible(is_picture: mx.array, groups: mx.array) -> tuple[mx.array, mx.array]:
    """What each token attends to (B, 1, L, K), and whether that is any picture (B, L, 1): the last picture before it,
    and those directly before that one; before the first picture all of them, the blank tiles too.

    is_picture: (B, L), the placeholders. groups: (B, K), see `CrossStates`.
    Source: `get_cross_attention_token_mask` of transformers' MllamaProcessor.
    """
    last = mx.cumsum(is_picture.astype(mx.int32), axis=1)[..., None]  # (B, L, 1)
    before = mx.pad(is_picture[:, :-1], [(0, 0), (1, 0)])
    first = mx.cummax(mx.where((is_picture & ~before)[..., None], last, 0), axis=1)
    of, some = groups[:, None], last > 0
    mask = mx.where(some, (of >= first) & (of <= last) & (of > 0), of >= 0)
    return mask[:, None], some
