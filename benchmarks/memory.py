"""Peak memory beside the sum of its parts, on a random checkpoint of realistic proportions.

    python benchmarks/memory.py [--size tiny] [--prompt-tokens 16384] [--chunks 256 2048] [--pictures 50] [--rows 8]

1. The prefill of a long prompt, at each chunk size: `prefill_terms`.
2. Large JPEGs, read with max_pixels=1048576 and answered together. `image_terms` are MLX's memory, measured by
   its counter; `host_terms` what Python holds, measured by the growth of the process where Linux tells it.

A bound is the sum of the terms printed under it. A term is what is alive at once according to the code, in the
model's precision; the measured peak must be at or under their sum, and not far under it, else it means nothing.
"""

import argparse
import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from shapes import SIZES, build

from mlx_vlgen import Request, SamplingParams, TokenIterator, batch_generate
from mlx_vlgen._runtime import mx, tree_flatten
from mlx_vlgen.engine.columns import UNIT
from mlx_vlgen.engine.waiting import READERS
from mlx_vlgen.models.attention import SCORE_BYTES, fused_head_size
from mlx_vlgen.models.x86 import on_x86

VISION_BATCH = 3 * 4096 * 1024
"""Pixel values that go through the vision tower at once: what the iterator has by default on a GPU."""

BLOCKS_AHEAD = 3
"""Blocks of queries whose scores are in memory together, at most. MLX allocates ahead of what runs, on a CPU up to a
hundred operations; but a block of many scores waits for them there, since NumPy takes their powers."""

MASKED_BLOCKS_AHEAD = 5
"""The same in scores of masked blocks on x86, at most. Measured while a block was a product, that with its mask, less
its maximum, and the power of that, beside the power of the block before until its product was there; the last two are
written over the second now (`x86.softmax_parts`), so that it is less."""

NEW_TOKENS = 4

Size = tuple[int, int]
"""(height, width)."""

Terms = Mapping[str, float]
"""Bytes by what takes them."""


def prefill_terms(text: Mapping[str, Any], length: int, chunk: int, width: int) -> Terms:
    """Of one row's prompt of `length` tokens, `chunk` at a time, without the weights. text: the text_config; width:
    bytes of a value."""
    d, inner, layers = text["hidden_size"], text["intermediate_size"], text["num_hidden_layers"]
    heads, kv_heads, size = text["num_attention_heads"], text["num_key_value_heads"], text["head_dim"]
    chunk = min(chunk, length)
    fused = fused_head_size(size, mx.bfloat16 if width == 2 else mx.float32) == size  # then no scores are kept
    layer = 2 * kv_heads * size * math.ceil((length + NEW_TOKENS) / UNIT) * UNIT * width  # keys and values
    scores = chunk * length * (heads * width + 1)
    # Queries, keys and values before and after their rotation; gate, up, product.
    attention, mlp = 2 * (heads + 2 * kv_heads) * size, 3 * inner
    activations = attention + mlp
    if on_x86(mx.float32) and width == 4:  # then scores come in blocks, and one part of a layer is over before the next
        scores = min(3 * chunk * length * heads * width, MASKED_BLOCKS_AHEAD * SCORE_BYTES["cpu"])
        activations = max(attention, 2 * inner)
    return {
        "embeddings of the prompt": length * d * width,
        "tokens, their rotary positions, angles of a chunk": length * 4 * 4 + chunk * size * 4,
        "cache": layers * layer,
        "its keys and values, contiguous": layer,
        "scores of a chunk, and their mask": 0 if fused else scores,
        "activations of a chunk": chunk * (4 * d + activations) * width,  # the residual and its norm twice
        "logits of the last position": 2 * text["vocab_size"] * 4,
    }


def tower_terms(vision: Mapping[str, Any], images: int, patches: int, width: int) -> Terms:
    """Of pictures with so many patches each that go through the vision tower at once."""
    hidden, values = vision["hidden_size"], 3 * vision["patch_size"] ** 2
    scores = images * vision["num_heads"] * patches**2 * 4  # as many bytes as `attention` counts
    return {
        "pixels": images * patches * values,  # some of them are floats before there are activations
        "scores of blocks of queries": min(scores, BLOCKS_AHEAD * SCORE_BYTES[mx.default_device().type.name]),
        # The residual and its norm; queries, keys and values before and after their rotation, and what attention gives;
        # the four times wider inner layer and what its activation makes of it.
        "activations": images * patches * (2 + 2 * 3 + 2 + 4 * 3) * hidden * width,
    }


def feature_bytes(config: Mapping[str, Any], width: int) -> float:
    """What a picture's token takes from the tower to the end of its prefill: features of each deepstack layer and the
    last, and the embeddings that the last are written into."""
    vision = config["vision_config"]
    return (2 + len(vision["deepstack_visual_indexes"])) * config["text_config"]["hidden_size"] * width


