"""GLM-4.1V, GLM-4.5V with the processor of GLM-4.6V, and GLM-4.6V, which is one or the other."""

from collections.abc import Callable
from typing import Any

from ..recipe import (
    HEADS,
    MLX_NAMES,
    VIDEO_CASES,
    VISION_BATCHES,
    VISION_CASES,
    Case,
    Config,
    Ids,
    ProcessorKit,
    Recipe,
    TokenizerKit,
    channels_last,
    renamed,
    rope,
    switch_experts,
    user,
)
from ..weights import Rule, Tensors
from .qwen3_vl import image_pixels, video_pixels

SPECIALS = (
    "<|endoftext|>", "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>",
    "<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>", "<|image|>", "<|video|>",
)  # fmt: skip
# Their template is the published one (MIT), which lies in reference/tokenizers/glm4v.
TOKENIZER = TokenizerKit("glm4v", SPECIALS, "<|endoftext|>", "<|endoftext|>", template="")
RULES: tuple[Rule, ...] = (
    (r"position_embedding\.weight$", 0.0, 0.5),
    (r"e_score_correction_bias$", 0.0, 0.3),
)
TOKENS = {
    "image_token_id": "<|image|>",
    "video_token_id": "<|video|>",
    "image_start_token_id": "<|begin_of_image|>",
    "image_end_token_id": "<|end_of_image|>",
    "video_start_token_id": "<|begin_of_video|>",
    "video_end_token_id": "<|end_of_video|>",
}


def processor(name: str) -> Callable[[Any], Any]:
    """Limits so low that of the pictures and clips of media.py some shrink, some grow and some stay."""

    def build(tokenizer: Any) -> Any:
        import transformers

        classes = {kind: getattr(transformers, f"{name}{kind}") for kind in ("ImageProcessorPil", "VideoProcessor")}
        image = classes["ImageProcessorPil"](size={"shortest_edge": 2 * 56 * 56, "longest_edge": 2 * 16 * 28 * 28})
        video = classes["VideoProcessor"](size={"shortest_edge": 56 * 56, "longest_edge": 50 * 28 * 28})
        template = tokenizer.chat_template
        return getattr(transformers, f"{name}Processor")(image, tokenizer, video, chat_template=template)

    return build


def _config(name: str, sections: list[int], vision: Config | None = None, **text: Any) -> Callable[[Ids, int], Any]:
    def build(ids: Ids, vocabulary: int) -> Any:
        import transformers

        text_config = {
            "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "rms_norm_eps": 1e-5,
            "vocab_size": vocabulary, "eos_token_id": ids("<|endoftext|>"), "pad_token_id": ids("<|endoftext|>"),
            "rope_parameters": rope(1e4, mrope_section=sections, partial_rotary_factor=0.5),
        }  # fmt: skip
        # The table of positions is as wide as some pictures' grids, and less and more wide than others'.
        vision_config = {
            "depth": 3, "hidden_size": 48, "out_hidden_size": 64, "num_heads": 4, "intermediate_size": 80,
            "image_size": 84, "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2,
        }  # fmt: skip
        return getattr(transformers, name)(
            text_config=text_config | HEADS | text,
            vision_config=vision_config | (vision or {}),
            tie_word_embeddings=False,
            **{key: ids(token) for key, token in TOKENS.items()},
        )

    return build


def legacy(config: Config) -> None:
    """The share of each head that turns beside the text's fields."""
    text = config["text_config"]
    text["partial_rotary_factor"] = text["rope_scaling"].pop("partial_rotary_factor")


def legacy_46v(config: Config) -> None:
    """Its parts are named, for they may be of either model."""
    legacy(config)
    config["vision_config"]["model_type"] += "_vision"


def flat(config: Config) -> None:
    """The text decoder's fields among the model's, as in the first release."""
    text = config.pop("text_config")
    config |= {key: value for key, value in text.items() if key not in config and key != "model_type"}
    config |= {key: text[key] for key in ("eos_token_id", "pad_token_id")}


def mlx(tensors: Tensors) -> Tensors:
    return channels_last(switch_experts(renamed(tensors, *MLX_NAMES)))


EXPERTS = {
    "head_dim": 32, "n_routed_experts": 8, "num_experts_per_tok": 2, "n_shared_experts": 1,
    "moe_intermediate_size": 40, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1,
    "routed_scaling_factor": 1.5, "norm_topk_prob": True, "attention_bias": True,
}  # fmt: skip
# transformers refuses a picture beside a video: it counts the features of each against the tokens of both.
VIDEOS = {name: case for name, case in VIDEO_CASES.items() if not case.images}
CASES = VISION_CASES | VIDEOS | {"tiny": Case(user("image", "Describe the user."), images=["thin"])}
BATCHES = VISION_BATCHES | {"batch_video": ["video", "odd_video", "dialogue"]}
DENSE = ProcessorKit("glm4v", processor("Glm4v"), image_pixels, video_pixels)
PACED = ProcessorKit("glm46v", processor("Glm46V"), image_pixels, video_pixels)
RECIPES = {
    "glm4v": Recipe(
        _config("Glm4vConfig", [1, 1, 2]), TOKENIZER, CASES, BATCHES, DENSE, RULES,
        legacy=legacy, mlx=mlx, mlx_config=flat,
    ),
    "glm4v_moe": Recipe(
        _config("Glm4vMoeConfig", [2, 3, 3], **EXPERTS), TOKENIZER, CASES, BATCHES, PACED, RULES,
        legacy=legacy, mlx=mlx,
    ),
    "glm46v": Recipe(
        _config("Glm46VConfig", [1, 1, 2], {"model_type": "glm4v_vision"}, model_type="glm4v_text"),
        TOKENIZER, CASES, BATCHES, PACED, RULES, legacy=legacy_46v, mlx=mlx,
    ),
    "glm46v_moe": Recipe(
        _config("Glm46VConfig", [2, 3, 3], {"model_type": "glm4v_moe_vision"}, model_type="glm4v_moe_text", **EXPERTS),
        TOKENIZER, CASES, BATCHES, PACED, RULES, legacy=legacy_46v, mlx=mlx,
    ),
}  # fmt: skip
