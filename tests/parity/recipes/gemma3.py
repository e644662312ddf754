"""Gemma 3 with pictures."""

from typing import Any

import numpy as np

from ..recipe import (
    GEMMA_RULES,
    HEADS,
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
    rope,
)
from ..weights import Rule, Tensors

# Does what the published one does, which is not ours to copy: the first token, trimmed texts, the text of a system
# message before those of the first user.
TEMPLATE = (
    "{{ bos_token }}{% set told = namespace(words='') %}{% for m in messages %}{% if m['role'] == 'system' %}"
    "{% set told.words = (m['content'] if m['content'] is string else m['content'][0]['text']) + '\\n\\n' %}{% else %}"
    "{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\\n' + told.words }}"
    "{% set told.words = '' %}{% if m['content'] is string %}{{ m['content'] | trim }}{% else %}"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}{{ '<start_of_image>' }}{% else %}"
    "{{ c['text'] | trim }}{% endif %}{% endfor %}{% endif %}{{ '<end_of_turn>\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)
TOKENIZER = TokenizerKit(
    "gemma3",
    ["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>",
     "<image_soft_token>"],
    "<eos>",
    "<pad>",
    TEMPLATE,
    "<bos>",
    {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"},
)  # fmt: skip
ENDS = ends("<bos>", "<eos>", "<pad>")
SIGLIP: Config = {
    "model_type": "siglip_vision_model", "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3,
    "num_attention_heads": 4, "image_size": 56, "patch_size": 14, "vision_use_head": False,
}  # fmt: skip
# A width that is no power of four, whose root bfloat16 cannot hold.
TEXT: Config = {"hidden_size": 72, "intermediate_size": 96, "head_dim": 32}
TOWER_RULES: tuple[Rule, ...] = (
    (r"position_embedding\.weight$", 0.0, 0.5),
    (r"vision_tower.*norm\d?\.weight$", 1.0, 0.2),
)
RULES = (*TOWER_RULES, *GEMMA_RULES)
TOKENS = 16
"""Of a picture: more than the sliding window, which hides the first of them from the last."""


def config(ids: Ids, vocabulary: int) -> Any:
    import transformers

    text = TEXT | HEADS | ENDS(ids) | {
        "vocab_size": vocabulary, "num_hidden_layers": 4, "sliding_window": 10, "query_pre_attn_scalar": 24,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": rope(1e4),
        },
    }  # fmt: skip
    return transformers.Gemma3Config(
        text_config=text, vision_config=SIGLIP | {"image_size": 112}, mm_tokens_per_image=TOKENS,
        boi_token_index=ids("<start_of_image>"), eoi_token_index=ids("<end_of_image>"),
        image_token_index=ids("<image_soft_token>"), eos_token_id=[ids("<eos>"), ids("<end_of_turn>")],
    )  # fmt: skip


def processor(tokenizer: Any) -> Any:
    import transformers

    image = transformers.Gemma3ImageProcessorPil(size={"height": 112, "width": 112}, image_seq_length=TOKENS)
    return transformers.Gemma3Processor(
        image, tokenizer, chat_template=tokenizer.chat_template, image_seq_length=TOKENS
    )


def image_pixels(processor: Any, image: np.ndarray) -> tuple[np.ndarray, tuple[int, ...]]:
    return np.asarray(processor.image_processor(images=[image], return_tensors="np")["pixel_values"]), ()


def hub(tensors: Tensors) -> Tensors:
    return renamed(tensors, ("vision_tower.", "vision_tower.vision_model."))


def mlx(tensors: Tensors) -> Tensors:
    """With an output layer, a copy of the embeddings."""
    tensors = channels_last(hub(tensors))
    return tensors | {"language_model.lm_head.weight": tensors["language_model.model.embed_tokens.weight"]}


def legacy(config: Config) -> None:
    text = config["text_config"]
    text["sliding_window_pattern"] = text.pop("layer_types").index("full_attention") + 1
    text.pop("_sliding_window_pattern", None)


RECIPES = {
    "gemma3": Recipe(
        config, TOKENIZER, VISION_CASES, VISION_BATCHES,
        ProcessorKit("gemma3", processor, image_pixels, nested=True), RULES, hub=hub, mlx=mlx, legacy=legacy,
    ),
}  # fmt: skip
