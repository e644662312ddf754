"""Log-mel spectrograms against transformers' extractors, whose features make_mel.py wrote."""

from pathlib import Path

import numpy as np
import pytest
from mel_cases import CASES, clip

from mlx_vlgen.inputs import mel
from mlx_vlgen.inputs.mel import MelSettings, log_mel, mel_bands


@pytest.mark.parametrize("name", CASES)
def test_features_are_those_of_transformers(name: str) -> None:
    stored = np.load(Path(__file__).with_name("mel.npz"))[name]
    features = log_mel(clip(), CASES[name])
    assert features.dtype == np.float32 and features.shape == stored.shape
    apart = np.abs(features - stored)
    if CASES[name].single:  # another processor may round quiet bands differently
        assert apart.mean() < 1e-5 and apart.max() < 1e-3
    else:
        assert apart.max() < 1e-6


@pytest.mark.parametrize("name", CASES)
def test_parts_are_the_whole(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = log_mel(clip(), CASES[name])
    monkeypatch.setattr(mel, "_BLOCK", 7)
    assert np.abs(log_mel(clip(), CASES[name]) - whole).max() < 1e-6
    for samples in (0, 1, 159, 160, 161, 320, 513, 672, 673, 1000):
        assert log_mel(clip()[:samples], CASES[name]).shape == (CASES[name].frames(samples), CASES[name].mels)


def test_a_tone_is_in_its_band() -> None:
    settings = MelSettings(log="natural")
    for hz in (440, 1000, 5000):
        tone = np.sin(2 * np.pi * hz / 16_000 * np.arange(16_000)).astype(np.float32)
        assert set(log_mel(tone, settings)[5:-5].argmax(axis=1)) == {mel_bands(settings)[round(hz / 40)].argmax()}
