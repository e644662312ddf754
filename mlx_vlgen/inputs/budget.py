"""What decoding a medium will take, judged by its header before anything is decoded."""

import math

from PIL import Image

from ..errors import MediaError
from .fetch import Limits

RGB_BYTES = 4
"""What Pillow keeps for a pixel of RGB, and of every mode that `_SMALL_MODES` does not name."""

_SMALL_MODES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16L": 2, "I;16B": 2, "I;16N": 2}
_WEBP_BYTES = 12  # libwebp's canvas, the one before it, and the copy that Pillow draws from
_FRAME_PIXELS = 10_000  # as many take as long as all else that a frame asks for
_ANIMATION_BYTES = 28  # the frame as stored, as RGBA and cut out, what it hides, the canvas before it, and RGB

_SCAN = b"\xff\xda"  # the marker before each scan of a JPEG
_SCANS = 16  # of a JPEG with as many pixels as are allowed; a smaller one may have more
_RUN_LENGTH_PIXELS = 1 << 21  # Pillow reads a BMP's run lengths in Python, 2 microseconds each
# Others need a library that Pillow may lack, or (LZMA) take as much memory as the file asks for.
_TIFF_COMPRESSIONS = frozenset(
    "raw tiff_ccitt group3 group4 tiff_lzw jpeg tiff_adobe_deflate tiff_deflate packbits tiff_raw_16 zstd".split()
)
_TIFF_WIDTH, _TIFF_ROWS, _TIFF_TILE_WIDTH, _TIFF_TILE_HEIGHT = 256, 278, 322, 323
_TIFF_BITS, _TIFF_COLOURS, _TIFF_SAMPLES, _TIFF_YCBCR = 258, 262, 277, 6

MAX_CHANNELS = 32
"""Of sound."""

_LOWEST_RATE, _HIGHEST_RATE = 1_000, 768_000


def check_size(size: tuple[int, int], name: str, limits: Limits) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise MediaError(f"{name}: has no pixels ({width} x {height})")
    if width * height > limits.max_image_pixels:
        raise MediaError(
            f"{name}: {width:,} x {height:,} is more than {limits.max_image_pixels:,} pixels; make it smaller, or "
            "raise Limits.max_image_pixels if you trust it"
        )


def check_memory(estimate: int, name: str, limits: Limits) -> None:
    if estimate > limits.max_decoded_bytes:
        raise MediaError(
            f"{name}: decoding takes about {estimate:,} bytes of memory, more than {limits.max_decoded_bytes:,}; "
            "make it smaller, or raise Limits.max_decoded_bytes if you trust it"
        )


def check_image(image: Image.Image, name: str, limits: Limits, data: bytes = b"") -> None:
    """Refuse a picture that has been opened, not decoded, when its pixels, memory or time exceed the limits.

    data: the file, where it is held in memory.
    """
    check_size(image.size, name, limits)
    try:
        estimate = _decoding_bytes(image, name, limits, data)
    except MediaError:
        raise
    except Exception:  # tags of a TIFF that are not what they should be
        raise MediaError(f"{name}: its header is damaged; get a whole copy") from None
    check_memory(estimate, name, limits)


def check_frames(size: tuple[int, int], count: int, name: str, limits: Limits) -> None:
    """Refuse a video of whose frames `count` are kept, when their RGB is more than the limits allow."""
    check_size(size, name, limits)
    if count * math.prod(size) > limits.max_video_pixels:
        raise MediaError(
            f"{name}: {count:,} frames of {size[0]:,} x {size[1]:,} are more than {limits.max_video_pixels:,} pixels; "
            "keep fewer (num_frames, max_frames, a lower fps) or raise Limits.max_video_pixels"
        )


def check_audio(rate: int, channels: int, frames: int | None, name: str, limits: Limits) -> None:
    """Refuse sound of so many samples a channel when that is more than the limits allow; None: not known yet."""
    if not _LOWEST_RATE <= rate <= _HIGHEST_RATE:
        raise MediaError(f"{name}: {rate:,} samples a second; expected {_LOWEST_RATE:,} to {_HIGHEST_RATE:,}")
    if not 1 <= channels <= MAX_CHANNELS:
        raise MediaError(f"{name}: {channels:,} channels; expected 1 to {MAX_CHANNELS}")
    if frames is not None and frames > limits.max_audio_seconds * rate:
        raise MediaError(
            f"{name}: more than {limits.max_audio_seconds:,} seconds of sound; cut it, or raise "
            "Limits.max_audio_seconds if you trust it"
        )
    if frames is not None and frames * channels > limits.max_audio_samples:
        raise MediaError(
            f"{name}: {channels} channels of {rate:,} samples a second are more than {limits.max_audio_samples:,} "
            "samples; cut it or lower its rate, or raise Limits.max_audio_samples if you trust it"
        )


