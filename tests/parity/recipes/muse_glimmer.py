"""Muse Glimmer."""

from typing import Any

from ..recipe import (
    HEADS,
    VIDEO_BATCHES,
    VIDEO_CASES,
    VISION_BATCHES,
    VISION_CASES,
    Case,
    Ids,
    ProcessorKit,
    Recipe,
    TokenizerKit,
    ends,
    renamed,
    rope,
    user,
)
from ..weights import Rule, Tensors
from .qwen3_vl import image_pixels, video_pixels

TEMPLATE = (
    "{{ '<|begin_of_text|>' }}{% for m in messages %}"
    "{{ '<|header_start|>' + m['role'] + '<|header_end|>\\n\\n' }}"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}{{ '<|patch|>' }}{% elif c['type'] == 'video' %}{{ '<|video|>' }}"
    "{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}{{ '<|eot|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|header_start|>assistant<|header_end|>\\n\\n' }}{% endif %}"
)
SPECIALS = (
    "<|begin_of_text|>", "<|end_of_text|>", "<|eot|>", "<|header_start|>", "<|header_end|>", "<|image_start|>",
    "<|image_end|>", "<|patch|>", "<|video|>", "<|vid_frame_separator|>", "<|vid_start|>", "<|vid_end|>", "<|pad|>",
)  # fmt: skip
TOKENIZER = TokenizerKit("muse_glimmer", SPECIALS, "<|eot|>", "<|pad|>", TEMPLATE, "<|begin_of_text|>")
ENDS = ends("<|begin_of_text|>", "<|eot|>", "<|pad|>")
RULES: tuple[Rule, ...] = ((r"position_embedding_table\.weight$", 0.0, 0.5),)
# torchvision makes levels of "thin" that are far from Pillow's, and one of larger frames that is two off.
VIDEOS = {name: case for name, case in VIDEO_CASES.items() if name != "video_img"}
CASES = VISION_CASES | VIDEOS | {"wide": Case(user("image", "How wide is it?"), images=["wide"])}
BATCHES = VISION_BATCHES | VIDEO_BATCHES


def config(ids: Ids, vocabulary: int) -> Any:
    """Some grids have more patches a side than there are positions and a window takes, some have less."""
    import transformers

    text = {
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 5, "head_dim": 16, "sliding_window": 16,
        "vocab_size": vocabulary, "rope_parameters": rope(5e5),
    }  # fmt: skip
    vision = {
        "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 4, "num_attention_heads": 4, "patch_size": 14,
        "pos_emb_height": 4, "pos_emb_width": 4, "max_position_embeddings": 16,
    }  # fmt: skip
    return transformers.MuseGlimmerConfig(
        text_config=text | HEADS | ENDS(ids), vision_config=vision, image_token_id=ids("<|patch|>"),
        video_token_id=ids("<|video|>"), out_hidden_size=192, projector_hidden_size=80, tie_word_embeddings=False,
        **ENDS(ids),
    )  # fmt: skip


def processor(tokenizer: Any) -> Any:
    import transformers

    class MuseGlimmer(transformers.MuseGlimmerProcessor):  # type: ignore[misc]
        """Times need what is known of a clip, which the model does not take."""

        def __call__(self, *arguments: Any, **keywords: Any) -> Any:
            if "videos" in keywords:
                keywords["return_metadata"] = True
            made = super().__call__(*arguments, **keywords)
            made.pop("video_metadata", None)
            return made

    image = transformers.MuseGlimmerImageProcessor(max_image_tokens=12)
    video = transformers.MuseGlimmerVideoProcessor(max_video_frame_tokens=5)
    return MuseGlimmer(image, video, tokenizer, chat_template=tokenizer.chat_template)


def mlx(tensors: Tensors) -> Tensors:
    return renamed(
        tensors,
        ("model.language_model.", "language_model.model."),
        ("model.vision_", "vision_"),
        ("lm_head.", "language_model.lm_head."),
    )


RECIPES = {
    "muse_glimmer": Recipe(
        config, TOKENIZER, CASES, BATCHES, ProcessorKit("muse_glimmer", processor, image_pixels, video_pixels), RULES,
        mlx=mlx,
    ),
}  # fmt: skip
