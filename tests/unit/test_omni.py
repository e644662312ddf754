"""Qwen2.5-Omni and Qwen3-Omni, beyond what their references reach."""

import copy

import av
import numpy as np
import pytest
from parity import media
from parity.layouts import read_json, write_checkpoint, write_json
from safetensors.numpy import load_file, save_file

import mlx_vlgen
from mlx_vlgen._runtime import mx, nn, tree_flatten
from mlx_vlgen.convert import convert
from mlx_vlgen.engine.prefix import cut_back
from mlx_vlgen.errors import MediaError, PromptError, UnsupportedError
from mlx_vlgen.inputs.omni import Qwen2_5OmniProcessor, Qwen3OmniProcessor
from mlx_vlgen.inputs.prompt import Media, MediaInputs, Prompt
from mlx_vlgen.models.base import Embedded
from mlx_vlgen.models.mrope import MRope
from mlx_vlgen.models.omni import omni_positions
from mlx_vlgen.models.omni_audio import (
    OmniAudioConfig,
    Qwen2_5OmniAudio,
    Qwen3OmniAudio,
    Qwen3OmniAudioConfig,
)

SMALL = {"num_mel_bins": 8, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 12, "d_model": 16}
TOWERS = {
    "qwen2_5": lambda: Qwen2_5OmniAudio(OmniAudioConfig.from_dict(SMALL | {"n_window": 10, "output_dim": 6})),
    "qwen3": lambda: Qwen3OmniAudio(
        Qwen3OmniAudioConfig.from_dict(
            SMALL | {"n_window": 10, "n_window_infer": 40, "output_dim": 6, "downsample_hidden_size": 4}
        )
    ),
}
ASK = "<|im_start|>user\n<|vision_bos|><|VIDEO|><|vision_eos|>What?<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_checkpoint("qwen2_5_omni", "hub", tmp_path_factory.mktemp("omni") / "hub")


@pytest.fixture(scope="module")
def loaded(folder):
    return mlx_vlgen.load(str(folder), dtype="float32")


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """A file of two seconds with sound."""
    return write_film(tmp_path_factory.mktemp("films") / "film.mkv", media.sound("long_sound")[:32_000])


