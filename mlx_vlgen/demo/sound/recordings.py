"""Make the clips of the documentation and the tests again: `python -m mlx_vlgen.demo.sound.recordings`. Needs
espeak-ng."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np

from .clips import RATE, tone
from .espeak import Espeak

RECORDINGS = Path(__file__).parent / "recordings"


def beeps(count: int, hz: float) -> np.ndarray:
    """(n,) int16 at RATE."""
    gap = np.zeros(RATE // 5, np.float32)
    samples = np.concatenate([part for _ in range(count) for part in (tone(hz, 0.15, "sine", 0.01), gap)])
    return (16_000 * samples).astype(np.int16)


def write(name: str, samples: np.ndarray, rate: int) -> None:
    with wave.open(str(RECORDINGS / name), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.astype("<i2").tobytes())


def main() -> None:
    RECORDINGS.mkdir(exist_ok=True)
    speech = Espeak().say("seven red dog", "gmw/en-US+linda", speed=170, pitch=50, intonation=50)
    end = int(np.flatnonzero(np.abs(speech.samples) > 300)[-1])
    write("words.wav", speech.samples[:end], speech.rate)
    write("beeps.wav", beeps(3, 1500.0), RATE)


if __name__ == "__main__":
    main()
