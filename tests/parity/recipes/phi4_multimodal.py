"""Phi-4 multimodal."""

from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image

from ..recipe import (
    AUDIO_BATCHES,
    AUDIO_CASES,
    HEADS,
    VISION_BATCHES,
    VISION_CASES,
    Case,
    Config,
    Ids,
    ProcessorKit,
    Recipe,
    TokenizerKit,
    ends,
    renamed,
    user,
)
from ..weights import Rule, Tensors

IMAGE, AUDIO = "<|endoftext10|>", "<|endoftext11|>"
TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' }}{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}{{ '<|endoftext10|>' }}"
    "{% elif c['type'] == 'audio' %}{{ '<|endoftext11|>' }}{% else %}{{ c['text'] }}{% endif %}{% endfor %}"
    "{% endif %}{{ '<|end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
SPECIALS = ("<|endoftext|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>", IMAGE, AUDIO)
TOKENIZER = TokenizerKit(
    "phi4_multimodal", SPECIALS, "<|end|>", "<|endoftext|>", TEMPLATE,
    named={"image_token": IMAGE, "audio_token": AUDIO},
)  # fmt: skip
ENDS = ends("<|endoftext|>", "<|end|>", "<|endoftext|>")
SIDE, PATCH = 56, 14
RULES: tuple[Rule, ...] = (
    (r"position_embedding\.weight$", 0.0, 0.5),
    (r"bias_values\.weight$", 0.0, 1.0),
    (r"global_mean$", 8.0, 1.0),
    (r"global_invstd$", 0.4, 0.05),
    (r"feature_extensor$", 0.0, 1.0),
    (r"\.b[12]$", 0.0, 0.3),
)
CASES = VISION_CASES | AUDIO_CASES | {
    "wide": Case(user("image", "How wide is it?"), images=["wide"]),
    "audio_img": Case(user("audio", "image", "What is it?"), images=["plain"], audios=["short_sound"]),
}  # fmt: skip


def config(ids: Ids, vocabulary: int) -> Any:
    import transformers

    return transformers.Phi4MultimodalConfig(
        **HEADS | {"max_position_embeddings": 8192}, **ENDS(ids), vocab_size=vocabulary, hidden_size=64,
        intermediate_size=96, num_hidden_layers=3, original_max_position_embeddings=60, tie_word_embeddings=True,
        rope_parameters={
            "rope_type": "longrope", "rope_theta": 1e4, "partial_rotary_factor": 0.75,
            "short_factor": [1.0, 1.0, 1.1, 1.2, 1.3, 1.4], "long_factor": [1.0, 1.2, 1.5, 2.0, 3.0, 4.0],
        },
        vision_config={
            "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 4,
            "image_size": SIDE, "crop_size": SIDE, "patch_size": PATCH, "image_token_id": ids(IMAGE),
        },
        audio_config={
            "hidden_size": 48, "intermediate_size": 80, "num_blocks": 3, "num_attention_heads": 4,
            "ext_pw_out_channel": 48, "depthwise_separable_out_channel": 48, "nemo_conv_channels": 16,
            "input_size": 80, "bias_max_distance": 12, "audio_token_id": ids(AUDIO),
        },
    )  # fmt: skip


def hear_one_by_one() -> None:
    """transformers adds a mask of ones and zeros to the scores of clips of unlike length: they still see padding."""
    import torch
    from transformers.models.phi4_multimodal import modeling_phi4_multimodal as modeling

    together = modeling.Phi4MultimodalAudioModel.forward

    def forward(self: Any, features: torch.Tensor, mask: torch.Tensor | None, **keywords: Any) -> torch.Tensor:
        lengths = [features.shape[1]] * len(features) if mask is None else mask.sum(1).tolist()
        clips = [together(self, clip[None, :length], None)[0] for clip, length in zip(features, lengths, strict=True)]
        return torch.nn.utils.rnn.pad_sequence(clips, batch_first=True)

    modeling.Phi4MultimodalAudioModel.forward = forward


def processor(tokenizer: Any) -> Any:
    import torch
    import transformers
    from transformers.models.phi4_multimodal import image_processing_phi4_multimodal as images

    hear_one_by_one()

    def resized(image: Any, size: list[int]) -> Any:
        levels = Image.fromarray(image.permute(1, 2, 0).numpy()).resize(size[::-1], Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(levels)).permute(2, 0, 1)

    pad = images.tvF.pad
    images.tvF = SimpleNamespace(resize=resized, pad=pad)

    class Phi4MultimodalImageProcessor(images.Phi4MultimodalImageProcessor):  # type: ignore[misc]
        """transformers' counts tokens of 448 pixels, whatever the size; and a mask of floats would be nudged."""

        def _preprocess(self, *arguments: Any, **keywords: Any) -> Any:
            made = super()._preprocess(*arguments, **keywords)
            half = SIDE // PATCH // 2
            surplus = 256 + 16 - half**2 - half
            made["num_img_tokens"] = [int(count) - surplus for count in made["num_img_tokens"]]
            made["image_attention_mask"] = made["image_attention_mask"].long()
            return made

    size = {"height": SIDE, "width": SIDE}
    image = Phi4MultimodalImageProcessor(size=size, patch_size=PATCH, dynamic_hd=6)
    return transformers.Phi4MultimodalProcessor(
        image, transformers.Phi4MultimodalFeatureExtractor(), tokenizer, chat_template=tokenizer.chat_template
    )


def image_pixels(processor: Any, picture: np.ndarray) -> tuple[np.ndarray, tuple[int, ...]]:
    """The tiles without the whole, which has floats between levels."""
    made = processor.image_processor(picture, return_tensors="pt")
    (height, width), side = made["image_sizes"][0], SIDE // PATCH
    grid = height // SIDE, width // SIDE
    mask = made["image_attention_mask"][0, 1:].numpy().reshape(*grid, side, side).swapaxes(1, 2)
    mask = mask.reshape(grid[0] * side, grid[1] * side)
    shown = mask[:, 0].sum(), mask[0].sum()
    return made["image_pixel_values"][0, 1:].numpy(), tuple(int(count) for count in (*grid, *shown))


def audio_features(processor: Any, samples: np.ndarray) -> tuple[np.ndarray, tuple[int, ...]]:
    made = processor.audio_processor(samples, sampling_rate=16_000, return_tensors="np")
    features = np.asarray(made["audio_input_features"][0], np.float32)
    return features, (len(features),)


def mlx(tensors: Tensors) -> Tensors:
    """Convolutions with their channels last, and no pooling head, which nothing takes."""
    last = {
        name: np.ascontiguousarray(np.moveaxis(tensor, 1, -1))
        if tensor.ndim > 2 and "extensor" not in name and not name.endswith((".b1", ".b2"))
        else tensor
        for name, tensor in tensors.items()
        if ".head." not in name
    }
    return renamed(last, ("model.embed_tokens_extend.", ""), ("model.", "language_model.model."))


def legacy(config: Config) -> None:
    rope = config["rope_scaling"]
    rope["type"] = rope.pop("rope_type")
    config |= {name: rope.pop(name) for name in ("partial_rotary_factor", "original_max_position_embeddings")}


RECIPES = {
    "phi4_multimodal": Recipe(
        config, TOKENIZER, CASES, VISION_BATCHES | AUDIO_BATCHES,
        ProcessorKit("phi4_multimodal", processor, image_pixels, audio=audio_features), RULES, 8, mlx=mlx,
        legacy=legacy,
    ),
}  # fmt: skip
