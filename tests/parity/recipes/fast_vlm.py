"""FastVLM."""

from typing import Any

from ..recipe import (
    QWEN_ENDS,
    VISION_BATCHES,
    VISION_CASES,
    Case,
    Ids,
    ProcessorKit,
    Recipe,
    TokenizerKit,
    channels_last,
    renamed,
    user,
)
from ..weights import Rule, Tensors
from .llava import image_pixels, text_config

TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}{{ '<image>' }}{% elif c['type'] == 'text' %}{{ c['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
TOKENIZER = TokenizerKit(
    "fast_vlm", ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>"], "<|im_end|>", "<|endoftext|>", TEMPLATE,
    named={"image_token": "<image>"},
)  # fmt: skip
RULES: tuple[Rule, ...] = (
    (r"num_batches_tracked$", 0.0, 0.0), (r"running_var$", 1.0, 0.1), (r"bn\.weight$", 1.0, 0.2),
    # Convolutions that hand on what differs between pictures, and biases that do not outweigh it.
    (r"vision_tower.*(bias|running_mean)$", 0.0, 0.02), (r"stem\.[02]\.reparam_conv\.weight$", 0.0, 0.4),
    (r"(stem\.1|final_conv)\.reparam_conv\.weight$", 0.0, 0.7), (r"token_mixer\.reparam_conv\.weight$", 0.0, 0.4),
    (r"proj\.0\.reparam_conv\.weight$", 0.0, 0.25), (r"proj\.1\.reparam_conv\.weight$", 0.0, 0.3),
    (r"projector\.linear_1\.weight$", 0.0, 0.8), (r"projector\.linear_2\.weight$", 0.0, 0.2),
    # Attention that picks, and layers that outweigh the embeddings, lest a tied model repeats its last token.
    (r"language_model.*[qk]_proj\.weight$", 0.0, 0.25), (r"down_proj\.weight$", 0.0, 0.3),
)  # fmt: skip
CASES = VISION_CASES | {"wide": Case(user("What is wide?", "image"), images=["wide"])}


def config(ids: Ids, vocabulary: int) -> Any:
    """The smallest tower of all its kinds of blocks."""
    import transformers

    vision = {
        "model_type": "timm_wrapper", "architecture": "fastvit_mci3", "do_pooling": True, "global_pool": "avg",
        "hidden_size": 128,
        "model_args": {"inference_mode": True, "layers": [1, 1, 2, 1, 1], "embed_dims": [16, 16, 32, 32, 64]},
    }  # fmt: skip
    return transformers.FastVlmConfig(
        vision_config=vision, text_config=text_config(ids, vocabulary, "qwen2") | QWEN_ENDS(ids),
        image_token_index=ids("<image>"), image_seq_length=4, tie_word_embeddings=True, **QWEN_ENDS(ids),
    )  # fmt: skip


def processor(tokenizer: Any) -> Any:
    import transformers

    image = transformers.CLIPImageProcessorPil(
        size={"shortest_edge": 128}, crop_size={"height": 128, "width": 128}, image_mean=[0.0] * 3, image_std=[1.0] * 3
    )
    return transformers.LlavaProcessor(
        image, tokenizer, patch_size=64, vision_feature_select_strategy="full", num_additional_image_tokens=0,
        chat_template=tokenizer.chat_template,
    )  # fmt: skip


def mlx(tensors: Tensors) -> Tensors:
    """The names that a conversion here writes."""
    tensors = {name: tensor.reshape(-1) if name.endswith(".gamma") else tensor for name, tensor in tensors.items()}
    tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith(".num_batches_tracked")}
    return channels_last(
        renamed(
            tensors,
            ("model.vision_tower.timm_model.", "vision_tower."),
            ("model.multi_modal_projector.", "multi_modal_projector."),
            ("model.language_model.", "language_model.model."),
        )
    )


RECIPES = {
    "fast_vlm": Recipe(
        config, TOKENIZER, CASES, VISION_BATCHES, ProcessorKit("fast_vlm", processor, image_pixels), RULES, mlx=mlx
    ),
}
