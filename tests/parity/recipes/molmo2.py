"""Molmo2, with decoders like Qwen3 and like OLMo 2."""

from collections.abc import Callable
from typing import Any

import numpy as np

from ..recipe import (
    DIALOGUE,
    HEADS,
    VISION_BATCHES,
    VISION_CASES,
    Case,
    Config,
    Ids,
    ProcessorKit,
    Recipe,
    TokenizerKit,
    renamed,
    rope,
    user,
)
from ..weights import Rule, Tensors

MARKS = [
    "<im_patch>", "<im_col>", "<im_start>", "<low_res_im_start>", "<frame_start>", "<im_end>", "<frame_end>", "<im_low>"
]  # fmt: skip
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}{% if m['content'] is string %}{{ m['content'] }}"
    "{% else %}{% for c in m['content'] %}{% if c['type'] == 'image' %}{{ '<|image|>' }}"
    "{% elif c['type'] == 'video' %}{{ '<|video|>' }}{% elif c['type'] == 'text' %}{{ c['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# The last ones are beyond what the output layer writes.
TOKENIZER = TokenizerKit(
    "molmo2", ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|image|>", "<|video|>", *MARKS], "<|im_end|>",
    "<|endoftext|>", TEMPLATE, named={"image_token": "<|image|>", "video_token": "<|video|>"},
)  # fmt: skip
RULES: tuple[Rule, ...] = (
    (r"positional_embedding$", 0.0, 0.5), (r"wte\.(new_)?embedding$", 0.0, 0.5), (r"[fn]_norm\.weight$", 1.0, 0.2),
    (r"ln_f\.weight$", 1.0, 0.2), (r"image_projector\.w2\.weight$", 0.0, 0.3),
)  # fmt: skip
PATCH, SIDE = 7, 42
CASES = VISION_CASES | {
    "shapes": Case(user("image", "image", "image", "Compare."), images=["small", "thin", "wide"]),
    "video": Case(user("What moves? ", "video", " Tell."), videos=["odd_clip"]),
    "dialogue": Case(DIALOGUE),
}
BATCHES = VISION_BATCHES | {"batch_shapes": ["shapes", "img2", "dialogue"], "batch_video": ["video", "text"]}


def _config(**text: Any) -> Callable[[Ids, int], Any]:
    def build(ids: Ids, vocabulary: int) -> Any:
        import transformers

        ends: Config = {"eos_token_id": ids("<|im_end|>"), "pad_token_id": ids("<|endoftext|>")}
        vision: Config = {
            "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 4,
            "num_key_value_heads": 4, "head_dim": 12, "image_size": [SIDE, SIDE], "patch_size": PATCH,
        }  # fmt: skip
        adapter: Config = {
            "vision_feature_layer": [-1, 0], "hidden_size": 48, "num_attention_heads": 4, "num_key_value_heads": 4,
            "head_dim": 12, "intermediate_size": 80, "text_hidden_size": 64,
        }  # fmt: skip
        decoder: Config = {
            "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "head_dim": 32,
            "vocab_size": ids("<im_patch>"), "additional_vocab_size": vocabulary - ids("<im_patch>"),
            "rope_parameters": rope(1e6),
        }  # fmt: skip
        return transformers.Molmo2Config(
            vision_config=vision, adapter_config=adapter, text_config=decoder | HEADS | text,
            image_patch_id=ids("<im_patch>"), image_start_token_id=ids("<im_start>"),
            low_res_image_start_token_id=ids("<low_res_im_start>"), image_end_token_id=ids("<im_end>"),
            frame_start_token_id=ids("<frame_start>"), frame_end_token_id=ids("<frame_end>"), **ends,
        )  # fmt: skip

    return build


