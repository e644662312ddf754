"""GLM-5.3-Flash: what is refused, what a silent configuration means, its frames and its pictures."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from invariants.family import Family
from PIL import Image

from mlx_vlgen._runtime import mx
from mlx_vlgen.engine import cache as kv
from mlx_vlgen.engine.kv_settings import KVSettings
from mlx_vlgen.errors import LoadError, MediaError, UnsupportedError
from mlx_vlgen.inputs.files import check_settings
from mlx_vlgen.inputs.glm4v import Glm4vProcessor, due_frames
from mlx_vlgen.inputs.glm5_next import Glm5NextProcessor, filled_size
from mlx_vlgen.inputs.images import PixelSettings
from mlx_vlgen.inputs.processor_files import ProcessorSettings
from mlx_vlgen.inputs.prompt import MediaInputs
from mlx_vlgen.models.base import Embedded, Recurrent, Whole
from mlx_vlgen.models.decoders import text_arguments as known_arguments
from mlx_vlgen.models.glm5_next import indexer_types, text_arguments
from mlx_vlgen.models.glm5_next_text import Glm5NextTextConfig

TOKEN = 2 * 28 * 28


def arguments(**text: Any) -> dict[str, Any]:
    return known_arguments(text_arguments({"model_type": "glm5_next", "text_config": text}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "gelu"}, "'gelu'"),
        ({"qk_rope_head_dim": 64}, "rotary positions"),
        ({"num_key_value_heads": 8}, "heads that share keys"),
        ({"n_group": 2}, "experts in groups"),
        ({"index_kpool_always_select_tail": False}, "token's block"),
        ({"index_topk": 2047}, "no whole number"),
        ({"layer_types": ["sliding_attention"]}, "sliding_attention layers"),
        ({"index_topk_pattern": "S" * 45}, "none directly before"),
    ],
)
def test_what_the_decoder_would_leave_out_is_refused(change: dict[str, Any], message: str) -> None:
    arguments()
    with pytest.raises(LoadError, match=message):
        arguments(**change)


def test_what_a_configuration_says_in_another_way() -> None:
    args = arguments(linear_attn_config={"head_dim": 64, "num_heads": 8}, linear_lower_bound=None)
    config = Glm5NextTextConfig.from_dict(args)
    assert (config.linear_head_dim, config.linear_num_heads, config.linear_lower_bound) == (64, 8, -5.0)
    assert [config.is_linear(layer) for layer in range(4)] == [True, True, True, False]
    assert [config.is_dense(layer) for layer in range(4)] == [True, True, True, False]
    assert arguments(layer_types=["full_attention"] * 45)["layer_types"] == ["indexed_attention"] * 45
    assert indexer_types({"num_hidden_layers": 5, "index_topk_pattern": "FFSFS"})[2] == "shared"
    by_frequency = indexer_types({"num_hidden_layers": 6, "index_topk_freq": 2, "index_skip_topk_offset": 2})
    assert [kind == "shared" for kind in by_frequency] == [False, False, True, False, True, False]


def test_its_caches_are_neither_quantized_nor_bounded(load_family: Callable[[str], Family]) -> None:
    model = load_family("glm5_next").model
    assert model.cache_layout() == [Recurrent(2), Whole(), Whole()]
    for settings in (KVSettings(bits=8), KVSettings(max_size=64)):
        with pytest.raises(UnsupportedError, match="leave it out"):
            kv.check(model, settings)


def test_what_transformers_has_in_float32_is_not_narrowed(load_family: Callable[[str], Family]) -> None:
    text = load_family("glm5_next").model.language_model
    kept = ["layers.0.self_attn.A_log", "layers.1.mlp.gate.e_score_correction_bias", "layers.1.attn_hc.scale"]
    assert not any(text.cast_predicate(f"model.{name}") for name in kept)
    assert text.cast_predicate("model.layers.1.attn_hc.fn") and text.cast_predicate(
        "model.layers.0.mlp.down_proj.weight"
    )


@pytest.mark.parametrize(
    ("total", "rate", "count", "frames"),
    [
        (9, 1.0, 18, [0, 1, 2, 3, 4, 5, 6, 7, 8, 8]),
        (24, 10.0, 4, [0, 5, 10, 15]),
        (1, 24.0, 0, [0, 0]),
        (100, 1.0, 5, [0, 24, 49, 74, 99, 99]),
    ],
)
def test_frames(total: int, rate: float, count: int, frames: list[int]) -> None:
    """As transformers' Glm5NextVideoProcessor samples them, which takes none of a video below half a second."""
    assert due_frames(total, rate, 2, count).tolist() == frames


@pytest.mark.parametrize(
    ("frames", "height", "width", "tokens", "size"),
    [
        (2, 60, 30, (1, 60), (84, 56)),
        (2, 10, 10, (16, 60), (112, 112)),
        (2, 400, 100, (1, 16), (224, 56)),
        (8, 100, 100, (1, 3), None),
    ],
)
def test_sizes(frames: int, height: int, width: int, tokens: tuple[int, int], size: tuple[int, int] | None) -> None:
    settings = PixelSettings(min_pixels=tokens[0] * TOKEN, max_pixels=tokens[1] * TOKEN, patch=14, merge=2, frames=2)
    if size is None:
        with pytest.raises(MediaError, match="fewer frames"):
            filled_size(frames, height, width, settings)
    else:
        assert filled_size(frames, height, width, settings) == size


def test_a_video_may_last_any_time_and_be_of_many_tokens() -> None:
    video = {"max_duration": 0, "max_image_tokens": 240_000, "size": {"longest_edge": 1}}
    check_settings(Path("processor_config.json"), {"video_processor": video})
    settings, config = ProcessorSettings({}, {}, video, {}), {"model_type": "glm5_next", "vision_config": {}}
    fields = Glm5NextProcessor.read_fields(settings, config)
    assert fields["max_duration"] == 0 and fields["video_settings"].max_pixels == 240_000 * TOKEN
    with pytest.raises(ValueError, match="max_duration = 0"):
        Glm4vProcessor.read_fields(settings, config)


def test_a_picture_is_filled_up_with_black(load_family: Callable[[str], Family]) -> None:
    processor = load_family("glm5_next").processor
    image = Image.new("RGB", (50, 70), "white")
    levels = processor.fit(image, (84, 56), processor.image_settings, MediaInputs(), 2)
    assert levels.shape == (84, 56, 3)
    assert (levels[:70, :50] == 255).all() and not levels[70:].any() and not levels[:, 50:].any()
    assert np.count_nonzero(levels) == 70 * 50 * 3


def test_a_row_alone_attends_as_in_a_batch_where_its_neighbour_is_short(load_family: Callable[[str], Family]) -> None:
    """A short row has less blocks than its budget; which it attends to must not follow from the long one."""
    family = load_family("glm5_next")
    model = family.model
    tokens = mx.array(np.random.default_rng(0).integers(0, 400, (2, 60)))
    short = model(Embedded(tokens[1:, :9]), kv.make_cache(model.cache_layout()))
    both = model(Embedded(tokens), kv.make_cache(model.cache_layout(), padded=[60, 9]))
    assert mx.abs(both[1, :9] - short[0]).max() < 1e-4
