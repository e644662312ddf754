"""PaliGemma and PaliGemma 2."""

from collections.abc import Callable
from typing import Any

from ..recipe import GEMMA_RULES, HEADS, Case, Config, Ids, ProcessorKit, Recipe, TokenizerKit, rope
from ..weights import Rule
from .gemma3 import ENDS, SIGLIP, TEXT, TOWER_RULES, hub, image_pixels, mlx

TOKENIZER = TokenizerKit(
    "paligemma", ["<pad>", "<eos>", "<bos>", "<unk>", "<image>"], "<eos>", "<pad>", "", "<bos>",
    {"image_token": "<image>"},
)  # fmt: skip
CASES = {
    "text": Case("describe the user in français, 日本語 or emoji"),
    "img1": Case("<image>describe en", ["plain"]),
    "unnamed": Case("What is it? Tell the model more about the picture.", ["upright"]),
    "img2": Case("<image><image>What differs?", ["upright", "large"]),
    "between": Case("<image> and <image>What differs?", ["small", "plain"]),
}


def config(**text: Any) -> Callable[[Ids, int], Any]:
    def build(ids: Ids, vocabulary: int) -> Any:
        import transformers

        ends = ENDS(ids)
        return transformers.PaliGemmaConfig(
            text_config=TEXT | HEADS | ends | {"vocab_size": vocabulary, "num_hidden_layers": 3} | text,
            vision_config=SIGLIP | {"projection_dim": 72}, projection_dim=72, image_token_index=ids("<image>"), **ends,
        )  # fmt: skip

    return build


def processor(tokenizer: Any) -> Any:
    import torch
    import transformers

    class PaliGemmaProcessor(transformers.PaliGemmaProcessor):
        """Also takes text without a picture, which the model knows and transformers' processor does not."""

        def __call__(self, text: Any, images: Any = None, **keywords: Any) -> Any:
            if images is not None:
                return super().__call__(text=text, images=images, **keywords)
            laid = [f"{self.tokenizer.bos_token}{one}\n" for one in text]
            inputs = self.tokenizer(laid, add_special_tokens=False, return_tensors="pt")
            return inputs | {"token_type_ids": torch.zeros_like(inputs["input_ids"])}

    image = transformers.SiglipImageProcessorPil(size={"height": 56, "width": 56})
    image.image_seq_length = 16
    return PaliGemmaProcessor(image, tokenizer)


def legacy(config: Config) -> None:
    """What the first published configurations did not say yet."""
    text = config["text_config"]
    text.pop("layer_types", None)
    text.pop("use_bidirectional_attention")
    if text["model_type"] == "gemma":
        text["hidden_activation"] = None
        text["hidden_act"] = "gelu"


def recipe(*rules: Rule, **text: Any) -> Recipe:
    kit = ProcessorKit("paligemma", processor, image_pixels, nested=True)
    return Recipe(
        config(**text), TOKENIZER, CASES, {"batch": ["img1", "img2", "between"]}, kit,
        (*rules, *TOWER_RULES, *GEMMA_RULES), hub=hub, mlx=mlx, legacy=legacy,
    )  # fmt: skip


RECIPES = {
    # Without norms after them, layers must be loud, or the last token copies itself for ever.
    "paligemma": recipe(
        (r"(o|down)_proj\.weight$", 0.0, 0.5), model_type="gemma", num_key_value_heads=1, rope_parameters=rope(1e4)
    ),
    # The sliding layers have a window shorter than any prompt.
    "paligemma2": recipe(
        model_type="gemma2", sliding_window=12, query_pre_attn_scalar=24, attn_logit_softcapping=2.0,
        final_logit_softcapping=1.0, rope_parameters=rope(1e4),
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
}  # fmt: skip
