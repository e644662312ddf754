"""What most families are: a tower that sees or hears, whose features replace placeholders, and one of mlx-lm's
decoders."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from .._runtime import mx, nn, tree_flatten
from ..errors import LoadError
from ..inputs.prompt import Media, Normalization, Prompt
from .backbone import layer_kinds
from .base import Embedded, Features, LayerKind, Model
from .decoders import DRIVEN
from .deepstack import Deepstack
from .layers import normalize
from .text import Driver, last_norm, unwrapped

UNUSED = ("vision_tower.vision_model.head.", "vision_tower.head.", "vision_model.head.")
"""SigLIP's pooling head: no text decoder takes it, and some checkpoints have it."""


class VisionLanguageModel(Model):
    """A family adds its tower and projector, `encode`, and `renames`; where it differs, it overrides the rest.

    renames: (old, new) beginnings of names, in the order in which they are tried; the first that fits is replaced.
    """

    renames: Sequence[tuple[str, str]] = ()
    within_window: ClassVar[bool] = True
    """See `backbone.Masks`."""
    text_types: ClassVar[Sequence[str]] = DRIVEN
    """The `model_type`s that its text decoder may have; see `decoders.DRIVEN`."""
    scales_logits: ClassVar[bool] = False
    """Whether logits are scaled or capped as in a text-only model. Few of transformers' classes do so: the others have
    an output layer apart from their decoder. It changes no greedy answer."""

    def __init__(self, config: dict[str, Any], text: Mapping[str, Any] | None = None):
        """text: the text decoder's configuration, of any release; default config["text_config"]."""
        super().__init__(config)
        text = config["text_config"] if text is None else text
        if (named := text.get("model_type")) not in self.text_types:
            expected = ", ".join(self.text_types)
            raise LoadError(f"This {config['model_type']} checkpoint's text decoder is {named!r}; expected {expected}.")
        self.driver = Driver(text, self.scales_logits)
        self.switch = self.driver.switch
        self.language_model = unwrapped(self.driver.decoder())
        self.hidden_size: int = self.driver.arguments["hidden_size"]

    @property
    def body(self) -> nn.Module:
        """The decoder's embeddings, layers and last norm."""
        return self.language_model.model

    @property
    def deepstack_layers(self) -> Sequence[int] | None:
        """See `backbone.decode`."""
        return None

    def cache_layout(self) -> list[LayerKind]:
        return layer_kinds(self.language_model)

    def last_norm(self, h: mx.array) -> mx.array:
        return last_norm(self.body, h)

    def embed_tokens(self, tokens: mx.array) -> mx.array:
        """tokens (B, L) -> (B, L, d), scaled so that features of media fit beside them."""
        return self.driver.embed(self.language_model, tokens)

    def embed(self, prompt: Prompt, features: Sequence[Features]) -> Embedded:
        tokens = mx.array(prompt.tokens)[None]
        embeds = scatter_features(self.embed_tokens(tokens), prompt, [medium.embeds for medium in features])
        return Embedded(
            tokens,
            embeds,
            deepstack=place_deepstack(prompt, features),
            two_way=two_way(prompt),
            variant=self.variant(prompt),
        )

    def embed_answer(self, tokens: mx.array) -> mx.array:
        """Tokens (B, L) that rows have drawn -> (B, L, d)."""
        return self.driver.embed(self.language_model, tokens)

    def forward(self, inputs: Embedded, cache: Sequence[Any], at: mx.array | None = None) -> mx.array:
        text = self.language_model
        if inputs.embeds is None:
            inputs = replace(inputs, embeds=self.embed_answer(inputs.tokens))
        h = self.driver.hidden_states(text, inputs, cache, at, None, self.within_window, self.deepstack_layers)
        return self.driver.logits(text, h)

    @classmethod
    def rename(cls, key: str) -> str | None:
        """A tensor's name in any published layout -> the parameter's name here."""
        name = next((new + key.removeprefix(old) for old, new in cls.renames if key.startswith(old)), key)
        return None if name.startswith(UNUSED) or name.endswith(".position_ids") else name

    def sanitize(self, weights: Mapping[str, mx.array]) -> dict[str, mx.array]:
        """Names by `rename`; convolutions with their channels last; the text decoder's by mlx-lm's rules."""
        parameters = dict(tree_flatten(self.parameters()))
        text: dict[str, mx.array] = {}
        out: dict[str, mx.array] = {}
        for key, value in weights.items():
            name = self.rename(key)
            if name is None:
                continue
            if name.startswith("language_model."):
                text[name.removeprefix("language_model.")] = value
                continue
            if value.ndim >= 3 and name in parameters and value.shape[-1] != parameters[name].shape[-1]:
                value = value.moveaxis(1, -1)  # torch's (O, C, ...)
            out[name] = value
        if hasattr(self.language_model, "sanitize"):
            text = self.language_model.sanitize(text)
        return out | {f"language_model.{key}": value for key, value in text.items()}


