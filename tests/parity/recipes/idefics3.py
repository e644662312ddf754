"""Idefics3 and SmolVLM."""

import dataclasses
import functools
import re
from collections.abc import Callable
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
    rope,
    user,
)
from ..weights import Rule, Tensors
from .llava import text_config

# Like published ones it knows no video: transformers then takes a template of the processor class.
TEMPLATE = (
    "<|im_start|>{% for m in messages %}{{ m['role'] | capitalize }}{% if m['content'][0]['type'] == 'image' %}"
    "{{ ':' }}{% else %}{{ ': ' }}{% endif %}{% for c in m['content'] %}{% if c['type'] == 'text' %}{{ c['text'] }}"
    "{% elif c['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}{{ '<end_of_utterance>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
TOKENIZER = TokenizerKit(
    "idefics3",
    [
        "<unk>", "<|im_start|>", "<|im_end|>", "<pad>", "<fake_token_around_image>", "<image>", "<end_of_utterance>",
        "<global-img>", "<video>", *(f"<row_{row}_col_{column}>" for row in range(1, 4) for column in range(1, 4)),
    ],
    "<end_of_utterance>", "<pad>", TEMPLATE, "<|im_start|>",
)  # fmt: skip
ENDS = ends("<|im_start|>", "<end_of_utterance>", "<pad>")
RULES: tuple[Rule, ...] = ((r"position_embedding\.weight$", 0.0, 0.5),)
LLAMA3 = rope(
    5e5, rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64
)


def _config(name: str, image_size: int, **text: Any) -> Callable[[Ids, int], Any]:
    """image_size: as many learned positions a side as it has patches."""

    def build(ids: Ids, vocabulary: int) -> Any:
        import transformers

        vision: Config = {
            "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 4,
            "image_size": image_size, "patch_size": 7,
        }  # fmt: skip
        return getattr(transformers, name)(
            vision_config=vision, text_config=text_config(ids, vocabulary, **text) | ENDS(ids),
            image_token_id=ids("<image>"), scale_factor=2, **ENDS(ids),
        )  # fmt: skip

    return build


def idefics3(tokenizer: Any) -> Any:
    """Tiles of 28 pixels and a longer side of three."""
    import transformers

    image = transformers.Idefics3ImageProcessorPil(size={"longest_edge": 84}, max_image_size={"longest_edge": 28})
    return transformers.Idefics3Processor(image, tokenizer, image_seq_len=4, chat_template=tokenizer.chat_template)


def smolvlm(tokenizer: Any) -> Any:
    """Tiles of 30 pixels, which are no whole number of patches, and longer sides that are no whole number of tiles.

    Frames are resized twice. Where torchvision and Pillow each differ by a level, one value in ten thousand differs by
    two for most longer sides; with this one, none does.
    """
    import transformers

    tile = {"longest_edge": 30}
    image = transformers.SmolVLMImageProcessorPil(size={"longest_edge": 50}, max_image_size=tile)
    video = transformers.SmolVLMVideoProcessor(size={"longest_edge": 72}, max_image_size=tile)
    return _smolvlm_class()(image, tokenizer, video, image_seq_len=4, chat_template=tokenizer.chat_template)


@functools.cache
def _smolvlm_class() -> Any:
    import torch
    import transformers

    class SmolVLMProcessor(transformers.SmolVLMProcessor):  # type: ignore[misc]
        """transformers' class, which returns only the videos' pixels where there are pictures too; this one gives the
        model all of them, in the order of the prompts."""

        def __call__(self, images: Any = None, text: Any = None, videos: Any = None, **keywords: Any) -> Any:
            features = super().__call__(images=images, text=text, videos=videos, **keywords)
            if not images or not videos:
                return features
            pixels = {
                "<image>": (image_pixels(self, image)[0] for row in images for image in row),
                "<video>": (clip_pixels(self, clip)[0] for clip in videos),
            }
            order = re.findall("<image>|<video>", "".join(text))
            features["pixel_values"] = torch.tensor(np.concatenate([next(pixels[token]) for token in order]))[None]
            del features["pixel_attention_mask"]
            return features

    return SmolVLMProcessor


def image_pixels(processor: Any, image: np.ndarray) -> tuple[np.ndarray, tuple[int, ...]]:
    return np.asarray(processor.image_processor(images=[image], return_tensors="np")["pixel_values"])[0], ()


def clip_pixels(processor: Any, clip: np.ndarray) -> tuple[np.ndarray, tuple[int, ...]]:
    return np.asarray(processor.video_processor(videos=[clip], return_tensors="np")["pixel_values"])[0], ()


def in_parts(case: Case) -> Case:
    """The template passes over contents that are strings."""
    turns = [
        message | {"content": [{"type": "text", "text": message["content"]}]}
        if isinstance(message["content"], str)
        else message
        for message in case.prompt
        if isinstance(message, dict)
    ]
    return dataclasses.replace(case, prompt=turns)


def mlx_names(tensors: Tensors) -> Tensors:
    pairs = (
        ("model.text_model.", "language_model."),
        ("lm_head.", "language_model.lm_head."),
        ("model.", ""),
    )
    return channels_last(renamed(tensors, *pairs))


CASES = {name: in_parts(case) for name, case in VISION_CASES.items()}
WIDE = {"wide": Case(user("What is it? ", "image"), images=["wide"])}  # one row of tiles, after text
RECIPES = {
    "idefics3": Recipe(
        _config("Idefics3Config", 42, rope_parameters=LLAMA3), TOKENIZER, CASES | WIDE, VISION_BATCHES,
        ProcessorKit("idefics3", idefics3, image_pixels, nested=True), RULES, mlx=mlx_names,
    ),
    "smolvlm": Recipe(
        _config("SmolVLMConfig", 30, rope_parameters=rope(1e5), head_dim=32), TOKENIZER,
        CASES | VIDEO_CASES, VISION_BATCHES | VIDEO_BATCHES,
        ProcessorKit("smolvlm", smolvlm, image_pixels, clip_pixels, nested=True), RULES, mlx=mlx_names,
    ),
}  # fmt: skip
