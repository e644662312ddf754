"""DeepSeek-OCR 2, Unlimited-OCR, and DeepSeek-OCR, which is the same network as the latter without a window.

The tables of queries of the first are of fixed sizes: so a picture takes 257 tokens and each of its tiles 144, and only
patches of 2 pixels keep the rest small."""

from collections.abc import Callable
from typing import Any

import numpy as np

from ..recipe import (
    DIALOGUE,
    VISION_BATCHES,
    VISION_CASES,
    Case,
    Config,
    Ids,
    ProcessorKit,
    Recipe,
    TokenizerKit,
    channels_last,
    ends,
    renamed,
    rope,
    switch_experts,
    user,
)
from ..weights import Rule, Tensors

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}{{ '<image>\n' }}{% else %}{{ c['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{{ '\n' }}{% endfor %}"
)
SPECIALS = ("<s>", "</s>", "<pad>", "<image>", "<|ref|>", "<|/ref|>", "<|det|>", "<|/det|>", "<|grounding|>")
TOKENIZER = TokenizerKit("deepseek_ocr", SPECIALS, "</s>", "<pad>", TEMPLATE, "<s>")
ENDS = ends("<s>", "</s>", "<pad>")
RULES: tuple[Rule, ...] = (
    (r"(view_seperator|image_newline|class_embedding)$", 0.0, 0.5),
    (r"(pos_embed|rel_pos_[hw]|query_\d+\.weight)$", 0.0, 0.5),
    (r"neck\.[13]\.weight$", 1.0, 0.2),
)
SAM: Config = {
    "hidden_size": 16, "output_channels": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "mlp_dim": 24,
    "image_size": 128, "patch_size": 2, "window_size": 6, "global_attn_indexes": [], "downsample_channels": [16, 24],
}  # fmt: skip
ENCODER: Config = {
    "vocab_size": 8, "hidden_size": 24, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 1024, "rope_parameters": rope(1e6),
}  # fmt: skip
SHALLOW: Config = {
    "num_hidden_layers": 2, "mlp_layer_types": ["dense", "sparse"], "hidden_size": 32, "intermediate_size": 48,
    "moe_intermediate_size": 24,
}  # fmt: skip
CASES = {
    "text": Case(user("Describe the user.")),
    "dialogue": Case(DIALOGUE),
    "img1": Case(user("image", "Describe this image."), images=["plain"]),
    "upright": Case(user("image", "What is it? Tell the model more about the picture."), images=["upright"]),
    "img2": Case(user("image", " and ", "image", "What differs?"), images=["small", "plain"]),
}
BATCHES = {"batch": ["img1", "upright", "text"]}


def text(ids: Ids, vocabulary: int, **more: Any) -> Config:
    sizes = {
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 4, "vocab_size": vocabulary, "max_position_embeddings": 4096,
        "rope_parameters": rope(1e4), "n_routed_experts": 8, "n_shared_experts": 2, "num_experts_per_tok": 2,
        "moe_intermediate_size": 40, "mlp_layer_types": ["dense", "sparse", "sparse"], "n_group": 1, "topk_group": 1,
    }  # fmt: skip
    return sizes | ENDS(ids) | more


def _config(ids: Ids, vocabulary: int) -> Any:
    import transformers

    return transformers.DeepseekOcr2Config(
        vision_config={"sam_config": SAM, "encoder_config": ENCODER}, text_config=text(ids, vocabulary, **SHALLOW),
        image_token_id=ids("<image>"), **ENDS(ids),
    )  # fmt: skip


def _processor(tokenizer: Any) -> Any:
    """The class's six tiles win over what is said here, as they do where that is saved."""
    import transformers

    image = transformers.DeepseekOcr2ImageProcessorPil(size={"height": 128, "width": 128}, tile_size=96, max_patches=3)
    template = tokenizer.chat_template
    return transformers.DeepseekOcr2Processor(image, tokenizer, patch_size=2, chat_template=template)


def page_pixels(patch: int, **settings: Any) -> Any:
    """Patches of the tiles and then of the whole, from transformers' pixels."""

    def pixels(processor: Any, image: np.ndarray) -> tuple[np.ndarray, tuple[int, ...]]:
        made = processor.image_processor(images=[image], return_tensors="pt", **settings)
        grid = made["patches_grid"][0][::-1] if "patches_grid" in made else None
        tiles = np.asarray(made["pixel_values_local"]) if "pixel_values_local" in made else np.empty((0, 3, 0, 0))
        views = [*tiles, *np.asarray(made["pixel_values"])]
        settled = [0, 0] if not len(tiles) else grid or tile_grid(image, processor.image_processor.tile_size)
        sides = processor.image_processor.tile_size // patch, views[-1].shape[-1] // patch
        return np.concatenate([_patches(view, patch) for view in views]), (*settled, *sides)

    return pixels


def tile_grid(image: np.ndarray, tile: int) -> tuple[int, int]:
    from transformers.models.got_ocr2.image_processing_got_ocr2 import get_optimal_tiled_canvas

    columns, rows = get_optimal_tiled_canvas(image.shape[:2], (tile, tile), 2, 6)
    return rows, columns


def _patches(view: np.ndarray, patch: int) -> np.ndarray:
    """(3, H, W) -> (N, patch * patch * 3), channels last."""
    side = view.shape[-1] // patch
    return view.reshape(3, side, patch, side, patch).transpose(1, 3, 2, 4, 0).reshape(side * side, -1)


def mlx(tensors: Tensors) -> Tensors:
    names = (
        ("model.qwen2_model.model.model.", "vision_model.qwen2_encoder."),
        ("model.qwen2_model.query_768.weight", "vision_model.qwen2_encoder.query_768"),
        ("model.qwen2_model.query_1024.weight", "vision_model.qwen2_encoder.query_1024"),
        ("model.view_seperator", "view_separator"),
        *((f"model.{part}", part) for part in ("sam_model", "vision_model", "projector", "image_newline")),
        ("model.", "language_model.model."),
        ("lm_head.", "language_model.lm_head."),
    )
    convolutions = renamed(tensors, *names)
    tables = {name: tensor for name, tensor in convolutions.items() if name.endswith("pos_embed")}
    return channels_last(switch_experts(convolutions)) | tables


PAGE_SAM = SAM | {
    "num_hidden_layers": 2, "image_size": 128, "patch_size": 8, "window_size": 5, "global_attn_indexes": [1],
}  # fmt: skip
CLIP: Config = {
    "hidden_size": 24, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 42,
    "patch_size": 14,
}  # fmt: skip
PAGES = VISION_CASES | {"thin": Case(user("image", "How tall is it?"), images=["thin"])}


def _unlimited(window: int) -> Callable[[Ids, int], Any]:
    def build(ids: Ids, vocabulary: int) -> Any:
        import transformers

        return transformers.UnlimitedOcrConfig(
            vision_config={"sam_config": PAGE_SAM, "encoder_config": CLIP},
            text_config=text(ids, vocabulary, sliding_window=window), image_token_id=ids("<image>"), **ENDS(ids),
        )  # fmt: skip

    return build


def _unlimited_processor(most: int) -> Callable[[Any], Any]:
    def build(tokenizer: Any) -> Any:
        import transformers

        image = transformers.UnlimitedOcrImageProcessor(
            size={"height": 128, "width": 128}, tile_size=96, max_patches=most
        )
        template = tokenizer.chat_template
        return transformers.UnlimitedOcrProcessor(image, tokenizer, patch_size=8, chat_template=template)

    return build


def _first_names(model_type: str) -> Callable[[Config], None]:
    def publish(config: Config) -> None:
        window = config["text_config"].pop("sliding_window")
        config["text_config"].pop("layer_types", None)
        as_published(config)
        clip = {"heads": 4, "image_size": 42, "layers": 2, "patch_size": 14, "width": 24}
        config["vision_config"]["width"] = {
            "clip-l-14-224": clip, "sam_vit_b": config["vision_config"]["width"]["sam_vit_b"],
        }  # fmt: skip
        config["vision_config"] |= {"model_name": "deeplip_b_l"}
        config["vision_config"]["width"]["sam_vit_b"]["downsample_channels"] = PAGE_SAM["downsample_channels"]
        config["model_type"] = model_type
        if model_type == "unlimited-ocr":
            config |= {"sliding_window": window, "sliding_window_size": window}

    return publish


def as_published(config: Config) -> None:
    """The authors' configuration, which conversions for MLX keep."""
    vision, language = config["vision_config"], config.pop("text_config")
    sam, encoder = vision["sam_config"], vision["encoder_config"]
    width = {"width": sam["hidden_size"], "layers": sam["num_hidden_layers"], "heads": sam["num_attention_heads"]}
    kept = ("mlp_dim", "output_channels", "patch_size", "window_size", "global_attn_indexes")
    language["first_k_dense_replace"] = language.pop("mlp_layer_types").count("dense")
    width |= {"downsample_channels": [sam["downsample_channels"][0], 1024], **{key: sam[key] for key in kept}}
    qwen2 = {
        "dim": encoder["hidden_size"],
        "layers": encoder["num_hidden_layers"],
        "heads": 4,
        "kv_heads": 2,
        "intermediate_size": encoder["intermediate_size"],
    }
    config["vision_config"] = {
        "image_size": sam["image_size"], "model_name": "deepencoderv2", "model_type": "vision",
        "width": {"sam_vit_b": width, "qwen2-0-5b": qwen2},
    }  # fmt: skip
    config |= {"model_type": "deepseek_vl_v2", "language_config": language, **language}
    config["model_type"] = "deepseek_vl_v2"


RECIPES = {
    "deepseek_ocr2": Recipe(
        _config, TOKENIZER, CASES, BATCHES,
        ProcessorKit(
            "deepseek_ocr2", _processor, page_pixels(2, min_patches=2, max_patches=6), channels_last=True
        ),
        RULES, mlx=mlx, mlx_config=as_published,
    ),
    "unlimited_ocr": Recipe(
        _unlimited(6), TOKENIZER, PAGES, VISION_BATCHES,
        ProcessorKit("unlimited_ocr", _unlimited_processor(4), page_pixels(8), channels_last=True),
        RULES, mlx=mlx, mlx_config=_first_names("unlimited-ocr"),
    ),
    "deepseek_ocr": Recipe(
        _unlimited(4096), TOKENIZER, CASES, BATCHES,
        ProcessorKit("deepseek_ocr", _unlimited_processor(9), page_pixels(8), channels_last=True),
        RULES, mlx=mlx, mlx_config=_first_names("deepseek_vl_v2"),
    ),
}  # fmt: skip
