"""GLM-OCR, with the processor and the template of GLM-4.6V."""

from typing import Any

from ..recipe import HEADS, Config, Ids, Recipe, rope
from .glm4v import BATCHES, CASES, PACED, TOKENIZER, TOKENS, mlx


def _config(ids: Ids, vocabulary: int) -> Any:
    import transformers

    text_config = {
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "head_dim": 32, "rms_norm_eps": 1e-5,
        "vocab_size": vocabulary, "eos_token_id": ids("<|endoftext|>"), "pad_token_id": ids("<|endoftext|>"),
        "rope_parameters": rope(1e4, mrope_section=[4, 6, 6], partial_rotary_factor=1.0),
        "num_nextn_predict_layers": 1,
    }  # fmt: skip
    vision_config = {
        "depth": 3, "hidden_size": 48, "out_hidden_size": 64, "num_heads": 4, "intermediate_size": 80,
        "image_size": 84, "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2,
    }  # fmt: skip
    return transformers.GlmOcrConfig(
        text_config=text_config | HEADS,
        vision_config=vision_config,
        tie_word_embeddings=False,
        **{key: ids(token) for key, token in TOKENS.items()},
    )


def published(config: Config) -> None:
    """As transformers 5 saves it, which it is published for."""
    text, vision = config["text_config"], config["vision_config"]
    text["dtype"] = text.pop("torch_dtype")
    del vision["torch_dtype"]
    text["rope_parameters"] = text.pop("rope_scaling") | {"rope_theta": text.pop("rope_theta")}
    vision["model_type"] += "_vision"


RECIPES = {"glm_ocr": Recipe(_config, TOKENIZER, CASES, BATCHES, PACED, legacy=published, mlx=mlx)}
