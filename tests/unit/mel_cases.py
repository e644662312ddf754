"""The spectrograms that transformers' extractors are compared with: of which clip, with which settings."""

import numpy as np

from mlx_vlgen.inputs.gemma3n import GEMMA3N
from mlx_vlgen.inputs.gemma_audio import GEMMA4
from mlx_vlgen.inputs.mel import MelSettings

CASES = {
    "whisper": MelSettings(),
    "whisper large-v3": MelSettings(mels=128),
    "gemma3n": GEMMA3N,
    "gemma4": GEMMA4,
}


def clip() -> np.ndarray:
    """(4923,) float32 at 16 kHz: a rising tone, a hiss, then silence."""
    n = np.arange(4923)
    tone = 0.5 * np.sin(2 * np.pi * (200 + 0.6 * n) * n / 16_000)
    hiss = (n * n * 40_503 % 65_521 / 65_521 - 0.5) * 0.02
    return np.where(n < 4000, tone + hiss, 0).astype(np.float32)
