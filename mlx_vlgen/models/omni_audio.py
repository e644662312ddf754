"""The audio towers of Qwen2.5-Omni and Qwen3-Omni: a clip's spectrogram is cut into chunks, convolutions shorten each,
and attention stays within windows of them. A chunk is as long in a batch as alone; what is not sound is masked.

Source: transformers' Qwen2_5OmniAudioEncoder and Qwen3OmniMoeAudioEncoder.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .._runtime import mx, nn
from .layers import ACTIVATIONS, gelu, pace
from .whisper import WhisperConfig, WhisperLayer, average_pairs


@dataclass(frozen=True)
class OmniAudioConfig(WhisperConfig):
    """n_window: half of a chunk, in frames."""

    n_window: int = 100
    output_dim: int = 3584


@dataclass(frozen=True)
class Qwen3OmniAudioConfig(OmniAudioConfig):
    """n_window_infer: frames that attend to each other."""

    n_window: int = 50
    n_window_infer: int = 800
    downsample_hidden_size: int = 480


class Convolution(nn.Module):
    """(B, T, inputs) -> (B, ceil(T / stride), outputs) of three neighbouring frames each, as a matrix product: the
    gradient of MLX's convolution takes six times as long on a CPU."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1):
        super().__init__()
        bound = (3 * inputs) ** -0.5
        self.weight = mx.random.uniform(-bound, bound, (outputs, 3, inputs))
        self.bias = mx.zeros((outputs,))
        self._stride = stride

    def __call__(self, x: mx.array) -> mx.array:
        length = x.shape[1]
        x = mx.pad(x, [(0, 0), (1, 1), (0, 0)])
        neighbours = mx.concatenate([x[:, i : i + length : self._stride] for i in range(3)], axis=-1)
        return neighbours @ self.weight.flatten(1).T + self.bias


