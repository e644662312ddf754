"""Sound from any source: WAV in every coding, other formats through PyAV, rates, limits, refusals."""

import base64
import io
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hostile.sounds import FORMATS, RATE, chunk, encoded, lying, tone, wav
from hostile.videos import small_movie
from hypothesis import given, settings
from hypothesis import strategies as st
from test_media import encode, photo

from mlx_vlgen.errors import MediaError
from mlx_vlgen.inputs import resample as resampling
from mlx_vlgen.inputs import wav as wav_files
from mlx_vlgen.inputs.audio import load_audio
from mlx_vlgen.inputs.fetch import Limits
from mlx_vlgen.inputs.resample import can_resample, resample

TONE = tone()[:, 0].astype(np.float32) / 32768

# WAV


def packed(values: np.ndarray, bits: int, coding: int) -> bytes:
    """Floats as a WAV holds them."""
    if coding == 3:
        return values.astype(f"<f{bits // 8}").tobytes()
    whole = np.rint(values * (2 ** (bits - 1) - 1)).astype(np.int64)
    if bits == 8:
        return (whole + 128).astype(np.uint8).tobytes()
    return whole.astype("<i8").view(np.uint8).reshape(-1, 8)[:, : bits // 8].tobytes()


def extensible(data: bytes, channels: int, bits: int, coding: int) -> bytes:
    guid = struct.pack("<H", coding) + bytes.fromhex("000000001000800000aa00389b71")
    form = struct.pack("<HHIIHHHHI", 0xFFFE, channels, RATE, 0, channels * bits // 8, bits, 22, bits, 0) + guid
    body = b"WAVE" + chunk(b"junk", b"odd") + chunk(b"fmt ", form) + chunk(b"LIST", b"") + chunk(b"data", data)
    return b"RIFF" + struct.pack("<I", len(body)) + body + b"after it"


@pytest.mark.parametrize(("bits", "coding"), [(8, 1), (16, 1), (24, 1), (32, 1), (32, 3), (64, 3)])
def test_wav_of_every_coding(bits: int, coding: int) -> None:
    values = np.linspace(-1, 1, 3 * 2 * 1000).reshape(-1, 2)
    data = packed(values, bits, coding)
    for file in (wav(data, 2, bits=bits, coding=coding), extensible(data, 2, bits, coding)):
        assert np.abs(load_audio(file, RATE) - values.mean(axis=1)).max() < max(2.0 ** (2 - bits), 1e-7)


def test_sources_of_every_kind_give_the_same(tmp_path: Path) -> None:
    data = wav(tone().tobytes())
    path = tmp_path / "a.wav"
    path.write_bytes(data)
    stereo = np.stack([TONE, TONE], axis=1)
    with path.open("rb") as file:
        sources: list[Any] = [
            data, path, str(path), path.as_uri(), io.BytesIO(data), file, bytearray(data),
            "data:audio/wav;base64," + base64.b64encode(data).decode(),
            TONE, (TONE, RATE), (tone()[:, 0], np.int64(RATE)), stereo, stereo.T, TONE.astype(np.float64),
            (tone()[:, 0].astype(">i2"), RATE), wav(tone().tobytes(), size=2**32 - 1),
        ]  # fmt: skip
        for source in sources:
            samples = load_audio(source, RATE)
            assert samples.dtype == np.float32 and np.array_equal(samples, TONE)


def test_a_wav_is_judged_by_its_header(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wav_files, "_samples", None)
    data = tone(2, channels=2).tobytes()
    for limits, name in (
        (Limits(max_audio_seconds=1), "max_audio_seconds"),
        (Limits(max_audio_samples=63_999), "amples"),
    ):
        with pytest.raises(MediaError, match=name):
            load_audio(wav(data, 2), RATE, limits=limits)
    told = {
        "10000000 Hz": "10,000,000 samples a second; expected 1,000 to 768,000", "0 Hz": ": 0 samples a second",
        "64 channels": "64 channels; expected 1 to 32", "767999 Hz": "no simple ratio to the 16,000",
        f"size {len(TONE) * 2 + 1}": "truncated: 6,400 of 6,401 bytes", "no data": "truncated or damaged",
        "many chunks": "damaged", "data first": "damaged", "size 0": "has no samples",
        "two hours at the lowest rate": "more than 7,200 seconds of sound; cut it",
    }  # fmt: skip
    files = dict(lying())
    for name, reason in told.items():
        with pytest.raises(MediaError, match=f"bytes.*{reason}"):
            load_audio(files[name], RATE)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (np.array([0, np.nan], np.float32), "not finite"),
        (wav(np.array([np.inf], "<f4").tobytes(), bits=32, coding=3), "not finite"),
        (np.array([0.0, 20_000]), "up to 20000; expected -1 to 1"),
        (np.zeros((3, 4, 5), np.float32), "expected samples"),
        (np.zeros(5, np.int64), "values of type int64"),
        (np.zeros(0, np.float32), "has no samples"),
        ((TONE, 16_000.5), r"its rate is 16000\.5"),
        ((TONE, 0), "0 samples a second"),
        (("a.wav", 16_000), "expected an array and its rate"),
        ([0.0, 1.0], "not a source of media"),
        (b"", "is empty"),
        ("/dev/zero", "not a regular file"),
        ("none.wav", "no such file"),
    ],
)
def test_what_is_no_sound_is_refused(source: Any, reason: str) -> None:
    with pytest.raises(MediaError, match=reason):
        load_audio(source, RATE)


