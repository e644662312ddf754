"""Models that read pages, as published: configurations of their authors, pages that are cut, what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from parity import media
from parity.layouts import read_json, write_checkpoint
from PIL import Image

from mlx_vlgen.errors import LoadError, UnsupportedError
from mlx_vlgen.inputs.deepseek_ocr import DeepseekOcr2Processor, PageSettings, UnlimitedOcrProcessor
from mlx_vlgen.inputs.kimi_k25 import MoonVitSettings, clock
from mlx_vlgen.inputs.lighton_ocr import LightOnOcrProcessor
from mlx_vlgen.inputs.processor import ProcessorSettings
from mlx_vlgen.inputs.prompt import MediaInputs
from mlx_vlgen.models import find
from mlx_vlgen.models.base import Full, PromptWindow
from mlx_vlgen.models.decoders import text_arguments
from mlx_vlgen.models.deepseek_ocr import published_sam
from mlx_vlgen.models.deepseek_ocr2 import encoder_config, sam_config
from mlx_vlgen.models.kimi_k25 import MoonVitConfig
from mlx_vlgen.models.unlimited_ocr import UnlimitedOcr, vision_configs, windows

# What the published files say.
SAM = {
    "downsample_channels": [512, 1024], "global_attn_indexes": [2, 5, 8, 11], "heads": 12, "layers": 12, "width": 768,
}  # fmt: skip
CLIP = {"heads": 16, "image_size": 224, "layers": 24, "patch_size": 14, "width": 1024}
FIRST = {
    "image_size": 1024, "mlp_ratio": 3.7362, "model_name": "deeplip_b_l", "model_type": "vision",
    "width": {"clip-l-14-224": CLIP, "sam_vit_b": SAM},
}  # fmt: skip
SECOND = FIRST | {"model_name": "deepencoderv2", "width": {"qwen2-0-5b": {"dim": 896}, "sam_vit_b": SAM}}
LANGUAGE = {"num_hidden_layers": 12, "first_k_dense_replace": 1, "topk_method": "greedy", "use_mla": False}


def settings(**image: Any) -> ProcessorSettings:
    return ProcessorSettings({}, image, {}, {})


@pytest.mark.parametrize(
    ("vision", "model"),
    [
        (FIRST, "UnlimitedOcr"),
        (SECOND, "DeepseekOcr2"),
        ({"model_name": "siglip_so400m", "model_type": "vision"}, None),
    ],
)
def test_only_the_tower_tells_them_apart(vision: dict[str, Any], model: str | None) -> None:
    config = {"model_type": "deepseek_vl_v2", "vision_config": vision}
    if model is None:
        with pytest.raises(LoadError, match="deepseek_vl_v2"):
            find(config)
    else:
        assert find(config).model_class().__name__ == model


def test_published_towers() -> None:
    """Of the second only the width of its encoder is written down, and channels that are the first one's."""
    encoder = encoder_config(SECOND)
    assert (encoder["num_hidden_layers"], encoder["num_attention_heads"], encoder["rope_theta"]) == (24, 14, 1e6)
    assert sam_config(SECOND, 896).downsample_channels == (512, 896)
    sam, clip = vision_configs(FIRST)
    assert sam == published_sam(FIRST, 1024) and (sam.hidden_size, sam.num_hidden_layers) == (768, 12)
    assert (clip.hidden_size, clip.intermediate_size, clip.hidden_act) == (1024, 4096, "quick_gelu")


def test_what_each_layer_sees_of_its_answer() -> None:
    first = {"model_type": "deepseek_vl_v2", "language_config": LANGUAGE}
    assert windows(first) == [None] * 12
    assert windows(first | {"model_type": "unlimited-ocr", "sliding_window": 64}) == [64] * 12
    assert windows(first | {"model_type": "unlimited-ocr"}) == [128] * 12
    text = {
        "num_hidden_layers": 2,
        "sliding_window": 9,
        "layer_types": ["full_attention", "reference_sliding_attention"],
    }
    assert windows({"model_type": "unlimited_ocr", "text_config": text}) == [None, 9]
    text["layer_types"] = ["sliding_attention"] * 2
    with pytest.raises(LoadError, match="sliding_attention"):
        windows({"model_type": "unlimited_ocr", "text_config": text})


