"""Videos: which frames are kept and when they are shown, from files, animations and frames as given."""

import contextlib
import functools
import io
import struct
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_media import encode, oriented, photo, png

from mlx_vlgen.errors import MediaError
from mlx_vlgen.inputs import video_file
from mlx_vlgen.inputs.video import Limits, load_video, sample_indices


def greys(count: int, width: int = 64, height: int = 48) -> np.ndarray:
    """(count, H, W, 3): frame i is grey of level 8 i, with a white corner at the top left."""
    frames = np.repeat(np.arange(count, dtype=np.uint8) * 8, height * width * 3).reshape(count, height, width, 3)
    frames[:, : height // 4, : width // 4] = 255
    return frames


def levels(frames: np.ndarray) -> list[int]:
    """The frame number that each frame shows."""
    return np.round(frames[:, frames.shape[1] // 2, frames.shape[2] // 2].mean(axis=-1) / 8).astype(int).tolist()


def movie(
    path: Path, frames: np.ndarray, fps: int = 10, codec: str = "mpeg4", options: dict[str, str] | None = None
) -> Path:
    av = pytest.importorskip("av")
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=fps)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.bit_rate = 4_000_000
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def animation(frames: np.ndarray, durations: list[int] | int, kind: str = "GIF", **options: Any) -> bytes:
    pictures = [Image.fromarray(frame) for frame in frames]
    return encode(pictures[0], kind, save_all=True, append_images=pictures[1:], duration=durations, **options)


# Which frames


@pytest.mark.parametrize(
    ("total", "source_fps", "fps", "num_frames", "indices"),
    [
        (300, 30, 2, None, np.linspace(0, 299, 20).round()),
        (30, 30, 2, None, [0, 10, 19, 29]),  # two by the rate, four at least
        (3, 30, 2, None, [0, 1, 2]),  # not more than there are
        (100_000, 25, 2, None, np.linspace(0, 99_999, 768).round()),
        (24, 24, 100, None, range(24)),
        (10, 10, None, 3, [0, 4, 9]),  # 4.5 rounds to even
        (10, 10, None, 1, [0]),
        (2, 10, None, 4, [0, 0, 1, 1]),
        (5000, 10, None, 1000, np.linspace(0, 4999, 1000).round()),  # asked for: no upper bound
    ],
)
def test_sample_indices(total: int, source_fps: float, fps: float | None, num_frames: int | None, indices: Any) -> None:
    assert sample_indices(total, source_fps, fps, num_frames).tolist() == [int(index) for index in indices]


def test_sample_indices_with_its_own_bounds() -> None:
    assert sample_indices(100, 10, 1, None, min_frames=1, max_frames=5).tolist() == [0, 25, 50, 74, 99]
    assert len(sample_indices(100_000, 10, 10, None, max_frames=None)) == 100_000
    assert sample_indices(5, 1000, 1, None, min_frames=0).tolist() == [0]


@given(st.integers(1, 5000), st.floats(0.1, 240), st.floats(1e-3, 1e300), st.integers(0, 20), st.integers(1, 900))
@settings(max_examples=200, deadline=None)
def test_a_rate_gives_distinct_frames_from_first_to_last(
    total: int, source_fps: float, fps: float, min_frames: int, max_frames: int
) -> None:
    indices = sample_indices(total, source_fps, fps, None, min_frames, max_frames)
    assert 1 <= len(indices) <= min(total, max_frames)
    assert indices[0] == 0
    assert len(indices) == 1 or (indices[-1] == total - 1 and (np.diff(indices) > 0).all())


@pytest.mark.parametrize(
    "numbers",
    [
        {"fps": 1.0, "num_frames": 4},
        {"fps": None, "num_frames": None},
        {"fps": 0.0, "num_frames": None},
        {"fps": float("nan"), "num_frames": None},
        {"fps": None, "num_frames": 0},
        {"fps": None, "num_frames": 10**12},
        {"fps": 1.0, "num_frames": None, "max_frames": 0},
    ],
)
def test_numbers_that_are_refused(numbers: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"fps|num_frames|max_frames"):
        sample_indices(10, 10.0, **numbers)


@pytest.mark.parametrize("name", ["num_frames", "max_frames"])
@pytest.mark.parametrize("number", [1.0, "3", np.float64(4)])
def test_counts_that_are_no_whole_numbers_are_refused(name: str, number: Any) -> None:
    fps = None if name == "num_frames" else 1.0
    with pytest.raises(TypeError, match=f"{name} is .*; expected a whole number"):
        sample_indices(10, 10.0, **{"fps": fps, "num_frames": None, name: number})
    with pytest.raises(TypeError, match=f"{name} is"):
        load_video(greys(10), **{name: number})


# Raw frames


def test_raw_frames_are_all_kept() -> None:
    frames = greys(10)
    for source in (frames, list(frames), tuple(Image.fromarray(frame) for frame in frames)):
        video = load_video(source)
        assert np.array_equal(video.frames, frames)
        assert video.timestamps == tuple(i / 2 for i in range(10))
        assert video.fps == 2.0


def test_raw_frames_at_a_rate_of_their_own() -> None:
    video = load_video(greys(10), fps=5, num_frames=4)
    assert levels(video.frames) == [0, 3, 6, 9]
    assert video.timestamps == (0.0, 0.6, 1.2, 1.8)
    assert video.fps == 2.0
    assert levels(load_video(list(greys(10)), max_frames=2).frames) == [0, 9]
    assert len(load_video([photo()]).frames) == 1


def test_a_folder_is_read_in_natural_order(tmp_path: Path) -> None:
    frames = greys(12)
    for i, frame in enumerate(frames):
        Image.fromarray(frame).save(tmp_path / f"frame {i}.png")
    (tmp_path / "notes.txt").write_text("not a frame")
    (tmp_path / ".hidden.png").write_text("not a frame")
    for source in (tmp_path, str(tmp_path), tmp_path.as_uri()):
        assert levels(load_video(source).frames) == list(range(12))


def test_frames_are_read_like_pictures() -> None:
    assert load_video([oriented(6), oriented(6)]).frames.shape == (2, 6, 4, 3)


def test_frames_of_unlike_sizes_are_named() -> None:
    with pytest.raises(MediaError, match=r"frame 2 \(PIL image .*\) is 10 x 9, the first is 64 x 48"):
        load_video([photo(), photo(), photo(10, 9), photo(11, 9)])


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ([], "one frame at least"),
        (greys(2)[0], r"expected frames \(T, H, W, 3\)"),
        (greys(2).astype(np.float32), "float32"),
        (greys(2)[..., 0], "expected frames"),
        (photo(), "PIL image"),
        ("secret" * 1000, r"^text of 6,000 characters: cannot be opened"),
        ({}, "type dict"),
    ],
)
def test_frames_that_are_refused(source: Any, says: str) -> None:
    with pytest.raises(MediaError, match=says):
        load_video(source)


