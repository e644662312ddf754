"""Text-only checkpoints: any text decoder of mlx-lm behind the same contract as a vision-language family."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from .._runtime import mx, nn
from ..errors import PromptError, UnsupportedError
from ..inputs.prompt import Media, Prompt
from .backbone import decode, gather_last, layer_kinds, output_layer
from .base import Embedded, Features, LayerKind, Model
from .decoders import DRIVEN, mlx_lm_decoder, record_of, text_arguments


class Driver:
    """How one text decoder is run: by its record in `decoders` and its arguments.

    text: the network that `decoder` gives. Its `model` has embeddings, layers and the last norm; it may have an
    `lm_head`.
    """

    def __init__(self, config: Mapping[str, Any], scales_logits: bool = True):
        record = record_of(config["model_type"])
        assert record is not None
        self.arguments, self._record = text_arguments(config), record
        self.switch = record.switch(self.arguments)
        self._scales_logits = scales_logits

    def decoder(self) -> nn.Module:
        return self._record.network(self.arguments)

    def embed(self, text: nn.Module, tokens: mx.array) -> mx.array:
        """tokens (B, L) -> (B, L, d), scaled so that features of media fit beside them."""
        return self._record.scale_tokens(text.model.embed_tokens(tokens), self.arguments)

    def hidden_states(
        self,
        text: nn.Module,
        inputs: Embedded,
        cache: Sequence[Any],
        at: mx.array | None = None,
        offset: Any = None,
        within_window: bool = True,
        deepstack_layers: Sequence[int] | None = None,
    ) -> mx.array:
        """(B, L, d), before the last norm; (B, d) at position `at[b]` of each row where it is given. offset,
        within_window, deepstack_layers: see `backbone.decode`."""
        embeds = self.embed(text, inputs.tokens) if inputs.embeds is None else inputs.embeds
        embeds = self._record.scale_inputs(embeds, self.arguments)
        extra: Sequence[Any] = ()
        if self._record.extra_inputs is not None:
            extra = self._record.extra_inputs(self.arguments, embeds, cache[0].offset, inputs.variant)
        inputs, masks = replace(inputs, embeds=embeds), self._record.mask_arrays
        return decode(text.model, inputs, cache, at, offset, within_window, extra, deepstack_layers, masks)

    def logits(self, text: nn.Module, h: mx.array) -> mx.array:
        """(..., V) of the last states (..., d)."""
        logits = output_layer(text, last_norm(text.model, h))
        return self._record.scale_logits(logits, self.arguments) if self._scales_logits else logits


def last_norm(body: nn.Module, h: mx.array) -> mx.array:
    """Of a decoder's `model`."""
    normalised: mx.array = (body.embedding_norm if "embedding_norm" in body else body.norm)(h)
    return normalised


def unwrapped(decoder: nn.Module) -> nn.Module:
    """What has `model` and `lm_head`: Qwen3.5's comes in a wrapper."""
    text: nn.Module = decoder.language_model if "language_model" in decoder else decoder
    return text


class TextModel(Model):
    """A text decoder of mlx-lm. Its parameters keep mlx-lm's names (`model.layers.0…`, `lm_head`).

    One with a record in `decoders` is run layer by layer, as in vision-language families; another runs whole.
    """

    text_prefix = ""

    def __init__(self, config: dict[str, Any]):
        super().__init__(config)
        text = self.decoder_config(config)
        self.driver = Driver(text) if text["model_type"] in DRIVEN else None
        self.switch = self.driver.switch if self.driver else None
        # Not a child for MLX, which would prefix all names with its name: its children become this module's.
        object.__setattr__(
            self, "_decoder", self.driver.decoder() if self.driver else mlx_lm_decoder(text_arguments(text))
        )
        self._sync_from_decoder()

    @classmethod
    def decoder_config(cls, config: Mapping[str, Any]) -> Mapping[str, Any]:
        """The decoder's part of config.json."""
        return config

    def _sync_from_decoder(self) -> None:
        for name in [name for name in self if not name.startswith("_") and name not in self._decoder]:
            del self[name]
        for name, child in self._decoder.items():
            self[name] = child

    def update(self, parameters: dict[str, Any], strict: bool = True) -> nn.Module:
        super().update(parameters, strict)
        return self._sync_to_decoder()

    def update_modules(self, modules: dict[str, Any], strict: bool = True) -> nn.Module:
        super().update_modules(modules, strict)
        return self._sync_to_decoder()

    def _sync_to_decoder(self) -> nn.Module:
        """Replaces in the decoder what was replaced here: it must not run the old one, nor keep it in memory."""
        for name in self._decoder:
            self._decoder[name] = self[name]
        return self

    def text_decoder(self) -> nn.Module:
        return self._decoder

    def rename(self, key: str) -> str:
        """mlx-vlm names a text decoder as part of a vision-language model; some of mlx-lm's are, too."""
        return key if "language_model" in self._decoder else key.removeprefix("language_model.")

    def sanitize(self, weights: Mapping[str, mx.array]) -> dict[str, mx.array]:
        renamed = {self.rename(key): value for key, value in weights.items()}
        if not hasattr(self._decoder, "sanitize"):
            return renamed
        renamed = self._decoder.sanitize(renamed)
        self._sync_from_decoder()  # gemma3_text drops its lm_head there when the checkpoint has none
        return renamed

    def cache_layout(self) -> list[LayerKind]:
        return layer_kinds(self._decoder)

    def encode(self, media: Sequence[Media]) -> list[Features]:
        raise UnsupportedError(
            f"This is a text-only model ({self.config['model_type']}): it takes no pictures or videos."
        )

    def embed(self, prompt: Prompt, features: Sequence[Features]) -> Embedded:
        if prompt.media or features:
            raise PromptError(
                f"This is a text-only model ({self.config['model_type']}): leave the picture or video out, "
                "or load a vision-language model."
            )
        return Embedded(mx.array(prompt.tokens)[None], variant=self.variant(prompt))

    def embed_answer(self, tokens: mx.array) -> mx.array:
        """See `VisionLanguageModel`; of a decoder that is run layer by layer."""
        assert self.driver is not None
        return self.driver.embed(unwrapped(self._decoder), tokens)

    def forward(self, inputs: Embedded, cache: Sequence[Any], at: mx.array | None = None) -> mx.array:
        if self.driver is None:
            return gather_last(self._decoder(inputs.tokens, cache=cache), at)  # its head may scale or cap the logits
        text = unwrapped(self._decoder)
        return self.driver.logits(text, self.driver.hidden_states(text, inputs, cache, at))

    def last_norm(self, h: mx.array) -> mx.array:
        return last_norm(unwrapped(self._decoder).model, h) if self.driver else super().last_norm(h)
