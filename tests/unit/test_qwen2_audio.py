"""Qwen2-Audio and what all families on Whisper's encoder share: features, their lengths, tensors, and refusals."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from invariants.family import Family
from parity import expected, media

from mlx_vlgen.errors import LoadError, MediaError, PromptError, UnsupportedError
from mlx_vlgen.inputs.mel import log_mel
from mlx_vlgen.inputs.prompt import MediaInputs, Prompt
from mlx_vlgen.inputs.qwen2_audio import Qwen2AudioProcessor
from mlx_vlgen.inputs.tensors import pack, unpack
from mlx_vlgen.inputs.whisper import WhisperSettings
from mlx_vlgen.models.qwen2_audio import Qwen2Audio

WINDOW = 32_000
RATE = media.SOUND_RATE


@pytest.fixture(scope="module")
def family(load_family: Callable[[str], Family]) -> Family:
    return load_family("qwen2_audio")


def prompt(processor: Any, *clips: Any) -> Prompt:
    made: Prompt = processor.prepare("<|AUDIO|>" * len(clips), MediaInputs(audios=clips))
    return made


@pytest.mark.parametrize("count", [400, 641, 16_000, 31_359, 31_521, 31_841, 31_999, 32_000, 40_000])
def test_short_clips_have_the_frames_of_the_whole_window(
    family: Family, count: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Silence is never computed, and padding is what it would be."""
    samples = np.resize(media.sound("sound"), count).astype(np.float32) / 32768
    settings = family.processor.sound
    padded = np.pad(samples[:WINDOW], (0, max(0, WINDOW - count)))
    clip = prompt(family.processor, samples)
    packed = family.processor.audio_tensors.pack(clip.media)
    assert packed["input_features"].shape == (1, 32, 200) and packed["input_features"].dtype == np.float32
    assert np.abs(packed["input_features"][0].T - log_mel(padded, settings.mel)).max() < 1e-6
    assert packed["feature_attention_mask"].sum() == -(-min(count, WINDOW) // 160) == clip.media[0].grid[0]
    assert len(clip.media[0].pixels) == min(clip.media[0].grid[0] + 3, 200)
    cut_off = "hears 2 seconds, and not the rest of 2.5; cut it in parts" in " ".join(capsys.readouterr().err.split())
    assert cut_off == (count == 40_000)


def test_features_do_not_depend_on_the_silence_that_is_left_out(family: Family) -> None:
    """The whole window, and its own part, give the tower's positions alike."""
    clip = prompt(family.processor, media.sound("short_sound")).media[0]
    whole = clip.replace(pixels=np.pad(clip.pixels, ((0, 200 - len(clip.pixels)), (0, 0)), mode="edge"))
    short, long = (np.array(family.model.encode([medium])[0].embeds) for medium in (clip, whole))
    assert short.shape == (clip.spans[0][1], 64) and np.abs(short - long).max() < 1e-5


def test_clips_of_one_length_are_encoded_together(family: Family) -> None:
    samples = [np.roll(media.sound("sound"), shift) for shift in (0, 4000, 9000)]
    clips = prompt(family.processor, *samples).media
    assert len({clip.form for clip in clips}) == 1 and len({clip.key for clip in clips}) == 3
    together = family.model.encode(clips)
    for clip, features in zip(clips, together, strict=True):
        alone = family.model.encode([clip])[0].embeds
        assert np.abs(np.array(features.embeds) - np.array(alone)).max() < 1e-5


def test_tensors_come_back_in_any_order(family: Family) -> None:
    rows = [prompt(family.processor, *map(media.sound, names)) for names in (["sound"], ["long_sound", "short_sound"])]
    tensors = pack(family.processor, rows, 0)
    assert (tensors["mm_token_type_ids"] == 3).sum() == 33 + 50 + 18
    for row, back in zip(rows, unpack(family.processor, tensors), strict=True):
        for medium, other in zip(row.media, back.media, strict=True):
            assert (medium.spans, medium.grid) == (other.spans, other.grid)
            assert np.array_equal(medium.pixels, other.pixels)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"feature_attention_mask": None}, "input_features is given without feature_attention_mask"),
        ({"input_features": None}, "feature_attention_mask is given without input_features"),
        (
            {"feature_attention_mask": np.ones((1, 9))},
            r"expected \(clips, 32, 200\), and feature_attention_mask \(clips, 200\)",
        ),
        ({"feature_attention_mask": np.arange(200)[None] % 2}, "frames come first"),
        ({"feature_attention_mask": np.arange(200)[None] < 2}, "too short to become a token"),
        ({"feature_attention_mask": np.arange(200)[None] < 40}, "no audio left to fill them"),
        ({"input_features": "sound"}, "input_features: "),
        ({"input_features": np.zeros((1, 31, 200))}, r"has the shape \(1, 31, 200\); expected \(clips, 32, 200\)"),
        ({"input_features": np.zeros((1, 32))}, r"has the shape \(1, 32\); expected"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(family: Family, change: dict[str, Any], message: str) -> None:
    tensors = pack(family.processor, [prompt(family.processor, media.sound("sound"))], 0)
    with pytest.raises(PromptError, match=message):
        unpack(family.processor, tensors | change)


def test_clips_without_their_text_and_models_that_do_not_hear(
    family: Family, load_family: Callable[[str], Family]
) -> None:
    tensors = pack(family.processor, [prompt(family.processor, media.sound("sound"))], 0)
    with pytest.raises(PromptError, match="input_features holds 1 more audio than"):
        unpack(family.processor, {**tensors, "input_ids": [[5]], "attention_mask": [[1]], "mm_token_type_ids": [[0]]})
    with pytest.raises(UnsupportedError, match="audio was given, and this model takes only text, pic"):
        unpack(load_family("qwen3_vl").processor, tensors)
    with pytest.raises(UnsupportedError, match="a picture was given, and this model takes only text and audio clips"):
        family.processor.prepare([{"role": "user", "content": [{"type": "image"}]}])


def test_what_is_too_short_is_told(family: Family) -> None:
    for count in (1, 160, 320):
        with pytest.raises(MediaError, match=f"too short: {count} samples become no token"):
            prompt(family.processor, np.ones(count, np.float32) / 2)
    assert len(prompt(family.processor, np.ones(321, np.float32) / 2).tokens) == 1


@pytest.mark.parametrize("name", ["dither", "padding_value"])
def test_settings_that_are_not_computed_are_refused(name: str) -> None:
    with pytest.raises(LoadError, match=f"features of sound have {name}, which is not computed here"):
        WhisperSettings.read({name: 1}, 80)


def test_a_window_of_another_tower_is_refused() -> None:
    settings = WhisperSettings.read({}, 128)
    assert (settings.samples, settings.mel.mels) == (480_000, 128)
    settings.check_positions(1500)
    with pytest.raises(LoadError, match="become 3,000 frames and its audio tower takes 200"):
        settings.check_positions(100)


def test_the_published_tower_takes_the_published_clips() -> None:
    """Sizes of Qwen2-Audio-7B: 30 seconds are 750 tokens."""
    fields = Qwen2AudioProcessor.read_fields(
        _settings({"feature_size": 128, "chunk_length": 30, "n_fft": 400, "hop_length": 160}), {"audio_config": {}}
    )
    processor = Qwen2AudioProcessor(None, None, **fields)
    assert processor.audio_tokens(3000) == 750
    assert processor.audio_tensors.frames == 3000


def _settings(audio: dict[str, Any]) -> Any:
    from mlx_vlgen.inputs.processor_files import ProcessorSettings

    return ProcessorSettings({}, {}, {}, audio)


def test_the_reference_counts_as_transformers_does() -> None:
    assert [len(expected.case("qwen2_audio", name).audios) for name in ("audio", "audio2", "audio_dialogue")] == [
        1,
        2,
        2,
    ]


def test_another_tower_is_refused(family: Family) -> None:
    audio = {**family.model.config["audio_config"], "model_type": "voxtral_encoder"}
    with pytest.raises(LoadError, match="audio tower is 'voxtral_encoder'; expected qwen2_audio_encoder"):
        Qwen2Audio({**family.model.config, "audio_config": audio})
