"""The pictures, clips and sounds of the cases, made in integer arithmetic: every machine has the same."""

import hashlib
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

DEMO = Path(__file__).parents[2] / "mlx_vlgen" / "demo"
PICTURES = {  # width, height, seed: what Qwen3-VL's limits in the fixtures do to it
    "plain": (96, 64, 1),  # nothing
    "upright": (64, 112, 2),  # rounded to a multiple of 32
    "large": (150, 130, 3),  # shrunk under the upper limit
    "small": (40, 30, 4),  # enlarged over the lower limit
    "wide": (121, 33, 5),  # for what lays pictures out on canvases of certain shapes
    "thin": (31, 120, 6),
}
CLIPS = {  # width, height, frames, seed
    "clip": (150, 100, 6, 10),  # shrunk under the volume limit
    "odd_clip": (128, 72, 5, 20),  # last frame repeated; its rounded-down volume needs no shrinking
    "wide_clip": (448, 224, 4, 30),  # 128 * 28 * 28 pixels a frame, the least that Qwen-Omni takes
    "odd_wide_clip": (392, 280, 3, 40),
}
CLIP_FPS = 2.0
SOUNDS = {  # samples, Hz at the beginning and at the end, seed
    "sound": (20961, 180, 2400, 30),
    "short_sound": (11680, 3000, 300, 31),  # whole hops
    "long_sound": (39520, 90, 6000, 32),
}
SOUND_RATE = 16_000


@cache
def picture(name: str) -> np.ndarray:
    """Read-only (height, width, 3) uint8; `name` is one of `PICTURES`, or a file of the built-in model's pictures."""
    if name.endswith(".png"):
        return np.asarray(Image.open(DEMO / "pictures" / name).convert("RGB"))
    shapes = _shapes(*PICTURES[name])
    shapes.setflags(write=False)
    return shapes


@cache
def clip(name: str) -> np.ndarray:
    """Read-only (frames, height, width, 3) uint8, to be played at `CLIP_FPS`."""
    width, height, frames, seed = CLIPS[name]
    shapes = np.stack([_shapes(width, height, seed, shift=5 * frame) for frame in range(frames)])
    shapes.setflags(write=False)
    return shapes


@cache
def sound(name: str) -> np.ndarray:
    """Read-only (n,) int16 at `SOUND_RATE`: a triangle wave of rising or falling pitch, and a quarter of noise."""
    count, first, last, seed = SOUNDS[name]
    index = np.arange(count, dtype=np.int64)
    hertz = first + (last - first) * index // count
    phase = np.cumsum(hertz) * 65536 // SOUND_RATE % 65536
    noise = (np.random.PCG64(seed).random_raw(count) % 8192).astype(np.int64) - 4096
    samples = ((np.abs(phase - 32768) - 16384) // 2 * 3 // 4 + noise // 2).astype(np.int16)
    samples.setflags(write=False)
    return samples


def _shapes(width: int, height: int, seed: int, shift: int = 0) -> np.ndarray:
    """Stepped background with discs and boxes; `shift` moves the shapes to the right, wrapping round."""
    row, column = np.mgrid[0:height, 0:width]
    canvas = np.stack([column * 8 // width * 30, row * 6 // height * 40, 90 + 0 * row], axis=-1).astype(np.uint8)
    values = np.random.PCG64(seed).random_raw(7 * 6).reshape(6, 7)
    for x, y, size, disc, *colour in values.tolist():
        radius = 4 + size % (min(width, height) // 4)
        dx, dy = (column - x % width - shift) % width - radius, row - y % height
        inside = dx * dx + dy * dy <= radius * radius if disc % 2 else (abs(dx) <= radius) & (abs(dy) <= radius)
        canvas[inside] = [channel % 256 for channel in colour]
    return canvas


def file_hash(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