@pytest.mark.parametrize(
    ("family", "layer"), [("unlimited_ocr", PromptWindow(6)), ("deepseek_ocr", PromptWindow(4096))]
)
def test_layers(family: str, layer: PromptWindow, tmp_path: Path) -> None:
    config = read_json(write_checkpoint(family, "v5", tmp_path) / "config.json")
    assert UnlimitedOcr(config).cache_layout() == [layer] * 3
    config["text_config"]["layer_types"] = ["full_attention"] * 3
    assert UnlimitedOcr(config).cache_layout() == [Full()] * 3


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"use_mla": True}, "latent"),
        ({"routed_scaling_factor": 2.0}, "scale of its experts"),
        ({"topk_method": "group_limited_greedy", "n_group": 4}, "groups"),
        ({"mlp_layer_types": ["sparse", "dense"], "num_hidden_layers": 2}, "irregular"),
        ({"tie_word_embeddings": True}, "embeddings"),
        ({"scoring_func": "sigmoid"}, "sigmoid"),
        ({"norm_topk_prob": True}, "sum to one"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rotary"),
    ],
)
def test_what_deepseeks_first_decoder_does_not_compute(asked: dict[str, Any], reason: str) -> None:
    with pytest.raises(LoadError, match=reason):
        text_arguments({"model_type": "deepseek"} | LANGUAGE | asked)


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"n_group": 8}, "groups"),
        ({"rope_interleave": False}, "halves"),
        ({"scoring_func": "softmax"}, "sigmoid"),
        ({"topk_method": "greedy"}, "another way"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rotary"),
        ({"tie_word_embeddings": True}, "embeddings"),
    ],
)
def test_what_kimis_decoder_does_not_compute(asked: dict[str, Any], reason: str) -> None:
    with pytest.raises(LoadError, match=reason):
        text_arguments({"model_type": "kimi_k2", "n_group": 1, "topk_group": 1} | asked)


def test_pages() -> None:
    """A page that one tile holds is not cut, and stands in the middle of its square."""
    config = {"vision_config": FIRST}
    page = PageSettings.read(settings(), config, side=1024, tile=640, min_tiles=2, max_tiles=9)
    assert page.grid(Image.new("RGB", (640, 300))) == (0, 0) and page.grid(Image.new("RGB", (641, 641))) == (2, 2)
    assert page.grid(Image.new("RGB", (600, 1200))) == (2, 1)
    whole = page.whole(Image.new("RGB", (400, 200), "white"))
    assert (whole[:256] == 127).all() and (whole[256:768] == 255).all() and (whole[768:] == 127).all()
    patches = page.patches(Image.new("RGB", (600, 1200)), (2, 1))
    assert patches.shape == (2 * 40**2 + 64**2, 16 * 16 * 3)


def test_features_of_a_page() -> None:
    assert DeepseekOcr2Processor.count(2, 3, 12, 16) == 6 * 144 + 257
    assert UnlimitedOcrProcessor.count(0, 0, 10, 16) == 16 * 17 + 1
    assert UnlimitedOcrProcessor.count(2, 3, 10, 16) == 20 * 31 + 16 * 17 + 1


def test_tiles_of_each_family() -> None:
    """The second's are its processor's, whatever is saved; the first has fewer than what came of it."""
    read = {"model_type": "deepseek_vl_v2", "vision_config": SECOND}
    page = DeepseekOcr2Processor.read_fields(settings(max_patches=3, crop_to_patches=False), read)["image_settings"]
    assert (page.tile, page.max_tiles, page.cuts) == (768, 6, True)
    with pytest.raises(LoadError, match="144 and 256"):
        DeepseekOcr2Processor.read_fields(settings(tile_size=640), read)
    for model_type, most in (("deepseek_vl_v2", 9), ("unlimited-ocr", 32)):
        config = {"model_type": model_type, "vision_config": FIRST}
        assert UnlimitedOcrProcessor.read_fields(settings(), config)["image_settings"].max_tiles == most
    config = {"model_type": "unlimited-ocr", "vision_config": FIRST}
    small = settings(crop_to_patches=False, size={"height": 640, "width": 640})
    page = UnlimitedOcrProcessor.read_fields(small, config)["image_settings"]
    assert (page.whole(Image.new("RGB", (10, 700), "white")) == 255).all()
    with pytest.raises(LoadError, match="multiples of 64"):
        UnlimitedOcrProcessor.read_fields(settings(tile_size=650), config)