# Other formats


@pytest.mark.parametrize("kind", FORMATS)
def test_other_formats_are_decoded(kind: str) -> None:
    pytest.importorskip("av")
    samples = load_audio(encoded(kind), RATE)
    assert abs(len(samples) - len(TONE)) <= 2048  # AAC's last frame is filled
    if kind == "flac":
        assert np.array_equal(samples, TONE)
    else:  # each with its own loss
        assert np.abs(samples[800:2800] - TONE[800:2800]).max() < 0.06
    assert np.abs(load_audio(encoded(kind), 8000)[400:1400] - TONE[800:2800:2]).max() < 0.06


def test_what_is_wrong_with_other_files_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("av")
    told = {
        encode(photo(9, 9)): "a PNG picture; give it as image=",
        b"%PDF-1.7 and so on": r"no sound that is read here \(it looks like a PDF\); expected WAV, MP3",
        small_movie(): "has no sound",
        encoded("mp4")[:-2000]: "truncated",
        encoded("flac")[: len(encoded("flac")) // 2]: "truncated",
        b"fLaC" + bytes(200): "truncated or damaged",
    }
    for data, reason in told.items():
        with pytest.raises(MediaError, match=f"bytes: .*{reason}"):
            load_audio(data, RATE)
    with pytest.raises(MediaError, match="max_audio_seconds"):
        load_audio(encoded("flac"), RATE, limits=Limits(max_audio_seconds=0))
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MediaError, match=r"not WAV needs an extra: pip install \"mlx-vlgen\[audio\]\""):
        load_audio(encoded("flac"), RATE)


# Rates

rates = st.sampled_from([8000, 11_025, 16_000, 22_050, 24_000, 32_000, 44_100, 47_952, 48_000, 96_000, 192_000])


def sine(hz: float, phase: float, rate: int, count: int) -> np.ndarray:
    return np.sin(2 * np.pi * hz / rate * np.arange(count) + phase)


@settings(max_examples=30, deadline=None)
@given(rates, st.sampled_from([16_000, 24_000]), st.floats(0.01, 0.9), st.floats(0, 6), st.integers(1, 40_000))
def test_a_sine_keeps_amplitude_and_phase(source_rate: int, rate: int, part: float, phase: float, cut: int) -> None:
    hz, count = part * min(source_rate, rate) / 2, source_rate // 4
    samples = sine(hz, phase, source_rate, count)
    made = np.concatenate(list(resample([samples[:cut], samples[cut:]], source_rate, rate)))
    assert len(made) == -(-count * rate // source_rate)
    edge = 64 * max(rate // source_rate, 1) + 64  # where the kernel reaches over the ends
    expected = sine(hz, phase, rate, len(made))
    assert np.abs(made - expected)[edge:-edge].max() < 2e-5


@pytest.mark.parametrize("source_rate", [24_000, 44_100, 48_000])
@pytest.mark.parametrize("part", [1.0, 1.1, 1.45])
def test_what_the_new_rate_cannot_hold_is_gone(source_rate: int, part: float) -> None:
    made = np.concatenate(list(resample([sine(part * 8000, 0.4, source_rate, source_rate // 2)], source_rate, 16_000)))
    assert np.abs(made)[80:-80].max() < 1.1e-5


def test_rates_without_a_small_ratio() -> None:
    assert all(can_resample(rate, 16_000) for rate in (1001, 22_254, 44_056, 47_952, 352_800, 768_000))
    assert not any(can_resample(rate, 16_000) for rate in (44_101, 767_999))


def test_any_blocks_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = np.random.default_rng(0).standard_normal(9000)
    whole = load_audio((samples, 44_100), RATE)
    for block in (1, 500, 4096):
        monkeypatch.setattr(resampling, "_BLOCK", block)
        made = list(resample(np.array_split(samples, 40), 44_100, RATE))
        assert np.abs(np.concatenate(made) - whole).max() < 1e-6
