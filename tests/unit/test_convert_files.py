"""convert(): the folder that it writes: shards, copied files, the card; whole or not there; and uploading it."""

import fcntl
import json
import os
import sys
from pathlib import Path
from typing import ClassVar

import pytest
from conversions import assert_equal, config_of, message, stored, write_originals
from huggingface_hub import metadata_load
from hypothesis import given
from hypothesis import strategies as st
from tiny_checkpoints import LLAMA, QWEN3_VL, draw, write

from mlx_vlgen._runtime import mx
from mlx_vlgen.convert import convert
from mlx_vlgen.errors import VlgenError
from mlx_vlgen.loading import saving

CONVERT = sys.modules["mlx_vlgen.convert"]


@pytest.fixture(scope="session")
def originals(tmp_path_factory):
    return write_originals(tmp_path_factory.mktemp("originals"))


# -- files


def test_small_shards(tmp_path, originals, monkeypatch):
    whole = convert(originals["qwen3_vl"], tmp_path / "whole", quantize=True)
    assert [path.name for path in whole.glob("*.safetensors")] == ["model.safetensors"]
    monkeypatch.setattr(saving, "SHARD_BYTES", 30_000)
    target = convert(originals["qwen3_vl"], tmp_path / "out", quantize=True)
    files = sorted(target.glob("*.safetensors"))
    count = len(files)
    assert count > 4
    assert [file.name for file in files] == [f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]
    assert_equal(stored(target), stored(whole))
    index = json.loads((target / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in stored(target).values())
    assert index["metadata"]["total_parameters"] == sum(value.size for value in draw(QWEN3_VL).values())


@given(st.lists(st.integers(0, 50), max_size=30), st.integers(1, 60))
def test_shards_keep_the_order_and_the_limit(sizes, max_bytes):
    tensors = {str(i): mx.zeros(size, mx.uint8) for i, size in enumerate(sizes)}
    groups = saving.shards(tensors, max_bytes)
    assert [name for group in groups for name in group] == list(tensors)
    totals = [sum(tensors[name].nbytes for name in group) for group in groups]
    assert all(total <= max_bytes or len(group) == 1 for total, group in zip(totals, groups, strict=True))
    # No two neighbours would fit into one file.
    assert all(total + tensors[after[0]].nbytes > max_bytes for total, after in zip(totals, groups[1:], strict=False))


def test_a_shard_at_a_time_is_in_memory(tmp_path, monkeypatch):
    config = LLAMA | {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 6, "vocab_size": 8192}
    folder = write(tmp_path / "big", config, draw(config), shards=2)
    largest, whole = 8192 * 256 * 4, sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    assert whole > 4 * largest
    for keywords in ({}, {"quantize": True}):
        monkeypatch.setattr(saving, "SHARD_BYTES", largest)
        mx.clear_cache()
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        convert(folder, tmp_path / f"out{len(keywords)}", **keywords)
        assert mx.get_peak_memory() - before < 2.5 * largest
        assert mx.get_active_memory() - before < 1e5


def test_processor_tokenizer_template_and_licence_come_along_and_nothing_else(tmp_path, originals):
    source = write(tmp_path / "source", LLAMA, draw(LLAMA), shards=2)
    copied = """generation_config.json preprocessor_config.json processor_config.json chat_template.json
        chat_template.jinja merges.txt tokenizer.model qwen.tiktoken LICENSE names.jsonl""".split()
    for name in (*copied, "modeling.py", "weights.bin", "training_args.pt", "adapter_config.json", "photo.png"):
        (source / name).write_text(f'{{"this is": "{name}"}}')
    (source / "original").mkdir()
    (tmp_path / "elsewhere").write_text("linked")
    (source / "added_tokens.json").symlink_to(tmp_path / "elsewhere")  # as the Hugging Face cache has them

    def contents():
        return {path: (path.stat().st_mtime_ns, path.is_file() and path.read_bytes()) for path in source.rglob("*")}

    before = contents()
    target = convert(source, tmp_path / "out")
    written = {"config.json", "README.md", "model.safetensors", "model.safetensors.index.json"}
    known = {"tokenizer.json", "tokenizer_config.json", "added_tokens.json"}
    assert {path.name for path in target.iterdir()} == {*copied, *written, *known}
    assert all((target / name).read_bytes() == (source / name).read_bytes() for name in {*copied, *known})
    assert not (target / "added_tokens.json").is_symlink()
    assert contents() == before


def test_numbers_that_json_cannot_hold_stay_marked(tmp_path):
    config = LLAMA | {"initializer_range": {"__float__": "Infinity"}, "note": "ünïcode 日本"}
    target = convert(write(tmp_path / "c", config, draw(LLAMA)), tmp_path / "out")
    assert config_of(target) == config


# -- the card


def test_the_card_of_a_checkpoint_from_the_hub(tmp_path, originals, monkeypatch):
    (folder := tmp_path / "cached").mkdir()
    monkeypatch.setattr(CONVERT, "locate", lambda name, revision: originals["qwen3_vl"])
    target = convert("owner/name", folder / "name-4bit", quantize=True)
    data = metadata_load(target / "README.md")
    assert data == {
        "base_model": "owner/name",
        "base_model_relation": "quantized",
        "library_name": "mlx",
        "pipeline_tag": "image-text-to-text",
        "tags": ["mlx", "mlx-vlgen"],
    }
    text = (target / "README.md").read_text()
    assert "4 bits per weight (affine)" in text and "--model name-4bit --image photo.jpg" in text
    assert 'load("name-4bit")' in text and 'image="photo.jpg"' in text


def test_the_card_of_a_folder_keeps_its_licence(tmp_path):
    source = write(tmp_path / "source", LLAMA, draw(LLAMA))
    (source / "README.md").write_text("---\nlicense: apache-2.0\nlanguage: [en, fr]\nwidget: []\n---\n# Old words")
    target = convert(source, tmp_path / "out")
    data = metadata_load(target / "README.md")
    assert data == {"license": "apache-2.0", "language": ["en", "fr"], "library_name": "mlx",
                    "pipeline_tag": "text-generation", "tags": ["mlx", "mlx-vlgen"]}  # fmt: skip
    text = (target / "README.md").read_text()
    assert "Old words" not in text and "photo" not in text and "bits" not in text
    (source / "README.md").write_text("---\n: [ nonsense\n---\n")
    assert metadata_load(convert(source, tmp_path / "again") / "README.md")["library_name"] == "mlx"


# -- names that are taken


def test_a_name_that_is_taken(tmp_path, originals):
    (taken := tmp_path / "taken").mkdir()
    (taken / "precious").write_text("x")
    error_message = message(originals["llama"], taken, error=VlgenError)
    assert str(taken) in error_message and "not empty" in error_message
    assert [path.name for path in taken.iterdir()] == ["precious"]
    assert "is a file" in message(originals["llama"], taken / "precious", error=VlgenError)
    (empty := tmp_path / "empty").mkdir()
    (link := tmp_path / "link").symlink_to(empty)
    assert convert(originals["llama"], link) == empty
    assert (empty / "config.json").is_file()
    assert convert(originals["llama"], tmp_path / "new" / "deep").is_dir()


def test_nothing_is_written_into_the_checkpoints_folder(tmp_path):
    source = write(tmp_path / "source", LLAMA, draw(LLAMA))
    before = sorted(source.rglob("*"))
    assert "the checkpoint's folder" in message(source, source / "mlx" / "out", error=VlgenError)
    assert "not empty" in message(source, source, error=VlgenError)
    assert sorted(source.rglob("*")) == before


# -- whole or not there


def test_what_goes_wrong_halfway_leaves_nothing(tmp_path, originals, monkeypatch):
    monkeypatch.setattr(saving, "SHARD_BYTES", 30_000)
    save, written = mx.save_safetensors, []

    def failing(file, *rest, **options):
        written.append(Path(file))
        if len(written) == 3:
            raise RuntimeError("the disk is full")
        save(file, *rest, **options)

    monkeypatch.setattr(mx, "save_safetensors", failing)
    message(originals["llama"], tmp_path / "out", error=RuntimeError)
    assert len(written) == 3 and written[0].parent.parent.parent == tmp_path
    assert list(tmp_path.iterdir()) == []


def test_what_a_dead_run_left_is_cleaned(tmp_path, originals):
    (part := tmp_path / ".out.dead.converting" / "checkpoint").mkdir(parents=True)
    (part / "model-00007-of-00009.safetensors").write_bytes(b"half of it")
    target = convert(originals["llama"], tmp_path / "out")
    assert list(tmp_path.iterdir()) == [target]
    assert not list(target.glob("*of-00009*"))


def test_only_what_is_left_of_a_run_with_this_target_is_cleaned(tmp_path, originals):
    """Not what a link leads to, nor a folder or file with a name that is nearly the same."""
    (victim := tmp_path / "victim").mkdir()
    (victim / "precious").write_text("x")
    for link in (".out.converting", ".out.link.converting", ".out..converting"):
        (tmp_path / link).symlink_to(victim)
    (tmp_path / ".out.file.converting").write_text("x")
    near = (".out.converting-not", ".outer.a.converting", "out.a.converting")
    for folder in near:
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "precious").write_text("x")
    (left := tmp_path / ".out.dead.converting").mkdir()
    (left / "checkpoint").symlink_to(victim)
    before = {path.name for path in tmp_path.iterdir()}
    convert(originals["llama"], tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == before - {left.name} | {"out"}
    assert (victim / "precious").read_text() == "x"
    assert all((tmp_path / folder / "precious").exists() for folder in near)


def test_what_is_written_meanwhile_is_nobody_elses_and_then_as_folders_are(tmp_path, originals, monkeypatch):
    (plain := tmp_path / "plain").mkdir()
    modes, save = [], mx.save_safetensors

    def watched(file, *rest, **options):
        modes.append(Path(file).parent.parent.stat().st_mode & 0o777)
        save(file, *rest, **options)

    monkeypatch.setattr(mx, "save_safetensors", watched)
    target = convert(originals["llama"], tmp_path / "out")
    assert modes == [0o700]
    assert target.stat().st_mode == plain.stat().st_mode


def test_two_runs_with_one_target_do_not_mix(tmp_path, originals):
    (part := tmp_path / ".out.other.converting").mkdir()
    (part / "of the other run").write_text("x")
    other = os.open(part, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    assert "another process" in message(originals["llama"], tmp_path / "out", error=VlgenError)
    assert [path.name for path in part.iterdir()] == ["of the other run"]
    os.close(other)
    convert(originals["llama"], tmp_path / "out")


@pytest.mark.parametrize("locked", [False, True])
def test_a_folder_that_another_run_took_for_a_dead_ones_is_made_anew(tmp_path, originals, monkeypatch, locked):
    """The other run comes between our making it and our locking it."""
    flock, taken = fcntl.flock, []

    def late(lock, how):
        if not taken:
            taken.append(Path(next(tmp_path.glob(".out.*.converting"))))
            if locked:
                raise BlockingIOError
            taken[0].rmdir()
        flock(lock, how)

    monkeypatch.setattr(fcntl, "flock", late)
    target = convert(originals["llama"], tmp_path / "out")
    assert len(taken) == 1 and (target / "config.json").is_file()


def test_the_second_of_two_runs_leaves_the_firsts_result(tmp_path, originals, monkeypatch):
    save, target = mx.save_safetensors, tmp_path / "out"

    def overtaken(file, *rest, **options):
        target.mkdir(exist_ok=True)
        (target / "result").write_text("x")
        save(file, *rest, **options)

    monkeypatch.setattr(mx, "save_safetensors", overtaken)
    assert "not empty" in message(originals["llama"], target, error=VlgenError)
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "result"]


def test_a_disk_without_room_is_told_before_anything_is_written(tmp_path, originals, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 1000}))
    assert "GB are free" in message(originals["llama"], tmp_path / "out", error=VlgenError)
    assert list(tmp_path.iterdir()) == []


