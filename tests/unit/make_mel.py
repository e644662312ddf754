"""Writes mel.npz with transformers' feature extractors, on their paths of numpy:

python tests/unit/make_mel.py
"""

import sys
from pathlib import Path

import numpy as np
from transformers import Gemma3nAudioFeatureExtractor, WhisperFeatureExtractor
from transformers.models.gemma4.feature_extraction_gemma4 import Gemma4AudioFeatureExtractor

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
from mel_cases import clip  # noqa: E402


def main() -> None:
    samples, features = clip(), {}
    for name, mels in {"whisper": 80, "whisper large-v3": 128}.items():
        extractor = WhisperFeatureExtractor(feature_size=mels)
        features[name] = extractor._np_extract_fbank_features(samples[np.newaxis], "cpu")[0].T
    for name, kind in {"gemma3n": Gemma3nAudioFeatureExtractor, "gemma4": Gemma4AudioFeatureExtractor}.items():
        features[name] = kind()._extract_spectrogram(samples, np.ones(len(samples)))[0]
    rounded = {name: values.astype(np.float32) for name, values in features.items()}
    np.savez_compressed(Path(__file__).with_name("mel.npz"), **rounded)


if __name__ == "__main__":
    main()
