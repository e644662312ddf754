"""HunyuanVL, as HunyuanOCR has it."""

from typing import Any

import numpy as np

from ..recipe import (
    HEADS,
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

BOS, USER, ASSISTANT = "<｜hy_begin▁of▁sentence｜>", "<｜hy_User｜>", "<｜hy_Assistant｜>"
PAD, EOD, SYSTEM = "<｜hy_▁pad▁｜>", "<｜hy_place▁holder▁no▁2｜>", "<｜hy_place▁holder▁no▁3｜>"
START, END, IMAGE = (f"<｜hy_place▁holder▁no▁{number}｜>" for number in (100, 101, 102))
TEMPLATE = (
    f"{BOS}{{% for m in messages %}}{{% if m['content'] is string %}}{{{{ m['content'] }}}}{{% else %}}"
    f"{{% for c in m['content'] %}}{{% if c['type'] == 'image' %}}{START}{IMAGE}{END}{{% elif c['type'] == 'text' %}}"
    f"{{{{ c['text'] }}}}{{% endif %}}{{% endfor %}}{{% endif %}}{{% if m['role'] == 'system' %}}{SYSTEM}"
    f"{{% elif m['role'] == 'user' %}}{USER}{{% else %}}{ASSISTANT}{{% endif %}}{{% endfor %}}"
)
TOKENIZER = TokenizerKit(
    "hunyuan_vl", [PAD, BOS, ASSISTANT, EOD, SYSTEM, USER, START, END, IMAGE], ASSISTANT, PAD, TEMPLATE, None,
    {"image_token": IMAGE, "image_start_token": START, "image_end_token": END},
)  # fmt: skip
ENDS = ends(BOS, ASSISTANT, PAD)
RULES: tuple[Rule, ...] = (
    (r"position_embedding\.weight$", 0.0, 0.5), (r"_rms\.weight$", 1.0, 0.2),
    (r"image_(newline|begin|end|sep)$", 0.0, 0.5),
    # Attention that picks, and layers that outweigh the embeddings, lest a tied model repeats its last token.
    (r"(query|key)_layernorm\.weight$", 1.5, 0.3), (r"down_proj\.weight$", 0.0, 0.3),
)  # fmt: skip
# The learned positions of 5 x 5 patches are resampled to more, to fewer, and for one picture not at all.
CASES = VISION_CASES | {
    "small": Case(user("What is small? ", "image"), images=["small"]),
    "shapes": Case(user("image", "image", "image", "Compare."), images=["thin", "plain", "wide"]),
}
BATCHES = VISION_BATCHES | {"batch_shapes": ["shapes", "text", "small"]}
PATCH = 16


def config(ids: Ids, vocabulary: int) -> Any:
    import transformers

    vision: Config = {
        "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 4,
        "patch_size": PATCH, "out_hidden_size": 64, "max_image_size": 80,
    }  # fmt: skip
    positions = rope(1e4, alpha=1000.0, factor=1.0, mrope_section=[4, 4, 4, 4]) | {"rope_type": "dynamic"}
    text: Config = {
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "head_dim": 32, "vocab_size": vocabulary,
        "rope_parameters": positions, "eod_token_id": ids(EOD), "sep_token_id": ids(EOD),
    }  # fmt: skip
    return transformers.HunYuanVLConfig(
        vision_config=vision, text_config=text | HEADS | ENDS(ids), image_token_id=ids(IMAGE), im_start_id=ids(START),
        im_end_id=ids(END), im_newline_id=ids(EOD), tie_word_embeddings=True, **ENDS(ids),
    )  # fmt: skip


def processor(tokenizer: Any) -> Any:
    import transformers

    image = transformers.HunYuanVLImageProcessorPil(
        size={"shortest_edge": 12 * 32 * 32, "longest_edge": 20 * 32 * 32}, patch_size=PATCH
    )
    return transformers.HunYuanVLProcessor(image, tokenizer, chat_template=tokenizer.chat_template)


def image_pixels(processor: Any, image: np.ndarray) -> tuple[np.ndarray, tuple[int, ...]]:
    """Patches as the picture that they are of."""
    features = processor.image_processor(images=[image], return_tensors="np")
    _, rows, columns = np.asarray(features["image_grid_thw"])[0].tolist()
    patches = np.asarray(features["pixel_values"]).reshape(rows, columns, 3, PATCH, PATCH)
    return patches.transpose(2, 0, 3, 1, 4).reshape(1, 3, rows * PATCH, columns * PATCH), (rows // 2, columns // 2)


def legacy(config: Config) -> None:
    """The text decoder's fields among the others, and its rotary positions by their old names."""
    text = config.pop("text_config")
    scaling = text.pop("rope_scaling")
    scaling["xdrope_section"] = scaling.pop("mrope_section")
    scaling["type"] = "xdrope"
    del scaling["rope_type"]
    config |= {key: value for key, value in text.items() if key != "model_type"} | {"rope_scaling": scaling}


def _mlx(tensors: Tensors) -> Tensors:
    pairs = (("model.", "language_model.model."), ("vit.", "vision_tower."))
    return channels_last(renamed(tensors, *pairs))


RECIPES = {
    "hunyuan_vl": Recipe(
        config, TOKENIZER, CASES, BATCHES, ProcessorKit("hunyuan_vl", processor, image_pixels), RULES, mlx=_mlx,
        legacy=legacy,
    ),
}  # fmt: skip
