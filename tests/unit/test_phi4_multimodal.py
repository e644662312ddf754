"""Phi-4 multimodal: the first release with its adapters, rows of several variants, and where a short one ends."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from invariants.family import Family
from parity import media
from parity.layouts import REFERENCE, assemble, family_tensors, read_json, write_checkpoint, write_json
from parity.recipes import recipes
from parity.weights import Tensors, bell
from PIL import Image
from safetensors.numpy import save_file

import mlx_vlgen
from mlx_vlgen import MediaInputs, PrefixCache, Request, SamplingParams, TokenIterator
from mlx_vlgen._runtime import mx, tree_flatten
from mlx_vlgen.convert import convert
from mlx_vlgen.engine import batch, disk, prefix, scheduler, store
from mlx_vlgen.engine.cache import make_cache
from mlx_vlgen.engine.drafters import DraftModel, PromptLookup
from mlx_vlgen.engine.modes import Beams
from mlx_vlgen.errors import LoadError, MediaError, PromptError
from mlx_vlgen.inputs.phi4_multimodal import Phi4ImageSettings, read_sound
from mlx_vlgen.inputs.prompt import Prompt
from mlx_vlgen.models import find
from mlx_vlgen.models.phi4_multimodal import Phi4Multimodal, positions

NAME = "phi4_multimodal"
SHORT = 60
"""Positions of a row of the tiny checkpoint with the short frequencies."""
IMAGE, AUDIO = "<|endoftext10|>", "<|endoftext11|>"
LORA: dict[str, dict[str, Any]] = {"speech": {"r": 4, "lora_alpha": 12}, "vision": {"r": 6, "lora_alpha": 9}}
FIRST_NAMES = (
    (r"img_projection_up\.", "img_projection.0."),
    (r"img_projection_down\.", "img_projection.2."),
    (r"global_img_feature_extensor", "glb_GN"),
    (r"sub_img_feature_extensor", "sub_GN"),
    (r"up_proj_for_speech\.", "audio_projection.speech.0."),
    (r"down_proj_for_speech\.", "audio_projection.speech.2."),
    (r"up_proj_for_vision_speech\.", "audio_projection.vision.0."),
    (r"down_proj_for_vision_speech\.", "audio_projection.vision.2."),
    (r"(feed_forward_..t?)\.gate_up_proj\.", r"\1.net.0.linear."),
    (r"(feed_forward_..t?)\.down_proj\.", r"\1.net.2."),
    (r"(audio_embed.*self_attn)\.([qkv])_proj", r"\1.linear_\2"),
    (r"(audio_embed.*self_attn)\.o_proj", r"\1.linear_out"),
)
ASKS: dict[str, tuple[str, MediaInputs]] = {
    "text": ("<|user|>What is it?<|end|><|assistant|>", MediaInputs()),
    "vision": (f"<|user|>{IMAGE}What is it?<|end|><|assistant|>", MediaInputs(images=[media.picture("plain")])),
    "speech": (f"<|user|>{AUDIO}What is it?<|end|><|assistant|>", MediaInputs(audios=[media.sound("short_sound")])),
}


@pytest.fixture(scope="module")
def family(load_family: Callable[[str], Family]) -> Family:
    return load_family(NAME)


def adapted(name: str) -> bool:
    return re.search(r"model\.layers\.\d+\.\w+\.(qkv_proj|o_proj|gate_up_proj|down_proj)\.weight", name) is not None


def adapter(name: str, tensor: np.ndarray, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """A (r, inputs) and B (outputs, r) of a layer."""
    rank = LORA[kind]["r"]
    first = bell(f"{kind} A {name}", (rank, tensor.shape[1])) / np.sqrt(tensor.shape[1])
    second = bell(f"{kind} B {name}", (tensor.shape[0], rank)) / np.sqrt(rank) / 4
    return first.astype(np.float32), second.astype(np.float32)


def first_release(folder: Path, tensors: Tensors) -> Path:
    """A checkpoint as Microsoft's first one, for remote code: its names, its configuration, its adapters."""
    config = read_json(REFERENCE / NAME / "config.json")
    write_checkpoint(NAME, "hub", folder)
    for file in folder.glob("model*"):
        file.unlink()
    audio, hub = config["audio_config"], read_json(folder / "config.json")
    tower = {name: audio[name] for name in ("num_blocks", "ext_pw_out_channel", "input_size", "chunk_size")} | {
        "attention_dim": audio["hidden_size"], "attention_heads": audio["num_attention_heads"],
        "linear_units": audio["intermediate_size"], "depthwise_seperable_out_channel": audio["hidden_size"],
        "nemo_conv_settings": {"conv_channels": audio["nemo_conv_channels"]},
        "relative_attention_bias_args": {"t5_bias_max_distance": audio["bias_max_distance"], "type": "t5"},
    }  # fmt: skip
    layers = {"image_embd_layer": {"crop_size": 56}, "audio_embd_layer": {"downsample_rate": 1}}
    first = {key: value for key, value in hub.items() if key != "audio_config"}
    first |= {"model_type": "phi4mm", "audio_processor": {"config": tower, "name": "cascades"}, "embd_layer": layers}
    first |= {f"{kind}_lora": lora for kind, lora in LORA.items()}
    write_json(folder / "config.json", first)
    named: Tensors = {}
    for name, tensor in tensors.items():
        if adapted(name):
            stem = name.removesuffix(".weight")
            named[f"{stem}.base_layer.weight"] = tensor
            for kind in LORA:
                named[f"{stem}.lora_A.{kind}.weight"], named[f"{stem}.lora_B.{kind}.weight"] = adapter(
                    name, tensor, kind
                )
            continue
        for pattern, new in FIRST_NAMES:
            name = re.sub(pattern, new, name)
        named[name] = tensor
    save_file(named, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return mlx_vlgen.load(first_release(tmp_path_factory.mktemp("phi4mm"), family_tensors(NAME)), dtype="float32")


def merged(kind: str, folder: Path) -> Any:
    """The checkpoint as transformers has it, which the parity suite compares, with one adapter added to its weights."""
    tensors = family_tensors(NAME)
    if kind in LORA:
        for name in filter(adapted, tensors):
            one, other = adapter(name, tensors[name], kind)
            tensors[name] = tensors[name] + LORA[kind]["lora_alpha"] / LORA[kind]["r"] * (other @ one)
    config = read_json(REFERENCE / NAME / "config.json")
    return mlx_vlgen.load(assemble(recipes()[NAME], config, tensors, "v5", folder), dtype="float32")


def whole(loaded: Any, ask: tuple[str, MediaInputs]) -> np.ndarray:
    """Logits (L, V) of a prompt in one forward."""
    model, processor = loaded
    prompt = processor.prepare(*ask)
    features = [model.encode([medium])[0] for medium in prompt.media]
    return np.array(model(model.embed(prompt, features), make_cache(model.cache_layout()))[0])


def test_the_first_release_takes_the_adapter_of_each_rows_modality(first: Any, tmp_path: Path) -> None:
    """As the adapter merged into the weights answers; in one iterator, each row as alone."""
    both = MediaInputs(images=[media.picture("plain")], audios=[media.sound("short_sound")])
    asks = ASKS | {"both": (f"<|user|>{AUDIO}{IMAGE}What?<|end|><|assistant|>", both)}
    models = {kind: merged(kind, tmp_path / kind) for kind in ("text", *LORA)}
    answers = {}
    plain = whole(models["text"], asks["vision"])
    for name, ask in asks.items():
        alone = models["vision" if name == "both" else name]
        expected = whole(alone, ask)
        assert np.abs(whole(first, ask) - expected).max() < 1e-4 * max(1, expected.std())
        answers[name] = mlx_vlgen.generate(*alone, ask[0], **given(ask[1]), max_tokens=8).tokens
    assert np.abs(plain - whole(first, asks["vision"])).max() > 0.1  # the adapter matters
    heard: dict[int, list[int]] = {}
    with TokenIterator(*first, prefill_step_size=9) as iterator:
        for ask in (*asks.values(), *asks.values()):
            heard[iterator.add(Request(*ask, SamplingParams(max_tokens=8)))] = []
        for row, result in iterator:
            heard[row] += [] if result.token is None else [result.token]
    assert list(heard.values()) == [*answers.values()] * 2


def given(inputs: MediaInputs) -> dict[str, Any]:
    return {"image": list(inputs.images) or None, "audio": list(inputs.audios) or None}


def test_a_conversion_keeps_the_adapters_in_floats(first: Any, tmp_path: Path) -> None:
    source = first_release(tmp_path / "first", family_tensors(NAME))
    again = mlx_vlgen.load(convert(source, tmp_path / "again"), dtype="float32")
    assert np.array_equal(whole(again, ASKS["speech"]), whole(first, ASKS["speech"]))
    few = mlx_vlgen.load(source, dtype="float32", quantization={"bits": 8, "group_size": 32})[0]
    layer = few.language_model.model.layers[0].mlp.gate_up_proj
    assert "scales" in layer.base_layer and "scales" not in layer.lora_A.speech


def test_adapters_without_their_settings_are_refused(tmp_path: Path) -> None:
    folder = first_release(tmp_path, family_tensors(NAME))
    config = read_json(folder / "config.json")
    write_json(folder / "config.json", {key: value for key, value in config.items() if "lora" not in key})
    with pytest.raises(LoadError, match="lora_A"):
        mlx_vlgen.load(folder)


# Variants


def counted(count: int) -> Prompt:
    return Prompt(np.arange(300, 300 + count, dtype=np.int32) % 443)


def run(family: Family, requests: list[Request], **named: Any) -> list[Any]:
    """The last result of each, with all its tokens."""
    with TokenIterator(family.model, family.processor, **named) as iterator:
        ids = [iterator.add(request) for request in requests]
        last = dict(iterator)
    return [last[row] for row in ids]


def recomputed(family: Family, prompt: Prompt, count: int) -> list[int]:
    """Greedy tokens, each by a forward of all before it: short frequencies as long as they reach, then long ones."""
    features = [family.model.encode([medium])[0] for medium in prompt.media]
    for _ in range(count):
        logits = family.model(family.model.embed(prompt, features), make_cache(family.model.cache_layout()))
        prompt = replace(prompt, tokens=np.append(prompt.tokens, np.int32(mx.argmax(logits[0, -1]).item())))
    tokens: list[int] = prompt.tokens[-count:].tolist()
    return tokens


def outgrowing(family: Family) -> list[Prompt]:
    """Prompts whose answers outgrow the short frequencies at unlike times, and one whose does not."""
    seen = family.processor.prepare(f"{AUDIO}{IMAGE}What?", ASKS["vision"][1].with_sources(
        {"image": [media.picture("plain")], "audio": [media.sound("short_sound")]}
    ))  # fmt: skip
    seen = replace(seen, tokens=np.concatenate([seen.tokens, counted(SHORT - 3 - len(seen.tokens)).tokens]))
    return [counted(SHORT - 4), counted(SHORT), seen, counted(SHORT + 9), counted(20), counted(SHORT - 6)]


@pytest.fixture(scope="module")
def truth(family: Family) -> list[list[int]]:
    return [recomputed(family, prompt, 8) for prompt in outgrowing(family)]


@pytest.mark.parametrize("settings", [{}, {"prefill_step_size": 16}, {"max_batch_size": 2}], ids=str)
def test_an_answer_goes_on_with_the_long_frequencies(
    family: Family, truth: list[list[int]], settings: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """All of the row is computed again with them."""
    count, prompts = 8, outgrowing(family)
    endless = {"end_tokens": frozenset[int]()}
    asked = [Request(prompt, sampling=SamplingParams(max_tokens=count), **endless) for prompt in prompts]
    answers = run(family, asked, **settings)
    assert [answer.tokens for answer in answers] == truth
    assert [(answer.prompt_tokens, answer.generation_tokens) for answer in answers] == [
        (len(prompt.tokens), count) for prompt in prompts
    ]
    assert not capsys.readouterr().err


def test_draws_go_on_with_the_long_frequencies(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seeds, penalties and a user's code see one row, with lookahead too; each as alone."""
    seen: list[int] = []

    def watch(so_far: mx.array, logits: mx.array) -> mx.array:
        seen.append(so_far.size)
        return logits

    settings = [
        SamplingParams(max_tokens=8, temperature=1.0, seed=n, repetition_penalty=1.3, repetition_context_size=size)
        for n, size in enumerate((3, 20, 70))
    ]
    settings[0] = replace(settings[0], logits_processors=[watch])
    asked = [Request(p, sampling=s) for p, s in zip(outgrowing(family)[:3], settings, strict=True)]
    alone = [run(family, [request])[0].tokens for request in asked]
    assert seen == [*range(SHORT - 4, SHORT - 4 + len(alone[0]))]
    for ahead in (False, True):
        monkeypatch.setattr(batch, "LOOKAHEAD", ahead)
        assert [result.tokens for result in run(family, asked, reuse=PrefixCache())] == alone


def test_where_a_row_cannot_begin_again_it_ends(family: Family, capsys: pytest.CaptureFixture[str]) -> None:
    sampling, endless = SamplingParams(max_tokens=20), frozenset[int]()
    [cut] = run(family, [Request(counted(SHORT - 4), sampling=sampling, end_tokens=endless, drafter=PromptLookup)])
    assert cut.generation_tokens == 5 and cut.finish_reason == "length"
    assert f"ends at {SHORT} positions" in " ".join(capsys.readouterr().err.split())
    assert [family.model.variant(counted(count)) for count in (SHORT, SHORT + 1)] == [0, 1]


def test_rows_of_one_variant_begin_with_what_others_computed(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """And with nothing of another: neither keys with other frequencies, nor a clip with other features."""
    for module in (prefix, store, scheduler, disk):
        for name, value in (("LEAST", 2), ("BLOCK", 16)):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, value)
    clip, picture = media.sound("short_sound"), media.picture("plain")
    heard = Request(f"{AUDIO}What?", MediaInputs(audios=[clip]), SamplingParams(max_tokens=4))
    again = Request(f"{AUDIO}What else?", MediaInputs(audios=[clip]), SamplingParams(max_tokens=4))
    both = Request(f"{AUDIO}What?{IMAGE}", MediaInputs(images=[picture], audios=[clip]), SamplingParams(max_tokens=4))
    texts = [Request(counted(count), sampling=SamplingParams(max_tokens=1)) for count in (40, 50, 70, 80)]
    cache, cached = PrefixCache(), []
    for request in (heard, again, both, *texts):
        [alone], [reused] = run(family, [request], reuse=False), run(family, [request], reuse=cache)
        assert reused.text == alone.text
        assert np.abs(np.array(reused.logprobs) - np.array(alone.logprobs)).max() < 1e-4
        cached.append(reused.cached_tokens)
    assert cached[0] == cached[2] == cached[3] == cached[5] == 0 and cached[1] > 8
    assert cached[4] == 40 and cached[6] == 70


@pytest.mark.parametrize("mode", [{"drafter": "model"}, {"beams": Beams(1)}], ids=str)
def test_every_mode_of_decoding_knows_the_variant(family: Family, mode: dict[str, Any]) -> None:
    if "drafter" in mode:
        mode = {"drafter": lambda: DraftModel(family.model, 3)}
    sampling = SamplingParams(max_tokens=8)
    prompts = [counted(count) for count in (30, 70, 90)]
    plain = run(family, [Request(prompt, sampling=sampling) for prompt in prompts])
    other = run(family, [Request(prompt, sampling=sampling, **mode) for prompt in prompts])
    assert [result.tokens for result in other] == [result.tokens for result in plain]


def test_a_past_of_another_variant_is_refused(family: Family) -> None:
    model, prompt = family.model, mx.arange(300, 340)[None]
    out = model.generate(prompt, max_new_tokens=2, return_dict_in_generate=True, use_cache=True)
    longer = mx.concatenate([out["sequences"], mx.arange(300, 320)[None]], axis=1)
    assert longer.shape[1] > SHORT
    with pytest.raises(PromptError, match="leave the past out"):
        model.generate(longer, past_key_values=out["past_key_values"], max_new_tokens=2)


# Inputs


@pytest.mark.parametrize(
    ("size", "tokens", "canvas"),
    [  # of transformers' Phi4MultimodalImageProcessor
        ((100, 100), 545, (448, 448)),
        ((449, 448), 562, (896, 448)),
        ((480, 640), 1065, (896, 896)),
        ((1080, 1920), 3918, (1344, 2240)),
        ((61, 2000), 516, (448, 2240)),
        ((5000, 3000), 4193, (2240, 1344)),
        ((700, 9000), 3585, (448, 5824)),
    ],
)
def test_published_sizes(size: tuple[int, int], tokens: int, canvas: tuple[int, int]) -> None:
    settings = Phi4ImageSettings.read({}, {})
    tiles, resized = settings.sizes(*size)
    assert settings.tokens(settings.shown(tiles, resized)) == tokens
    assert (tiles[0] * 448, tiles[1] * 448) == canvas


def test_learned_positions_are_spread_over_what_a_tile_shows() -> None:
    index, seen = positions(2, 3, 4)
    assert index.reshape(4, 4).tolist() == [[0, 1, 2, 0], [8, 9, 10, 0], [0] * 4, [0] * 4]
    assert seen.sum() == 6 and positions(4, 4, 4)[0].tolist() == [*range(16)]


def test_what_is_too_small_is_told(family: Family) -> None:
    with pytest.raises(MediaError, match="too short: 399 samples"):
        family.processor.prepare(AUDIO, MediaInputs(audios=[np.zeros(399, np.float32)]))
    assert len(family.processor.prepare(AUDIO, MediaInputs(audios=[np.zeros(400, np.float32)])).tokens) == 1
    with pytest.raises(MediaError, match="too thin"):
        family.processor.prepare(IMAGE, MediaInputs(images=[Image.new("RGB", (600, 3))]))


def test_a_long_clip_is_shortened_in_parts(family: Family) -> None:
    shorten, features = family.model.audio_embed.encoder.embed, mx.random.normal((2, 4123, 80))
    whole, parts = np.array(shorten._shortened(features)), np.array(shorten(features))
    assert parts.shape == whole.shape == (2, 516, 48) and np.abs(parts - whole).max() < 1e-5


def test_the_first_templates_join_strings(first: Any) -> None:
    processor = first[1]
    processor.chat_template, template = (
        (
            "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}"
            "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
        ),
        processor.chat_template,
    )
    processor.__post_init__()
    ask = [{"role": "user", "content": [{"type": "audio"}, {"type": "image"}, {"type": "text", "text": "What?"}]}]
    said = mlx_vlgen.apply_chat_template(processor, first[0].config, ask)
    processor.chat_template = template
    assert said == f"<|user|>{AUDIO}{IMAGE}What?<|end|><|assistant|>"


# Configurations


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("", {"sliding_window": 100}, "a sliding window"),
        ("", {"rope_parameters": {"rope_type": "linear", "factor": 2.0}}, "than LongRoPE"),
        ("", {"hidden_act": "gelu"}, "'gelu'"),
        ("vision_config", {"crop_size": 28}, "tiles have 28"),
        ("vision_config", {"image_size": 42, "crop_size": 42}, "even number"),
        ("audio_config", {"chunk_size": 18}, "chunk_size = 18"),
        ("audio_config", {"bias_symmetric": True}, "bias_symmetric = True"),
        ("audio_config", {"nemo_activation": "gelu"}, "nemo_activation"),
    ],
)
def test_what_no_published_checkpoint_has_is_refused(part: str, change: dict[str, Any], message: str) -> None:
    config = read_json(REFERENCE / NAME / "config.json")
    config |= {part: config[part] | change} if part else change
    with pytest.raises(LoadError, match=message):
        Phi4Multimodal(config)


def test_another_processors_settings_are_refused() -> None:
    for settings in ({"size": {"height": 56, "width": 56}}, {"patch_size": 16}, {"resample": 2}):
        with pytest.raises(LoadError, match="expected"):
            Phi4ImageSettings.read(settings, {})
    for sound in ({"feature_size": 128}, {"audio_compression_rate": 4}):
        with pytest.raises(LoadError, match="features of sound"):
            read_sound(sound, 80)


def test_the_published_sizes() -> None:
    """Of microsoft/Phi-4-multimodal-instruct, whose page says 5.6 billion parameters, adapters among them."""
    config: dict[str, Any] = {
        "model_type": "phi4mm", "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 32,
        "num_attention_heads": 24, "num_key_value_heads": 8, "vocab_size": 200064, "tie_word_embeddings": True,
        "max_position_embeddings": 131072, "original_max_position_embeddings": 4096, "partial_rotary_factor": 0.75,
        "sliding_window": 262144, "rope_theta": 10000.0,
        "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 48, "long_factor": [2.0] * 48},
        "vision_lora": {"r": 256, "lora_alpha": 512}, "speech_lora": {"r": 320, "lora_alpha": 640},
        "embd_layer": {"image_embd_layer": {"crop_size": 448}, "audio_embd_layer": {"downsample_rate": 1}},
        "audio_processor": {"name": "cascades", "config": {
            "attention_dim": 1024, "attention_heads": 16, "linear_units": 1536, "num_blocks": 24, "chunk_size": -1,
            "nemo_conv_settings": {"conv_channels": 1024}, "time_reduction": 8, "depthwise_seperable_out_channel": 1024,
            "relative_attention_bias_args": {"t5_bias_max_distance": 500, "type": "t5"},
        }},
    }  # fmt: skip
    model = find(config).model_class()(config)
    count = sum(parameter.size for _, parameter in tree_flatten(model.parameters()))
    assert round(count / 1e9, 2) == 5.56 and model.max_positions == 131072 and model.reach(0) == 4096
