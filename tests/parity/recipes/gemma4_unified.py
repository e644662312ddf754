"""Gemma 4 without towers."""

from typing import Any

from ..recipe import AUDIO_BATCHES, HEADS, VIDEO_BATCHES, VISION_BATCHES, Ids, ProcessorKit, Recipe, renamed
from ..weights import Rule, Tensors
from .gemma4 import (
    CASES,
    ENDS,
    FRAME,
    HEARING,
    HEARING_CASES,
    PATCH,
    PICTURE,
    POOL,
    ROPE,
    audio_features,
    image_pixels,
    legacy,
    video_pixels,
)
from .gemma4 import RULES as GEMMA4_RULES

SAMPLES = 640
"""Of sound, that become a token."""
RULES: tuple[Rule, ...] = (
    *GEMMA4_RULES,
    (r"(patch_ln[12]|pos_norm)\.weight$", 1.0, 0.2),
    (r"pos_embedding$", 0.0, 0.5),
)


def config(ids: Ids, vocabulary: int) -> Any:
    import transformers

    return transformers.Gemma4UnifiedConfig(
        text_config=HEADS | ENDS(ids) | {
            "hidden_size": 72, "intermediate_size": 96, "head_dim": 32, "global_head_dim": 64, "vocab_size": vocabulary,
            "num_global_key_value_heads": 1, "attention_k_eq_v": True, "sliding_window": 10,
            "final_logit_softcapping": 3.0, "num_hidden_layers": 4, "rope_parameters": ROPE,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
        },
        vision_config={
            "patch_size": PATCH, "pooling_kernel_size": POOL, "mm_embed_dim": 56, "mm_posemb_size": 32,
            "output_proj_dims": 56,
        },
        audio_config={"audio_embed_dim": SAMPLES}, boi_token_id=ids("<|image>"), eoi_token_id=ids("<image|>"),
        image_token_id=ids("<|image|>"), video_token_id=ids("<|video|>"), boa_token_id=ids("<|audio>"),
        eoa_token_index=ids("<audio|>"), audio_token_id=ids("<|audio|>"), eos_token_id=[ids("<eos>"), ids("<turn|>")],
    )  # fmt: skip


def processor(tokenizer: Any) -> Any:
    import transformers
    from transformers.models.gemma4 import image_processing_pil_gemma4 as images
    from transformers.models.gemma4_unified import video_processing_gemma4_unified as videos

    images._SUPPORTED_SOFT_TOKENS = videos._SUPPORTED_SOFT_TOKENS = (PICTURE, FRAME)

    class Gemma4UnifiedImageProcessorPil(images.Gemma4ImageProcessorPil):  # type: ignore[misc]
        """The family's resizes with torchvision; a token's square is one patch of Gemma 4's."""

        def _preprocess(self, *arguments: Any, patch_size: int, pooling_kernel_size: int, **keywords: Any) -> Any:
            side = patch_size * pooling_kernel_size
            return super()._preprocess(*arguments, patch_size=side, pooling_kernel_size=1, **keywords)

    sizes = {"patch_size": PATCH, "pooling_kernel_size": POOL}
    return transformers.Gemma4UnifiedProcessor(
        transformers.Gemma4UnifiedAudioFeatureExtractor(),
        Gemma4UnifiedImageProcessorPil(max_soft_tokens=PICTURE, **sizes), tokenizer,
        videos.Gemma4UnifiedVideoProcessor(max_soft_tokens=FRAME, **sizes), image_seq_length=PICTURE,
        chat_template=tokenizer.chat_template,
    )  # fmt: skip


def mlx(tensors: Tensors) -> Tensors:
    return renamed(tensors, ("model.language_model.", "language_model.model."), ("model.", ""))


RECIPES = {
    "gemma4_unified": Recipe(
        config, HEARING, CASES | HEARING_CASES, VISION_BATCHES | VIDEO_BATCHES | AUDIO_BATCHES,
        ProcessorKit(
            "gemma4_unified", processor, image_pixels, video_pixels, channels_last=True, nested=True,
            audio=audio_features,
        ),
        RULES, 8, mlx=mlx, legacy=legacy,
    ),
}  # fmt: skip
