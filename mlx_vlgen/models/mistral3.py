"""Mistral Small 3.1 and Ministral 3: Pixtral's tower, patches merged before a projector, Mistral or Ministral 3.

Source: transformers' Mistral3ForConditionalGeneration and Ministral3Model.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

from .._runtime import mx, nn
from .attention import MLP, PROJECTOR
from .pixtral import Pixtral, PixtralVisionConfig


class PatchMerger(nn.Module):
    def __init__(self, hidden: int, merge: int):
        super().__init__()
        self.merging_layer = nn.Linear(hidden * merge**2, hidden, bias=False)
        self.merge = merge

    def __call__(self, x: mx.array) -> mx.array:
        """(B, rows, columns, d) -> (B, N, d): merge x merge patches become one; a last row or column that fills none
        goes."""
        m = self.merge
        batch, rows, columns, hidden = x.shape[0], x.shape[1] // m, x.shape[2] // m, x.shape[3]
        whole = x[:, : rows * m, : columns * m]
        squares = whole.reshape(batch, rows, m, columns, m, hidden).transpose(0, 1, 3, 5, 2, 4)
        return self.merging_layer(squares.reshape(batch, -1, hidden * m * m))


class Projector(MLP):
    def __init__(self, config: dict[str, Any], vision: int, text: int, eps: float):
        linear = partial(nn.Linear, bias=config.get("multimodal_projector_bias", False))
        super().__init__(vision, text, config.get("projector_hidden_act", "gelu"), PROJECTOR, linear, text)
        self.norm = nn.RMSNorm(vision, eps=eps)
        self.patch_merger = PatchMerger(vision, config.get("spatial_merge_size", 2))

    def __call__(self, x: mx.array) -> mx.array:
        return super().__call__(self.patch_merger(self.norm(x)))


class Mistral3(Pixtral):
    feature_layer = -1
    text_types: ClassVar[Sequence[str]] = ("mistral", "ministral3")

    def __init__(self, config: dict[str, Any]):
        super().__init__(config)
        vision, eps = PixtralVisionConfig.from_dict(config["vision_config"]), self.driver.arguments["rms_norm_eps"]
        self.multi_modal_projector = Projector(config, vision.hidden_size, self.hidden_size, eps)
        self._patch = vision.patch_size

    def encode_pixels(self, pixels: mx.array) -> mx.array:
        batch, height, width, _ = pixels.shape
        return self.multi_modal_projector(
            self.states(pixels).reshape(batch, height // self._patch, width // self._patch, -1)
        )

    def sanitize(self, weights: Mapping[str, mx.array]) -> dict[str, mx.array]:
        return super().sanitize(from_fp8(weights))


def from_fp8(weights: Mapping[str, mx.array]) -> dict[str, mx.array]:
    """Ministral 3's weights of 8 bits, each with a scale, as bfloat16; mlx-lm's decoder would read bytes as numbers.
    Scales of activations go: these are not rounded here. Source: transformers' FP8Linear."""
    out = {}
    for name, value in weights.items():
        if name.endswith(("_scale_inv", "activation_scale")):
            continue
        if (scale := weights.get(f"{name}_scale_inv")) is not None:
            if scale.size != 1:
                raise ValueError(f"{name} has scales {scale.shape}; expected one for the whole tensor")
            value = (mx.from_fp8(value, mx.float32) * scale.astype(mx.float32)).astype(mx.bfloat16)
        out[name] = value
    return out
