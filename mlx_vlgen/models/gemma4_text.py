"""The text decoder of Gemma 4: mlx-lm's, the last layers of which may attend to keys and values of earlier ones, and
what its families share around it. Gemma 3n's is another, and run by the same loop.

Source: transformers' Gemma4TextModel; Gemma 3n's report (per-layer inputs, shared keys and values).
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from .._runtime import mx, nn, tree_flatten
from .backbone import Masks, gather_last, query_mask
from .base import Embedded, Model
from .gemma import scale_embeddings
from .layers import pace
from .vision_language import VisionLanguageModel


class Projector(nn.Module):
    def __init__(self, vision: int, text: int, eps: float):
        super().__init__()
        self.embedding_projection = nn.Linear(vision, text, bias=False)
        self._eps = eps

    def __call__(self, x: mx.array) -> mx.array:
        return self.embedding_projection(mx.fast.rms_norm(x, None, self._eps))


class SharedKVCache:
    """The cache of an earlier layer, for a layer that attends to its keys and values and adds none."""

    def __init__(self, cache: Any):
        self._cache = cache

    def update_and_fetch(self, keys: Any, values: Any) -> tuple[Any, Any]:
        return keys, values

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)


UNUSED = r"^language_model\.lm_head\.|^audio_tower\.|^embed_audio\.|_tower\..*\.(in|out)put_(min|max)$"


class Gemma4Decoder(VisionLanguageModel):
    """A family adds its towers."""

    scales_logits = True
    two_way_everywhere: ClassVar[bool] = False
    """Whether tokens of a picture see each other both ways in full layers, too, and not in sliding ones only."""
    unused: ClassVar[str] = UNUSED
    """Pattern of names that some checkpoints have beside those of their configuration's parameters."""

    def __init__(self, config: dict[str, Any]):
        super().__init__(config)
        media = ("image", 258880), ("video", 258884), ("audio", 258881)
        ids = [config.get(f"{kind}_token_id", default) for kind, default in media]
        self._media_tokens = mx.array([token for token in ids if token is not None])

    def sanitize(self, weights: Mapping[str, mx.array]) -> dict[str, mx.array]:
        """Without what this configuration does not use: bounds, an audio tower, a copy of the embeddings."""
        known = dict(tree_flatten(self.parameters()))
        return {
            name: tensor
            for name, tensor in super().sanitize(weights).items()
            if re.sub(r"\.(scales|biases)$", ".weight", name) in known or not re.search(self.unused, name)
        }

    def _pad_media_tokens(self, tokens: mx.array) -> mx.array:
        """The tokens with padding in the places of pictures and videos."""
        is_media = (tokens[..., None] == self._media_tokens).any(axis=-1)
        return mx.where(is_media, self.language_model.args.pad_token_id, tokens)

    def embed_tokens(self, tokens: mx.array) -> mx.array:
        return super().embed_tokens(self._pad_media_tokens(tokens))

    def per_layer_inputs(self, tokens: mx.array, embeds: mx.array) -> mx.array | None:
        """tokens (B, L), embeds (B, L, d) -> what each layer takes besides the states: (B, L, layers, n)."""
        text = self.body
        if not text.hidden_size_per_layer_input:
            return None
        shape = *tokens.shape, len(text.layers), text.hidden_size_per_layer_input
        of_tokens = scale_embeddings(text.embed_tokens_per_layer(self._pad_media_tokens(tokens)).reshape(shape))
        context = (text.per_layer_model_projection(embeds) * embeds.shape[-1] ** -0.5).reshape(shape)
        return (text.per_layer_projection_norm(context) + of_tokens) * 2**-0.5

    def expand(self, embeds: mx.array) -> mx.array:
        """Embeddings (B, L, d) -> what the first layer takes, (B, L, ...)."""
        return embeds

    def collapse(self, h: mx.array) -> mx.array:
        """The inverse, of what the last layer gives."""
        return h

    last_norm = Model.last_norm  # shows nothing: its last layers may compute one position only

    def forward(self, inputs: Embedded, cache: Sequence[Any], at: mx.array | None = None) -> mx.array:
        embeds = self.embed_tokens(inputs.tokens) if inputs.embeds is None else inputs.embeds
        per_layer = self.per_layer_inputs(inputs.tokens, embeds) if inputs.per_layer is None else inputs.per_layer
        masks = {
            "full_attention": Masks(embeds, inputs.two_way if self.two_way_everywhere else None),
            "sliding_attention": Masks(embeds, inputs.two_way, self.within_window),
        }
        h, shared, length = self.expand(embeds), dict[int, Any](), len(inputs)
        for index, (layer, source) in enumerate(zip(self.body.layers, self.body.previous_kvs, strict=True)):
            layer_cache, layer_input = cache[source], None if per_layer is None else per_layer[:, :, index]
            mask = masks[layer.layer_type](layer_cache)
            if source == index:
                before, (h, *shared[index]) = h, layer(h, mask, layer_cache, layer_input)
                if inputs.paced:
                    pace(before, h)
                continue
            keys_values, offset = shared[source]
            if at is not None and length > 1:
                # This layer and later ones write no keys: only the requested positions are computed.
                keys = keys_values[0]
                mask = query_mask(mask, at, length, (keys if isinstance(keys, mx.array) else keys[0]).shape[2])
                h = h if h.shape[1] == 1 else gather_last(h, at)[:, None]
                offset = offset + at
                if layer_input is not None:
                    layer_input = gather_last(layer_input, at)[:, None]
            h, _, _ = layer(h, mask, SharedKVCache(layer_cache), layer_input, keys_values, offset)
        is_gathered, h = h.shape[1] < length, self.collapse(h)
        return self.driver.logits(self.language_model, h[:, 0] if is_gathered else gather_last(h, at))
