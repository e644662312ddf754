"""`mlx-vlgen models`, `pull` and `rm` over a Hugging Face cache, and the tables of what fits."""

import importlib.util
import json
import os
import pty
import sys
from pathlib import Path
from typing import Any

import pytest
from test_hub import COMMIT, cache, write_cached  # noqa: F401
from tiny_checkpoints import LLAMA

from mlx_vlgen import cli, load
from mlx_vlgen._runtime import mx
from mlx_vlgen.generate import generate
from mlx_vlgen.loading.footprint import MARGIN, Footprint, without_weights

ROOT = Path(__file__).parents[2]


def lines(capsys: Any, *arguments: str) -> list[dict[str, Any]]:
    assert cli.main_models([*arguments, "--json"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_the_cache_is_listed_with_what_is_wrong(cache: Path, capsys: Any) -> None:  # noqa: F811
    write_cached(cache, "owner/whole")
    broken = write_cached(cache, "owner/broken")
    (broken / "config.json").unlink()
    (broken / "config.json").write_text(json.dumps(LLAMA | {"hidden_size": 64}))
    demo, bad, whole = lines(capsys)
    assert (demo["model"], demo["family"], demo["takes"]) == ("demo", "qwen3_vl", ["pictures", "videos"])
    assert (whole["model"], whole["family"], whole["takes"], whole["error"]) == ("owner/whole", "llama", [], None)
    assert bad["model"] == "owner/broken" and "tensors are not those of a llama" in bad["error"]
    assert cli.main_models([]) == 0
    printed = capsys.readouterr()
    assert "owner/broken" in printed.out and "cannot be loaded" in printed.out and "not those of a llama" in printed.err


def test_what_it_says_of_memory_is_what_the_model_takes() -> None:
    from mlx_vlgen.demo import MODEL

    said = Footprint.of(without_weights(MODEL))
    model, processor = load("demo")
    before = mx.get_active_memory()
    assert said.weights == Footprint.of(model).weights
    # 3 heads of keys and values would be 3 times as much: the layers' shapes are read, not guessed.
    text = model.config["text_config"]
    heads, size, layers = (text[key] for key in ("num_key_value_heads", "head_dim", "num_hidden_layers"))
    assert said.cache(1000) == 1000 * layers * 2 * heads * size * model.dtype.size
    assert said.positions(said.needed(123), 4096) == 123
    assert said.positions(said.weights + MARGIN - 1, 4096) is None
    assert generate(model, processor, "Hello").text and mx.get_active_memory() - before < said.needed(100)


def test_a_model_is_deleted_after_a_question(cache: Path, capsys: Any, monkeypatch: Any) -> None:  # noqa: F811
    write_cached(cache, "owner/one")
    write_cached(cache, "owner/two")
    assert cli.main_rm(["owner/three"]) == 1
    assert "owner/three is not in the cache" in capsys.readouterr().err
    with pytest.raises(SystemExit) as usage:
        cli.main_rm(["owner/one"])
    assert usage.value.code == 2 and "--yes" in capsys.readouterr().err
    for answer, left in (("n", 2), ("y", 1)):
        main, terminal = pty.openpty()
        os.write(main, f"{answer}\n".encode())
        with os.fdopen(terminal) as stdin:
            monkeypatch.setattr(sys, "stdin", stdin)
            assert cli.main_rm(["owner/one"]) == (answer == "n")
        os.close(main)
        assert len(list(cache.glob("models--*"))) == left
    assert "Delete owner/one" in capsys.readouterr().err
    assert cli.main_rm(["owner/two", "--yes"]) == 0
    assert not list(cache.glob("models--*"))


def test_pull_prints_the_folder_of_what_is_there(cache: Path, capsys: Any) -> None:  # noqa: F811
    folder = write_cached(cache, "owner/whole")
    assert cli.main_pull(["owner/whole"]) == 0
    assert capsys.readouterr().out.strip() == str(folder)
    assert folder.name == COMMIT
    assert cli.main_pull(["owner/other"]) == 1
    assert "no whole copy in the cache" in capsys.readouterr().err


@pytest.fixture
def fits() -> Any:
    """benchmarks/fits.py"""
    spec = importlib.util.spec_from_file_location("fits", ROOT / "benchmarks/fits.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


REMEDY = "make the tables with `python benchmarks/fits.py --write`"


def test_the_table_of_the_default_models_is_that_of_their_configurations(fits: Any) -> None:
    found = fits.footprints(fits.DEFAULT)
    assert "\n".join(fits.short_table(found)) + "\n" == fits.written(ROOT / "README.md"), REMEDY
    written = fits.written(ROOT / "docs/models.md").splitlines()
    assert {*fits.whole_table(found)} <= {*written} and len(written) > 40, REMEDY


@pytest.mark.slow
def test_the_tables_of_what_fits_are_those_of_the_configurations(fits: Any) -> None:
    tables = fits.tables()
    assert {page: fits.written(page) for page in tables} == tables, REMEDY
