"""Finding a checkpoint: built in, on disk, in the cache without a network, on a stand-in for the Hub on loopback."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hub_stand_in import COMMIT, Hub
from tiny_checkpoints import LLAMA, QWEN3_VL, draw, forbid_network, logits, write

import mlx_vlgen.demo
from mlx_vlgen.errors import LoadError, UnreachableError, UnsupportedError
from mlx_vlgen.loading import hub, load

ROOT = Path(__file__).parents[2]


def refused(name, *rest):
    with pytest.raises(LoadError) as caught:
        hub.locate(name, *rest)
    assert caught.value.__cause__ is None
    return str(caught.value)


# -- without a network


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty Hugging Face cache, and no network at all."""
    forbid_network(monkeypatch)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def write_cached(cache, repo, shards=1):
    """A whole copy of a text checkpoint, laid out as huggingface_hub does: links to blobs."""
    folder = cache / f"models--{repo.replace('/', '--')}"
    snapshot = write(folder / "snapshots" / COMMIT, LLAMA, draw(LLAMA), shards)
    (folder / "refs").mkdir()
    (folder / "refs/main").write_text(COMMIT)
    (folder / "blobs").mkdir()
    for index, path in enumerate(sorted(snapshot.iterdir())):
        blob = folder / "blobs" / f"{index:040x}"
        path.rename(blob)
        path.symlink_to(blob)
    return snapshot


def test_demo_is_built_in(tmp_path, monkeypatch, capsys):
    built_in = tmp_path / "package/demo/model"
    built_in.mkdir(parents=True)
    assert hub.DEMO == mlx_vlgen.demo.MODEL
    monkeypatch.setattr(hub, "DEMO", built_in)
    monkeypatch.chdir(tmp_path)
    assert hub.locate("demo") == built_in
    (tmp_path / "demo").mkdir()
    assert hub.locate("demo") == built_in
    assert capsys.readouterr().err == ""
    (tmp_path / "demo/config.json").write_text("{}")
    assert hub.locate("demo") == Path("demo")
    assert "./demo" in capsys.readouterr().err


def test_a_folder(tmp_path, monkeypatch):
    assert hub.locate(tmp_path) == tmp_path
    assert hub.locate(str(tmp_path)) == tmp_path
    with pytest.raises(UnsupportedError, match="'v2' is for ids"):
        hub.locate(tmp_path, "v2")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    assert hub.locate("~/model") == tmp_path / "model"


def test_a_path_that_does_not_exist_is_not_looked_for_on_the_hub(tmp_path, cache):
    (tmp_path / "qwen3-vl").mkdir()
    assert f"Did you mean {tmp_path / 'qwen3-vl'}?" in refused(tmp_path / "qwen3_vl")
    for name in (str(tmp_path / "nothing/like/it"), "./nothing", "~/nothing", "a/b/c", Path("owner/name"), "a\\b"):
        assert "does not exist" in refused(name)


def test_a_file(tmp_path):
    for name, parts in (("model.safetensors", f"Give the folder it lies in: {tmp_path}"), ("m.gguf", "GGUF")):
        (tmp_path / name).write_bytes(b"")
        assert parts in refused(tmp_path / name)


@pytest.mark.parametrize("name", ["", "owner name", "owner/na me", "-owner/name", "owner/name.git", "owner--x/name"])
def test_no_id(name, cache):
    assert "owner/name" in refused(name)


def test_a_whole_copy_in_the_cache(cache):
    snapshot = write_cached(cache, "someone/llama")
    assert hub.locate("someone/llama").samefile(snapshot)
    assert hub.locate("someone/llama", "main").samefile(snapshot)
    assert hub.locate("someone/llama", COMMIT).samefile(snapshot)
    model, _ = load("someone/llama")
    assert logits(model).shape == (12, 64)


@pytest.mark.parametrize("lost", ["config.json", "model-00002-of-00003.safetensors", "tokenizer"])
def test_a_part_in_the_cache_is_not_enough(cache, lost):
    snapshot = write_cached(cache, "someone/llama", shards=3)
    for path in snapshot.glob(f"{lost}*"):
        path.unlink()
    with pytest.raises(UnreachableError, match=r"no whole copy in the cache .* HF_HUB_OFFLINE"):
        hub.locate("someone/llama")


