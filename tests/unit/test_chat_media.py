"""Pictures and videos of a chat: held as they were, and noticed when they change."""

from pathlib import Path

import pytest
from PIL import Image

from mlx_vlgen.chat_media import MediaStore
from mlx_vlgen.errors import MediaError


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.new("RGB", (4, 2), "red").save(path)
    return path


def test_a_picture_stays_what_it_was_in_its_process(photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, store = photo.read_bytes(), MediaStore()
    monkeypatch.chdir(photo.parent)
    part, picture = store.read("image", "photo.png")
    assert part["image"] == str(photo) and picture and picture.size == (4, 2)
    photo.unlink()
    assert store.problem(part) is None and store.source(part) == data
    assert (MediaStore().problem(part) or "").endswith("photo.png: no such file")
    photo.write_bytes(data + b"\0")
    assert (MediaStore().problem(part) or "").endswith("photo.png: has changed since")
    photo.write_bytes(data)
    again = MediaStore()
    assert again.problem(part) is None and again.source(part) == data


def test_videos_are_read_where_they_are(tmp_path: Path, photo: Path) -> None:
    clip, folder = tmp_path / "clip.mp4", tmp_path / "frames"
    clip.write_bytes(b"one")
    folder.mkdir()
    (folder / "1.png").write_bytes(photo.read_bytes())
    store = MediaStore()
    parts = [store.read("video", str(source))[0] for source in (clip, folder)]
    assert [store.source(part) for part in parts] == [str(clip), str(folder)]
    assert [store.problem(part) for part in parts] == [None, None]
    clip.write_bytes(b"three")
    (folder / "2.png").write_bytes(photo.read_bytes())
    assert all((store.problem(part) or "").endswith("has changed since") for part in parts)


def test_what_is_no_picture_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(MediaError, match=r"text\.png: not a picture"):
        MediaStore().read("image", str(tmp_path / "text.png"))
    with pytest.raises(MediaError, match=r"gone\.mp4: no such file"):
        MediaStore().read("video", str(tmp_path / "gone.mp4"))
