"""Idefics2, with the quarters of a picture before it and without them."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from ..recipe import VISION_BATCHES, VISION_CASES, Case, Config, Ids, ProcessorKit, Recipe, TokenizerKit, ends, user
from ..weights import Rule
from .idefics3 import TEMPLATE, in_parts, mlx_names
from .llava import text_config

TOKENIZER = TokenizerKit(
    "idefics2",
    ["<unk>", "<s>", "</s>", "<fake_token_around_image>", "<image>", "<end_of_utterance>"],
    "<end_of_utterance>", "<unk>", TEMPLATE.removeprefix("<|im_start|>"), "<s>",
)  # fmt: skip
ENDS = ends("<s>", "<end_of_utterance>", "<unk>")
RULES: tuple[Rule, ...] = ((r"position_embedding\.weight$", 0.0, 0.5), (r"latents$", 0.0, 1.0))
PATCH = 7


def _config(**text: Any) -> Callable[[Ids, int], Any]:
    def build(ids: Ids, vocabulary: int) -> Any:
        import transformers

        vision: Config = {
            "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 4,
            "image_size": 42, "patch_size": PATCH,
        }  # fmt: skip
        perceiver: Config = {
            "hidden_size": 64, "resampler_n_latents": 6, "resampler_depth": 2, "resampler_n_heads": 4,
            "resampler_head_dim": 24, "num_key_value_heads": 2,
        }  # fmt: skip
        return transformers.Idefics2Config(
            vision_config=vision, perceiver_config=perceiver,
            text_config=text_config(ids, vocabulary, "mistral", **text) | ENDS(ids),
            image_token_id=ids("<image>"), **ENDS(ids),
        )  # fmt: skip

    return build


def _processor(split: bool) -> Callable[[Any], Any]:
    def build(tokenizer: Any) -> Any:
        import transformers

        image = transformers.Idefics2ImageProcessorPil(
            size={"shortest_edge": 28, "longest_edge": 56}, do_image_splitting=split
        )
        return _processor_class()(image, tokenizer, image_seq_len=6, chat_template=tokenizer.chat_template)

    return build


@functools.cache
def _processor_class() -> Any:
    import transformers

    class Idefics2Processor(transformers.Idefics2Processor):  # type: ignore[misc]
        """transformers' class, which takes no arrays."""

        def __call__(self, images: Any = None, text: Any = None, **keywords: Any) -> Any:
            images = images and [[Image.fromarray(image) for image in row] for row in images]
            return super().__call__(images=images, text=text, **keywords)

    return Idefics2Processor


def image_pixels(processor: Any, image: np.ndarray) -> tuple[np.ndarray, tuple[int, ...]]:
    """Each part without what is padded and what lies beside whole patches; their sizes."""
    features = processor.image_processor(images=[[image]], return_tensors="np")
    parts, grid = [], []
    for values, mask in zip(features["pixel_values"][0], features["pixel_attention_mask"][0], strict=True):
        height, width = (int(side) // PATCH * PATCH for side in (mask[:, 0].sum(), mask[0].sum()))
        parts.append(values[:, :height, :width].transpose(1, 2, 0).reshape(-1, 3))
        grid += [height, width]
    return np.concatenate(parts), tuple(grid)


CASES = {name: in_parts(case) for name, case in VISION_CASES.items()} | {
    "odd": Case(user("What is it?", "image"), images=["wide"]),
    "neighbours": Case(user("image", "image", "Compare."), images=["thin", "small"]),
}
BATCHES = VISION_BATCHES | {"batch2": ["neighbours", "img2", "dialogue"]}
RECIPES = {
    "idefics2": Recipe(
        _config(sliding_window=24), TOKENIZER, CASES, BATCHES,
        ProcessorKit("idefics2", _processor(split=True), image_pixels, nested=True), RULES, mlx=mlx_names,
    ),
    "idefics2_whole": Recipe(
        _config(sliding_window=None), TOKENIZER, {name: CASES[name] for name in ("text", "img1", "upright", "img2")},
        VISION_BATCHES, ProcessorKit("idefics2_whole", _processor(split=False), image_pixels, nested=True), RULES,
        mlx=mlx_names,
    ),
}  # fmt: skip