@pytest.mark.parametrize(
    "lost", ["config.json", "model-00002-of-00003.safetensors", "tokenizer.json", "model.safetensors.index.json"]
)
def test_a_link_to_nothing_in_the_cache_is_a_part_and_named(cache, lost):
    """As a pruned cache leaves it: the snapshot's links are there, and a blob is not."""
    snapshot = write_cached(cache, "someone/llama", shards=3)
    (snapshot / lost).resolve().unlink()
    assert (snapshot / lost).is_symlink()
    message = refused("someone/llama")
    assert "no whole copy in the cache" in message and lost in message


@pytest.mark.parametrize("lost", ["model.safetensors", "tokenizer_config.json"])
def test_a_folder_with_a_link_to_nothing_is_not_loaded(tmp_path, lost):
    folder = write(tmp_path / "llama", LLAMA, draw(LLAMA))
    (folder / lost).unlink()
    (folder / lost).symlink_to(tmp_path / "gone")
    with pytest.raises(LoadError, match=f"{lost} is a link to a file that is not there"):
        load(folder)


def test_another_revision_is_not_in_the_cache(cache):
    write_cached(cache, "someone/llama")
    assert "no whole copy" in refused("someone/llama", "v2")


def test_the_nearest_cached_name(cache):
    write_cached(cache, "someone/llama-3b")
    assert "In the cache is someone/llama-3b." in refused("someone/lama-3b")


def test_a_refused_checkpoint_in_the_cache_is_not_asked_for_again(cache):
    snapshot = write_cached(cache, "someone/llama")
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").write_text('{"model_type": "t5", "is_encoder_decoder": true}')
    assert "encoder-decoder" in refused("someone/llama")


# -- with one

NEEDED = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]
NOT_NEEDED = [
    "pytorch_model.bin",
    "modeling_qwen3_vl.py",
    "training_args.pt",
    "README.md",
    "consolidated.safetensors",
    "original/params.json",
    "onnx/model.safetensors",
]

# Each case is a name, a revision and what becomes of it, all in one fresh interpreter: constants are read on import.
CASES = """
import json, sys
import no_models
from mlx_vlgen.loading import hub
from mlx_vlgen.errors import LoadError
outcomes = {}
for name, revision in json.loads(sys.argv[1]):
    try:
        locate = hub.locate_adapter if "adapter" in name else hub.locate
        outcome = str(locate(name, *([revision] if revision else [])))
    except LoadError as error:
        outcome = f"{type(error).__name__}: {error}"
    outcomes[f"{name}@{revision}"] = outcome
print(json.dumps(outcomes))
"""


def locate_all(home, endpoint, cases, **environment):
    """({"name@revision": folder or error}, stderr) of `hub.locate` against a hub."""
    done = subprocess.run(
        [sys.executable, "-c", CASES, json.dumps(cases)],
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
            "HF_HOME": str(home),
            "HF_ENDPOINT": endpoint,
            "HF_HUB_DISABLE_XET": "1",
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory):
    """(hub, outcomes, stderr, home) of all cases, asked for once."""
    folder = write(tmp_path_factory.mktemp("source") / "c", QWEN3_VL, draw(QWEN3_VL))
    whole = {path.name: path.read_bytes() for path in folder.iterdir()} | {"chat_template.jinja": b"{{ messages }}"}
    whole |= dict.fromkeys(NOT_NEEDED, b"not needed")
    config = json.dumps(QWEN3_VL).encode()
    adapter = {"adapter_config.json": b"{}", "adapters.safetensors": b"x", "0000100_adapters.safetensors": b"y"}
    server = Hub(
        {
            "someone/whole": whole,
            "someone/gated": whole,
            "someone/pickles": {"config.json": config, "pytorch_model.bin": b"x"},
            "someone/gguf": {"model.Q4.gguf": b"x"},
            "someone/encoder": whole | {"config.json": b'{"model_type": "t5", "is_encoder_decoder": true}'},
            "someone/half": {name: data for name, data in whole.items() if not name.startswith("tokenizer")},
            "someone/adapter": adapter,
        },
        {
            "someone/gated": (403, "GatedRepo", "files"),
            "someone/private": (401, "", "all"),
            "someone/broken": (500, "", "all"),
        },
    )
    cases = [[f"someone/{name}", None] for name in ("whole", "gated", "pickles", "gguf", "encoder", "half", "adapter")]
    cases += [["someone/whle", None], ["someone/private", None], ["someone/broken", None], ["someone/whole", "v9"]]
    home = tmp_path_factory.mktemp("home")
    try:
        yield (server, *locate_all(home, server.url, cases), home)
    finally:
        server.close()


