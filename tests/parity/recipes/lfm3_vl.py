"""LFM3-VL."""

from typing import Any

from ..recipe import (
    HEADS,
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
    ends,
    renamed,
)
from ..weights import Tensors
from .qwen3_vl import image_pixels, media_ids, video_pixels

TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{% elif c['type'] == 'video' %}{{ '<|video_pad|>' }}{% elif c['type'] == 'text' %}{{ c['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
TOKENIZER = TokenizerKit("lfm3_vl", QWEN_SPECIALS, "<|im_end|>", "<|endoftext|>", TEMPLATE)
ENDS = ends("<|im_start|>", "<|im_end|>", "<|endoftext|>")
ROPE: Config = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    "full_attention": {"rope_type": "proportional", "rope_theta": 1000000.0, "partial_rotary_factor": 0.5},
}


def config(ids: Ids, vocabulary: int) -> Any:
    import transformers

    vision = {
        "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 4, "num_attention_heads": 4,
        "num_key_value_heads": 2, "patch_size": 16,
    }  # fmt: skip
    text = {
        "model_type": "lfm3", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 5, "head_dim": 32,
        "vocab_size": vocabulary, "conv_L_cache": 5, "sliding_window": 12, "rope_parameters": ROPE,
        "layer_types": ["conv", "conv", "full_attention", "conv", "sliding_attention"],
    }  # fmt: skip
    return transformers.Lfm3VlConfig(
        vision_config=vision, text_config=text | HEADS | ENDS(ids), projector_hidden_size=80, tie_word_embeddings=True,
        **media_ids(ids), **ENDS(ids),
    )  # fmt: skip


def legacy(config: Config) -> None:
    """As transformers 5 has it: there was none before."""
    text = config["text_config"]
    for key in ("rope_theta", "rope_scaling", "rope_local_base_freq"):
        del text[key]
    text["rope_parameters"] = ROPE
    config["vision_config"]["model_type"] += "_vision"


def processor(tokenizer: Any) -> Any:
    import transformers

    image = transformers.Qwen2VLImageProcessorPil(
        size={"shortest_edge": 64 * 64, "longest_edge": 12 * 32 * 32}, patch_size=16, image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )  # fmt: skip
    video = transformers.Qwen3VLVideoProcessor(size={"shortest_edge": 64 * 64, "longest_edge": 40 * 32 * 32})
    return transformers.Lfm3VlProcessor(image, tokenizer, video, chat_template=tokenizer.chat_template)


def mlx(tensors: Tensors) -> Tensors:
    """The names and shapes that a conversion here writes."""
    out = dict(tensors)
    kernel = out.pop("model.vision_tower.patchifier.weight")
    out["model.vision_tower.patchifier.proj.weight"] = kernel.reshape(len(kernel), 3, 2, 16, 16)
    return channels_last(renamed(out, ("model.language_model.", "language_model.model."), ("model.", "")))


KIT = ProcessorKit("lfm3_vl", processor, image_pixels, video_pixels)
CASES, BATCHES = VISION_CASES | VIDEO_CASES, VISION_BATCHES | VIDEO_BATCHES
RECIPES = {"lfm3_vl": Recipe(config, TOKENIZER, CASES, BATCHES, KIT, mlx=mlx, legacy=legacy)}
