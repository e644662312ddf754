"""GLM-4.1V to GLM-4.6V: which frames of a video are used, sizes, templates, routing, and what is refused."""

import copy
import io
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from invariants.family import Family
from parity.layouts import read_json, write_checkpoint, write_json
from PIL import Image
from safetensors.numpy import load_file, save_file

from mlx_vlgen import load
from mlx_vlgen._runtime import mx
from mlx_vlgen.errors import LoadError
from mlx_vlgen.inputs.glm4v import Glm4vProcessor, frames_at, paced_frames
from mlx_vlgen.inputs.images import PixelSettings
from mlx_vlgen.inputs.prompt import MediaInputs
from mlx_vlgen.models.decoders import text_arguments as known_arguments
from mlx_vlgen.models.glm4v import Router, text_arguments


@pytest.fixture(scope="module")
def glm(load_family: Callable[[str], Family]) -> Family:
    return load_family("glm4v")


# total, rate; how many transformers' Glm4vVideoProcessor keeps, and the first and last three; Glm46VVideoProcessor.
KEPT = [
    (45, 30.0, 4, [0, 15, 30, 15, 30, 30], 10, [0, 3, 7, 26, 30, 30]),
    (300, 29.97, 20, [0, 15, 30, 255, 270, 285], 60, [0, 5, 10, 285, 290, 295]),
    (900, 30.0, 60, [0, 15, 30, 855, 870, 885], 180, [0, 5, 10, 886, 891, 896]),
    (120, 0.25, 120, [0, 1, 2, 117, 118, 119], 120, [0, 1, 2, 117, 118, 119]),
    (9001, 30.0, 600, [0, 16, 31, 8971, 8986, 9000], 300, [0, 30, 60, 8910, 8940, 8970]),
    (90000, 30.0, 600, [0, 151, 301, 89700, 89850, 89999], 640, [0, 140, 281, 89717, 89858, 89999]),
]


@pytest.mark.parametrize(("total", "rate", "count", "ends", "paced_count", "paced_ends"), KEPT)
def test_frames_are_kept_as_transformers_keeps_them(
    total: int, rate: float, count: int, ends: list[int], paced_count: int, paced_ends: list[int]
) -> None:
    frames, paced = frames_at(total, rate, 2, 300).tolist(), paced_frames(total, rate, 2).tolist()
    assert (len(frames), frames[:3] + frames[-3:]) == (count, ends)
    assert (len(paced), paced[:3] + paced[-3:]) == (paced_count, paced_ends)


@pytest.mark.parametrize(("family", "paced"), [("glm4v", False), ("glm4v_moe", True)])
def test_the_release_is_told_by_what_conversions_leave_alone(tmp_path: Path, family: str, paced: bool) -> None:
    """mlx-vlm writes the name of its class into one of the three files."""
    folder = write_checkpoint(family, "hub", tmp_path)
    config, settings = read_json(folder / "config.json"), read_json(folder / "preprocessor_config.json")
    name = {"glm4v": "Glm46VProcessor", "glm4v_moe": "Glm46VMoEProcessor"}[family]
    picture = {key: value for key, value in settings.items() if key != "processor_class"}
    write_json(folder / "processor_config.json", {"image_processor": picture, "processor_class": name})
    assert Glm4vProcessor.from_folder(folder, config).paced is paced


def test_a_video_of_one_frame_has_one() -> None:
    assert frames_at(1, 24.0, 2, 300).tolist() == paced_frames(1, 24.0, 2).tolist() == [0, 0]


def test_a_request_says_how_many_frames_of_a_file_are_kept(glm: Family) -> None:
    def frames(**settings: float) -> list[int]:
        return glm.processor.sampler(MediaInputs(**settings))(300, 30.0).tolist()

    assert frames() == list(range(0, 300, 15))
    assert frames(video_fps=0.5) == [0, 60, 120, 180, 240, 240]
    assert frames(max_frames=3) == [0, 150, 285]


def test_the_whole_seconds_of_an_animation_are_told_whole(glm: Family) -> None:
    """Ten tenths of a second, added up, are less than one."""
    frames, file = [Image.new("L", (56, 56), at) for at in range(31)], io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:], duration=100)
    prompt = glm.processor.prepare("<|video|>", MediaInputs(videos=[file.getvalue()]))
    assert re.findall(r"<\|end_of_image\|>(\d+)", glm.processor.tokenizer.decode(prompt.text_tokens)) == ["0", "1", "2"]


