"""The kinds of media, one record each: what the rooms that treat all of them alike need to know of one."""

from dataclasses import dataclass
from pathlib import PurePath
from typing import Literal, TypeAlias

Kind: TypeAlias = Literal["image", "video", "audio"]
"""As content parts name it, and `Media.kind`."""


@dataclass(frozen=True)
class MediaKind:
    """suffixes: of files that hold one, in small letters.
    plural: its field of `MediaInputs` and its keyword where there may be several.
    noun: what messages call it. one: the same, of which one was given.
    part_types: types, and keys, of content parts that hold one.
    by_file: whether a file on disk, which may be large, is told by its inode and times, and not by a hash of its bytes.
    many_tokens: more of them for one are worth a notice; published settings bound most below.
    token_type: what `mm_token_type_ids` calls its features.
    pixels: transformers' name for its pixels; None where it has none.
    """

    suffixes: frozenset[str]
    plural: str
    noun: str
    one: str
    part_types: tuple[str, ...]
    by_file: bool
    many_tokens: int
    token_type: int
    pixels: str | None = None

    def count(self, number: int) -> str:
        """So many of them, in a sentence."""
        return f"{number} {self.noun}{'s' * (number != 1)}"


_PICTURES = ".jpg .jpeg .jfif .png .webp .gif .bmp .tif .tiff .heic .heif .avif .jp2 .ppm .pgm"
_VIDEOS = ".mp4 .mov .m4v .mkv .webm .avi .mpg .mpeg"
_SOUNDS = ".wav .mp3 .flac .m4a .aac .ogg .oga .opus .aif .aiff .wma .amr .caf"

KINDS: dict[Kind, MediaKind] = {
    "image": MediaKind(
        frozenset(_PICTURES.split()), "images", "picture", "a picture", ("image", "image_url"),
        by_file=False, many_tokens=4096, token_type=1, pixels="pixel_values",
    ),
    "video": MediaKind(
        frozenset(_VIDEOS.split()), "videos", "video", "a video", ("video", "video_url"),
        by_file=True, many_tokens=16384, token_type=2, pixels="pixel_values_videos",
    ),
    "audio": MediaKind(
        frozenset(_SOUNDS.split()), "audios", "audio clip", "audio", ("audio", "audio_url", "input_audio"),
        by_file=True, many_tokens=16384, token_type=3,
    ),
}  # fmt: skip


def kind_of_file(name: str) -> Kind | None:
    """What a file of this name holds, by its suffix; None for no medium."""
    suffix = PurePath(name).suffix.lower()
    return next((kind for kind, record in KINDS.items() if suffix in record.suffixes), None)
