"""Qwen2-Audio: Whisper's encoder, a linear layer, and Qwen2.

Source: Chu et al. 2024 (arXiv 2407.10759); transformers' Qwen2AudioForConditionalGeneration.
"""

from collections.abc import Sequence
from typing import Any

from .._runtime import mx, nn
from ..errors import LoadError
from ..inputs.prompt import Media
from .base import Features
from .vision_language import VisionLanguageModel
from .whisper import WhisperConfig, WhisperEncoder, average_pairs, join_clips

TOWER = "qwen2_audio_encoder"


class Projector(nn.Module):
    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)

    def __call__(self, x: mx.array) -> mx.array:
        return self.linear(x)


class Qwen2Audio(VisionLanguageModel):
    renames = (
        ("model.audio_tower.", "audio_tower."),
        ("model.multi_modal_projector.", "multi_modal_projector."),
        ("model.language_model.", "language_model.model."),
        ("lm_head.", "language_model.lm_head."),
    )

    def __init__(self, config: dict[str, Any]):
        super().__init__(config)
        if (tower := config["audio_config"].get("model_type", TOWER)) != TOWER:
            raise LoadError(f"This checkpoint's audio tower is {tower!r}; expected {TOWER}.")
        audio = WhisperConfig.from_dict(config["audio_config"])
        self.audio_tower = WhisperEncoder(audio)
        self.multi_modal_projector = Projector(audio.d_model, self.hidden_size)

    def encode(self, media: Sequence[Media]) -> list[Features]:
        states = self.audio_tower.states(join_clips(media), media[0].grid[0])
        features = self.multi_modal_projector(self.audio_tower.layer_norm(average_pairs(states)))
        return [Features(clip) for clip in features]
