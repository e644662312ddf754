"""Speed and memory on a checkpoint of realistic shape with random weights.

    python benchmarks/speed.py [--size 2b] [--bits 4] [--json]

Prints the time to the first token of a picture prompt, prefill and decode tokens/s with the GB/s of weights and cache
that decoding reads (set it beside the machine's memory bandwidth: that is the limit), throughput of batches of 1, 4
and 8, and peak memory. Each figure is the median of `--repeat` runs after a warm-up; on a shared machine compare
ratios within one run. Nothing is downloaded: what the weights are does not change how long they take.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mlx_vlgen import Request, SamplingParams, TokenIterator, load
from mlx_vlgen._runtime import blas, mx, nn
from mlx_vlgen.inputs.images import PixelSettings
from mlx_vlgen.inputs.prompt import MediaInputs
from mlx_vlgen.inputs.qwen_vl import Qwen3VLProcessor
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
            "rope_scaling": {"mrope_section": [24, 20, 20], "mrope_interleaved": True},
        },
        "vision_config": {
            "hidden_size": vision, "intermediate_size": 4 * vision, "depth": depth, "num_heads": vision // 64,
            "out_hidden_size": hidden, "patch_size": 16, "spatial_merge_size": 2, "temporal_patch_size": 2,
            "num_position_embeddings": 2304, "deepstack_visual_indexes": [depth // 4, depth // 2, 3 * depth // 4],
        },
    }  # fmt: skip


SIZES = {
    "small": shape(256, 512, 3, 2, 1, 128, 4, 8192),  # a forward of few milliseconds: what is around it shows
    "tiny": shape(512, 1536, 8, 4, 2, 256, 6, 32768),  # for a machine without a GPU
    "2b": shape(2048, 6144, 28, 16, 8, 1024, 24, 151936),
    "4b": shape(2560, 9728, 36, 32, 8, 1024, 24, 151936),
}


class Timed:
    """One request's course: when its first and last token came."""

    def __init__(self, run: Callable[[], Any]):
        self.begun = time.perf_counter()
        self.times: list[float] = []
        for _ in run():
            self.times.append(time.perf_counter())

    @property
    def first(self) -> float:
        return self.times[0] - self.begun

    @property
    def decode(self) -> float:
        """Tokens a second after the first."""
        return (len(self.times) - 1) / (self.times[-1] - self.times[0])


def build(size: str, bits: int | None) -> tuple[Qwen3VL, Qwen3VLProcessor]:
    model = Qwen3VL(SIZES[size])
    dtype = mx.float32 if mx.default_device().type == mx.DeviceType.cpu else mx.bfloat16
    model.set_dtype(dtype)
    if bits:
        nn.quantize(model.language_model, group_size=64, bits=bits)
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


def bytes_a_token(model: Qwen3VL, context: int, rows: int = 1) -> float:
    """What one decoding step reads: the text weights once, and each row's cache."""
    from mlx.utils import tree_flatten

    weights = sum(value.nbytes for _, value in tree_flatten(model.language_model.parameters()))
    args = model.language_model.args
    width = 4 if mx.default_device().type == mx.DeviceType.cpu else 2
    return weights + rows * context * 2 * args.num_hidden_layers * args.num_key_value_heads * args.head_dim * width


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cpu = mx.default_device().type == mx.DeviceType.cpu
    parser.add_argument("--size", choices=SIZES, default="tiny" if cpu else "2b")
    parser.add_argument("--bits", type=int, help="quantize the text layers")
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--picture", type=int, nargs=2, default=(448, 448), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    args = parser.parse_args()

    model, processor = build(args.size, args.bits)
    noise = np.random.default_rng(0).integers(0, 255, (args.picture[1], args.picture[0], 3), dtype=np.uint8)
    image = Image.fromarray(noise)

    def run(rows: int, with_image: bool = False, tokens: int = args.new_tokens) -> Timed:
        def course() -> Any:
            with TokenIterator(model, processor) as iterator:
                for _ in range(rows):
                    iterator.add(request(image if with_image else None, args.prompt_tokens, tokens))
                yield from iterator

        return Timed(course)

    def median(measure: Callable[[], float]) -> float:
        measure()
        return statistics.median(measure() for _ in range(args.repeat))

    figures: dict[str, float] = {}
    figures["time to first token, picture (s)"] = median(lambda: run(1, True, 1).first)
    figures["time to first token, text (s)"] = median(lambda: run(1, tokens=1).first)
    figures["prefill (tokens/s)"] = args.prompt_tokens / figures["time to first token, text (s)"]
    figures["decode (tokens/s)"] = median(lambda: run(1).decode)
    context = args.prompt_tokens + args.new_tokens // 2
    figures["decode (GB/s read)"] = figures["decode (tokens/s)"] * bytes_a_token(model, context) / 1e9
    for rows in (1, 4, 8):
        rate = median(lambda rows=rows: run(rows).decode)  # type: ignore[misc]
        figures[f"batch of {rows} (tokens/s)"] = rate
        figures[f"batch of {rows} (GB/s read)"] = rate / rows * bytes_a_token(model, context, rows) / 1e9
    mx.reset_peak_memory()
    run(8, True)
    figures["peak memory, batch of 8 with pictures (GB)"] = mx.get_peak_memory() / 1e9

    device = str(mx.default_device())
    if cpu:
        device += f", BLAS {Path(blas() or 'built-in').name}"
    bits = f"{args.bits} bits" if args.bits else "not quantized"
    about = f"Qwen3-VL shape {args.size}, {bits}, {args.prompt_tokens} prompt tokens, {device}"
    if args.json:
        print(json.dumps({"about": about, **{name: round(value, 4) for name, value in figures.items()}}))
        return
    print(f"{about}\n\n| figure | value |\n|---|---:|")
    for name, value in figures.items():
        print(f"| {name} | {value:,.3f} |")


if __name__ == "__main__":
    main()
