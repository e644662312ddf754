"""ERNIE 4.5 VL."""

import re
from typing import Any

import numpy as np

from ..recipe import (
    HEADS,
    VIDEO_BATCHES,
    VIDEO_CASES,
    VISION_BATCHES,
    VISION_CASES,
    Ids,
    ProcessorKit,
    Recipe,
    TokenizerKit,
    ends,
    renamed,
    rope,
)
from ..weights import Rule, Tensors
from .qwen3_vl import image_pixels, video_pixels

NAMED = {
    f"{kind}{part}_token": f"<|{kind.upper()}_{part.removeprefix('_').upper() or 'PLACEHOLDER'}|>"
    for kind in ("image", "video")
    for part in ("", "_start", "_end")
}
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ {'user': 'User: ', 'assistant': 'Assistant: ', 'system': ''}[m['role']] }}"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}{{ 'Picture: <|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>' }}"
    "{% elif c['type'] == 'video' %}{{ 'Video: <|VIDEO_START|><|VIDEO_PLACEHOLDER|><|VIDEO_END|>' }}"
    "{% elif c['type'] == 'text' %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{{ eos_token if m['role'] == 'assistant' else '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant: ' }}{% endif %}"
)
TOKENIZER = TokenizerKit("ernie_vl", ("<unk>", "<s>", "</s>", *NAMED.values()), "</s>", "<unk>", TEMPLATE, "<s>", NAMED)
RULES: tuple[Rule, ...] = (
    (r"e_score_correction_bias$", 0.0, 0.05),
    (r"(spatial|temporal)_linear\.3\.weight$", 1.0, 0.2),
)


def config(ids: Ids, vocabulary: int) -> Any:
    import transformers

    text = {
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "vocab_size": vocabulary,
        "moe_intermediate_size": [40, 24], "moe_k": 2, "moe_num_experts": 8, "moe_num_shared_experts": 2,
        "rope_parameters": rope(5e5, mrope_section=[3, 3, 2]), "tie_word_embeddings": True,
    }  # fmt: skip
    vision = {
        "depth": 3, "hidden_size": 48, "num_heads": 4, "intermediate_size": 80, "patch_size": 14,
    }  # fmt: skip
    return transformers.Ernie4_5_VLMoeConfig(
        text_config=text | HEADS | ends("<s>", "</s>", "<unk>")(ids), vision_config=vision, tie_word_embeddings=True,
        **{f"{name}_id": ids(token) for name, token in NAMED.items()},
    )  # fmt: skip


def processor(tokenizer: Any) -> Any:
    """Limits so low that of the pictures and clips of media.py some shrink, some grow and some stay."""
    import transformers

    image = transformers.Ernie4_5_VLMoeImageProcessorPil(
        size={"shortest_edge": 2 * 56 * 56, "longest_edge": 12 * 28 * 28}
    )
    video = transformers.Ernie4_5_VLMoeVideoProcessor(
        size={"shortest_edge": 2 * 56 * 56, "longest_edge": 12 * 28 * 28}, draw_on_frames=False
    )
    return transformers.Ernie4_5_VLMoeProcessor(image, tokenizer, video, chat_template=tokenizer.chat_template)


def mlx(tensors: Tensors) -> Tensors:
    """The experts in two stacks, those for pictures in the second; gates and their biases beside them."""
    pairs = (
        ("model.vision_model.", "vision_tower."),
        ("model.resampler_model.", "resampler_model."),
        ("model.", "language_model.model."),
    )
    out: Tensors = {}
    stacks: dict[str, dict[int, np.ndarray]] = {}
    for name, tensor in renamed(tensors, *pairs).items():
        name = re.sub(r"_linear\.(\d)\.", r"_linear.layers.\1.", name)
        if expert := re.fullmatch(r"(.*\.mlp\.)experts\.(\d+)\.(.*)", name):
            number = int(expert[2])
            stack = "switch_mlp" if number < 8 else "switch_mlp_1"
            stacks.setdefault(f"{expert[1]}{stack}.{expert[3]}", {})[number] = tensor
        elif name.endswith("moe_statics.e_score_correction_bias"):
            name = name.replace("moe_statics.", "")
            out[name], out[f"{name}_1"] = (np.ascontiguousarray(row) for row in tensor)
        elif ".mlp.gate." in name:
            out[name.replace("gate.weight_1", "gate_1.weight")] = np.ascontiguousarray(tensor.T)
        else:
            out[name] = tensor
    return out | {name: np.stack([experts[i] for i in sorted(experts)]) for name, experts in stacks.items()}


RECIPES = {
    "ernie4_5_vl_moe": Recipe(
        config, TOKENIZER, VISION_CASES | VIDEO_CASES, VISION_BATCHES | VIDEO_BATCHES,
        ProcessorKit("ernie4_5_vl_moe", processor, image_pixels, video_pixels), RULES, mlx=mlx,
    ),
}  # fmt: skip
