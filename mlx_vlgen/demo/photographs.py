"""Imitations of photographs: gradients, clouds, textures, blobs, horizons. They teach the model to say that it cannot
describe photographs."""

from __future__ import annotations

import random

import numpy as np
from PIL import Image

from .drawing import Scene, picture_size


def _field(rng: np.random.Generator, width: int, height: int, cells: int, channels: int = 3) -> np.ndarray:
    """Smooth noise in [0, 1], (height, width, channels), about `cells` bumps a side."""
    small = rng.random((max(2, cells), max(2, cells), channels))
    planes = [
        np.asarray(Image.fromarray((small[..., c] * 255).astype(np.uint8)).resize((width, height), 3))
        for c in range(channels)
    ]
    return np.stack(planes, -1).astype(np.float32) / 255


def photo_scene(rng: random.Random) -> Scene:
    """Gradients, clouds, textures, blurred blobs, a horizon: many-coloured and uneven, as photographs are."""
    noise = np.random.default_rng(rng.getrandbits(32))
    width, height = picture_size(rng, high=400)
    kind = rng.randrange(6)
    ramp_x = np.linspace(0, 1, width, dtype=np.float32)[None, :, None]
    ramp_y = np.linspace(0, 1, height, dtype=np.float32)[:, None, None]
    first, second, third = (noise.random(3, dtype=np.float32) for _ in range(3))
    if kind == 0:  # clouds of several sizes
        canvas = sum(_field(noise, width, height, cells) / 2**i for i, cells in enumerate((3, 7, 15, 40))) / 1.9
    elif kind == 1:  # gradient with grain
        mix = np.clip(ramp_x * noise.uniform(-1, 1) + ramp_y * noise.uniform(-1, 1) + noise.random(), 0, 1)
        canvas = first * mix + second * (1 - mix) + noise.normal(0, noise.uniform(0.02, 0.15), (height, width, 3))
    elif kind == 2:  # sky, land and texture
        horizon = noise.uniform(0.3, 0.7) + 0.15 * (_field(noise, width, height, 6, 1)[:1] - 0.5)
        sky = first * (1 - ramp_y) + second * ramp_y
        land = third * (0.4 + _field(noise, width, height, 30, 1))
        canvas = np.where(ramp_y < horizon, sky + 0.2 * _field(noise, width, height, 5, 1), land)
    elif kind == 3:  # woven or striped texture
        bend = 4 * _field(noise, width, height, 4, 1)
        wave = np.sin(ramp_x * noise.uniform(10, 90) + ramp_y * noise.uniform(-60, 60) + bend)
        canvas = first + (second - first) * (wave * 0.5 + 0.5) * _field(noise, width, height, 8)
    elif kind == 4:  # plain noise, fine or coarse
        canvas = _field(noise, width, height, int(noise.integers(12, 90)))
    else:  # overlapping blurred blobs
        canvas = np.broadcast_to(first, (height, width, 3)).copy()
        for _ in range(int(noise.integers(6, 16))):
            distance = ((ramp_x - noise.random()) / noise.uniform(0.05, 0.4)) ** 2 + (
                (ramp_y - noise.random()) / noise.uniform(0.05, 0.4)
            ) ** 2
            weight = np.exp(-(distance ** noise.uniform(1, 4)))
            canvas = canvas * (1 - weight) + noise.random(3, dtype=np.float32) * weight
        canvas = canvas * (0.7 + 0.5 * _field(noise, width, height, 20, 1))
    if rng.random() < 0.5:
        canvas = canvas + noise.normal(0, 0.04, (height, width, 3))
    if rng.random() < 0.3:
        canvas = np.broadcast_to(np.asarray(canvas).mean(-1, keepdims=True), (height, width, 3))
    image = Image.fromarray((np.clip(np.asarray(canvas), 0, 1) * 255).astype(np.uint8))
    return Scene(image, photo=True)
