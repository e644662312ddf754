"""What Qwen's vision-language families share: the tower's attention, M-RoPE's positions, and how a forward goes."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .._runtime import mx, nn
from ..inputs.prompt import Media, Prompt
from .backbone import MRope
from .base import Embedded, Features
from .configuration import rope_type
from .vision_language import VisionLanguageModel, scatter_features


def rotary_positions(prompt: Prompt, merge: int, tokens_per_second: float | None = None) -> tuple[np.ndarray, int]:
    """M-RoPE positions (3, L) and how far they are ahead of the plain ones afterwards.

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


class QwenVL(VisionLanguageModel):
    """A family gives its text decoder's arguments, its tower, and how its M-RoPE shares out the frequencies: `section`
    is what transformers assumes.

    tower: takes pixels (B, N, patch) of B pictures or groups of frames of one grid, N = rows * columns in merge order,
    and rows and columns; gives features (B, N / merge^2, d), and one of the same for each deepstack layer. Frames do
    not see each other. traditional: see `MRope`.
    """

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
    ):
        super().__init__(config, text)
        self.vision_tower = tower
        self._tokens_per_second = tokens_per_second
        scaling = text["rope_scaling"]
        section = scaling.get("mrope_section", section)
        yarn = scaling if rope_type(scaling) == "yarn" else None
        rotary_dims = int(text["head_dim"] * text.get("partial_rotary_factor", 1.0))
        self._rope = MRope(rotary_dims, text["rope_theta"], section, interleaved, traditional, yarn)
        for layer in self.body.layers:
            if "self_attn" in layer:
                layer.self_attn.rope = self._rope

    def encode(self, media: Sequence[Media]) -> list[Features]:
        frames, rows, columns = media[0].grid
        pixels = np.stack([m.pixels for m in media]).reshape(len(media) * frames, rows * columns, -1)
        embeds, deepstack = self.vision_tower(mx.array(pixels), rows, columns)

        def split(x: mx.array) -> mx.array:  # (media * frames, n, d) -> (media, frames * n, d)
            return x.reshape(len(media), -1, x.shape[-1])

        embeds, deepstack = split(embeds), [split(x) for x in deepstack]
        return [Features(embeds[i], [x[i] for x in deepstack]) for i in range(len(media))]

    def embed(self, prompt: Prompt, features: Sequence[Features]) -> Embedded:
        plain = super().embed(prompt, features)
        assert plain.embeds is not None
        layers = zip(*(medium.deepstack for medium in features), strict=True)
        deepstack = [scatter_features(mx.zeros_like(plain.embeds), prompt, layer) for layer in layers]
        # Text alone could run on from the cache; positions rotate it by the same sums as in a pack with pictures.
        positions, delta = rotary_positions(prompt, self.vision_tower.merge, self._tokens_per_second)
        return Embedded(plain.tokens, plain.embeds, mx.array(positions)[:, None], delta, deepstack)

    def forward(self, inputs: Embedded, cache: Sequence[Any], at: mx.array | None = None) -> mx.array:
        text = self.language_model
        return self.driver.logits(text, self.driver.hidden_states(text, inputs, cache, self._rope), at)
