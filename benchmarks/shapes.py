"""Shapes of Qwen3-VL checkpoints, and models of them with random weights that never touch a disk."""

from typing import Any

from PIL import Image

from mlx_vlgen import Request, SamplingParams, load
from mlx_vlgen._runtime import mx, nn
from mlx_vlgen.inputs.images import PixelSettings
from mlx_vlgen.inputs.prompt import MediaInputs
from mlx_vlgen.inputs.qwen_vl import Qwen3VLProcessor
from mlx_vlgen.models.few_rows import hasten_few_rows
from mlx_vlgen.models.qwen3_vl import Qwen3VL


def shape(
    hidden: int, inner: int, layers: int, heads: int, kv: int, vision: int, depth: int, vocab_size: int
) -> dict[str, Any]:
    """A Qwen3-VL configuration."""
    return {
        "model_type": "qwen3_vl",
        "tie_word_embeddings": True,
        "text_config": {
            "model_type": "qwen3_vl_text", "hidden_size": hidden, "intermediate_size": inner,
            "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv, "head_dim": 128,
            "vocab_size": vocab_size, "rms_norm_eps": 1e-6, "rope_theta": 5e6, "max_position_embeddings": 262144,
            "rope_scaling": {"rope_type": "default", "mrope_section": [24, 20, 20], "mrope_interleaved": True},
        },
        "vision_config": {
            "hidden_size": vision, "intermediate_size": 4 * vision, "depth": depth, "num_heads": vision // 64,
            "out_hidden_size": hidden, "patch_size": 16, "spatial_merge_size": 2, "temporal_patch_size": 2,
            "num_position_embeddings": 2304, "deepstack_visual_indexes": [part * depth // 4 - 1 for part in (1, 2, 3)],
        },
    }  # fmt: skip


SIZES = {
    "small": shape(256, 512, 3, 2, 1, 128, 4, 8192),  # a forward of few milliseconds: what is around it shows
    "tiny": shape(512, 1536, 8, 4, 2, 256, 6, 32768),  # for a machine without a GPU
    "2b": shape(2048, 6144, 28, 16, 8, 1024, 24, 151936),
    "4b": shape(2560, 9728, 36, 32, 8, 1024, 24, 151936),
}


def build(size: str, bits: int | None, vocabulary: int | None = None) -> tuple[Qwen3VL, Qwen3VLProcessor]:
    """vocabulary: words, instead of the shape's own."""
    config = SIZES[size]
    if vocabulary is not None:
        config = config | {"text_config": config["text_config"] | {"vocab_size": vocabulary}}
    model = Qwen3VL(config)
    dtype = mx.float32 if mx.default_device().type == mx.DeviceType.cpu else mx.bfloat16
    model.set_dtype(dtype)
    if bits:
        nn.quantize(model.language_model, group_size=64, bits=bits)
    hasten_few_rows(model.text_decoder())
    mx.eval(model.parameters())
    settings = PixelSettings(min_pixels=65536, max_pixels=16777216, patch=16)
    _, demo = load("demo")
    demo.tokenizer.eos_token = None  # random weights must not end early
    return model, Qwen3VLProcessor(demo.tokenizer, demo.chat_template, settings, settings)


def request(image: Image.Image | None, prompt_tokens: int, new_tokens: int) -> Request:
    """A prompt of about `prompt_tokens` tokens, and a picture or none; ends after exactly `new_tokens` tokens."""
    text = "the " * prompt_tokens
    content = [{"type": "image"}, {"type": "text", "text": text}] if image else text
    media = MediaInputs(images=[image] if image else [])
    return Request([{"role": "user", "content": content}], media, SamplingParams(max_tokens=new_tokens, logprobs=False))
