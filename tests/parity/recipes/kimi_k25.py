"""Kimi K2.5: MoonViT and DeepSeek-V3's decoder, with latent attention under YaRN."""

from typing import Any

import numpy as np

from ..recipe import (
    VIDEO_BATCHES,
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
    ends,
    renamed,
    switch_experts,
    user,
)
from ..weights import Rule, Tensors

TEMPLATE = (
    "{% for m in messages %}{{ '<|im_' + m['role'] + '|>' + m['role'] + '<|im_middle|>' }}"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}{{ '<|media_begin|>image<|media_content|><|media_pad|><|media_end|>' }}"
    "{% elif c['type'] == 'video' %}{{ '<|kimi_k25_video_placeholder|>' }}"
    "{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}{{ '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_assistant|>assistant<|im_middle|>' }}{% endif %}"
)
NAMED = {"image_token": "<|media_pad|>", "video_token": "<|kimi_k25_video_placeholder|>"}
SPECIALS = (
    "[BOS]", "[EOS]", "[PAD]", "<|im_end|>", "<|im_user|>", "<|im_assistant|>", "<|im_system|>", "<|im_middle|>",
    "<|media_begin|>", "<|media_content|>", "<|media_end|>", *NAMED.values(),
)  # fmt: skip
TOKENIZER = TokenizerKit("kimi_k25", SPECIALS, "<|im_end|>", "[PAD]", TEMPLATE, named=NAMED)
ENDS = ends("[BOS]", "<|im_end|>", "[PAD]")
RULES: tuple[Rule, ...] = (
    (r"pos_emb\.weight$", 0.0, 0.5),
    (r"e_score_correction_bias$", 0.0, 0.3),
)
YARN = {
    "rope_type": "yarn", "rope_theta": 5e4, "factor": 16.0, "original_max_position_embeddings": 32, "beta_fast": 32.0,
    "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0,
}  # fmt: skip
# Of "thin" torchvision, which resizes here, makes levels that are far from Pillow's, as it does of floats.
CASES = VISION_CASES | VIDEO_CASES | {"wide": Case(user("image", "How wide is it?"), images=["wide"])}
BATCHES = VISION_BATCHES | VIDEO_BATCHES


def _config(ids: Ids, vocabulary: int) -> Any:
    import transformers

    text = {
        "model_type": "deepseek_v3", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 4, "q_lora_rank": 24, "kv_lora_rank": 16,
        "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 12, "n_routed_experts": 8, "n_shared_experts": 1,
        "num_experts_per_tok": 2, "moe_intermediate_size": 40, "first_k_dense_replace": 1, "n_group": 1,
        "topk_group": 1, "routed_scaling_factor": 1.5, "vocab_size": vocabulary, "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5, "rope_parameters": YARN,
    }  # fmt: skip
    vision = {
        "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 4, "patch_size": 14,
        "pos_emb_height": 6, "pos_emb_width": 6, "pos_emb_time": 4,
    }  # fmt: skip
    tokens = {"image_token_id": NAMED["image_token"], "video_token_id": NAMED["video_token"]}
    return transformers.Kimi_K25Config(
        text_config=text | ENDS(ids), vision_config=vision, projection_hidden_size=48, tie_word_embeddings=False,
        vision_start_token_id=ids("<|media_begin|>"), vision_end_token_id=ids("<|media_end|>"),
        **{key: ids(token) for key, token in tokens.items()}, **ENDS(ids),
    )  # fmt: skip


def _processor(tokenizer: Any) -> Any:
    """Bounds so low that pictures are shrunk by their sides, by all of their patches, and not at all."""
    import transformers

    image = transformers.Kimi_K25ImageProcessor(size={"max_height": 8, "max_width": 8}, max_patches=40)
    video = transformers.Kimi_K25VideoProcessor(size={"max_height": 8, "max_width": 8}, max_patches=20)
    return transformers.Kimi_K25Processor(image, tokenizer, video, chat_template=tokenizer.chat_template)


def image_pixels(processor: Any, image: np.ndarray) -> tuple[np.ndarray, tuple[int, ...]]:
    """Its patches as one picture."""
    made = processor.image_processor(images=[image], return_tensors="pt")
    _, rows, columns = made["image_grid_thw"][0].tolist()
    patches = np.asarray(made["pixel_values"]).reshape(rows, columns, 3, 14, 14).transpose(2, 0, 3, 1, 4)
    return patches.reshape(1, 3, rows * 14, columns * 14), ()


def video_pixels(processor: Any, clip: np.ndarray) -> tuple[np.ndarray, tuple[int, ...]]:
    """Its patches as frames."""
    made = processor.video_processor(videos=[clip], do_sample_frames=False, return_tensors="pt")
    _, rows, columns = made["video_grid_thw"][0].tolist()
    patches = np.asarray(made["pixel_values_videos"]).reshape(len(clip), rows, columns, 3, 14, 14)
    return patches.transpose(0, 3, 1, 4, 2, 5).reshape(len(clip), 3, rows * 14, columns * 14), (4,)


def _hub(tensors: Tensors) -> Tensors:
    """The authors' names; transformers 5 saves some others, which it reads as well."""
    names = (
        ("language_model.model.blocks.", "language_model.model.layers."),
        ("model.mm_projector.", "mm_projector."),
        ("vision_tower.encoder.patch_embed.", "vision_tower.patch_embed."),
    )
    return renamed(tensors, *names)


def _mlx(tensors: Tensors) -> Tensors:
    named: Tensors = {}
    for name, tensor in _hub(tensors).items():
        name = name.replace("vision_tower.encoder.", "vision_tower.")
        for layer in ("wqkv", "wo"):
            name = name.replace(f".{layer}.", f".attn.{layer}.")
        named[name] = tensor
    out: Tensors = {}
    for name, tensor in named.items():  # keys and values apart, each head's in a matrix
        if name.endswith("kv_b_proj.weight"):
            heads = tensor.reshape(4, 16 + 12, 16)
            out[name.replace("kv_b_proj", "embed_q")] = np.ascontiguousarray(heads[:, :16].swapaxes(1, 2))
            out[name.replace("kv_b_proj", "unembed_out")] = np.ascontiguousarray(heads[:, 16:])
        else:
            out[name] = tensor
    return channels_last(switch_experts(out))


def _published(config: Config) -> None:
    """The authors' names, which conversions for MLX keep."""
    vision = config["vision_config"]
    for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"):
        vision[f"vt_{name}"] = vision.pop(name)
    for name in ("height", "width", "time"):
        vision[f"init_pos_emb_{name}"] = vision.pop(f"pos_emb_{name}")
    vision |= {"mm_hidden_size": 48, "projector_ln_eps": config.pop("projection_layer_norm_eps")}
    config["text_config"]["model_type"] = "kimi_k2"


RECIPES = {
    "kimi_k25": Recipe(
        _config, TOKENIZER, CASES, BATCHES, ProcessorKit("kimi_k25", _processor, image_pixels, video_pixels), RULES,
        hub=_hub, mlx=_mlx, mlx_config=_published,
    ),
}  # fmt: skip