def tie_output(text: nn.Module, tied: bool, weights: dict[str, mx.array]) -> dict[str, mx.array]:
    """The sanitized `weights` of a model with the decoder `text`, which was built with an output layer. It keeps that
    where the checkpoint has one, whatever its configuration says: what transformers 5 saves may have one and call it
    tied."""
    if tied and "language_model.lm_head.weight" not in weights:
        del text.lm_head  # the embeddings are the output layer
    return weights


TILES_AT_ONCE = 16
"""A clip may have hundreds of frames: the tower's widest states then take 0.2 GB in float32, and not gigabytes."""


def join_pixels(media: Sequence[Media]) -> mx.array:
    """media: of one form, pixels (T, ...) each -> one batch (media * T, ...)."""
    return mx.array(media[0].pixels if len(media) == 1 else np.concatenate([medium.pixels for medium in media]))


def tower_input(pixels: mx.array, normalization: Normalization | None) -> mx.array:
    """`Media.pixels` of some media -> what their tower takes: floats, tiles as (B, H, W, 3)."""
    if normalization is not None and pixels.dtype == mx.uint8:
        return normalize(pixels.flatten(2), normalization).reshape(pixels.shape)
    return pixels.transpose(0, 2, 3, 1) if pixels.ndim == 4 else pixels


def encode_squares(
    media: Sequence[Media], encode: Callable[[mx.array], mx.array], at_once: int = TILES_AT_ONCE
) -> mx.array:
    """Features (B, n, d) of all B tiles of media of one form, some tiles at a time.

    encode: (b, H, W, 3), or (b, N, patch * patch * 3) -> (b, n, d).
    """
    tiles, normalization = join_pixels(media), media[0].normalization
    starts = range(0, len(tiles), at_once)
    parts = [encode(tower_input(tiles[start : start + at_once], normalization)) for start in starts]
    return parts[0] if len(parts) == 1 else mx.concatenate(parts)


def encode_tiles(
    media: Sequence[Media], encode: Callable[[mx.array], mx.array], at_once: int = TILES_AT_ONCE
) -> list[Features]:
    """The same, those of the tiles of each medium in a row."""
    features = encode_squares(media, encode, at_once)
    return [Features(rows) for rows in features.reshape(len(media), -1, features.shape[-1])]


def scatter_features(embeds: mx.array, prompt: Prompt, features: Sequence[mx.array]) -> mx.array:
    """embeds (1, L, d) with each medium's features (n, d) at its spans."""
    for medium, rows in zip(prompt.media, features, strict=True):
        first = 0
        for start, end in medium.spans:
            embeds[0, start:end] = rows[first : first + end - start].astype(embeds.dtype)
            first += end - start
        if first != len(rows):
            raise ValueError(f"{len(rows)} features for {first} placeholders")
    return embeds


def place_deepstack(prompt: Prompt, features: Sequence[Features]) -> Deepstack | None:
    """What the media of a prompt add between layers, at their spans; None where none adds anything."""
    known = [(medium, part.deepstack) for medium, part in zip(prompt.media, features, strict=True) if part.deepstack]
    if not known:
        return None
    places, count = np.zeros((1, len(prompt.tokens)), dtype=np.int32), 0
    for medium, layers in known:
        before = count
        for start, end in medium.spans:
            places[0, start:end] = np.arange(count, count + end - start) + 1
            count += end - start
        if any(len(rows) != count - before for rows in layers):
            raise ValueError(f"{[len(rows) for rows in layers]} features of layers for {count - before} placeholders")
    return Deepstack([*zip(*(layers for _, layers in known), strict=True)], places)


def two_way(prompt: Prompt) -> mx.array | None:
    """(1, L) for `Embedded.two_way`: a number for each span of the prompt's."""
    if not prompt.two_way:
        return None
    groups = np.zeros((1, len(prompt.tokens)), dtype=np.int32)
    for number, (start, end) in enumerate(prompt.two_way, 1):
        groups[0, start:end] = number
    return mx.array(groups)
