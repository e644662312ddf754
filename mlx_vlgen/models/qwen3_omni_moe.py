"""The thinker of Qwen3-Omni: Qwen3-VL's mixture of experts with ears.

Source: Xu et al. 2025 (arXiv 2509.17765); transformers' Qwen3OmniMoeThinkerForConditionalGeneration. Names of
parameters are those of Qwen3-VL's checkpoints converted for MLX.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .._runtime import mx
from .configuration import BaseConfig, thinker_config, with_rope
from .omni import Omni
from .omni_audio import Qwen3OmniAudio, Qwen3OmniAudioConfig
from .qwen3_vl import Qwen3VLVisionConfig, VisionTower, split_experts


@dataclass(frozen=True)
class Qwen3OmniTextConfig(BaseConfig):
    vocab_size: int = 3584
    hidden_size: int = 2048
    intermediate_size: int = 18944
    num_hidden_layers: int = 28
    num_attention_heads: int = 28
    num_key_value_heads: int = 4
    rms_norm_eps: float = 1e-6
    max_position_embeddings: int = 32768
    decoder_sparse_step: int = 1
    moe_intermediate_size: int = 768
    num_experts_per_tok: int = 8
    num_experts: int = 128
    norm_topk_prob: bool = True


class Qwen3OmniMoe(Omni):
    def __init__(self, config: dict[str, Any]):
        thinker = thinker_config(config)
        text = with_rope(Qwen3OmniTextConfig.complete(thinker["text_config"]), 1_000_000.0)
        text["mlp_only_layers"] = text.get("mlp_only_layers") or []
        text.setdefault("head_dim", text["hidden_size"] // text["num_attention_heads"])
        text |= {"model_type": "qwen3_moe", "tie_word_embeddings": thinker.get("tie_word_embeddings", False)}
        vision = VisionTower(Qwen3VLVisionConfig.from_dict(thinker["vision_config"]))
        audio = Qwen3OmniAudio(Qwen3OmniAudioConfig.from_dict(thinker["audio_config"]))
        super().__init__(config, text, vision, audio, (24, 20, 20), interleaved=True, whole_positions=False)

    @classmethod
    def rename(cls, key: str) -> str | None:
        name = super().rename(key)
        if name is not None and name.startswith(("vision_tower.merger", "vision_tower.deepstack_merger_list")):
            name = name.replace("tower.merger_list.", "tower.deepstack_merger_list.")
            for old, new in ((".ln_q.", ".norm."), (".mlp.0.", ".linear_fc1."), (".mlp.2.", ".linear_fc2.")):
                name = name.replace(old, new)
        return name

    def sanitize(self, weights: Mapping[str, mx.array]) -> dict[str, mx.array]:
        text = self.language_model.args
        return super().sanitize(split_experts(weights, text.hidden_size, text.moe_intermediate_size))