def write_film(path, samples):
    with av.open(str(path), "w") as container:
        pictures = container.add_stream("mpeg4", rate=2)
        pictures.width, pictures.height, pictures.pix_fmt = 448, 224, "yuv420p"
        sound = None
        if samples is not None:
            sound = container.add_stream("pcm_s16le", rate=16_000)
            sound.layout = "mono"
        for frame in media.clip("wide_clip"):
            container.mux(pictures.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(pictures.encode())
        if sound is not None:
            frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
            frame.sample_rate = 16_000
            container.mux(sound.encode(frame))
            container.mux(sound.encode())
    return path


@pytest.mark.parametrize("tower", TOWERS.values(), ids=TOWERS)
def test_a_clip_of_a_ragged_batch_is_as_alone(tower):
    tower, lengths = tower(), [70, 7, 20, 41, 1]
    clips = [mx.random.normal((length, 8)) for length in lengths]
    padded = mx.stack([mx.pad(clip, [(0, 70 - len(clip)), (0, 0)], constant_values=float("nan")) for clip in clips])
    together = tower(padded, lengths)
    for row, clip in zip(together, clips, strict=True):
        count = tower.features(len(clip))
        alone = tower(clip[None], [len(clip)])[0, :count]
        assert mx.allclose(row[:count], alone, atol=1e-5)


@pytest.mark.parametrize("tower", TOWERS.values(), ids=TOWERS)
def test_half_precision_stays(tower):
    tower = tower()
    tower.set_dtype(mx.bfloat16)
    assert tower(mx.random.normal((1, 50, 8)), [50]).dtype == mx.bfloat16


@pytest.mark.parametrize("tower", TOWERS.values(), ids=TOWERS)
def test_the_towers_can_be_trained(tower):
    tower, lengths = tower(), [70, 7, 20]
    mel = mx.random.normal((3, 70, 8))
    _, gradients = nn.value_and_grad(tower, lambda tower: (tower(mel, lengths) ** 2).sum())(tower)
    for name, gradient in tree_flatten(gradients):
        assert np.isfinite(np.array(gradient)).all(), name
        assert "k_proj.bias" in name or mx.abs(gradient).max() > 0, name  # that of the keys changes nothing


def test_a_video_and_its_sound_take_turns():
    seconds = 25 * np.array([0, 0, 4, 4, 8, 8])
    first = Qwen2_5OmniProcessor.interleaved(object.__new__(Qwen2_5OmniProcessor), seconds, 120)
    runs = np.flatnonzero(np.diff(first)) + 1
    assert not first[0] and np.diff([0, *runs, len(first)]).tolist() == [2, 50, 1, 50, 1, 20, 2]
    third = Qwen3OmniProcessor.interleaved(object.__new__(Qwen3OmniProcessor), 6.5 * np.array([0, 0, 1, 1]), 9)
    assert third.astype(int).tolist() == [0, 0, 1, 1, 1, 1, 1, 1, 1, 0, 0, 1, 1]


def test_times_need_not_be_whole():
    video = Media("video", np.empty(0, np.uint8), (3, 2, 4), ((2, 8),), (0, 0), seconds=0.5)
    prompt = Prompt(np.zeros(10, np.int32), (video,))
    exact, delta = omni_positions(prompt, 2, 13, whole=False)
    assert exact[0].tolist() == [0, 1, 2, 2, 8.5, 8.5, 15, 15, 16, 17] and delta == 8
    assert exact[2, 2:8].tolist() == [2, 3, 2, 3, 2, 3]
    rounded, _ = omni_positions(prompt, 2, 13, whole=True)
    assert rounded.dtype == np.int32 and rounded[0, 4:].tolist() == [8, 8, 15, 15, 16, 17]


def test_a_fraction_turns_as_a_whole_number_does():
    class Cache:
        offset = 7

    rope, x = MRope(16, 10_000.0, (2, 3, 3)), mx.random.normal((2, 4, 3, 16))
    inputs = Embedded(mx.zeros((2, 3), mx.int32), delta=mx.array([2, -3]))
    whole = rope(x, rope.offset(inputs, [Cache]))
    inputs.delta = inputs.delta.astype(mx.float32)
    assert mx.allclose(rope(x, rope.offset(inputs, [Cache])), whole, atol=1e-5)


def test_the_sound_of_a_file_is_heard(loaded, film):
    processor = loaded[1]
    read = processor.prepare(ASK, MediaInputs(videos=[str(film)], use_audio_in_video=True))
    given = processor.prepare(
        ASK, MediaInputs(videos=[str(film)], audios=[media.sound("long_sound")[:32_000]], use_audio_in_video=True)
    )
    assert read.tokens.tolist() == given.tokens.tolist()
    assert [medium.kind for medium in read.media] == ["video", "audio"]
    assert np.abs(read.media[1].pixels - given.media[1].pixels).max() < 1e-4
    unheard = processor.prepare(ASK, MediaInputs(videos=[str(film)]))
    assert len(read.tokens) == len(unheard.tokens) + 50 + 2
    with film.open("rb") as file:
        streamed = processor.prepare(ASK, MediaInputs(videos=[file.read()], use_audio_in_video=True))
    assert streamed.tokens.tolist() == read.tokens.tolist()


def test_no_reused_beginning_ends_in_what_is_heard(loaded, film):
    prompt = loaded[1].prepare(ASK, MediaInputs(videos=[str(film)], use_audio_in_video=True))
    start, end = prompt.media[0].extent
    assert [cut_back(length, prompt) for length in (start, start + 1, end - 1, end)] == [start, start, start, end]
    moved = prompt.after(start).media[0]
    assert moved.extent == (0, end - start) and moved.key == prompt.media[0].key


def test_transformers_calls(loaded, film):
    model, processor = loaded
    sound = media.sound("sound")
    inputs = processor(text=ASK, videos=[str(film)], audio=[sound], use_audio_in_video=True, return_tensors="mlx")
    assert "video_second_per_grid" in inputs
    answer = model.generate(**inputs, use_audio_in_video=True, return_audio=False, max_new_tokens=5)
    tokens = np.array(answer)[0, inputs["input_ids"].shape[1] :].tolist()
    asked = {"video": str(film), "audio": sound, "use_audio_in_video": True, "max_tokens": 5}
    assert tokens == mlx_vlgen.generate(model, processor, ASK, **asked, include_eos=True).tokens
    with pytest.raises(UnsupportedError, match="return_audio: speech is not made here"):
        model.generate(**inputs, return_audio=True)


def test_rows_with_fractions_among_others(tmp_path):
    """Positions of one row are no whole numbers; in one step, in chunks and joined by others it is as alone."""
    loaded = mlx_vlgen.load(str(write_checkpoint("qwen3_omni_moe", "v5", tmp_path / "v5")), dtype="float32")
    ask = ASK.replace("_bos", "_start").replace("_eos", "_end").replace("<|VIDEO|>", "<|video_pad|>")
    clips = [media.clip("wide_clip"), None, media.clip("odd_wide_clip")]
    asked = {"video_fps": 3.0, "max_tokens": 5, "logprobs": True}
    prompt = loaded[1].prepare(ask, MediaInputs(videos=clips[:1], video_fps=3.0))
    assert loaded[0].position_delta(prompt) % 1
    prompts = [ask, "Who are you?", ask]
    pairs = zip(prompts, clips, strict=True)
    alone = [mlx_vlgen.generate(*loaded, text, video=clip, **asked) for text, clip in pairs]
    for step in (2048, 16):
        rows = mlx_vlgen.batch_generate(*loaded, prompts=prompts, videos=clips, prefill_step_size=step, **asked).results
        for row, single in zip(rows, alone, strict=True):
            assert row.error is None and row.tokens == single.tokens
            assert np.abs(np.array(row.logprobs) - np.array(single.logprobs)).max() < 1e-4


def test_a_heard_video_is_one_answer(loaded, film):
    """Through every face, beside rows that are not heard, in chunks, and after what was stored of it."""
    asked = {"max_tokens": 5, "use_audio_in_video": True, "logprobs": True}
    heard = mlx_vlgen.generate(*loaded, ASK, video=str(film), **asked)
    unheard = mlx_vlgen.generate(*loaded, ASK, video=str(film), max_tokens=5)
    assert np.abs(np.array(heard.logprobs) - np.array(unheard.logprobs)).max() > 1e-2
    streamed = [*mlx_vlgen.stream_generate(*loaded, ASK, video=str(film), **asked)]
    rows = mlx_vlgen.batch_generate(
        *loaded, prompts=[ASK, "Hello", ASK], videos=[str(film), None, media.clip("odd_wide_clip")],
        audios=[None, None, media.sound("sound")], prefill_step_size=16, **asked,
    ).results  # fmt: skip
    store = mlx_vlgen.PrefixCache()
    cached = [mlx_vlgen.generate(*loaded, ASK, video=str(film), prompt_cache=store, **asked) for _ in range(2)]
    for result in (streamed[-1], rows[0], *cached):
        assert result.error is None and result.generation_tokens == heard.generation_tokens
        assert np.abs(np.array(result.logprobs) - np.array(heard.logprobs)).max() < 1e-4
    assert rows[0].tokens == heard.tokens == cached[1].tokens


def test_what_cannot_be_heard_is_refused(loaded, film, tmp_path):
    processor, clip = loaded[1], media.clip("wide_clip")

    def refusal(error, processor=processor, **inputs):
        with pytest.raises(error) as caught:
            processor.prepare(ASK, MediaInputs(**inputs, use_audio_in_video=True))
        return str(caught.value)

    assert "is frames, which have no sound: give it as audio=" in refusal(PromptError, videos=[clip])
    assert "2 audio clips and 1 videos" in refusal(PromptError, videos=[clip], audios=[media.sound("sound")] * 2)
    silent = write_film(tmp_path / "silent.mkv", None)
    assert "silent.mkv: has no sound; leave use_audio_in_video out" in refusal(MediaError, videos=[str(silent)])
    demo = mlx_vlgen.load("demo")[1]
    assert "does not hear the sound of videos" in refusal(UnsupportedError, demo, videos=[clip])
    prompt = processor.prepare("Hello", MediaInputs(use_audio_in_video=True))  # there is no video: nothing to hear
    assert not prompt.media


def test_tokens_around_a_video_without_sound(loaded, film):
    """They alone do not make it a heard one; and where it is one, its end belongs to it."""
    model, processor = loaded
    bare = ASK.replace("<|VIDEO|>", "<|audio_bos|><|VIDEO|><|audio_eos|>") + "<|audio_bos|><|AUDIO|><|audio_eos|>"
    prompt = processor.prepare(bare, MediaInputs(videos=[str(film)], audios=[media.sound("sound")]))
    assert [medium.extent for medium in prompt.media] == [None, None]
    assert len(
        mlx_vlgen.generate(model, processor, bare, video=str(film), audio=media.sound("sound"), max_tokens=2).tokens
    )
    heard = processor.prepare(ASK, MediaInputs(videos=[str(film)], use_audio_in_video=True))
    end = heard.media[0].extent[1]
    with pytest.raises(PromptError, match="two tokens belong"):
        processor.placed(heard.tokens[: end - 1], heard.media)


def test_clips_of_many_tokens_are_told(loaded):
    processor, clip = copy.copy(loaded[1]), (np.zeros(16_000 * 3, np.float32), 16_000)
    processor.max_positions = 70
    with pytest.raises(PromptError, match=r"audio of 3\.0 seconds becomes 75 tokens.* cut it into shorter clips"):
        processor.expand("audio", clip, MediaInputs())
    with pytest.raises(MediaError, match="too short: 300 samples become no token"):
        processor.expand("audio", (np.zeros(300, np.float32), 16_000), MediaInputs())


def test_what_speaks_is_passed_over(folder, tmp_path, capsys):
    whole = tmp_path / "whole"
    whole.mkdir()
    for path in folder.iterdir():
        (whole / path.name).write_bytes(path.read_bytes())
    config = read_json(whole / "config.json") | {"talker_config": {"num_hidden_layers": 1}, "enable_audio_output": True}
    write_json(whole / "config.json", config)
    index = read_json(whole / "model.safetensors.index.json")
    shard = sorted(set(index["weight_map"].values()))[0]
    added = {name: np.ones((2, 2), np.float32) for name in ("talker.model.norm.weight", "token2wav.dit.proj.weight")}
    save_file(load_file(whole / shard) | added, whole / shard, metadata={"format": "pt"})
    index["weight_map"] |= dict.fromkeys(added, shard)
    write_json(whole / "model.safetensors.index.json", index)
    model, processor = mlx_vlgen.load(str(whole))
    assert "this model also speaks; that is not computed here" in capsys.readouterr().err
    assert len(mlx_vlgen.generate(model, processor, "Hello", max_tokens=2).tokens) == 2
    converted = convert(whole, tmp_path / "out", quantize=True, q_group_size=32)
    config = read_json(converted / "config.json")
    assert config["enable_audio_output"] is False and config["quantization"]["bits"] == 4
    assert len(mlx_vlgen.generate(*mlx_vlgen.load(str(converted)), "Hello", max_tokens=2).tokens) == 2