class AudioTower(nn.Module):
    """A spectrogram to features; a family adds its convolutions, and says how they end."""

    def __init__(self, config: OmniAudioConfig):
        super().__init__()
        self._chunk = 2 * config.n_window  # frames
        self.layers = [WhisperLayer(config) for _ in range(config.encoder_layers)]
        self.ln_post = nn.LayerNorm(config.d_model)

    def shorten(self, chunks: mx.array, lengths: np.ndarray, clip_lengths: np.ndarray) -> tuple[mx.array, np.ndarray]:
        """Convolutions of chunks (C, T, mels), of which `lengths` frames each are sound; clip_lengths: of the clip that
        each is of. Returns (C, t, d) and how much of each is of sound."""
        raise NotImplementedError

    def window(self) -> int:
        """How many chunks attend to each other."""
        return 1

    def project(self, x: mx.array) -> mx.array:
        """States (B, N, d) of whole clips -> features (B, n, output_dim)."""
        raise NotImplementedError

    def features(self, frames: int) -> int:
        """How many features a clip of so many frames has."""
        raise NotImplementedError

    def __call__(self, mel: mx.array, lengths: Sequence[int]) -> mx.array:
        """mel (B, T, mels) of clips of `lengths` frames, padded on the right with anything -> (B, n, output_dim), of
        which the first `features(length)` of each clip count."""
        batch, frames, mels = mel.shape
        count = -(-frames // self._chunk)
        mel = mx.pad(mel.astype(self.ln_post.weight.dtype), [(0, 0), (0, count * self._chunk - frames), (0, 0)])
        clips = np.repeat(np.asarray(lengths), count)
        sound = np.clip(clips - np.tile(np.arange(count) * self._chunk, batch), 0, self._chunk)
        mel = mel.reshape(batch * count, self._chunk, mels)
        mel = mx.where(within(sound, self._chunk), mel, mx.zeros_like(mel))
        x, steps = self.shorten(mel, sound, clips)
        length, hidden = x.shape[1:]
        x = x + sinusoids(length, hidden).astype(x.dtype)
        window = self.window()
        windows = -(-count // window)
        x = mx.pad(x.reshape(batch, count, length, hidden), [(0, 0), (0, windows * window - count), (0, 0), (0, 0)])
        x = x.reshape(batch * windows, window * length, hidden)
        mask = np.zeros((batch, windows * window, length), bool)
        mask[:, :count] = (np.arange(length) < steps[:, None]).reshape(batch, count, length)
        keys = mx.array(mask.reshape(batch * windows, 1, 1, window * length))
        for layer in self.layers:
            before, x = x, layer(x, keys)
            pace(before, x)
        return self.project(x.reshape(batch, windows * window * length, hidden)[:, : count * length])


def within(lengths: np.ndarray, length: int) -> mx.array:
    """(C, length, 1): which steps of each chunk are among its first so many."""
    return mx.array((np.arange(length) < lengths[:, None])[..., None])


def sinusoids(length: int, hidden: int) -> mx.array:
    """(length, hidden): sines of each position in the first half, cosines in the second, as Whisper has them."""
    half = hidden // 2
    angles = np.outer(np.arange(length), np.exp(-np.log(10_000) / (half - 1) * np.arange(half)))
    return mx.array(np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32))


class Qwen2_5OmniAudio(AudioTower):
    """Two frames become a step and two steps a feature; a chunk sees itself only."""

    def __init__(self, config: OmniAudioConfig):
        super().__init__(config)
        self.conv1 = Convolution(config.num_mel_bins, config.d_model)
        self.conv2 = Convolution(config.d_model, config.d_model, stride=2)
        self.proj = nn.Linear(config.d_model, config.output_dim)

    def shorten(self, chunks: mx.array, lengths: np.ndarray, clip_lengths: np.ndarray) -> tuple[mx.array, np.ndarray]:
        x = gelu(self.conv1(chunks)) * within(lengths, chunks.shape[1])
        return gelu(self.conv2(x)), (lengths + 1) // 2

    def project(self, x: mx.array) -> mx.array:
        features: mx.array = self.proj(self.ln_post(average_pairs(x)))
        return features

    def features(self, frames: int) -> int:
        return (frames + 1) // 4


CHUNKS_AT_ONCE = 32
"""A chunk's states after its first convolution are 50 x 64 x 480 values; a clip may have hundreds of chunks."""


class Qwen3OmniAudio(AudioTower):
    """Three convolutions over time and bands; eight frames become a feature."""

    def __init__(self, config: Qwen3OmniAudioConfig):
        super().__init__(config)
        hidden, channels, bands = config.d_model, config.downsample_hidden_size, config.num_mel_bins
        for layer in self.layers:
            layer.self_attn.k_proj = nn.Linear(hidden, hidden)
        self._window = config.n_window_infer // self._chunk
        self.conv2d1 = nn.Conv2d(1, channels, 3, stride=2, padding=1)
        self.conv2d2 = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
        self.conv2d3 = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
        self.conv_out = nn.Linear(channels * eighth(bands), hidden, bias=False)
        self.proj1, self.proj2 = nn.Linear(hidden, hidden), nn.Linear(hidden, config.output_dim)
        self._activation = ACTIVATIONS[config.activation_function]

    def shorten(self, chunks: mx.array, lengths: np.ndarray, clip_lengths: np.ndarray) -> tuple[mx.array, np.ndarray]:
        # The convolutions of a clip's last chunk see what those before made of the silence after it, as far as the
        # chunk goes; those of a clip that is shorter than a chunk see nothing there.
        seen = np.minimum(clip_lengths, chunks.shape[1])
        parts = [slice(start, start + CHUNKS_AT_ONCE) for start in range(0, len(chunks), CHUNKS_AT_ONCE)]
        return mx.concatenate([self._convolve(chunks[part], seen[part]) for part in parts]), eighth(lengths)

    def _convolve(self, chunks: mx.array, seen: np.ndarray) -> mx.array:  # (C, T, mels) -> (C, T / 8, d)
        x = chunks.swapaxes(1, 2)[..., None]
        for convolution in (self.conv2d1, self.conv2d2, self.conv2d3):
            x, seen = gelu(convolution(x)), (seen + 1) // 2
            x = x * within(seen, x.shape[2])[:, None]
        return self.conv_out(x.transpose(0, 2, 3, 1).flatten(2))

    def window(self) -> int:
        return self._window

    def project(self, x: mx.array) -> mx.array:
        features: mx.array = self.proj2(self._activation(self.proj1(self.ln_post(x))))
        return features

    def features(self, frames: int) -> int:
        return frames // self._chunk * eighth(self._chunk) + eighth(frames % self._chunk)


def eighth(count: Any) -> Any:
    """What three convolutions leave of so many, or of an array of such."""
    for _ in range(3):
        count = (count + 1) // 2
    return count