def fetched(stand_in, repo):
    return {file for name, file in stand_in[0].downloads if name == repo}


def test_a_download_fetches_only_what_is_needed(stand_in):
    _, outcomes, message, home = stand_in
    folder = Path(outcomes["someone/whole@None"])
    assert sorted(path.name for path in folder.iterdir()) == sorted(NEEDED)
    assert fetched(stand_in, "someone/whole") == set(NEEDED)
    assert folder.is_relative_to(home / "hub")
    # config.json came first: it says whether the rest is downloaded.
    size = sum((folder / name).stat().st_size for name in NEEDED[1:]) / 1e6
    assert f"mlx_vlgen: downloading someone/whole (4 files, {size:.1f} MB) to {home / 'hub'}" in message


def test_once_downloaded_the_hub_is_not_asked(stand_in):
    _, outcomes, _, home = stand_in
    again, message = locate_all(home, "http://127.0.0.1:9", [["someone/whole", None]])
    assert again == {"someone/whole@None": outcomes["someone/whole@None"]}
    assert message == ""


def test_a_part_is_completed(stand_in, tmp_path):
    server = stand_in[0]
    first, _ = locate_all(tmp_path, server.url, [["someone/whole", None]])
    folder = Path(first["someone/whole@None"])
    (folder / "model.safetensors").resolve().unlink()
    (folder / "model.safetensors").unlink()
    before = len(server.downloads)
    again, message = locate_all(tmp_path, server.url, [["someone/whole", None]])
    assert again == first
    assert "(1 file" in message
    assert server.downloads[before:] == [("someone/whole", "model.safetensors")]


def test_a_link_to_nothing_is_completed(stand_in, tmp_path):
    server = stand_in[0]
    first, _ = locate_all(tmp_path, server.url, [["someone/whole", None]])
    folder = Path(first["someone/whole@None"])
    (folder / "model.safetensors").resolve().unlink()
    before = len(server.downloads)
    again, _ = locate_all(tmp_path, server.url, [["someone/whole", None]])
    assert again == first
    assert server.downloads[before:] == [("someone/whole", "model.safetensors")]
    assert (folder / "model.safetensors").is_file()


def test_an_adapter(stand_in):
    folder = Path(stand_in[1]["someone/adapter@None"])
    assert (folder / "adapters.safetensors").read_bytes() == b"x"


@pytest.mark.parametrize(
    ("case", "parts"),
    [
        ("someone/gated@None", ["is gated", "accept a licence at http://127.0.0.1", "hf auth login"]),
        ("someone/whle@None", ["no model someone/whle", "spelling", "In the cache is someone/whole."]),
        ("someone/private@None", ["private", "hf auth login"]),
        ("someone/whole@v9", ["no revision 'v9'"]),
        ("someone/broken@None", ["HTTP 500"]),
        ("someone/pickles@None", ["pickled weights"]),
        ("someone/gguf@None", ["GGUF files"]),
        ("someone/encoder@None", ["encoder-decoder"]),
        ("someone/half@None", ["no tokenizer"]),
    ],
)
def test_what_went_wrong_and_what_to_do(stand_in, case, parts):
    message = stand_in[1][case]
    assert message.startswith("UnreachableError: " if "broken" in case else "LoadError: ")
    for part in parts:
        assert part in message


def test_what_is_refused_is_not_downloaded(stand_in):
    assert fetched(stand_in, "someone/pickles") == set()
    assert fetched(stand_in, "someone/gguf") == set()
    assert fetched(stand_in, "someone/encoder") == {"config.json"}


def test_gated_with_a_token(stand_in, tmp_path):
    outcomes, _ = locate_all(tmp_path, stand_in[0].url, [["someone/gated", None]], HF_TOKEN="hf_token")
    assert "no access yet" in outcomes["someone/gated@None"]


def test_no_hub_to_reach(tmp_path):
    outcomes, _ = locate_all(tmp_path, "http://127.0.0.1:9", [["someone/whole", None]])
    message = outcomes["someone/whole@None"]
    assert message.startswith("UnreachableError: ")
    for part in ("no whole copy in the cache", "http://127.0.0.1:9 cannot be reached", "Check the connection"):
        assert part in message
