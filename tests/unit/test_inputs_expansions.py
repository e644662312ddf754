"""Media that were processed before are neither decoded nor resized again, and never mistaken."""

import base64
import io
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from invariants.family import Family
from parity import media
from parity.expected import families
from PIL import Image

from mlx_vlgen import MediaInputs, PrefixCache, stream_generate
from mlx_vlgen.errors import MediaError, PromptError, UnsupportedError
from mlx_vlgen.inputs import decode, fetch
from mlx_vlgen.inputs import media as sources
from mlx_vlgen.inputs.expansions import Expansion, Expansions
from mlx_vlgen.inputs.processor import Processor
from mlx_vlgen.inputs.prompt import Prompt

LoadFamily = Callable[[str], Family]


def encoded(name: str = "plain", kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(media.picture(name)).save(file, kind)
    return file.getvalue()


def animation() -> bytes:
    file, frames = io.BytesIO(), [Image.fromarray(frame) for frame in media.clip("clip")]
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:], duration=500)
    return file.getvalue()


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the pictures that are decoded."""
    names: list[str] = []
    real = decode.EncodedImage.still
    monkeypatch.setattr(decode.EncodedImage, "still", lambda self: names.append(self.name) or real(self))
    return names


@pytest.fixture
def qwen(load_family: LoadFamily) -> Processor:
    processor: Processor = load_family("qwen3_vl").processor
    return processor


def ask(processor: Processor, cache: Expansions | None, *images: Any, **settings: Any) -> Prompt:
    text = processor.placeholders["image"] * len(images)
    return processor.prepare(text, MediaInputs(images=images, **settings), expansions=cache)


# What is looked at


VARIANTS: Sequence[dict[str, Any]] = [
    {"images": ["plain"]},
    {"images": ["plain", "large"]},
    {"images": ["plain", "plain"], "resize_shape": (70, 50)},
    {"images": ["plain"], "max_pixels": 4096},
    {"images": ["plain"], "min_pixels": 9000},
    {"videos": 1},
    {"videos": 1, "video_fps": 1.0},
    {"videos": 1, "num_frames": 2},
    {"videos": 1, "max_frames": 4},
    {"videos": 1, "resize_shape": (70, 50)},
    {"videos": 1, "images": ["an animation"]},
]


def test_every_setting_and_neighbour_is_looked_at(load_family: LoadFamily) -> None:
    """By every kind of processor: in any order, as without a cache."""
    processors = {type(processor): processor for processor in (load_family(name).processor for name in families())}
    assert len(processors) > 12
    for processor in processors.values():
        if processor.placeholders:
            check_variants(processor)


def check_variants(processor: Processor) -> None:
    cache, film = Expansions(1 << 30), animation()
    made: list[tuple[str, MediaInputs, Prompt]] = []
    for variant in VARIANTS:
        images, videos = variant.get("images", []), [film] * variant.get("videos", 0)
        named = {key: value for key, value in variant.items() if key not in ("images", "videos")}
        read = MediaInputs([encoded(name) if name in media.PICTURES else film for name in images], videos, **named)
        kinds = ["image"] * len(images) + ["video"] * len(videos)
        text = " and ".join(processor.placeholders.get(kind, "") for kind in kinds)
        try:
            made.append((text, read, processor.prepare(text, read)))
        except (UnsupportedError, ValueError) as error:
            with pytest.raises(type(error)):
                processor.prepare(text, read, expansions=cache)
    for text, read, alone in [*made, *reversed(made)]:
        assert_equal(processor.prepare(text, read, expansions=cache), alone)


def assert_equal(one: Prompt, other: Prompt) -> None:
    """other: made without a cache."""
    assert one.tokens.tolist() == other.tokens.tolist() and one.two_way == other.two_way
    for ours, theirs in zip(one.media, other.media, strict=True):
        assert ours.identity == theirs.key  # it is known, without being asked for
        assert (ours.spans, ours.size, ours.seconds) == (theirs.spans, theirs.size, theirs.seconds)
        assert np.array_equal(ours.pixels, theirs.pixels)


def test_the_processors_settings_are_looked_at(load_family: LoadFamily, qwen: Processor) -> None:
    """Of each processor that shares the cache."""
    cache, picture = Expansions(1 << 30), encoded("large")
    settings = qwen.image_settings  # type: ignore[attr-defined]
    for changes in ({}, {"max_pixels": 4096}, {"image_settings": replace(settings, mean=(0.1, 0.2, 0.3))}):
        processor = replace(qwen, **changes)  # type: ignore[arg-type]
        for _ in range(2):
            assert_equal(ask(processor, cache, picture), ask(processor, None, picture))
    other = load_family("gemma3").processor
    assert_equal(ask(other, cache, picture), ask(other, None, picture))
    with pytest.raises(PromptError, match="the model has 3 positions"):
        ask(replace(qwen, max_positions=3), cache, picture)


# Sources


@pytest.mark.parametrize("kind", ["path", "file URL", "bytes", "data", "http", "file"])
def test_a_picture_is_decoded_once_wherever_it_comes_from(
    qwen: Processor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decoded: list[str], kind: str
) -> None:
    path, cache = tmp_path / "a.png", Expansions(1 << 30)
    monkeypatch.setattr(sources, "fetch", lambda url, limits: path.read_bytes())

    def source() -> Any:
        data = path.read_bytes()
        return {
            "path": path,
            "file URL": path.as_uri(),
            "bytes": data,
            "data": "data:image/png;base64," + base64.b64encode(data).decode(),
            "http": "http://x.org/a.png",
            "file": io.BytesIO(data),
        }[kind]

    for name in ("plain", "upright"):
        path.write_bytes(encoded(name))
        os.utime(path, (0, 0))
        first, second = (ask(qwen, cache, source()) for _ in range(2))
        assert_equal(first, ask(qwen, None, source()))
        assert first.media[0].pixels is second.media[0].pixels
    assert decoded == 4 * [sources.describe_source(source())] if kind not in ("bytes", "data") else len(decoded) == 4


def test_what_is_not_encoded_is_processed_each_time(qwen: Processor) -> None:
    """It may have changed."""
    cache, array = Expansions(1 << 30), media.picture("plain").copy()
    picture = Image.fromarray(array)
    for source in (array, picture):
        ask(qwen, cache, source)
    array[:] = 7
    picture.paste((7, 7, 7), (0, 0, *picture.size))
    for source in (array, picture):
        assert (ask(qwen, cache, source).media[0].pixels == 7).all()
    assert cache.nbytes == 0


def test_a_video_is_known_by_what_its_file_was(
    qwen: Processor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without reading it."""
    path, cache, read = tmp_path / "a.gif", Expansions(1 << 30), []
    real = decode.EncodedImage.frame
    monkeypatch.setattr(decode.EncodedImage, "frame", lambda self, index: read.append(index) or real(self, index))

    def film(source: Any) -> bytes:
        pixels: bytes = qwen.prepare("<|video_pad|>", MediaInputs(videos=[source]), expansions=cache).media[0].pixels
        return pixels

    path.write_bytes(animation())
    first = film(path)
    count = len(read)
    with open(path, "rb") as file:
        assert film(path) is film(file) is first and len(read) == count
    os.utime(path, (0, 0))
    assert film(path) is not first and len(read) == 2 * count
    assert film([*media.clip("clip")]) is not film([*media.clip("clip")])


