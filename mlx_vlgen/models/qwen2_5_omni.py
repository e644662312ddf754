"""The thinker of Qwen2.5-Omni: Qwen2.5-VL with ears.

Source: Xu et al. 2025 (arXiv 2503.20215); transformers' Qwen2_5OmniThinkerForConditionalGeneration.
"""

from dataclasses import dataclass
from typing import Any

from .configuration import thinker_config
from .omni import Omni
from .omni_audio import OmniAudioConfig, Qwen2_5OmniAudio
from .qwen2_5_vl import Qwen2_5_VLVisionConfig, VisionTower
from .qwen2_vl import Qwen2VLTextConfig, text_arguments


@dataclass(frozen=True)
class Qwen2_5OmniTextConfig(Qwen2VLTextConfig):
    hidden_size: int = 3584
    intermediate_size: int = 18944
    num_hidden_layers: int = 28
    num_attention_heads: int = 28
    num_key_value_heads: int = 4
    rms_norm_eps: float = 1e-6
    max_window_layers: int = 28


class Qwen2_5Omni(Omni):
    def __init__(self, config: dict[str, Any]):
        thinker = thinker_config(config)
        text = text_arguments(thinker, Qwen2_5OmniTextConfig)
        text["tie_word_embeddings"] = thinker.get("tie_word_embeddings", False)
        vision = VisionTower(Qwen2_5_VLVisionConfig.from_dict(thinker["vision_config"]), ("q", "k", "v", "proj"))
        audio = Qwen2_5OmniAudio(OmniAudioConfig.from_dict(thinker["audio_config"]))
        super().__init__(config, text, vision, audio, (16, 24, 24), interleaved=False, whole_positions=True)

    @classmethod
    def rename(cls, key: str) -> str | None:
        name = super().rename(key)
        return None if name == "audio_tower.audio_bos_eos_token.weight" else name  # no forward reads it
