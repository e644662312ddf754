"""Sound through `generate` and `model.generate`: files that lie, damaged ones, endless ones, arrays, and tensors."""

import random
from pathlib import Path
from typing import Any

import numpy as np
from parity import media
from parity.layouts import write_checkpoint

import mlx_vlgen
from mlx_vlgen._runtime import mx

from .hf_calls import damaged
from .sounds import damaged as damaged_file
from .sounds import lying, tone, wav
from .sources import LyingFile
from .trial import SPARE, Try
from .values import NUMBERS, array, value

ENDLESS = bytes(1 << 20)


class Attack:
    """On a tiny Qwen2-Audio."""

    def __init__(self, folder: Path):
        checkpoint = write_checkpoint("qwen2_audio", "v5", folder / "model")
        self._model, self._processor = mlx_vlgen.load(checkpoint, dtype="float32")
        self._lying = list(lying())
        clip, messages = media.sound("short_sound"), [{"role": "user", "content": [{"type": "audio"}, "What?"]}]
        text = mlx_vlgen.apply_chat_template(self._processor, self._model.config, messages)
        self._inputs = dict(self._processor(text=text, audio=clip, return_tensors="np"))
        self._generate(clip)

    def draw(self, seed: int) -> Try:
        draw = random.Random(seed)
        if seed < len(self._lying):
            name, source = self._lying[seed]
        elif seed % 4 == 0:
            tensors = {**self._inputs}
            for key in draw.sample(sorted(tensors), draw.choice([1, 2])):
                tensors[key] = damaged(draw, tensors[key]) if draw.random() < 0.8 else array(draw)
            return Try(f"{tensors!r:.300}", lambda: self._generate_from(tensors), tensors)
        elif seed % 4 == 1:
            name, source = "array", draw.choice([array(draw), value(draw), (array(draw), draw.choice(NUMBERS))])
        elif seed % 40 == 2:
            begin = wav(tone().tobytes(), size=draw.choice([1000, 2**32 - 1]))
            return Try("endless", lambda: self._generate(LyingFile("a.wav", [begin, ENDLESS])))
        else:
            name, source = "damaged", damaged_file(draw, wav(tone(channels=2).tobytes(), 2))
        return Try(f"{name} {source!r:.80}", lambda: self._generate(source), peak=SPARE)

    def _generate(self, source: Any) -> None:
        messages = [{"role": "user", "content": [{"type": "audio", "audio": source}, "What?"]}]
        result = mlx_vlgen.generate(self._model, self._processor, messages, max_tokens=2)
        assert np.isfinite(result.logprobs).all()

    def _generate_from(self, tensors: dict[str, Any]) -> None:
        mx.eval(self._model.generate(**tensors, max_new_tokens=2, max_time=1.0))