def test_sizes_and_bits_are_told(tmp_path, originals, capsys):
    target = convert(originals["llama"], tmp_path / "out", quantize=True, q_bits=8)
    captured = capsys.readouterr()
    assert captured.out == ""
    shard, summary = captured.err.splitlines()
    assert shard.startswith("mlx_vlgen: model.safetensors (")
    tensors = stored(target).values()
    bits = sum(value.nbytes for value in tensors) * 8 / sum(value.size for value in draw(LLAMA).values())
    after, before = ((folder / "model.safetensors").stat().st_size / 1e6 for folder in (target, originals["llama"]))
    assert summary == f"mlx_vlgen: {target}: {after:.1f} MB, {bits:.3f} bits per weight; it was {before:.1f} MB"


# -- uploading


class Hub:
    """HfApi's two methods, noting their arguments."""

    calls: ClassVar[list] = []

    def create_repo(self, repo, **options):
        self.calls.append((repo, options))

    def upload_folder(self, **options):
        self.calls.append(options)
        if self.calls[0][0] == "owner/broken":
            raise ConnectionError("no route")


def test_uploading(tmp_path, originals, monkeypatch, capsys):
    monkeypatch.setattr(CONVERT, "HfApi", Hub)
    monkeypatch.setattr(Hub, "calls", [])
    target = convert(originals["llama"], tmp_path / "dry", upload_repo="owner/name", dry_run=True)
    listed = capsys.readouterr().out.splitlines()
    assert Hub.calls == [] and "owner/name" in listed[0]
    assert [line.split()[1] for line in listed[1:]] == sorted(path.name for path in target.iterdir())
    assert 'load("owner/name")' in (target / "README.md").read_text()

    target = convert(originals["llama"], tmp_path / "real", upload_repo="owner/name")
    assert Hub.calls[0] == ("owner/name", {"exist_ok": True})
    assert (Hub.calls[1]["repo_id"], Hub.calls[1]["folder_path"]) == ("owner/name", target)
    assert capsys.readouterr().out == ""

    Hub.calls.clear()
    error_message = message(originals["llama"], tmp_path / "broken", error=VlgenError, upload_repo="owner/broken")
    assert "no route" in error_message and f"hf upload owner/broken {tmp_path / 'broken'}" in error_message
    assert (tmp_path / "broken" / "config.json").is_file()