def test_an_empty_folder_and_a_bad_frame(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="holds no pictures"):
        load_video(tmp_path)
    (tmp_path / "1.png").write_text("words")
    with pytest.raises(MediaError, match=r"1\.png: not a picture"):
        load_video(tmp_path)
    with pytest.raises(ValueError, match="fps is 0"):
        load_video(greys(2), fps=0)


# Animations


@pytest.mark.parametrize(("kind", "options"), [("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {})])
def test_animations_keep_their_own_times(kind: str, options: dict[str, Any]) -> None:
    data = animation(greys(5), [100, 200, 300, 400, 500], kind, **options)
    video = load_video(data, fps=1)  # 1.5 s at one a second, four at least: 0, 1.33, 2.67, 4
    assert levels(video.frames) == [0, 1, 3, 4]
    assert video.timestamps == pytest.approx((0, 0.1, 0.6, 1.0))
    assert video.fps == pytest.approx(4 / 1.5)
    assert levels(load_video(io.BytesIO(data), num_frames=7).frames) == [0, 1, 1, 2, 3, 3, 4]


def test_an_animation_without_durations_shows_each_frame_for_a_tenth_of_a_second() -> None:
    assert load_video(animation(greys(5), 0), fps=10).timestamps == pytest.approx((0, 0.1, 0.2, 0.3, 0.4))


def test_transparency_in_an_animation_is_white() -> None:
    frames = [Image.new("RGBA", (4, 4), (i, 0, 0, 0)) for i in (0, 50, 100)]
    data = encode(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True, exact=True)
    assert (load_video(data).frames == 255).all()


def test_a_stand_in_before_an_animated_png_is_not_a_frame() -> None:
    frames = [Image.fromarray(frame) for frame in greys(4)]
    data = encode(frames[3], save_all=True, append_images=frames[:3], default_image=True, duration=100)
    assert levels(load_video(data).frames) == [0, 1, 2]


def test_still_pictures_are_refused() -> None:
    for data in (encode(photo()), encode(photo(), "JPEG"), encode(photo(), "GIF"), encode(photo(), "WEBP")):
        with pytest.raises(MediaError, match="a still picture"):
            load_video(data)


def test_animations_obey_the_limits() -> None:
    data = animation(greys(5), 100)
    with pytest.raises(MediaError, match="max_image_pixels"):
        load_video(data, limits=Limits(max_image_pixels=100))
    with pytest.raises(MediaError, match=r"4 frames of 64 x 48 .*max_video_pixels"):
        load_video(data, limits=Limits(max_video_pixels=4 * 64 * 48 - 1))
    with pytest.raises(MediaError, match=r"Pillow allows|more than"):
        load_video(png(20_000, 20_000, 8, 2, b""))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_truncated_animations(kind: str) -> None:
    data = animation(np.random.default_rng(0).integers(0, 256, (6, 48, 64, 3), np.uint8), 100, kind)
    for quarter in (1, 2, 3):
        with pytest.raises(MediaError, match=r"truncated or damaged|still picture"):
            load_video(data[: len(data) * quarter // 4], fps=10)


# Files


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.mp4", "mpeg4"), ("a.mov", "mpeg4"), ("a.avi", "mpeg4"), ("a.webm", "libvpx-vp9"), ("a.ts", "mpeg2video")],
)
def test_files(name: str, codec: str, tmp_path: Path) -> None:
    path = movie(tmp_path / name, greys(25), codec=codec)
    video = load_video(path)  # 2.5 s at two a second
    assert levels(video.frames) == [0, 6, 12, 18, 24]
    assert video.timestamps == pytest.approx((0, 0.6, 1.2, 1.8, 2.4))
    assert video.fps == pytest.approx(2.0)
    assert video.frames.shape == (5, 48, 64, 3)
    assert levels(load_video(path, fps=4).frames) == np.linspace(0, 24, 10).round().tolist()
    assert levels(load_video(path, num_frames=3).frames) == [0, 12, 24]
    assert levels(load_video(path, fps=100, max_frames=2).frames) == [0, 24]


def test_every_kind_of_source(tmp_path: Path) -> None:
    path = movie(tmp_path / "a.mp4", greys(8))
    data = path.read_bytes()
    later = io.BytesIO(b"before" + data)
    later.seek(6)
    with path.open("rb") as file:
        for source in (str(path), path.as_uri(), data, file, later):
            assert levels(load_video(source, num_frames=2).frames) == [0, 7]
        assert not file.closed
    assert not later.closed


def test_fps_and_num_frames_together(tmp_path: Path) -> None:
    for source in (tmp_path / "missing.mp4", animation(greys(3), 100)):
        with pytest.raises(ValueError, match="either fps or num_frames"):
            load_video(source, fps=1, num_frames=2)


@pytest.mark.parametrize(
    ("matrix", "shown"),
    [
        ((0, -1, 1, 0), lambda frame: np.rot90(frame, 1)),
        ((-1, 0, 0, -1), lambda frame: np.rot90(frame, 2)),
        ((0, 1, -1, 0), lambda frame: np.rot90(frame, -1)),
        ((-1, 0, 0, 1), lambda frame: frame[:, ::-1]),
        ((1, 0, 0, -1), lambda frame: frame[::-1]),
        ((0, 1, 1, 0), lambda frame: frame.swapaxes(0, 1)),
    ],
    ids=["left", "half", "right", "mirrored", "upside down", "transposed"],
)
def test_the_display_matrix_is_applied(
    matrix: tuple[int, ...], shown: Callable[[np.ndarray], np.ndarray], tmp_path: Path
) -> None:
    """The matrix as it stands in the file (x' = a x + c y, y' = b x + d y); phones write "right"."""
    data = bytearray(movie(tmp_path / "a.mp4", greys(4)).read_bytes())
    at = data.index(b"tkhd") + 44  # in a track header of version 0
    a, b, c, d = (value << 16 for value in matrix)
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    frame = load_video(bytes(data), num_frames=1).frames[0].astype(int)
    expected = shown(greys(4)[0].astype(int))
    assert frame.shape == expected.shape
    assert np.abs(frame - expected).mean() < 8


def test_a_file_that_counts_more_frames_than_it_shows(tmp_path: Path) -> None:
    """An edit list cuts the end away; the container's count of frames does not know."""
    data = bytearray(movie(tmp_path / "a.mp4", greys(25)).read_bytes())
    at = data.index(b"elst") + 12  # after version, flags and number of entries
    scale = int.from_bytes(data[data.index(b"mvhd") + 16 :][:4], "big")
    data[at : at + 4] = scale.to_bytes(4, "big")  # one second of 2.5
    video = load_video(bytes(data), num_frames=3)
    last = levels(video.frames)[-1]
    assert 9 <= last <= 12
    assert levels(video.frames) == [0, last // 2, last]
    assert video.timestamps[-1] == pytest.approx(last / 10)


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("a.mp4", "mpeg4", {}),
        ("a.mp4", "mpeg4", {"movflags": "faststart"}),
        ("a.mp4", "mpeg4", {"movflags": "frag_keyframe+empty_moov"}),
        ("a.avi", "mpeg4", {}),
        ("a.webm", "libvpx-vp9", {}),
    ],
)
def test_a_truncated_file_is_refused_by_name(name: str, codec: str, options: dict[str, str], tmp_path: Path) -> None:
    path = movie(tmp_path / name, greys(25), codec=codec, options=options)
    assert len(load_video(path).frames) == 5
    data = path.read_bytes()
    for quarter in (1, 2, 3):
        path.write_bytes(data[: len(data) * quarter // 4])
        with pytest.raises(MediaError, match="truncated") as caught:
            load_video(path)
        assert str(path) in str(caught.value)
        assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_videos_obey_the_limits(tmp_path: Path) -> None:
    path = movie(tmp_path / "a.mp4", greys(25))
    with pytest.raises(MediaError, match="64 x 48 is more than 100 pixels"):
        load_video(path, limits=Limits(max_image_pixels=100))
    with pytest.raises(MediaError, match="max_video_pixels"):
        load_video(path, limits=Limits(max_video_pixels=5 * 64 * 48 - 1))


def test_frames_are_decoded_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    converted: list[int] = []
    upright = video_file._upright

    def counted(frame: Any) -> np.ndarray:
        converted.append(1)
        return upright(frame)

    monkeypatch.setattr(video_file, "_upright", counted)
    load_video(movie(tmp_path / "a.mp4", greys(25)), num_frames=2)
    assert len(converted) == 2, "only kept frames become RGB"


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "empty"),
        (b"just words", "text"),
        (b"%PDF-1.7", "PDF"),
        (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/hostname\n", "not a video"),
        (b"ffconcat version 1.0\nfile '/etc/hostname'\n", "not a video"),
        (b"\0\0\0\x14ftypheic\0\0\0\0mif1", "still picture"),
        (b"\0\0\0\x14ftypisom\0\0\0\0mp42", "truncated or damaged"),
        (np.random.default_rng(0).bytes(5000), "unknown"),
    ],
)
def test_foreign_files_are_refused_by_name(data: bytes, says: str, tmp_path: Path) -> None:
    pytest.importorskip("av")
    path = tmp_path / "thing.mp4"
    path.write_bytes(data)
    with pytest.raises(MediaError, match=says) as caught:
        load_video(path)
    assert str(path) in str(caught.value)


def test_a_script_that_names_other_files_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    movie(tmp_path / "other.mp4", greys(4))
    monkeypatch.chdir(tmp_path)
    script = b"ffconcat version 1.0\nfile other.mp4\n"
    with pytest.raises(MediaError, match="not a video"):
        load_video(script)
    monkeypatch.setattr(video_file, "_CONTAINERS", video_file._CONTAINERS + ",concat")
    assert len(load_video(script).frames) == 4, "libav would have followed it"


def test_sound_without_pictures(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(MediaError, match="no video track"):
        load_video(tmp_path / "a.mp4")


def test_files_need_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MediaError, match=r'pip install "mlx-vlgen\[video\]"'):
        load_video(b"\0\0\0\x14ftypisom\0\0\0\0mp42")
    assert len(load_video(animation(greys(4), 100)).frames) == 4


@given(st.floats(0, 1), st.binary(min_size=1, max_size=40))
@settings(max_examples=40, deadline=None)
def test_damaged_files_raise_nothing_else(where: float, noise: bytes) -> None:
    data = damageable()
    at = int(where * len(data))
    with contextlib.suppress(MediaError):
        load_video(data[:at] + noise + data[at + len(noise) :])


@functools.cache
def damageable() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return movie(Path(folder) / "a.mp4", greys(8)).read_bytes()
