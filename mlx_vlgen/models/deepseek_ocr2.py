"""DeepSeek-OCR 2: SAM's encoder, then Qwen 2 with learned queries that read its features in the order of the page.

Source: transformers' DeepseekOcr2ForConditionalGeneration.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from .._runtime import mx, nn
from .decoders import mlx_lm_decoder, text_arguments
from .deepseek_ocr import Projector, SamOcr, published_sam
from .sam import SamConfig

QUERIES = 144, 256
"""Of a tile and of a whole page: tables of two sizes, whatever the configuration says."""


def encoder_config(vision: Mapping[str, Any]) -> dict[str, Any]:
    """Of Qwen 2. The published checkpoints give its width only, which is that of Qwen2-0.5B."""
    if "encoder_config" in vision:
        return {**vision["encoder_config"], "model_type": "qwen2"}
    published = vision["width"]["qwen2-0-5b"]
    return {
        "model_type": "qwen2",
        "hidden_size": published["dim"],
        "num_hidden_layers": published.get("layers", 24),
        "num_attention_heads": published.get("heads", 14),
        "num_key_value_heads": published.get("kv_heads", 2),
        "intermediate_size": published.get("intermediate_size", 4864),
        "rope_theta": 1e6,
    }


def sam_config(vision: Mapping[str, Any], last: int) -> SamConfig:
    """last: channels that the encoder after it takes; those of published configurations are another model's."""
    if "sam_config" in vision:
        return SamConfig.from_dict({"downsample_channels": (512, 896), **vision["sam_config"]})
    return published_sam(vision, last)


class Qwen2Encoder(nn.Module):
    """mlx-lm's layers, and a mask in which patches see each other, and queries see patches and earlier queries."""

    def __init__(self, config: Mapping[str, Any]):
        super().__init__()
        decoder = mlx_lm_decoder(text_arguments({**config, "vocab_size": 1, "tie_word_embeddings": True})).model
        self.layers, self.norm = decoder.layers, decoder.norm
        self.query_768, self.query_1024 = (mx.zeros((count, config["hidden_size"])) for count in QUERIES)

    def __call__(self, x: mx.array) -> mx.array:
        """Patches (B, N, d) -> what the queries gather, (B, queries, d)."""
        batch, patches, _ = x.shape
        queries = self.query_768 if patches <= QUERIES[0] else self.query_1024
        x = mx.concatenate([x, mx.broadcast_to(queries, (batch, *queries.shape)).astype(x.dtype)], axis=1)
        index = np.arange(x.shape[1])
        mask = mx.array((index <= index[:, None]) | ((index < patches) & (index[:, None] < patches)))
        for layer in self.layers:
            x = layer(x, mask, None)
        return self.norm(x)[:, patches:]


class Qwen2Vision(nn.Module):
    """One level deeper, as conversions for MLX name it."""

    def __init__(self, config: Mapping[str, Any]):
        super().__init__()
        self.qwen2_encoder = Qwen2Encoder(config)

    def __call__(self, x: mx.array) -> mx.array:
        """(B, rows, columns, d) -> (B, queries, d)."""
        return self.qwen2_encoder(x.flatten(1, 2))


class DeepseekOcr2(SamOcr):
    def __init__(self, config: dict[str, Any]):
        vision = config["vision_config"]
        encoder = encoder_config(vision)
        super().__init__(config, sam_config(vision, encoder["hidden_size"]))
        self.vision_model = Qwen2Vision(encoder)
        self.projector = Projector(encoder["hidden_size"], self.hidden_size)
