"""Voxtral: Whisper's encoder over chunks of 30 seconds, four of its positions a token, and Llama.

Source: Liu et al. 2025 (arXiv 2507.13264); transformers' VoxtralForConditionalGeneration.
"""

from collections.abc import Sequence
from typing import Any

from .._runtime import mx, nn
from ..errors import LoadError
from ..inputs.prompt import Media
from .base import Features
from .layers import ACTIVATIONS
from .vision_language import VisionLanguageModel
from .whisper import WhisperConfig, WhisperEncoder, join_clips

TOWER = "voxtral_encoder"
TEXT = {
    "model_type": "llama", "vocab_size": 131072, "hidden_size": 3072, "intermediate_size": 8192,
    "num_hidden_layers": 30, "num_key_value_heads": 8, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5,
    "rope_theta": 1e8, "head_dim": 128,
}  # fmt: skip
"""transformers' defaults of its text decoder."""
CHUNKS_AT_ONCE = 4
"""What is said in an hour is 120 of them."""


class Projector(nn.Module):
    def __init__(self, inputs: int, outputs: int, activation: str):
        super().__init__()
        self.linear_1 = nn.Linear(inputs, outputs, bias=False)
        self.linear_2 = nn.Linear(outputs, outputs, bias=False)
        self._activation = ACTIVATIONS[activation]

    def __call__(self, x: mx.array) -> mx.array:
        return self.linear_2(self._activation(self.linear_1(x)))


class Voxtral(VisionLanguageModel):
    renames = (
        ("model.audio_tower.", "audio_tower."),
        ("model.multi_modal_projector.", "multi_modal_projector."),
        ("model.language_model.", "language_model.model."),
        ("lm_head.", "language_model.lm_head."),
    )
    text_types = ("llama",)

    def __init__(self, config: dict[str, Any]):
        super().__init__(config, TEXT | config["text_config"])
        if (tower := config["audio_config"].get("model_type", TOWER)) != TOWER:
            raise LoadError(f"This checkpoint's audio tower is {tower!r}; expected {TOWER}.")
        audio = WhisperConfig.from_dict({"num_mel_bins": 128} | config["audio_config"])
        self.audio_tower = WhisperEncoder(audio)
        self.joined = audio.encoder_ffn_dim
        activation = config.get("projector_hidden_act", "gelu")
        self.multi_modal_projector = Projector(self.joined, self.hidden_size, activation)

    def encode(self, media: Sequence[Media]) -> list[Features]:
        clips = join_clips(media)
        frames = 2 * len(self.audio_tower.embed_positions.weight)
        chunks = clips.reshape(-1, frames, clips.shape[-1])
        starts = range(0, len(chunks), CHUNKS_AT_ONCE)
        parts = [self.encode_chunks(chunks[start : start + CHUNKS_AT_ONCE]) for start in starts]
        features = mx.concatenate(parts).reshape(len(media), -1, self.hidden_size)
        return [Features(clip) for clip in features]

    def encode_chunks(self, features: mx.array) -> mx.array:
        """(B, frames, mels) -> (B * tokens, d)."""
        states = self.audio_tower.layer_norm(self.audio_tower.states(features, features.shape[1]))
        return self.multi_modal_projector(states.reshape(-1, self.joined))