def processor(tokenizer: Any) -> Any:
    """Tiles and frames of 6 x 6 patches. Of a tile four a side are no neighbour's; frames are pooled with padding."""
    import transformers

    side = {"height": SIDE, "width": SIDE}
    image = transformers.Molmo2ImageProcessor(size=side, max_crops=4, patch_size=PATCH, overlap_margins=[1, 1])
    colors = {"do_rescale": True, "do_normalize": True}  # as published files say; the class has no default
    video = transformers.Molmo2VideoProcessor(size=side, patch_size=PATCH, pooling_size=[4, 4], **colors)
    return transformers.Molmo2Processor(image, video, tokenizer, chat_template=tokenizer.chat_template)


def _tiles(patches: Any) -> np.ndarray:
    """(..., N, values) -> tiles (T, 3, side, side)."""
    count = SIDE // PATCH
    tiles = np.asarray(patches).reshape(-1, count, count, PATCH, PATCH, 3)
    return tiles.transpose(0, 5, 1, 3, 2, 4).reshape(-1, 3, SIDE, SIDE)


def image_pixels(processor: Any, image: np.ndarray) -> tuple[np.ndarray, tuple[int, ...]]:
    from transformers.models.molmo2.image_processing_molmo2 import compute_crop_geometry

    features = processor.image_processor(images=[image], return_tensors="pt")
    tiling = compute_crop_geometry(*image.shape[:2], 4, [1, 1], SIDE, PATCH)[:2]
    return _tiles(features["pixel_values"]), (*tiling, 1, 1, 2, 2)


def clip_pixels(processor: Any, clip: np.ndarray) -> tuple[np.ndarray, tuple[int, ...]]:
    features = processor.video_processor(videos=[clip], do_sample_frames=False, return_tensors="pt")
    return _tiles(features["pixel_values_videos"]), (4, 4)


def legacy(config: Config) -> None:
    """The tower by its first names, and as many layers named as the Hub's originals name and do not hold."""
    vision = config.pop("vision_config")
    for old, new in (("image_default_input_size", "image_size"), ("image_patch_size", "patch_size")):
        vision[old] = vision.pop(new)
    vision["image_num_pos"] = vision.pop("num_position_embeddings")
    vision["num_hidden_layers"] = 5
    config["vit_config"] = vision
    adapter = config["adapter_config"]
    adapter["vit_layers"] = [-3, -5]
    del adapter["vision_feature_layer"]
    text = config["text_config"]
    text["qkv_bias"], text["layer_norm_eps"] = text.pop("attention_bias"), text.pop("rms_norm_eps")


def _tables(tensors: Tensors, vocabulary: int) -> Tensors:
    """The table of tokens cut where the Hub's originals cut it."""
    names = ["model.transformer.wte.embedding", "model.transformer.wte.new_embedding"]
    table = np.concatenate([tensors[name] for name in names])
    return tensors | {names[0]: table[:vocabulary], names[1]: table[vocabulary:]}


def hub(tensors: Tensors) -> Tensors:
    return _tables(tensors, len(tensors["lm_head.weight"]))


def _mlx(tensors: Tensors) -> Tensors:
    pairs = (
        ("model.transformer.", "language_model.model."),
        ("model.vision_backbone.image_vit.transformer.resblocks.", "vision_tower.image_vit.transformer."),
        ("model.vision_backbone.", "vision_tower."),
        ("lm_head.", "language_model.lm_head."),
    )
    return renamed(hub(tensors), *pairs)


def _kit(name: str) -> ProcessorKit:
    return ProcessorKit(name, processor, image_pixels, clip_pixels)


RECIPES = {
    "molmo2": Recipe(_config(), TOKENIZER, CASES, BATCHES, _kit("molmo2"), RULES, hub=hub, mlx=_mlx, legacy=legacy),
    "molmo2_o": Recipe(
        _config(qk_norm_type="olmo", norm_after=True), TOKENIZER,
        {name: CASES[name] for name in ("text", "img1", "upright")}, VISION_BATCHES, _kit("molmo2_o"), RULES,
        hub=hub, mlx=_mlx, legacy=legacy,
    ),
}  # fmt: skip
