"""Sound as named tensors, as transformers' processors return it, and back."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import PromptError
from .prompt import Media


@dataclass(frozen=True)
class AudioTensors:
    """How a family's processor lays its clips out: one row a clip.

    features: name of the tensor, (clips, frames, bands), or with `bands_first` (clips, bands, frames).
    mask: name of the one that says which frames are a clip's, (clips, frames); None where all are.
    bands: how many there are; None: any number.
    frames: rows are padded to so many; None: as many as the longest has.
    margin: frames after a clip's last one that `Media.pixels` hold, too.
    repeats: whether padding is the last frame that a clip has, which is silence, over and over; otherwise zeros.
    """

    features: str = "input_features"
    mask: str | None = "feature_attention_mask"
    bands: int | None = None
    bands_first: bool = False
    frames: int | None = None
    margin: int = 0
    repeats: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        return (self.features,) if self.mask is None else (self.features, self.mask)

    def pack(self, clips: Sequence[Media]) -> dict[str, np.ndarray]:
        """Clips, whose `grid` is their number of frames, -> tensors: float32, and int32 of the mask."""
        length = self.frames or max(len(clip.pixels) for clip in clips)
        rows, masks = [], []
        for clip in clips:
            padding = ((0, length - len(clip.pixels)), *[(0, 0)] * (clip.pixels.ndim - 1))
            rows.append(np.pad(clip.pixels, padding, mode="edge" if self.repeats else "constant"))
            masks.append(np.arange(length) < clip.grid[0])
        features = np.stack(rows)
        tensors = {self.features: np.ascontiguousarray(features.swapaxes(1, 2)) if self.bands_first else features}
        return tensors if self.mask is None else tensors | {self.mask: np.stack(masks).astype(np.int32)}

    def unpack(self, features: np.ndarray, mask: np.ndarray | None) -> list[tuple[np.ndarray, tuple[int]]]:
        """The inverse: of each clip its frames, with those of the margin, and its grid."""
        rows = features.swapaxes(1, 2) if self.bands_first and features.ndim == 3 else features
        fits = rows.ndim > 2 and all(
            expected in (None, size) for expected, size in zip((self.frames, self.bands), rows.shape[1:3], strict=True)
        )
        if not fits or (mask is not None and mask.shape != rows.shape[:2]):
            bands, frames = self.bands or "bands", self.frames or "frames"
            shape = f"(clips, {bands}, {frames})" if self.bands_first else f"(clips, {frames}, {bands})"
            masked = f", and {self.mask} (clips, {frames})" if self.mask else ""
            raise PromptError(f"{self.features} has the shape {features.shape}; expected {shape}{masked}")
        lengths = [rows.shape[1]] * len(rows) if mask is None else (mask != 0).sum(axis=1).tolist()
        if mask is not None and ((mask != 0) != (np.arange(rows.shape[1]) < np.array(lengths)[:, np.newaxis])).any():
            raise PromptError(f"{self.mask}: a clip's frames come first, and its padding after them")
        return [(row[: length + self.margin], (length,)) for row, length in zip(rows, lengths, strict=True)]