def test_without_a_template(tmp_path: Path) -> None:
    """What is said is the prompt, a line for each picture."""
    folder = write_checkpoint("unlimited_ocr", "hub", tmp_path)
    (folder / "chat_template.json").unlink()
    config = read_json(folder / "config.json")
    processor = find(config).load_processor(folder, config)
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Free OCR."}]}]
    prompt = processor.prepare(messages, MediaInputs(images=[media.picture("plain")]))
    assert prompt.text == "<image>\nFree OCR."


def test_lighton_takes_the_multiple_of_its_image_processor() -> None:
    config = {"model_type": "lighton_ocr", "vision_config": {"patch_size": 14}}
    for patch, multiple in ((28, 28), ({"height": 56, "width": 56}, 56)):
        image = LightOnOcrProcessor.read_fields(settings(patch_size=patch), config)["image_settings"]
        assert (image.token, image.factor) == (28, multiple)
    with pytest.raises(ValueError, match="square"):
        LightOnOcrProcessor.read_fields(settings(patch_size={"height": 28, "width": 14}), config)


def test_kimis_files() -> None:
    """In transformers' form and in its authors'."""
    first = {
        "patch_size": 14, "merge_kernel_size": 2, "in_patch_limit": 900, "in_patch_limit_each_frame": 400,
        "patch_limit_on_one_side": 40, "temporal_merge_kernel_size": 4, "sample_fps": 3.0, "fixed_output_tokens": None,
    }  # fmt: skip
    image, frame = (MoonVitSettings.read({"media_proc_cfg": first}, patches) for patches in (16384, 4096))
    assert (image.max_patches, frame.max_patches, image.max_side, frame.fps) == (900, 400, 40, 3.0)
    assert MoonVitSettings.read({}, 4096).max_patches == 4096
    with pytest.raises(ValueError, match="fixed_output_tokens"):
        MoonVitSettings.read({"media_proc_cfg": first | {"fixed_output_tokens": 64}}, 4096)
    vision = MoonVitConfig.from_dict({"vt_hidden_size": 96, "vt_num_hidden_layers": 2, "init_pos_emb_height": 8})
    assert (vision.hidden_size, vision.num_hidden_layers, vision.pos_emb_height) == (96, 2, 8)


def test_kimis_pictures() -> None:
    """Shrunk where they are too large, never enlarged, black to the next token."""
    image = MoonVitSettings.read({}, 16384)
    assert image.shrunk(5, 9) == (5, 9) and image.shrunk(20000, 14) == (7168, 5)
    assert image.shrunk(3584, 3584) == (1792, 1792)
    assert image.bounded(MediaInputs(max_pixels=14 * 14 * 100)).shrunk(280, 280) == (140, 140)
    with pytest.raises(UnsupportedError, match="min_pixels"):
        image.bounded(MediaInputs(min_pixels=100))
    filled = image.filled(np.full((30, 28, 3), 9, np.uint8))
    assert filled.shape == (56, 28, 3) and (filled[:30] == 9).all() and (filled[30:] == 0).all()


def test_clock() -> None:
    assert [clock(time) for time in (0.0, 2.5, 3725.25)] == ["00:00:00.000", "00:00:02.500", "01:02:05.250"]


def test_a_placeholder_beyond_the_vocabulary(tmp_path: Path) -> None:
    """A clip's, in published checkpoints: a picture's stands for its features."""
    folder = write_checkpoint("kimi_k25", "v5", tmp_path)
    config = read_json(folder / "config.json")
    family, clip = find(config), MediaInputs(videos=[media.clip("clip")], video_fps=2.0)
    messages = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "What?"}]}]
    whole = family.load_processor(folder, config).prepare(messages, clip)
    config["text_config"]["vocab_size"] = config["video_token_id"]
    prompt = family.load_processor(folder, config).prepare(messages, clip)
    assert prompt.tokens.max() < config["video_token_id"]
    assert [item.spans for item in prompt.media] == [item.spans for item in whole.media]