def check_animation(size: tuple[int, int], count: int, name: str, limits: Limits) -> None:
    """Refuse an animation of so many frames that drawing them takes too long."""
    if count * max(math.prod(size), _FRAME_PIXELS) > limits.max_animation_pixels:
        raise MediaError(
            f"{name}: {count:,} frames of {size[0]:,} x {size[1]:,}, drawn one upon the other, are more than "
            f"{limits.max_animation_pixels:,} pixels; make it shorter or smaller, or raise Limits.max_animation_pixels"
        )


def check_kept_frames(size: tuple[int, int], count: int, name: str, limits: Limits) -> None:
    """Refuse an animation of whose frames `count` are kept, when that takes too much memory."""
    check_frames(size, count, name, limits)
    check_memory(math.prod(size) * (_ANIMATION_BYTES + 3 * count), name, limits)


def _decoding_bytes(image: Image.Image, name: str, limits: Limits, data: bytes) -> int:
    pixels = math.prod(image.size)
    codec = 0  # what the decoder holds beside the picture
    if image.format == "WEBP":
        codec = _WEBP_BYTES * pixels
    elif image.format == "JPEG":
        scans = data.count(_SCAN)
        if scans * pixels > _SCANS * limits.max_image_pixels:
            raise MediaError(f"{name}: a JPEG of {scans:,} scans, each a pass over all its pixels; save it anew")
        codec = _jpeg_coefficient_bytes(image, scans) * pixels
    elif image.format == "TIFF":
        codec = _tiff_part_bytes(image, name, limits)
    elif image.format == "BMP" and pixels > _RUN_LENGTH_PIXELS and _is_run_length(image):
        raise MediaError(f"{name}: a BMP of more than {_RUN_LENGTH_PIXELS:,} pixels in run lengths; save it as PNG")
    # The RGB picture is made after decoders have freed their memory (WebP's has not, but of as much).
    return _SMALL_MODES.get(image.mode, RGB_BYTES) * pixels + max(codec, RGB_BYTES * pixels) + len(data)


def _jpeg_coefficient_bytes(image: Image.Image, scans: int) -> int:
    """Bytes a pixel of coefficients, which a JPEG of several scans keeps until the last one."""
    if not image.info.get("progressive") and scans <= 1:
        return 0
    sampling = [h * v for _, h, v, _ in getattr(image, "layer", ())]
    return math.ceil(2 * sum(sampling) / max(sampling, default=1))


def _tiff_part_bytes(image: Image.Image, name: str, limits: Limits) -> int:
    """Bytes of one strip or tile as libtiff decodes it."""
    tags = getattr(image, "tag_v2", {})
    compression = image.info.get("compression")
    if compression not in _TIFF_COMPRESSIONS:
        raise MediaError(f"{name}: TIFF with {compression} compression is not read; save it with LZW or as PNG")
    width, height = tags.get(_TIFF_TILE_WIDTH), tags.get(_TIFF_TILE_HEIGHT)
    stored_width = tags.get(_TIFF_WIDTH, image.width)
    stored_height = math.prod(image.size) // stored_width
    if not width or not height:
        width, height = stored_width, min(tags.get(_TIFF_ROWS) or stored_height, stored_height)
    check_size((-(-stored_width // width) * width, -(-stored_height // height) * height), f"{name}, in tiles", limits)
    bits = tags.get(_TIFF_BITS, (1,))
    stored = math.ceil(max(bits) * max(tags.get(_TIFF_SAMPLES, 1), len(bits)) / 8)
    if compression == "jpeg" or tags.get(_TIFF_COLOURS) == _TIFF_YCBCR:
        stored = RGB_BYTES + 2 * stored  # and coefficients, if it is progressive
    return int(width * height * stored)


def _is_run_length(image: Image.Image) -> bool:
    return any(tile[0] == "bmp_rle" for tile in getattr(image, "tile", ()))
