"""Reading a checkpoint's small files: JSON that is none, and settings of processors that are out of bounds."""

from pathlib import Path

import pytest

from mlx_vlgen.errors import LoadError
from mlx_vlgen.inputs.files import check_settings, read_json


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": NaN}', "'NaN' is not a number"),
        ('{"a": {"__float__": "NaN"}}', "'NaN' is not a number"),
        ('{"a": 1, "b": 2, "a": 3}', "the key 'a' is there twice"),
        ('\ufeff{"a": 1}', "BOM"),
        ("[" * 100_000, "recursion"),
        ('{"a":' * 100_000, "recursion"),
        ("1" * 5000, "digits"),
        ("3", "expected an object"),
        ("", "Expecting value"),
    ],
)
def test_json_that_is_none(tmp_path, text, message):
    path = tmp_path / "config.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(LoadError, match=message) as caught:
        read_json(path)
    assert str(path) in str(caught.value)


def test_json_that_is_no_text_a_folder_or_too_large(tmp_path):
    (tmp_path / "a").write_bytes(b'{"a": "\xff"}')
    (tmp_path / "b").mkdir()
    with (tmp_path / "c").open("wb") as file:
        file.truncate(1 << 40)
    for name, message in (("a", "utf-8"), ("b", "directory"), ("c", "bytes; expected at most"), ("d", "No such file")):
        with pytest.raises(LoadError, match=message) as caught:
            read_json(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)


def test_infinity_is_a_number(tmp_path):
    (tmp_path / "a").write_text('{"a": [0.0, Infinity], "b": {"__float__": "-Infinity"}}')
    assert read_json(tmp_path / "a") == {"a": [0.0, float("inf")], "b": float("-inf")}


@pytest.mark.parametrize(
    "fields",
    [
        {"image_std": [0.5, 0, 0.5]}, {"image_std": [0.5]}, {"image_std": [-1, 1, 1]}, {"image_std": "a"},
        {"image_mean": [float("inf")] * 3}, {"image_mean": [True] * 3}, {"patch_size": 0}, {"patch_size": 10**6},
        {"patch_size": 14.5}, {"merge_size": 0}, {"merge_size": 10**6}, {"merge_size": "2"}, {"size": 10**9},
        {"size": {"height": 0, "width": 9}}, {"size": {"shortest_edge": 10**18}}, {"a": [{"fps": 0}]}, {"fps": True},
        {"image_grid_pinpoints": [[336, 672], [0, 1]]}, {"max_patches": 10**6}, {"temporal_patch_size": -2},
    ],
)  # fmt: skip
def test_settings_out_of_bounds(fields):
    path = Path("here/processor_config.json")
    with pytest.raises(LoadError, match=f"{path} says "):
        check_settings(path, fields)
    with pytest.raises(LoadError, match=f"{path} says "):
        check_settings(path, {"image_processor": fields})


def test_settings_within_bounds():
    size = {"shortest_edge": 3136, "longest_edge": 47_040_000}
    check_settings(Path("x"), {"image_std": [], "patch_size": None, "size": size, "fps": 0.5, "resample": 3, "a": "b"})