def image_terms(config: Mapping[str, Any], length: int, rows: int, max_pixels: int, step: int, width: int) -> Terms:
    """MLX's memory for any number of prompts of `length` tokens, each with a picture of at most `max_pixels`, of which
    `rows` run together, without the weights: what waits, what lives, and the largest of what happens one after the
    other. step: prompt tokens that are computed at once."""
    text, vision = config["text_config"], config["vision_config"]
    waiting = math.ceil(step / length)  # rows that are admitted at once
    together = min(waiting, max(1, VISION_BATCH // (max_pixels * 3)))
    prefill = prefill_terms(text, length, step, width)
    caches = (rows + max(1, rows // 4)) * prefill["cache"]  # with slots to spare
    steps = {
        "tower": sum(tower_terms(vision, together, max_pixels // vision["patch_size"] ** 2, width).values()),
        "prefill": max(1, step // length) * (sum(prefill.values()) - prefill["embeddings of the prompt"]),
        "join, which copies a layer's": caches / text["num_hidden_layers"],
    }
    largest_step = max(steps, key=lambda name: steps[name])
    return {
        "features and embeddings of rows that wait": waiting * length * feature_bytes(config, width),
        "caches of rows that decode": caches,
        "logits": 3 * rows * text["vocab_size"] * 4,
        largest_step: steps[largest_step],
    }


def host_terms(length: int, source: Size, max_pixels: int, step: int) -> Terms:
    """What Python holds meanwhile. source: of a picture's file."""
    pixels = max_pixels * 3  # of one picture
    waiting = math.ceil(step / length) + 1  # one more is read before it has to wait
    return {
        "pixels of rows that wait": waiting * pixels,
        "a copy of those that go through the tower": max(1, VISION_BATCH // pixels) * pixels,
        # At the file's size as decoded and as RGB; resized, as an array, and as patches.
        "pictures decoded, and turned into pixels": READERS * (2 * 3 * math.prod(source) + 3 * pixels),
    }


def weight_bytes(model: Any) -> int:
    return sum(value.nbytes for _, value in tree_flatten(model.parameters()))


def prefill_peak(model: Any, processor: Any, length: int, chunk: int) -> tuple[int, float]:
    """Tokens of a prompt of about `length`, and MLX's peak in bytes while it is read, with the weights."""
    others = mx.get_active_memory() - weight_bytes(model)
    with TokenIterator(model, processor, prefill_step_size=chunk) as iterator:
        iterator.add(Request("the " * length, sampling=SamplingParams(max_tokens=1, logprobs=False)))
        [(_, result)] = list(iterator)
    if result.error:
        raise result.error
    return result.prompt_tokens, mx.get_peak_memory() - others


def image_peak(
    model: Any, processor: Any, count: int, rows: int, max_pixels: int, step: int, source: Size
) -> tuple[int, float, float | None]:
    """Tokens of each prompt with a JPEG; MLX's peak in bytes, with the weights; how much the process grew, where the
    system tells."""
    others = mx.get_active_memory() - weight_bytes(model)
    with tempfile.TemporaryDirectory() as folder:
        paths = write_images(Path(folder), count, source)
        before = process_bytes("VmRSS")
        if before is not None:
            Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew (proc(5))
        response = batch_generate(
            model, processor, [[path] for path in paths], prompts=["<|image_pad|>What is it?"] * count,
            max_tokens=NEW_TOKENS, max_pixels=max_pixels, max_batch_size=rows, vision_batch_pixels=VISION_BATCH,
            prefill_step_size=step, logprobs=False,
        )  # fmt: skip
        after = process_bytes("VmHWM")
    for result in response.results:
        if result.error:
            raise result.error
    peak = response.stats.peak_memory * 1e9 - others
    return response.results[0].prompt_tokens, peak, None if before is None or after is None else after - before


def write_images(folder: Path, count: int, size: Size) -> list[Path]:
    """JPEGs of soft colours, no two alike."""
    paths = []
    for index in range(count):
        noise = np.random.default_rng(index).integers(0, 255, (30, 40, 3), dtype=np.uint8)
        paths.append(folder / f"{index}.jpg")
        Image.fromarray(noise).resize(size[::-1], Image.Resampling.BILINEAR).save(paths[-1], quality=85)
    return paths


def process_bytes(name: str) -> int | None:
    """VmRSS, what this process has in memory, or VmHWM, its largest size; None where the system does not tell."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return None
    fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return int(fields[name].split()[0]) * 1024


def show(title: str, peak: float, terms: Terms) -> None:
    bound = sum(terms.values())
    print(f"{title}: peak {peak / 1e6:,.0f} MB, bound {bound / 1e6:,.0f} MB ({bound / peak:.2f} times)")
    for name, size in terms.items():
        print(f"  {size / 1e6:9,.1f} MB  {name}")
    print(flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--prompt-tokens", type=int, default=16384)
    parser.add_argument("--chunks", type=int, nargs="*", default=(256, 2048))
    parser.add_argument("--pictures", type=int, default=50, help="12-megapixel JPEGs; 0 leaves that part out")
    parser.add_argument("--rows", type=int, default=8, help="that run together")
    args = parser.parse_args()
    model, processor = build(args.size, None)
    text, weights = model.config["text_config"], weight_bytes(model)
    width = 4 if mx.default_device().type == mx.DeviceType.cpu else 2

    for chunk in args.chunks:
        length, peak = prefill_peak(model, processor, args.prompt_tokens, chunk)
        terms = {"weights": weights, **prefill_terms(text, length, chunk, width)}
        show(f"{length:,} tokens, {chunk:,} at a time", peak, terms)
    if args.pictures:
        step, source, max_pixels = 2048, (3000, 4000), 1048576
        length, peak, grown = image_peak(model, processor, args.pictures, args.rows, max_pixels, step, source)
        terms = {"weights": weights, **image_terms(model.config, length, args.rows, max_pixels, step, width)}
        show(f"{args.pictures} JPEGs of 12 megapixels, {length:,} tokens each, MLX", peak, terms)
        if grown is not None:
            terms = {"MLX, without the weights": peak - weights, **host_terms(length, source, max_pixels, step)}
            show("the process, above what it had before", grown, terms)


if __name__ == "__main__":
    main()
