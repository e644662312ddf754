"""Text decoders inside families that take any, and settings that published cards recommend: what is compared with
transformers beyond the families' references. One prompt each, of ids, with one picture of random pixels."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from .layouts import REFERENCE
from .recipe import EXPERTS, GEMMA_RULES, HEADS, Config, rope
from .recipes.llava import CLIP, RULES
from .recipes.text import longrope
from .weights import bell

FILE = REFERENCE / "decoders.npz"
"""Of each case (L, 8): its logits times `weights.projection`; and `records`, JSON: {name: {config, shapes}}."""
VOCABULARY, IMAGE = 64, 60
FIRST = (5, 14, 15, 9, 2, 6)
LAST = (35, 8, 9, 7, 9, 31, 12, 11, 44, 21)


@dataclass(frozen=True)
class DecoderCase:
    """`config` as transformers reads it, with its model_type. features: how many the picture becomes; None where the
    model takes none. pixels: their shape as transformers takes them; more: its other inputs; grid: `Media.grid`."""

    config: Config
    features: int | None
    pixels: tuple[int, ...] = ()
    more: Config | None = None
    grid: tuple[int, ...] = ()

    @property
    def tokens(self) -> list[int]:
        return [*FIRST, *[IMAGE] * (self.features or 0), *LAST]

    @property
    def drawn_pixels(self) -> np.ndarray:
        return bell("pixels", self.pixels).astype(np.float32)


def _text(model_type: str, **more: Any) -> Config:
    sizes = {"model_type": model_type, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4}
    theta = {"rope_parameters": rope(1e4)}
    return sizes | HEADS | theta | {"vocab_size": VOCABULARY, "rms_norm_eps": 1e-5, "tie_word_embeddings": True} | more


GRANITE = _text(
    "granite", embedding_multiplier=12.0, logits_scaling=3.0, residual_multiplier=0.22, attention_multiplier=0.1
)
GEMMA = _text("gemma", head_dim=24)
GEMMA2 = _text("gemma2", head_dim=24, sliding_window=8, query_pre_attn_scalar=20, final_logit_softcapping=3.0)
GEMMA3 = _text(
    "gemma3_text", head_dim=24, sliding_window=8, query_pre_attn_scalar=20,
    layer_types=["sliding_attention", "full_attention"] * 2,
    rope_parameters={"full_attention": rope(1e6), "sliding_attention": rope(1e4)},
)  # fmt: skip
PHI3 = _text("phi3", tie_word_embeddings=False, pad_token_id=0, eos_token_id=1)
COHERE2 = _text("cohere2", sliding_window=8, logit_scale=0.3, layer_norm_eps=1e-5)
SIGLIP = {key: value for key, value in CLIP.items() if key != "projection_dim"} | {
    "model_type": "siglip_vision_model", "vision_use_head": False,
}  # fmt: skip


def _llava(text: Config, **more: Any) -> DecoderCase:
    config = {"model_type": "llava", "vision_config": CLIP, "text_config": text}
    features = {"image_token_index": IMAGE, "image_seq_length": 16}
    return DecoderCase(config | features | more, 16, (1, 3, 56, 56))


def _granite_vision() -> DecoderCase:
    """As published, but small: features of four layers, and of a picture in 1 x 2 tiles padded above and below."""
    config = {
        "model_type": "llava_next", "vision_config": SIGLIP | {"num_hidden_layers": 5}, "text_config": GRANITE,
        "image_token_index": IMAGE, "vision_feature_layer": [-5, -4, -2, -1], "vision_feature_select_strategy": "full",
        "image_grid_pinpoints": [[56, 56 * n] for n in range(1, 5)] + [[112, 56], [112, 112]], "image_seq_length": 16,
        "tie_word_embeddings": True,
    }  # fmt: skip
    return DecoderCase(config, 16 + 2 * 9, (1, 3, 3, 56, 56), {"image_sizes": [[20, 80]]}, (1, 2, 2, 8))


def _idefics3(text: Config) -> DecoderCase:
    vision = SIGLIP | {"model_type": "idefics3_vision"}
    config = {"model_type": "idefics3", "vision_config": vision, "text_config": text, "image_token_id": IMAGE}
    return DecoderCase(config | {"scale_factor": 2, "tie_word_embeddings": True}, 4, (1, 1, 3, 56, 56))


def _pixtral(text: Config) -> DecoderCase:
    vision = {
        "model_type": "pixtral", "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3,
        "num_attention_heads": 4, "image_size": 56, "patch_size": 14,
    }  # fmt: skip
    config = {"model_type": "llava", "vision_config": vision, "text_config": text, "image_token_index": IMAGE}
    return DecoderCase(
        config | {"vision_feature_layer": -1, "vision_feature_select_strategy": "full"}, 12, (1, 3, 42, 56),
        {"image_sizes": [[42, 56]]},
    )  # fmt: skip


def _yarn(model_type: str, text: Config | None = None, **more: Any) -> DecoderCase:
    scaling = rope(1e4, factor=4.0, original_max_position_embeddings=16, beta_fast=4) | {"rope_type": "yarn"} | more
    return DecoderCase(_text(model_type, rope_parameters=scaling, head_dim=16, **(text or {})), None)


def _qwen_vl(model_type: str, section: list[int], vision: Config, text: Config) -> DecoderCase:
    """The card's settings, under the names of transformers 4."""
    scaling = {"type": "yarn", "mrope_section": section, "factor": 4.0, "original_max_position_embeddings": 16}
    text_config = _text(f"{model_type}_text", rope_theta=1e4, rope_scaling=scaling) | text
    del text_config["rope_parameters"]
    config = {
        "model_type": model_type, "text_config": text_config, "image_token_id": IMAGE, "video_token_id": IMAGE + 1,
        "vision_start_token_id": IMAGE + 2, "vision_end_token_id": IMAGE + 3, "tie_word_embeddings": True,
        "vision_config": {
            "depth": 2, "hidden_size": 48, "num_heads": 4, "patch_size": 4, "out_hidden_size": 64,
            "intermediate_size": 80, "spatial_merge_size": 2, "temporal_patch_size": 2,
        } | vision,
    }  # fmt: skip
    types = [0] * len(FIRST) + [1] * 6 + [0] * len(LAST)
    more = {"image_grid_thw": [[1, 4, 6]], "mm_token_type_ids": [types]}
    return DecoderCase(config, 6, (24, 3 * 2 * 4 * 4), more, (1, 4, 6))


