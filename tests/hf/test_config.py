"""Settings of `model.generate`: where each comes from, what is refused, what gives a notice."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import transformers
from hypothesis import given
from hypothesis import strategies as st

from mlx_vlgen.errors import UnsupportedError
from mlx_vlgen.hf.config import READERS, GenerationSettings
from mlx_vlgen.hf.resolve import NAMES, UNSUPPORTED, resolve
from mlx_vlgen.hf.watermark import GreenList, SynthID

DEFAULTS = {
    "max_new_tokens": 128,
    "do_sample": False,
    "num_beams": 1,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "typical_p": 1.0,
    "repetition_penalty": 1.0,
    "length_penalty": 1.0,
    "early_stopping": False,
    "num_return_sequences": 1,
    "num_assistant_tokens": 20,
    "num_assistant_tokens_schedule": "constant",
    "assistant_confidence_threshold": 0.4,
    "max_matching_ngram_size": 2,
    "use_cache": True,
}


def settings(checkpoint: Any = None, config: Any = None, /, **keywords: Any) -> GenerationSettings:
    resolved, others = resolve(checkpoint or {}, config, keywords)
    assert not others
    return resolved


def test_defaults_are_those_of_transformers_but_for_the_length() -> None:
    resolved = settings()
    assert {name: getattr(resolved, name) for name in DEFAULTS} == DEFAULTS
    assert resolved == GenerationSettings(max_new_tokens=128)


def test_every_setting_has_a_reader_and_every_field_of_transformers_is_known() -> None:
    assert {field.name for field in dataclasses.fields(GenerationSettings)} == set(READERS)
    fields = {name for name in vars(transformers.GenerationConfig()) if not name.startswith("_")}
    assert fields - NAMES == {"transformers_version"}


@pytest.mark.parametrize("kind", ["object", "mapping", "ours"])
def test_keywords_win_over_the_config_and_that_over_the_checkpoints(kind: str) -> None:
    checkpoint = {"do_sample": True, "temperature": 0.1, "top_k": 1, "top_p": 0.1}
    requested = {"do_sample": True, "temperature": 0.2, "top_k": 2}
    config: Any = transformers.GenerationConfig(**requested) if kind == "object" else requested
    if kind == "ours":
        config = settings(requested | {"top_p": 0.1})
    resolved = settings(checkpoint, config, temperature=0.3)
    assert (resolved.temperature, resolved.top_k, resolved.top_p, resolved.do_sample) == (0.3, 2, 0.1, True)


def test_what_is_no_setting_is_handed_back() -> None:
    resolved, others = resolve({}, None, {"pixel_values": 1, "max_new_tokens": 2, "temperatur": 3})
    assert others == {"pixel_values": 1, "temperatur": 3} and resolved.max_new_tokens == 2


def test_names_of_no_setting_in_files_count_for_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """In the checkpoint's file they may mean anything, even where the name is one of ours."""
    assert settings({"chat_format": "raw", "seed": 3, "top_p": None, "grammar": "x"}) == settings()
    assert not capsys.readouterr().err
    assert settings(None, transformers.GenerationConfig(max_new_token=3, presence_penalty=1.5)).presence_penalty == 1.5
    printed = capsys.readouterr().err
    assert "'max_new_token'" in printed and "did you mean 'max_new_tokens'" in printed and printed.count("\n") == 1


def test_none_takes_a_setting_back() -> None:
    checkpoint = {"do_sample": True, "top_k": 20, "top_p": 0.5, "eos_token_id": 3, "max_new_tokens": 9}
    resolved = settings(checkpoint, top_k=None, top_p=None, eos_token_id=None, max_new_tokens=None, temperature=None)
    assert (resolved.top_k, resolved.top_p, resolved.eos_token_id, resolved.max_new_tokens) == (0, 1.0, (), 128)
    assert settings(checkpoint, transformers.GenerationConfig(top_k=None)).top_k == 20