class Counted(io.BytesIO):
    """A file that counts the bytes it gave."""

    given = 0

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        self.given += len(data)
        return data


def test_what_is_refused_is_refused_each_time(qwen: Processor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the same words, and no file is read twice, or past its limits."""
    cache, path = Expansions(1 << 30), tmp_path / "torn.png"
    path.write_bytes(encoded()[:150])
    (tmp_path / "empty").touch()
    for source in (path, tmp_path / "empty", tmp_path / "none", tmp_path, "ftp://x", 5, [path], b"text"):
        with pytest.raises(MediaError) as alone:
            ask(qwen, None, source)
        for _ in range(2):
            with pytest.raises(MediaError) as error:
                ask(qwen, cache, source)
            assert str(error.value) == str(alone.value)
    file = Counted(encoded())
    ask(qwen, cache, file)
    assert file.given == len(encoded())
    monkeypatch.setattr(fetch.Limits, "__init__", lambda self: None)  # which leaves the class's values
    monkeypatch.setattr(fetch.Limits, "max_file_bytes", 100)
    for _ in range(2):
        file.seek(0)
        with pytest.raises(MediaError, match="larger than 100 bytes"):
            ask(qwen, cache, file)


# The cache


def expansion(size: int) -> Expansion:
    return Expansion("", (1,), np.zeros((2 * size,), np.uint8)[::2], (), (1, 1))


@settings(max_examples=50)
@given(uses=st.lists(st.tuples(st.integers(0, 5), st.integers(1, 40)), max_size=20), max_bytes=st.integers(0, 60))
def test_it_holds_what_was_used_last(uses: list[tuple[int, int]], max_bytes: int) -> None:
    cache, held = Expansions(max_bytes), dict[int, int]()  # the least recently used first
    for key, size in uses:
        made: list[int] = []
        cache.get(key, lambda size=size, made=made: made.append(1) or expansion(size))  # type: ignore[misc]
        assert bool(made) == (key not in held)
        size = held.pop(key, size)
        if size <= max_bytes:
            held[key] = size
        while sum(held.values()) > max_bytes:
            del held[next(iter(held))]
        assert cache.nbytes == sum(held.values())
    cache.clear()
    assert cache.nbytes == 0


@pytest.mark.parametrize("outcome", [None, MediaError("torn"), KeyboardInterrupt()], ids=["made", "error", "Ctrl-C"])
def test_who_wants_the_same_waits_for_the_first(outcome: BaseException | None) -> None:
    """And has it; where the first failed or was interrupted, the next one tries."""
    cache, begun, go = Expansions(1000), threading.Event(), threading.Event()
    calls: list[str] = []
    heard: dict[str, Any] = {}

    def make() -> Expansion:
        calls.append(threading.current_thread().name)
        begun.set()
        assert go.wait(10)
        if isinstance(outcome, MediaError) or (outcome is not None and len(calls) == 1):
            raise outcome
        return expansion(8)

    def get() -> None:
        try:
            heard[threading.current_thread().name] = cache.get("key", make)
        except BaseException as error:
            heard[threading.current_thread().name] = error

    threads = [threading.Thread(target=get, name=name) for name in "abc"]
    threads[0].start()
    assert begun.wait(10)
    for thread in threads[1:]:
        thread.start()
    assert cache.get("other", lambda: expansion(3)).nbytes == 3  # who wants another one does not wait
    assert calls == ["a"]
    go.set()
    for thread in threads:
        thread.join(10)
    if outcome is None:
        assert calls == ["a"] and heard["a"] is heard["b"] is heard["c"]
    elif isinstance(outcome, MediaError):
        assert sorted(calls) == ["a", "b", "c"] and all(error is outcome for error in heard.values())
    else:
        assert len(calls) == 2 and heard["a"] is outcome and heard["b"] is heard["c"]
    assert cache.get("key", lambda: expansion(1)).nbytes == (1 if isinstance(outcome, MediaError) else 8)


# Its users


def test_a_second_turn_decodes_nothing(load_family: LoadFamily, decoded: list[str]) -> None:
    family, cache = load_family("demo"), PrefixCache()
    part = {"type": "image", "image": encoded("large")}
    talk: list[dict[str, Any]] = [{"role": "user", "content": [part, {"type": "text", "text": "What is it?"}]}]

    def answer() -> str:
        results = stream_generate(
            family.model, family.processor, talk, max_tokens=2, max_pixels=2100, prompt_cache=cache
        )
        return "".join(result.text for result in results)

    talk += [{"role": "assistant", "content": answer()}, {"role": "user", "content": "Which colour is it?"}]
    assert len(decoded) == 1 and cache.expansions.nbytes > 0
    answer()
    assert len(decoded) == 1
    cache.clear()
    answer()
    assert len(decoded) == 2


def test_it_takes_a_part_of_its_prefix_cache() -> None:
    assert PrefixCache(max_bytes=0).expansions.max_bytes == 0
    assert PrefixCache(max_bytes=800).expansions.max_bytes == 100
    assert PrefixCache(max_bytes=1 << 40).expansions.max_bytes == 512 << 20
