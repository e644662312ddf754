"""Molmo2 as published: tiles, frames, its configuration; tokens that it reads and never writes."""

from typing import Any

import numpy as np
import pytest
from parity import media
from parity.layouts import write_checkpoint

from mlx_vlgen import Request, SamplingParams, TokenIterator, load
from mlx_vlgen._runtime import tree_flatten
from mlx_vlgen.errors import LoadError, PromptError
from mlx_vlgen.inputs.images import resize_bilinear
from mlx_vlgen.inputs.molmo2 import Molmo2ImageSettings, every
from mlx_vlgen.inputs.prompt import MediaInputs, Prompt
from mlx_vlgen.models import find
from mlx_vlgen.models.molmo2 import picture_pooling, pooling

CONFIG: dict[str, Any] = {
    "model_type": "molmo2", "image_patch_id": 151938, "vit_config": {"num_hidden_layers": 27},
    "adapter_config": {"vit_layers": [-3, -9], "text_hidden_size": 4096, "intermediate_size": 12288},
    "text_config": {"rope_theta": 1e6, "qkv_bias": False, "tie_word_embeddings": False},
}  # fmt: skip


@pytest.mark.parametrize(
    ("size", "tiling"),
    [  # as transformers 5.24 cuts them
        ((64, 64), (1, 1)),
        ((480, 640), (2, 2)),
        ((2000, 900), (4, 2)),
        ((3000, 100), (1, 1)),
        ((1000, 1961), (2, 4)),
        ((113, 5000), (1, 8)),
        ((1200, 1600), (2, 3)),
        ((266, 532), (1, 2)),
    ],
)
def test_tiles_are_transformers(size: tuple[int, int], tiling: tuple[int, int]) -> None:
    assert Molmo2ImageSettings.read({}).tiling(*size) == tiling


def test_frames_are_transformers() -> None:
    frames = every(3000, 64).tolist()
    assert (frames[:4], frames[-2:], sum(frames)) == ([0, 46, 93, 140], [2906, 2953], 94472)


def test_every_patch_of_a_canvas_is_pooled_once() -> None:
    """What two tiles show counts once; windows at the border lack patches at both sides."""
    index = picture_pooling(27, (2, 3), (4, 4), (2, 2))
    rows, columns = (27 + 1) // 2, ((3 * 19 + 8) + 1) // 2
    assert index.shape == (14 * 14 + ((2 * 19 + 8) // 2) * columns, 4) and rows == 14
    patches = index[index >= 0]
    assert len(patches) == len(set(patches.tolist())) == 27**2 + (2 * 19 + 8) * (3 * 19 + 8)
    assert pooling(np.arange(9).reshape(3, 3), (2, 2)).tolist() == [
        [0, 1, 3, 4], [2, -1, 5, -1], [6, 7, -1, -1], [8, -1, -1, -1]
    ]  # fmt: skip


def test_resizing_lies_between_the_four_nearest() -> None:
    levels = np.array([[[0, 0, 0], [255, 100, 3]]], np.uint8)
    assert resize_bilinear(levels, (1, 4))[0, :, 0].tolist() == [0, 64, 191, 255]
    assert np.array_equal(resize_bilinear(levels, (1, 2)), levels)


def test_a_published_configuration_makes_a_network_of_its_size() -> None:
    """Its count of parameters is that of transformers; layers that no weights exist for are not built."""
    model = find(CONFIG).model_class()(CONFIG)
    assert sum(value.size for _, value in tree_flatten(model.parameters())) == 8_661_703_120
    assert (model.vocab_size, model.embedding_rows) == (151936, 152064)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "scaled rotary positions"),
        ({"qk_norm_type": "other"}, "norms of the type 'other'"),
    ],
)
def test_what_is_not_computed_is_refused(text: dict[str, Any], message: str) -> None:
    with pytest.raises(LoadError, match=message):
        find(CONFIG).model_class()(CONFIG | {"text_config": CONFIG["text_config"] | text})


@pytest.mark.parametrize(
    "settings", [{"size": {"height": 28, "width": 42}}, {"resample": 3}, {"overlap_margins": [9, 18]}]
)
def test_settings_that_are_not_known_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(LoadError):
        Molmo2ImageSettings.read(settings)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    return load(str(write_checkpoint("molmo2", "v5", tmp_path_factory.mktemp("molmo2"))), dtype="float32")


def test_tokens_that_are_never_written_belong_to_pictures(loaded: tuple[Any, Any]) -> None:
    """The output layer has no row for them: elsewhere they would be indices past the logits."""
    model, processor = loaded
    mark = processor.tokenizer.convert_tokens_to_ids("<im_end>")
    assert model.vocab_size <= mark < model.embedding_rows
    with pytest.raises(PromptError, match="the prompt holds <im_end>, which stands beside features"):
        processor.prepare("Look: <im_end>")
    picture = MediaInputs(images=[media.picture("small")])
    with TokenIterator(model, processor) as tokens:
        raw = tokens.add(Request(Prompt(np.array([1, mark], np.int32)), sampling=SamplingParams(max_tokens=2)))
        biased = tokens.add(Request("Hi", sampling=SamplingParams(max_tokens=2, logit_bias={mark: 1.0})))
        sampling = SamplingParams(max_tokens=4, repetition_penalty=1.3, repetition_context_size=None)
        penalized = tokens.add(Request("<|image|>What?", picture, sampling))
        results = dict(tokens)
    assert "no token of this model" in str(results[raw].error) and "logit_bias" in str(results[biased].error)
    assert results[penalized].finish_reason == "length"