@pytest.mark.parametrize(
    ("checkpoint", "keywords", "max_tokens"),
    [
        ({}, {}, 128),
        ({}, {"max_new_tokens": 5}, 5),
        ({}, {"max_length": 15}, 5),
        ({"max_length": 15}, {}, 5),
        ({"max_length": 15}, {"max_new_tokens": 7}, 7),
        ({"max_new_tokens": 7}, {"max_length": 15}, 7),
        ({"max_length": 12}, {"max_length": 15}, 5),
        ({"max_length": 12}, {"max_length": None}, 128),
    ],
    ids=str,
)
def test_length(checkpoint: dict[str, Any], keywords: dict[str, Any], max_tokens: int) -> None:
    resolved = settings(checkpoint, **keywords)
    assert resolved.max_tokens_after(10) == max_tokens
    assert (resolved.max_new_tokens is None) != (resolved.max_length is None)


def test_a_prompt_as_long_as_max_length_is_refused() -> None:
    with pytest.raises(ValueError, match="max_length=10: the prompt has 10 tokens"):
        settings(max_length=10).max_tokens_after(10)


@pytest.mark.parametrize(
    ("checkpoint", "keywords", "drawn"),
    [
        ({}, {"temperature": 0.7}, False),
        ({"do_sample": True}, {"temperature": 0.7}, True),
        ({"do_sample": True}, {"temperature": 0}, False),
        ({"do_sample": True}, {"do_sample": False}, False),
        ({"do_sample": True}, {"do_sample": None}, False),
        ({"do_sample": True, "temperature": 0.0}, {}, False),
        ({}, {"do_sample": True}, True),
    ],
    ids=str,
)
def test_drawing(checkpoint: dict[str, Any], keywords: dict[str, Any], drawn: bool) -> None:
    assert settings(checkpoint, **keywords).do_sample == drawn


@pytest.mark.parametrize(
    ("checkpoint", "keywords", "notices"),
    [
        ({}, {"temperature": 0.3, "max_new_tokens": 128}, ["temperature=0.3: not used", "do_sample=True"]),
        ({}, {"temperature": 0.3, "top_p": 0.5, "min_p": 0.0}, ["temperature=0.3, top_p=0.5: not used"]),
        ({"do_sample": True}, {"do_sample": False, "top_k": 3}, ["top_k=3: not used"]),
        ({"do_sample": True}, {"temperature": 0.3}, []),
        ({"do_sample": True, "temperature": 0.3}, {"do_sample": False}, []),
        ({}, {"temperature": 0, "top_p": 0.9}, []),
        ({}, {"temperature": 1.0, "top_k": -1}, []),
        ({}, {"length_penalty": 2.0, "early_stopping": True}, ["early_stopping=True", "length_penalty=2.0"]),
        ({}, {"length_penalty": 2.0, "num_beams": 2}, []),
        ({"max_length": 20}, {"max_new_tokens": 3}, []),
        ({}, {"max_length": 20, "max_new_tokens": 3}, ["max_length=20: max_new_tokens=3 wins"]),
        ({}, {"min_length": 2, "min_new_tokens": 1}, ["min_length=2: min_new_tokens=1 wins"]),
        ({}, {"output_scores": True}, ["output_scores=True: not used without return_dict_in_generate"]),
        ({}, {"output_scores": True, "return_dict_in_generate": True}, []),
        ({}, {"use_cache": False}, ["use_cache=False"]),
        ({}, {"use_cache": True, "low_memory": False, "disable_compile": False}, []),
        ({}, {"decoder_start_token_id": 4}, ["decoder_start_token_id=4: does nothing"]),
        ({}, {"cache_implementation": "static"}, ["cache_implementation='static'"]),
        ({"cache_implementation": "hybrid"}, {}, []),
        ({}, {"cache_implementation": "dynamic"}, []),
        ({}, {"cache_config": {"nbits": 4}}, ["cache_config does nothing"]),
    ],
    ids=str,
)
def test_what_changes_nothing_gives_a_notice(
    checkpoint: dict[str, Any], keywords: dict[str, Any], notices: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Not for what the checkpoint's file says."""
    settings(checkpoint, **keywords)
    err = capsys.readouterr().err
    assert all(part in err for part in notices), err
    assert bool(err) == bool(notices)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("penalty_alpha", 0.6, "contrastive search"),
        ("dola_layers", "high", "DoLa"),
        ("num_beam_groups", 2, "group beam"),
        ("diversity_penalty", 1.0, "group beam"),
        ("constraints", [object()], "constrained beam"),
        ("force_words_ids", [[1]], "constrained beam"),
        ("use_mtp", True, "extra heads"),
        ("assistant_early_exit", 3, "assistant_model"),
        ("assistant_lookbehind", 5, "another tokenizer"),
        ("target_lookbehind", 5, "another tokenizer"),
        ("assistant_ensemble_weight", 0.5, "leave it out"),
        ("speculation_type", "dflash", "leave it out"),
        ("is_assistant", True, "assistant_model"),
        ("token_healing", True, "prompt"),
        ("continuous_batching_config", object(), "TokenIterator"),
        ("generator", object(), "seed"),
        ("cache_implementation", "offloaded", "kv_bits"),
        ("cache_implementation", "offloaded_static", "kv_bits"),
    ],
)
def test_what_is_not_honoured_is_refused_with_its_reason(name: str, value: Any, reason: str) -> None:
    for source in ({}, {name: value}), ({name: value}, {}):
        with pytest.raises(UnsupportedError, match=f"^{name}=.*{reason}"):
            settings(source[0], **source[1])


