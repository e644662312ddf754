"""Hostile pictures, files and objects: refused before they cost anything, by a MediaError and nothing else."""

import base64
import gzip
import io
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hostile import picture_files, pictures
from hostile.pool import Outcome, outcomes
from hostile.videos import small_movie
from PIL import GifImagePlugin, Image, ImageFile
from test_media import STORED, UPRIGHT, encode, oriented, photo

from mlx_vlgen.errors import MediaError
from mlx_vlgen.inputs import decode, media
from mlx_vlgen.inputs.animation import frame_seconds
from mlx_vlgen.inputs.decode import EncodedImage
from mlx_vlgen.inputs.media import Limits, describe_source, load_image
from mlx_vlgen.inputs.video import load_video

# Memory and time


def read(kind: str, count: int, folder: Path, limit_s: float) -> list[Outcome]:
    """What came of reading the files of one kind of `picture_files`, `count` at most, in another process. A
    picture that took more memory than three and a half times its RGB, or a refusal that took more than 64 MB, is
    bad."""
    results = outcomes("picture_files", picture_files.seeds(kind, count), folder, limit_s)
    results = [outcome for outcome in results if outcome.name.startswith(kind)]
    assert not [outcome for outcome in results if outcome.bad or outcome.seconds > limit_s]
    return results


def test_a_picture_takes_no_more_memory_than_its_rgb_allows(tmp_path: Path) -> None:
    assert [outcome.result for outcome in read("whole", 8, tmp_path, 20)] == ["passed"] * 7


@pytest.mark.parametrize(("kind", "count"), [("headers", 54), ("bombs", 12)])
def test_hostile_pictures_are_refused_at_once(kind: str, count: int, tmp_path: Path) -> None:
    harmless = {"headers: jpeg 60000 x 1", "headers: jpeg 1 x 60000", "headers: jpeg exif tags upon each other"}
    results = read(kind, count + 1, tmp_path, 5)
    assert len(results) == count
    assert {outcome.name for outcome in results if outcome.result != "refused"} <= harmless


def test_hostile_animations_are_refused_at_once(tmp_path: Path) -> None:
    assert [outcome.result for outcome in read("animations", 5, tmp_path, 20)] == ["refused"] * 4


@pytest.mark.parametrize(("kind", "count"), [("truncated", 160), ("damaged", 60)])
def test_mutated_and_truncated_pictures_raise_nothing_else(kind: str, count: int, tmp_path: Path) -> None:
    assert len(read(kind, count, tmp_path, 5)) == count


def test_a_video_whose_header_lies_is_bounded(tmp_path: Path) -> None:
    pytest.importorskip("av")
    assert len(read("videos", 12, tmp_path, 5)) == 11


def test_the_estimate_is_told_with_its_limit() -> None:
    says = r"^.*bytes: decoding takes about [0-9,]+ bytes of memory, more than 50,000; .* Limits\.max_decoded_bytes"
    limits = Limits(max_decoded_bytes=50_000)
    for source in (encode(photo(100, 100)), encode(photo(100, 100), "WEBP")):
        with pytest.raises(MediaError, match=says):
            load_image(source, limits=limits)
    for source in (photo(100, 100), np.zeros((200, 200), np.float32)):
        with pytest.raises(MediaError, match="max_decoded_bytes"):
            load_image(source, limits=limits)
    assert load_image(encode(photo(40, 30)), limits=limits).size == (40, 30)


def test_a_webp_counts_for_more_than_a_png() -> None:
    limits = Limits(max_decoded_bytes=100 * 100 * 12)
    assert load_image(encode(photo(100, 90)), limits=limits).size == (100, 90)
    with pytest.raises(MediaError, match="max_decoded_bytes"):
        load_image(encode(photo(100, 90), "WEBP"), limits=limits)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_made_in_boxes_is_the_whole_one(orientation: int, monkeypatch: pytest.MonkeyPatch) -> None:
    data = oriented(orientation)
    deep = Image.fromarray(np.arange(24, dtype=np.int32).reshape(4, 6) * 2000)
    whole = np.asarray(load_image(deep))
    for side in (1, 2, 3, 4, 5):
        monkeypatch.setattr(decode, "_BOX", side)
        assert np.array_equal(load_image(data), UPRIGHT[orientation])
        assert np.array_equal(load_image(deep), whole)
        assert np.array_equal(load_image(STORED.astype(np.float32) / 255), STORED)