CASES: dict[str, DecoderCase] = {
    "llava_granite": _llava(GRANITE),
    "llava_gemma": _llava(GEMMA),
    "llava_gemma2": _llava(GEMMA2),
    "llava_gemma3": _llava(GEMMA3),
    "llava_cohere2": _llava(COHERE2),
    "llava_phi3": _llava(PHI3 | longrope(20)),  # beyond which the prompt goes
    "granite_vision": _granite_vision(),
    "idefics3_granite": _idefics3(GRANITE),
    "pixtral_cohere2": _pixtral(COHERE2),
    "granite": DecoderCase(GRANITE, None),
    "gemma": DecoderCase(GEMMA, None),
    "cohere2": DecoderCase(COHERE2, None),
    "phi3_window": DecoderCase(PHI3 | {"sliding_window": 8}, None),
    "llama_yarn": _yarn("llama"),
    "qwen2_yarn": _yarn("qwen2"),
    "qwen3_yarn": _yarn("qwen3", attention_factor=1.3),
    "qwen3_yarn_mscale": _yarn("qwen3", mscale=0.7, mscale_all_dim=1.9),
    "qwen3_moe_yarn": _yarn("qwen3_moe", text=EXPERTS),
    "qwen2_5_vl_yarn": _qwen_vl(
        "qwen2_5_vl", [2, 3, 3], {"window_size": 16, "fullatt_block_indexes": [1]}, {"rms_norm_eps": 1e-6}
    ),
    "qwen3_vl_yarn": _qwen_vl(
        "qwen3_vl", [4, 2, 2], {"num_position_embeddings": 16, "deepstack_visual_indexes": [0]}, {"head_dim": 16}
    ),
}


def rules(name: str) -> list[tuple[str, float, float]]:
    """The rules that draw a case's weights; see `weights.draw`."""
    return [*(GEMMA_RULES if "gemma" in name else ()), *RULES]