def test_what_is_not_honoured_may_ask_for_nothing() -> None:
    nothing = {name: values[0] for name, (values, _) in UNSUPPORTED.items() if values}
    assert settings(**nothing) == settings(**dict.fromkeys(UNSUPPORTED)) == settings()


WRONG = {
    "max_new_tokens": [0, -1, 1.5, True, "5"],
    "max_length": [0],
    "min_length": [-1],
    "early_stopping": [1, "always"],
    "max_time": [-1, float("inf")],
    "stop_strings": [[""], 3, [3]],
    "do_sample": [1, "yes"],
    "num_beams": [0],
    "temperature": [-0.1, float("nan"), "hot", True],
    "top_k": [-2, 0.5],
    "top_p": [1.5, -0.5],
    "min_p": [2],
    "top_h": [0, 1.5],
    "typical_p": [0],
    "epsilon_cutoff": [1.5],
    "repetition_penalty": [0, -1.0],
    "no_repeat_ngram_size": [-1],
    "bad_words_ids": [[[]], [[-1]], [5], "abc", 3],
    "sequence_bias": [{(1,): "x"}, {(): 1.0}, [[1, 2, 3]], 5, {(1,): float("nan")}],
    "suppress_tokens": ["ab", [1.5]],
    "exponential_decay_length_penalty": [1.5, (1,), (1, 0.0), (-1, 1.5)],
    "watermarking_config": [5, {"bais": 1}, {"greenlist_ratio": 1.0}, {"ngram_len": 3}, {"seeding_scheme": "x"}],
    "seed": [1.5, ["a"], True],
    "num_assistant_tokens_schedule": ["often"],
    "num_return_sequences": [0, 2],
    "cache_implementation": ["dynamc", 4],
    "cache_config": [{"bitz": 4}, "nbits"],
    "prefill_chunk_size": [0],
    "forced_eos_token_id": ["x"],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_values_of_no_meaning_are_named(name: str, value: Any) -> None:
    kind = {"cache_implementation": "quantized"} if name == "cache_config" else {}
    with pytest.raises(ValueError, match=name):
        settings(**{name: value}, **kind)


@pytest.mark.parametrize(
    "keywords",
    [
        {"num_beams": 2, "num_return_sequences": 3},
        {"num_return_sequences": 2, "do_sample": True, "temperature": 0.0},
        {"suppress_tokens": [1, 2], "forced_eos_token_id": [2, 1]},
        {"suppress_tokens": [1, 2], "forced_bos_token_id": 2},
    ],
    ids=str,
)
def test_what_does_not_go_together_is_refused(keywords: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"num_return_sequences|suppress_tokens"):
        settings(**keywords)


def test_quantized_caches() -> None:
    def cache(**keywords: Any) -> tuple[int | None, int]:
        resolved = settings(cache_implementation="quantized", **keywords)
        return resolved.kv_bits, resolved.kv_group_size

    assert cache() == (4, 64)
    assert cache(cache_config={"backend": "quanto", "nbits": 2, "q_group_size": 32}) == (2, 32)
    assert cache(cache_config={"bits": 8, "group_size": 128}) == (8, 128)
    assert cache(cache_config={"nbits": 2}, kv_bits=6) == (6, 64)
    assert settings(kv_bits=8, kv_group_size=32).kv_bits == 8
    with pytest.raises(UnsupportedError, match="fp8"):
        cache(cache_config={"backend": "fp8"})


def test_token_ids() -> None:
    resolved = settings({"eos_token_id": [5, 6]}, forced_eos_token_id=np.array([7, 8]))
    assert (resolved.eos_token_id, resolved.pad_token_id, resolved.forced_eos_token_id) == ((5, 6), 5, (7, 8))
    assert settings({"eos_token_id": 5, "pad_token_id": 0}).pad_token_id == 0
    assert settings({"eos_token_id": -1, "pad_token_id": -1}) == settings()


def test_watermarks() -> None:
    green = {"greenlist_ratio": 0.5, "bias": 1, "seeding_scheme": "selfhash", "context_width": 2}
    mark = settings(watermarking_config=green).watermarking_config
    assert mark == settings(watermarking_config=transformers.WatermarkingConfig(**green)).watermarking_config
    assert isinstance(mark, GreenList) and (mark.bias, mark.hashing_key) == (1.0, 15485863)
    mark = settings(watermarking_config={"ngram_len": 5, "keys": [3, 4]}).watermarking_config
    assert mark == SynthID(5, (3, 4)) == settings(watermarking_config=mark).watermarking_config


def test_lists_may_come_in_any_shape() -> None:
    resolved = settings(
        sequence_bias=[[[1, 2], 3.0], [[4], float("-inf")]], bad_words_ids=[(5,), [6, 7]], stop_strings="x", seed=[1, 2]
    )
    assert resolved.sequence_bias == (((1, 2), 3.0), ((4,), float("-inf")))
    assert resolved == settings(
        sequence_bias={(1, 2): 3, (4,): float("-inf")}, bad_words_ids=[[5], [6, 7]], stop_strings=["x"], seed=(1, 2)
    )
    assert hash(resolved)
    assert settings(prefill_chunk_size=7) == settings(prefill_step_size=7)


OPTIONAL = {
    "max_new_tokens": st.integers(1, 99),
    "temperature": st.floats(0, 2),
    "top_k": st.none() | st.integers(-1, 99),
    "top_p": st.floats(0, 1),
    "do_sample": st.booleans(),
    "num_beams": st.integers(1, 4),
    "repetition_penalty": st.floats(0.1, 2),
    "eos_token_id": st.none() | st.integers(0, 9) | st.lists(st.integers(0, 9), min_size=1),
}


@given(*[st.fixed_dictionaries({}, optional=OPTIONAL) for _ in range(3)])
def test_precedence(checkpoint: dict[str, Any], config: dict[str, Any], keywords: dict[str, Any]) -> None:
    """A call with three sources is one with their union as keywords; None counts in keywords only."""
    union = {
        name: value for source in (checkpoint, config) for name, value in source.items() if value is not None
    } | keywords
    assert settings(checkpoint, config, **keywords) == settings(**union)
    assert settings(None, settings(**union)) == settings(**union)
