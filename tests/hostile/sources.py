"""What is no picture and no video: values of any kind, arrays, files that lie, data: URIs, paths."""

import base64
import io
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mlx_vlgen.inputs.identify import identified
from mlx_vlgen.inputs.media import load_image
from mlx_vlgen.inputs.video import load_video

from .trial import SPARE, Try
from .values import NUMBERS, TEXTS, array, value


class LyingFile:
    """A file object whose `read` gives `answers` in turn, the last one for ever; an exception is raised."""

    def __init__(self, name: Any, answers: list[Any]):
        self.name, self._answers = name, answers

    def read(self, size: int = -1) -> Any:
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def __repr__(self) -> str:
        return f"LyingFile({self.name!r:.40}, {self._answers!r:.80})"


class LyingArray:
    """`__array__` returns `answer`, or raises it."""

    def __init__(self, answer: Any):
        self._answer = answer
        self.shape = (4, 4, 3)

    def __array__(self, *_: Any, **__: Any) -> Any:
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer

    def __repr__(self) -> str:
        return f"LyingArray({self._answer!r:.80})"


class Attack:
    def __init__(self, folder: Path):
        buffer = io.BytesIO()
        Image.new("RGB", (8, 6), "red").save(buffer, "PNG")
        self._png, self._folder = buffer.getvalue(), folder
        os.mkfifo(folder / "fifo")
        (folder / "frames").mkdir()
        os.mkfifo(folder / "frames" / "1.png")
        (folder / "whole.png").write_bytes(self._png)
        (folder / "folder.png").mkdir()
        (folder / "loop.png").symlink_to("loop.png")

    def draw(self, seed: int) -> Try:
        draw = random.Random(seed)
        source = draw.choice([self._file, self._data_uri, self._path, self._array, self._value])(draw)
        cached = seed % 2 == 0  # is it read as for a cache
        if draw.random() < 0.35:
            fps = draw.choice([None, None, *NUMBERS])
            count = draw.choice([None, None, None, *NUMBERS])
            return Try(
                f"video {source!r:.200} {fps!r} {count!r}",
                lambda: load_video(identified("video", source)[0] if cached else source, fps=fps, num_frames=count),
                ["fps", "num_frames"],
                SPARE,
            )
        return Try(
            f"picture {source!r:.200}",
            lambda: load_image(identified("image", source)[0] if cached else source),
            peak=SPARE,
        )

    def _file(self, draw: random.Random) -> Any:
        name = draw.choice(["a.png", 7, b"a.png", None, "\x1b[31mred", "x" * 5000, object()])
        endless = draw.choice([b"x" * 4096, b"\0", "text", None, 5, b"", OSError("\x1b[2J"), RuntimeError(), self._png])
        return LyingFile(name, [self._png[: draw.randrange(len(self._png) + 1)], endless, b""][draw.randrange(2) :])

    def _data_uri(self, draw: random.Random) -> Any:
        body = draw.choice([base64.b64encode(self._png).decode(), "\ud800", "!!!", "", "A" * 100_001, "%zz", "é", "\0"])
        head = draw.choice(["image/png;base64", "", ";base64", "text/html", "\ud800;base64", ";base64;x", "image/png"])
        return f"data:{head}{draw.choice([',', ',', ''])}{body}"

    def _path(self, draw: random.Random) -> Any:
        names = [
            "fifo",
            "frames",
            "whole.png",
            "folder.png",
            "loop.png",
            "none.png",
            "\0",
            "a" * 300,
            "\ud800",
            "\x1b[31m",
        ]
        path = self._folder / draw.choice(names)
        devices = [
            "/dev/zero",
            "/dev/null",
            "/proc/kmsg",
            "/proc/self/mem",
            "~nobody-of-this-name/x.png",
            "/dev/stdin",
            "/",
        ]
        urls = [
            "file://host/x",
            "ftp://x/y",
            "http://",
            "http://[::1",
            "https://127.0.0.1:1/x",
            "file:relative",
            "data",
        ]
        return draw.choice([path, str(path), os.fsencode(self._folder), draw.choice(devices), draw.choice(urls)])

    def _array(self, draw: random.Random) -> Any:
        if draw.random() < 0.3:
            return LyingArray(draw.choice([None, "no", RuntimeError("\x1b[31m"), array(draw), MemoryError(), 5]))
        if draw.random() < 0.3:
            return [array(draw) for _ in range(draw.randrange(4))]
        values = array(draw)
        return np.ma.masked_array(values, mask=True) if draw.random() < 0.1 and values.size < 1000 else values

    def _value(self, draw: random.Random) -> Any:
        return draw.choice([draw.choice(TEXTS), value(draw)])
