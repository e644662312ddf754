"""Qwen2-VL and Qwen2.5-VL."""

from collections.abc import Callable
from typing import Any

from ..recipe import (
    HEADS,
    MLX_NAMES,
    QWEN_ENDS,
    QWEN_SPECIALS,
    VIDEO_BATCHES,
    VIDEO_CASES,
    VISION_BATCHES,
    VISION_CASES,
    Config,
    Ids,
    ProcessorKit,
    Recipe,
    TokenizerKit,
    channels_last,
    renamed,
    rope,
)
from ..weights import Rule, Tensors
from .qwen3_vl import image_pixels, video_pixels

# Their template is the published one (Apache-2.0), which lies in reference/tokenizers/qwen2_vl.
TOKENIZER = TokenizerKit("qwen2_vl", QWEN_SPECIALS[:-2], "<|im_end|>", "<|endoftext|>", template="")
RULES: tuple[Rule, ...] = ((r"ln_q\.weight$", 1.0, 0.2),)
TOKENS = {
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
}
PATCHES = {"patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2}


def processor(name: str) -> Callable[[Any], Any]:
    """Limits so low that of the pictures and clips of media.py some shrink, some grow and some stay. As a
    volume, a clip's would shrink it more."""

    def build(tokenizer: Any) -> Any:
        import transformers

        image = transformers.Qwen2VLImageProcessorPil(size={"shortest_edge": 56 * 56, "longest_edge": 16 * 28 * 28})
        video = transformers.Qwen2VLVideoProcessor(size={"shortest_edge": 56 * 56, "longest_edge": 15 * 28 * 28})
        return getattr(transformers, name)(image, tokenizer, video, chat_template=tokenizer.chat_template)

    return build


def _config(name: str, tied: bool, vision: Config) -> Callable[[Ids, int], Any]:
    def build(ids: Ids, vocabulary: int) -> Any:
        import transformers

        text_config = {
            "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "rms_norm_eps": 1e-6,
            "vocab_size": vocabulary, "rope_parameters": rope(1e6, mrope_section=[2, 3, 3]),
        }  # fmt: skip
        return getattr(transformers, name)(
            text_config=text_config | HEADS | QWEN_ENDS(ids),
            vision_config=vision | PATCHES,
            tie_word_embeddings=tied,
            **{key: ids(token) for key, token in TOKENS.items()},
        )

    return build


def legacy(config: Config) -> None:
    """The text decoder's fields among the model's; the sections under a name that transformers had for them; of the
    tower, less."""
    text = config.pop("text_config")
    config |= {key: value for key, value in text.items() if key not in config and key != "model_type"}
    config |= {key: text[key] for key in ("bos_token_id", "eos_token_id")}
    config["rope_scaling"] = {"type": "mrope", "mrope_section": config["rope_scaling"]["mrope_section"]}
    vision = config["vision_config"]
    vision["in_chans"] = vision.pop("in_channels")
    del vision["hidden_act"]


def hub(tensors: Tensors) -> Tensors:
    return renamed(tensors, ("model.language_model.", "model."), ("model.visual.", "visual."))


def mlx(tensors: Tensors) -> Tensors:
    pairs = (
        *MLX_NAMES,
        # As they are saved where transformers turns its new names back.
        ("visual.", "vision_tower."),
        ("model.", "language_model.model."),
    )
    return channels_last(renamed(tensors, *pairs))


QWEN2: Config = {"depth": 3, "embed_dim": 48, "hidden_size": 64, "num_heads": 4, "mlp_ratio": 2}
# Windows of 2 x 2 tokens, whole and cut. A clip ends later, counted in tokens, than the text after it.
QWEN2_5: Config = {
    "depth": 4, "hidden_size": 48, "out_hidden_size": 64, "num_heads": 4, "intermediate_size": 80,
    "window_size": 56, "fullatt_block_indexes": [1, 3], "tokens_per_second": 12,
}  # fmt: skip
CASES, BATCHES = VISION_CASES | VIDEO_CASES, VISION_BATCHES | VIDEO_BATCHES


def recipe(family: str, name: str, tied: bool, vision: Config) -> Recipe:
    kit = ProcessorKit(family, processor(f"{name}Processor"), image_pixels, video_pixels)
    return Recipe(
        _config(f"{name}Config", tied, vision), TOKENIZER, CASES, BATCHES, kit, RULES, hub=hub, mlx=mlx, legacy=legacy
    )


RECIPES = {
    "qwen2_vl": recipe("qwen2_vl", "Qwen2VL", True, QWEN2),
    "qwen2_5_vl": recipe("qwen2_5_vl", "Qwen2_5_VL", False, QWEN2_5),
}