def test_run_lengths_of_a_small_bmp_are_read() -> None:
    data = pictures.bmp(4, 1, 8, 1, b"\4\0\0\1")
    assert load_image(data).size == (4, 1)


@pytest.mark.parametrize(("kind", "options"), [("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {})])
def test_times_are_read_without_decoding(kind: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    frames = [Image.new("RGB", (8, 8), (at * 40, 0, 0)) for at in range(5)]
    times = [40, 80, 120, 200, 320]
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:], duration=times, **options)
    monkeypatch.setattr(GifImagePlugin.GifImageFile, "load", lambda self: pytest.fail("decoded"))
    picture = EncodedImage(data, "x", Limits())
    assert picture.durations() == frame_seconds(data, kind) == [time / 1000 for time in times]


def test_an_animation_is_bounded_by_all_its_frames() -> None:
    data = pictures.gif(100, 100, [pictures.lzw(100 * 100)] * 50)
    assert len(load_video(data, num_frames=2).frames) == 2
    with pytest.raises(MediaError, match=r"50 frames of 100 x 100, drawn one upon the other.*max_animation_pixels"):
        load_video(data, num_frames=2, limits=Limits(max_animation_pixels=499_999))
    with pytest.raises(MediaError, match="max_decoded_bytes"):
        load_video(data, num_frames=40, limits=Limits(max_decoded_bytes=1_000_000))
    with pytest.raises(MediaError, match="frame 1 does not fit the first"):
        load_video(pictures.gif(8, 8, [pictures.lzw(64), (9, 9, pictures.lzw(81))]))


def test_frames_that_are_views_of_one_are_not_copied_without_limit() -> None:
    with pytest.raises(MediaError, match="max_video_pixels"):
        load_video(np.broadcast_to(np.uint8(0), (10**6, 2000, 2000, 3)))
    with pytest.raises(MediaError, match="max_image_pixels"):
        load_video(np.broadcast_to(np.uint8(0), (2, 10**6, 10**6, 3)))


# Video files


def test_a_container_that_counts_more_frames_than_it_has_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an upper bound there would be a row of numbers for each."""
    av = pytest.importorskip("av")
    monkeypatch.setattr(av.video.stream.VideoStream, "frames", 10**12, raising=False)
    assert len(load_video(small_movie(), fps=10, max_frames=None).frames) == 25


def test_an_open_video_stands_where_it_stood(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(small_movie())
    with path.open("rb") as file:
        for _ in range(2):
            assert len(load_video(file).frames) == 5
        assert file.read() == small_movie()
    path.write_bytes(gzip.compress(small_movie()))
    with gzip.open(path) as packed:  # its descriptor is of the packed file
        assert len(load_video(packed).frames) == 5


def test_a_video_frame_has_a_budget_of_memory() -> None:
    data = small_movie()
    pixels = 64 * 48
    assert len(load_video(data, limits=Limits(max_decoded_bytes=24 * pixels)).frames) == 5
    with pytest.raises(MediaError, match="max_decoded_bytes"):
        load_video(data, limits=Limits(max_decoded_bytes=24 * pixels - 1))


# Special files


def test_a_pipe_is_not_opened_by_its_name(tmp_path: Path) -> None:
    """Nobody writes into it, so that reading it would wait for ever."""
    pipe = tmp_path / "1.png"
    os.mkfifo(pipe)
    for source in (pipe, str(pipe), pipe.as_uri()):
        with pytest.raises(MediaError, match=r"1\.png: is not a regular file but a pipe or device; .*open file"):
            load_image(source)
        with pytest.raises(MediaError, match="not a regular file"):
            load_video(source)
    with pytest.raises(MediaError, match="not a regular file"):
        load_video(tmp_path)  # a folder of frames


@pytest.mark.skipif(not Path("/dev/fd").exists(), reason="no /dev/fd")
def test_process_substitution_and_devices() -> None:
    reader, writer = os.pipe()
    for path in (f"/dev/fd/{reader}", "/dev/zero", "/dev/tty"):
        with pytest.raises(MediaError, match=r"not a regular file|cannot be opened"):
            load_image(path)
    os.close(reader)
    os.close(writer)


@pytest.mark.skipif(sys.platform != "linux", reason="no /proc")
def test_files_that_say_they_are_empty_are_read_to_their_end() -> None:
    with pytest.raises(MediaError, match="looks like text"):
        load_image("/proc/self/status")
    for load in (load_image, load_video):
        with pytest.raises(MediaError, match=r"reading it failed|permission denied"):
            load("/proc/self/mem")


def test_a_folder_that_cannot_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(MediaError, match="the folder cannot be read"):
        load_video(tmp_path)


# Bytes


def test_the_cap_on_files_holds_for_all_that_is_encoded(tmp_path: Path) -> None:
    data = encode(photo())
    limits = Limits(max_file_bytes=len(data) - 1)
    (tmp_path / "x.png").write_bytes(data)
    text = "data:image/png;base64," + base64.b64encode(data).decode()
    for source in (data, bytearray(data), memoryview(data), io.BytesIO(data), tmp_path / "x.png", text):
        with pytest.raises(MediaError, match="max_file_bytes"):
            load_image(source, limits=limits)
        if isinstance(source, io.BytesIO):
            source.seek(0)
        assert load_image(source, limits=Limits(max_file_bytes=len(data))).size == (64, 48)
    with pytest.raises(MediaError, match="max_file_bytes"):
        load_image("data:," + "a" * 100, limits=Limits(max_file_bytes=99))


@pytest.mark.skipif(not hasattr(os, "truncate"), reason="no sparse files")
def test_a_large_file_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.png"
    path.touch()
    os.truncate(path, 1 << 40)
    monkeypatch.setattr(media, "read_to_end", lambda *args: pytest.fail("read"))
    with pytest.raises(MediaError, match="max_file_bytes"):
        load_image(path)


def test_a_machine_without_memory_is_not_a_damaged_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    data, opened = encode(photo()), Image.open(io.BytesIO(encode(photo())))

    def fail(*args: object) -> Any:
        raise MemoryError

    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    for source in (data, opened):
        with pytest.raises(MediaError, match="not enough memory"):
            load_image(source)


def test_a_long_data_uri_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("base64.b64decode", lambda *args, **kwargs: pytest.fail("decoded"))
    with pytest.raises(MediaError, match="max_file_bytes"):
        load_image("data:;base64," + "A" * 10_000, limits=Limits(max_file_bytes=1000))


def test_percent_signs_across_the_pieces_of_a_data_uri() -> None:
    data = encode(photo())
    for shift in range(4):
        text = "data:;x=" + "y" * shift + "," + "".join(f"%{byte:02x}" for byte in data * 8)
        assert load_image(text).size == (64, 48)  # PNG readers stop at the end of the first


# Objects that lie


class Liar:
    """A file or array whose attributes are given, or raise."""

    def __init__(self, **attributes: Any) -> None:
        vars(self).update(attributes)


def raising(*args: object, **kwargs: object) -> Any:
    raise RecursionError("secret")


class Raising:
    def __getattr__(self, name: str) -> Any:
        raise ZeroDivisionError("secret")


class FalseArray:
    def __init__(self, value: Any) -> None:
        self.value = value
        self.shape = "\x1b[2J"

    def __array__(self, dtype: object = None, copy: object = None) -> Any:
        if callable(self.value):
            return self.value()
        return self.value


class FalsePath(os.PathLike):  # type: ignore[type-arg]
    def __init__(self, value: Any) -> None:
        self.value = value

    def __fspath__(self) -> Any:
        return self.value if not callable(self.value) else self.value()


released = memoryview(bytearray(8))
released.release()

ODD: dict[str, Any] = {
    "read gives text": Liar(read=lambda size: "text"),
    "read gives None": Liar(read=lambda size: None),
    "read gives a list": Liar(read=lambda size: [1, 2]),
    "read gives a number": Liar(read=lambda size: 5),
    "read gives too much": Liar(read=lambda size: bytes(3_000_000)),
    "read raises": Liar(read=raising, name=b"\xff\x1b"),
    "read is none": Liar(read=5, name=7),
    "attributes raise": Raising(),
    "object array": np.array([[object()]]),
    "complex array": np.zeros((2, 2), complex),
    "structured array": np.zeros((2, 2), [("\x1b[2J", "u1")]),
    "array of no dimensions": np.array(5, np.uint8),
    "masked array": np.ma.masked_array(STORED, STORED > 0),
    "text array": np.array([["a"]]),
    "endless view": np.broadcast_to(np.uint8(0), (10**6, 10**6, 3)),
    "endless view of floats": np.broadcast_to(np.float32(0), (10**5, 10**5)),
    "array raises": FalseArray(raising),
    "array gives text": FalseArray("text"),
    "array gives itself": FalseArray(None),
    "type": np.ndarray,
    "released memory": released,
    "half character": "data:,\ud800",
    "half character, base64": "data:;base64,\ud800",
    "half character in a path": "\ud800.png",
    "half character in a URL": "http://example.com/\ud800",
    "half character in a file URL": "file:///\ud800",
    "half character of a user": "~\ud800/x",
    "zero of a user": "~a\0b/x",
    "zero": "a\0b",
    "zero in a file URL": "file:///a%00b",
    "long path": "a/" * 100_000,
    "long name": "a" * 1000,
    "long URL": "http://example.com/" + "a" * 1_000_000,
    "unknown user": "~nobody-of-this-name/x.png",
    "path of bytes": FalsePath(b"\xff\xfe\x00"),
    "path of a number": FalsePath(5),
    "path raises": FalsePath(raising),
    "nothing": None,
    "number": 5,
    "itself": [],
}
ODD["itself"].append(ODD["itself"])


@pytest.mark.parametrize("load", [load_image, load_video])
@pytest.mark.parametrize("kind", ODD)
def test_odd_objects_raise_nothing_else(kind: str, load: Callable[..., Any]) -> None:
    with pytest.raises(MediaError) as caught:
        load(ODD[kind], limits=Limits(max_file_bytes=2_000_000, download_seconds=0.5))
    message = str(caught.value)
    assert message.isprintable() and "secret" not in message and len(message) < 2500


def test_a_file_that_lies_about_itself_as_a_video() -> None:
    endless = io.BytesIO(b"\0\0\0\x08free")
    for attributes in ({"seekable": raising}, {"tell": raising}, {"seek": raising}, {"fileno": lambda: 10**6}):
        honest = {"read": endless.read, "tell": lambda: 0, "seek": lambda *at: 10**18, "seekable": lambda: True}
        with pytest.raises(MediaError):
            load_video(Liar(**{**honest, **attributes}))


def test_views_of_every_kind_are_read() -> None:
    for array, expected in (
        (STORED[::-1, ::-1], UPRIGHT[3]),
        (np.broadcast_to(STORED[:1], STORED.shape), np.broadcast_to(STORED[:1], STORED.shape)),
        ((STORED / 255)[:, ::-1].astype(">f8"), UPRIGHT[2]),
    ):
        assert np.array_equal(load_image(array), expected)


# Names


def test_no_name_reaches_a_terminal_as_a_command(tmp_path: Path) -> None:
    escape = "\x1b]0;x\x07\u202egnp.x\r\n\u009b2J"
    path = tmp_path / "\x1b[2J\u202e.png"
    path.write_bytes(b"%PDF")
    array = np.zeros((2, 2), [(escape, "u1")])
    files = [Liar(read=raising, name=escape), Liar(read=raising, name=escape.encode()), type(escape, (), {})()]
    urls = [f"http://{escape}/", f"http://localhost:1/{escape}"]
    for source in (path, escape, array, [path], [[path]], *files, *urls):
        assert describe_source(source).isprintable()
        for load in (load_image, load_video):
            with pytest.raises(MediaError) as caught:
                load(source)
            assert str(caught.value).isprintable()
    assert str(MediaError(escape)).isprintable(), "whoever writes the message"


def test_threads_read_one_picture_together() -> None:
    """A PIL image is not copied before it is read."""
    image, loaded = photo(1500, 1500), []
    threads = [threading.Thread(target=lambda: loaded.append(np.asarray(load_image(image)))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(each, image) for each in loaded) and len(loaded) == 3
