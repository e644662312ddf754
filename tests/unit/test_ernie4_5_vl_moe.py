"""ERNIE 4.5 VL: which frames of a video are used, times on them, routes of tokens, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
from parity import media
from parity.layouts import read_json, write_checkpoint, write_json
from PIL import ImageFont

from mlx_vlgen import load
from mlx_vlgen._runtime import mx
from mlx_vlgen.errors import LoadError, UnsupportedError
from mlx_vlgen.inputs.ernie4_5_vl_moe import Ernie4_5VLMoeProcessor, evenly
from mlx_vlgen.inputs.prompt import MediaInputs
from mlx_vlgen.models.base import Embedded
from mlx_vlgen.models.ernie4_5_vl_moe import routes

# total, rate, frames a second asked for; how many transformers' Ernie4_5_VLMoeVideoProcessor keeps, the first and last.
KEPT = [
    (10, 30.0, None, 10, [0, 1, 2, 7, 8, 9]),
    (500, 30.0, None, 180, [0, 2, 5, 491, 494, 497]),
    (333, 29.97, 2.0, 23, [0, 14, 29, 299, 314, 329]),
    (900, 30.0, 2.0, 60, [0, 15, 30, 855, 870, 885]),
    (1000, 24.0, 0.5, 21, [0, 48, 96, 864, 912, 960]),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_checkpoint("ernie4_5_vl_moe", "hub", tmp_path)


def processor(folder: Path) -> Ernie4_5VLMoeProcessor:
    return Ernie4_5VLMoeProcessor.from_folder(folder, read_json(folder / "config.json"))


@pytest.mark.parametrize(("total", "rate", "fps", "count", "ends"), KEPT)
def test_frames_are_kept_as_transformers_keeps_them(
    folder: Path, total: int, rate: float, fps: float | None, count: int, ends: list[int]
) -> None:
    indices = processor(folder).sampler(MediaInputs(video_fps=fps))(total, rate).tolist()
    assert (len(indices), indices[:3] + indices[-3:]) == (count, ends)
    assert evenly(77, 17).tolist()[-3:] == [63, 67, 72]


def test_times_are_written_where_the_checkpoint_says_so(folder: Path) -> None:
    frames = media.clip("clip")[:2]
    assert processor(folder).annotate(frames, (0.0, 0.5)) is frames
    settings = read_json(folder / "video_preprocessor_config.json") | {"draw_on_frames": True, "font": "../a/font.ttf"}
    write_json(folder / "video_preprocessor_config.json", settings)
    with pytest.raises(UnsupportedError, match=r"font\.ttf.*draw_on_frames"):
        processor(folder).annotate(frames, (0.0, 0.5))
    (folder / "font.ttf").write_bytes(b"no font")
    with pytest.raises(LoadError, match=r"font\.ttf cannot be read as a font"):
        processor(folder).annotate(frames, (0.0, 0.5))
    (folder / "font.ttf").write_bytes(ImageFont.load_default(20).path.getvalue())
    drawn = processor(folder).annotate(frames, (0.0, 3725.25))
    changed = (drawn != frames).any(axis=-1)
    assert changed[:, :12, :60].any(axis=(1, 2)).all() and not changed[:, 20:].any()
    assert (drawn[0, :12] != drawn[1, :12]).any()


def test_types_of_tokens_are_cut_and_stacked_with_them() -> None:
    tokens = mx.zeros((1, 4), dtype=mx.int32)
    typed = Embedded(tokens, token_types=np.array([[0, 1, 1, 0]]))
    batch = Embedded.stack([typed[1:], Embedded(tokens), typed])
    assert batch.token_types is not None
    assert batch.token_types.tolist() == [[1, 1, 0, 0], [0, 0, 0, 0], [0, 1, 1, 0]]
    assert Embedded.stack([Embedded(tokens)]).token_types is None


def test_a_token_comes_back_to_its_place() -> None:
    assert routes(None) is None and routes(np.zeros((2, 3))) is None
    route = routes(np.array([[0, 1, 0], [1, 1, 0]]))
    assert route is not None
    assert (route.text.tolist(), route.vision.tolist()) == ([0, 2, 5], [1, 3, 4])
    assert mx.concatenate([route.text, route.vision])[route.places].tolist() == list(range(6))


def test_routers_are_neither_narrowed_nor_quantized(folder: Path) -> None:
    text = load(folder, quantization={"bits": 4, "group_size": 32}, dtype="bfloat16")[0].language_model
    mlp = text.model.layers[1].mlp
    assert mlp.gate.weight.dtype == mlp.gate_1.weight.dtype == mlp.e_score_correction_bias_1.dtype == mx.float32
    assert "scales" in mlp.shared_experts.up_proj and text.model.layers[0].mlp.gate_proj.scales.dtype == mx.bfloat16


def test_another_number_of_joined_frames_is_refused(folder: Path) -> None:
    config = read_json(folder / "config.json")
    config["vision_config"]["temporal_merge_size"] = 4
    write_json(folder / "config.json", config)
    with pytest.raises(LoadError, match="temporal_merge_size"):
        load(folder)
