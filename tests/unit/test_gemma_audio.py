"""Gemma 3n and 4 with sound where the tiny checkpoints do not reach: published sizes, lengths of clips, refusals."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from invariants.family import Family

from mlx_vlgen.errors import LoadError, MediaError, UnsupportedError
from mlx_vlgen.inputs.gemma3n import Gemma3nProcessor
from mlx_vlgen.inputs.gemma4_unified import Gemma4UnifiedAudioProcessor
from mlx_vlgen.inputs.gemma_audio import GEMMA4, read_mel
from mlx_vlgen.inputs.processor_files import ProcessorSettings
from mlx_vlgen.inputs.prompt import MediaInputs, Prompt
from mlx_vlgen.models import find
from mlx_vlgen.models.decoders import text_arguments
from mlx_vlgen.models.gemma3n import Gemma3nAudioConfig
from mlx_vlgen.models.gemma3n_text import Gemma3nTextConfig
from mlx_vlgen.models.gemma4_audio import AudioTower, Gemma4AudioConfig
from mlx_vlgen.models.mobilenetv5 import MobileNetV5Config, divisible

SILENT = ProcessorSettings({}, {}, {}, {})
GEMMA3N: dict[str, Any] = {"vision_config": {}, "audio_config": {}}


def prompt(family: Family, clip: np.ndarray) -> Prompt:
    made: Prompt = family.processor.prepare(family.processor.placeholders["audio"], MediaInputs(audios=[clip]))
    return made


def test_silent_configurations_have_the_defaults_of_transformers() -> None:
    tower = AudioTower(Gemma4AudioConfig.from_dict({}))
    assert len(tower.layers) == 12 and tower.output_proj.weight.shape == (1536, 1024)
    assert tower.subsample_conv_projection.input_proj_linear.weight.shape == (1024, 1024)
    sound = Gemma3nAudioConfig.from_dict({"conf_num_hidden_layers": 3, "conf_attention_context_left": 9})
    assert (sound.num_hidden_layers, sound.attention_context_left, sound.hidden_size) == (3, 9, 1536)
    text = Gemma3nTextConfig.from_dict(text_arguments({"model_type": "gemma3n_text"}))
    assert text.sources == [*range(20), *([18] * 4 + [19]) * 3]
    assert [text.sparsity(layer) for layer in (0, 9, 10)] == [0.95, 0.95, 0.0] and text.inner(34) == 16_384
    fields = Gemma3nProcessor.read_fields(SILENT, GEMMA3N)
    assert fields["counts"] == {"image": 256, "audio": 188} and fields["image_settings"].size == (768, 768)
    assert fields["image_settings"].mean == (0.0,) * 3  # not normalised, whatever a file's mean is


@pytest.mark.parametrize(("family", "tokens"), [("gemma3n", 20), ("gemma4_audio", 750), ("gemma4_unified", 775)])
def test_what_is_heard_of_31_seconds(
    load_family: Callable[[str], Family], family: str, tokens: int, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded, clip = load_family(family), np.zeros(31 * 16_000, np.float32)
    if family == "gemma3n":  # the tiny one has fewer tokens than its extractor's 30 seconds take
        with pytest.raises(MediaError, match="480,000 samples make 2,997 frames; expected 1 to 320"):
            prompt(loaded, clip)
    else:
        ((start, end),) = prompt(loaded, clip).media[0].spans
        assert end - start == tokens
    said = "hears 30 seconds, and not the rest of 31.0" in " ".join(capsys.readouterr().err.split())
    assert said == (family != "gemma4_unified")


@pytest.mark.parametrize(("family", "samples"), [("gemma3n", 384), ("gemma4_audio", 160)])
def test_too_short_a_clip_is_refused(load_family: Callable[[str], Family], family: str, samples: int) -> None:
    loaded = load_family(family)
    with pytest.raises(MediaError, match=rf"{samples} samples"):
        prompt(loaded, np.zeros(samples, np.float32))
    assert prompt(loaded, np.zeros(samples + 130, np.float32)).media


def test_only_checkpoints_with_an_audio_tower_hear(load_family: Callable[[str], Family]) -> None:
    with pytest.raises(UnsupportedError, match="audio was given, and this model takes only text, pictures and videos"):
        load_family("gemma4").processor.prepare("", MediaInputs(audios=[np.zeros(16_000, np.float32)]))
    for model_type in ("gemma4", "gemma4_unified"):
        config: dict[str, Any] = {"model_type": model_type, "vision_config": {}, "audio_config": None}
        assert "audio" not in find(config).processor_class().placeholders
        assert "audio" in find(config | {"audio_config": {}}).processor_class().placeholders


@pytest.mark.parametrize(
    ("read", "message"),
    [
        (lambda: Gemma4AudioConfig.from_dict({"attention_context_right": 1}), "attention_context_right 1"),
        (lambda: Gemma4AudioConfig.from_dict({"attention_chunk_size": 8}), "attention_chunk_size 8"),
        (lambda: Gemma3nAudioConfig.from_dict({"conf_attention_context_right": 1}), "conf_attention_context_right"),
        (lambda: Gemma3nAudioConfig.from_dict({"sscp_conv_stride_size": [[2, 2], [1, 2]]}), "sscp_conv_stride_size"),
        (lambda: MobileNetV5Config.read({"architecture": "mobilenetv5_base"}), "'mobilenetv5_base'"),
        (lambda: MobileNetV5Config.read({"model_args": {"pad_type": ""}}), "pad_type"),
        (lambda: MobileNetV5Config.read({"model_args": {"channel_multiplier": 2.0}}), "at most 1"),
        (lambda: read_mel({"dither": 1e-4}, GEMMA4, 128), "dither"),
        (lambda: read_mel({"per_bin_mean": [0.0] * 128}, GEMMA4, 128), "per_bin_mean"),
        (lambda: read_mel({"input_scale_factor": 32768.0}, GEMMA4, 128), "input_scale_factor"),
        (lambda: read_mel({}, GEMMA4, 80), "128 bands and its audio tower takes 80"),
        (
            lambda: Gemma3nProcessor.read_fields(ProcessorSettings({"audio_seq_length": 100}, {}, {}, {}), GEMMA3N),
            "writes 100 tokens for audio and its model takes 188",
        ),
        (
            lambda: Gemma4UnifiedAudioProcessor.read_fields(SILENT, {"audio_config": {"audio_embed_dim": 320}}),
            "640 samples .* its model takes 320",
        ),
        (lambda: text_arguments({"model_type": "gemma3n_text", "tie_word_embeddings": False}), "output layer"),
        (lambda: text_arguments({"model_type": "gemma3n_text", "num_kv_shared_layers": 35}), "keys which no layer has"),
    ],
)  # fmt: skip
def test_refused(read: Callable[[], Any], message: str) -> None:
    with pytest.raises(LoadError, match=message):
        read()


def test_extractors_are_read_with_the_sizes_that_they_state() -> None:
    mel = read_mel({"feature_size": 64, "frame_length_ms": 32.0, "fft_overdrive": True, "mel_floor": 1e-5}, GEMMA4, 64)
    assert (mel.mels, mel.frame, mel.hop, mel.fft, mel.floor) == (64, 512, 160, 1024, 1e-5)
    assert read_mel({}, GEMMA4, 128) == GEMMA4


# What timm's make_divisible makes of it.
@pytest.mark.parametrize(("count", "channels"), [(3.84, 8), (19.2, 24), (38.4, 40), (80.0, 80), (107.9, 104)])
def test_channels(count: float, channels: int) -> None:
    assert divisible(count) == channels