# As transformers' smart_resize has it with the published bounds, in pixels of both frames that a picture stands in.
@pytest.mark.parametrize(
    ("original", "processed"),
    [((10, 100), (28, 280)), ((30, 40), (84, 112)), ((640, 480), (644, 476)), ((3000, 4000), (1876, 2520))],
)
def test_a_pictures_size(glm: Family, original: tuple[int, int], processed: tuple[int, int]) -> None:
    processor = copy.copy(glm.processor)
    processor.image_settings = PixelSettings(12544, 9633792, 14)
    assert processor.image_size(*original, MediaInputs()) == processed
    assert processor.image_size(640, 480, MediaInputs(max_pixels=100 * 28 * 28)) == (308, 224)
    assert processor.image_size(50, 60, MediaInputs(min_pixels=100 * 28 * 28)) == (280, 308)


def test_the_template_gets_a_systems_parts_as_words(glm: Family) -> None:
    messages = [
        {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]},
    ]
    text = glm.processor.prepare(messages, MediaInputs(images=[Image.new("RGB", (60, 60))])).text
    assert "<|system|>\nBe brief.<|user|>\n" in text


def test_half_precision_chooses_the_experts_that_float32_chooses() -> None:
    """Rounded to half precision, these two scores are one."""
    router = Router(
        {"num_experts_per_tok": 1, "routed_scaling_factor": 1.0, "norm_topk_prob": True, "n_routed_experts": 2,
         "hidden_size": 2}
    )  # fmt: skip
    router.weight = mx.array([[1.0, 0.0], [1.0, 2**-9]], dtype=mx.bfloat16)
    experts, shares = router(mx.ones((1, 2), dtype=mx.bfloat16))
    assert experts.tolist() == [[1]] and shares.tolist() == [[1.0]]


@pytest.mark.parametrize(
    ("model_type", "change", "message"),
    [
        ("glm4v", {"tie_word_embeddings": True}, "its embeddings"),
        ("glm4v", {"hidden_act": "gelu"}, "'gelu'"),
        ("glm4v_moe", {"n_group": 2}, "experts in groups"),
        ("glm4v", {"rope_scaling": {"type": "yarn"}}, "'yarn'"),
        ("glm46v", {"model_type": "glm4_text"}, "'glm4'; expected glm4v_text or glm4v_moe_text"),
    ],
)
def test_what_the_decoder_would_leave_out_is_refused(model_type: str, change: dict, message: str) -> None:
    text = {"model_type": "glm4v_text"} if model_type == "glm46v" else {}
    known_arguments(text_arguments({"model_type": model_type, "text_config": text}))
    with pytest.raises(LoadError, match=message):
        known_arguments(text_arguments({"model_type": model_type, "text_config": change}))


def test_what_turns_of_a_head_where_the_configuration_is_silent() -> None:
    def part(model_type: str, text: dict) -> float:
        return text_arguments({"model_type": model_type, "text_config": text})["partial_rotary_factor"]

    assert (part("glm4v", {}), part("glm4v_moe", {})) == (1.0, 0.5)
    assert part("glm4v", {"partial_rotary_factor": 0.5}) == 0.5
    assert part("glm4v_moe", {"rope_parameters": {"partial_rotary_factor": 0.25}}) == 0.25


def test_a_clip_beside_a_picture_gets_its_own_features(glm: Family) -> None:
    """Both are made of the token of a picture; transformers mixes them up."""
    clip, picture = np.zeros((4, 60, 60, 3), np.uint8), Image.new("RGB", (120, 60))
    prompt = glm.processor.prepare("<|video|> <|image|>", MediaInputs(images=[picture], videos=[clip]))
    video, image = prompt.media
    assert (video.kind, image.kind) == ("video", "image")
    assert len(video.spans) == 2 and video.spans[-1][1] < image.spans[0][0]
    token = glm.processor.tokenizer.convert_tokens_to_ids("<|image|>")
    spans = [range(*span) for media in prompt.media for span in media.spans]
    assert [at for span in spans for at in span] == np.flatnonzero(prompt.tokens == token).tolist()


def test_a_layer_that_guesses_further_tokens_is_passed_over(tmp_path: Path) -> None:
    """GLM-OCR's, which comes after its last."""
    folder = write_checkpoint("glm_ocr", "v5", tmp_path)
    tensors = load_file(folder / "model.safetensors")
    last = "model.language_model.layers.2."
    extra = {name.replace(".2.", ".3.", 1): value for name, value in tensors.items() if name.startswith(last)}
    extra["model.language_model.layers.3.eh_proj.weight"] = np.zeros((64, 128), np.float32)
    save_file(tensors | extra, folder / "model.safetensors", metadata={"format": "pt"})
    assert len(load(folder)[0].body.layers) == 3
