"""Damaged and hostile checkpoints by seed: a whole one in a folder, changed in one place.

`mutations` says where; each is a name and a function that writes the changed copy into a new folder. Nothing here
imports the package or pytest, so that a worker process may.
"""

import json
import random
import shutil
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class Mutation:
    """One changed checkpoint. name: tells the file and the change; apply: makes it in a copy of the whole one."""

    name: str
    apply: Callable[[Path], None]

    def write(self, base: Path, folder: Path) -> Path:
        """The checkpoint in `base`, changed, in the new folder `folder`."""
        shutil.copytree(base, folder)
        self.apply(folder)
        return folder


VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 7, 64, 10**6, 10**7, 10**9, 10**18, 2**31, 2**63, -(2**63), 0.5, 1e-30, -1e300,
    float("nan"), float("inf"), "", "a", "12", "\x00", "\ud800", "../" * 20, [], [0], [1, 2, 3], ["a"], [None], [[]],
    {}, {"a": 1}, {"height": 0, "width": 0}, {"shortest_edge": 10**18, "longest_edge": -1}, [1e308] * 3, [0, 0, 0],
)  # fmt: skip
"""What a field may become."""

SIZED = (
    "num_hidden_layers", "depth", "num_layers", "hidden_size", "intermediate_size", "vocab_size", "head_dim",
    "num_attention_heads", "num_key_value_heads", "num_heads", "patch_size", "image_size", "spatial_merge_size",
    "temporal_patch_size", "merge_size", "image_std", "image_mean", "size", "crop_size", "resample", "eos_token_id",
    "max_position_embeddings", "rope_theta", "rope_scaling", "rope_parameters", "layer_types", "text_config",
    "vision_config", "model_type", "num_position_embeddings", "deepstack_visual_indexes", "scale_factor",
)  # fmt: skip
"""Fields that shapes, loops and divisions are made of: they are chosen more often than others."""


def mutations(base: Path, seed: int = 0, count: int = 200) -> Iterator[Mutation]:
    """`count` changes of the checkpoint in `base`, the same for the same seed: damaged files, headers and fields
    that are known for it, then single fields at random."""
    draw = random.Random(f"{base.name} {seed}")
    fixed = known_mutations(base)
    draw.shuffle(fixed)
    yield from fixed[:count]
    for _ in range(count - len(fixed)):
        yield changed_field(base, draw)


def known_mutations(base: Path) -> list[Mutation]:
    return [*damaged_files(base), *damaged_headers(base), *damaged_tensors(base), *wrong_tokens(base), *known(base)]


# One field of a JSON file


def json_files(base: Path) -> list[str]:
    """The names of the checkpoint's JSON files."""
    return sorted(path.name for path in base.glob("*.json"))


def changed_field(base: Path, draw: random.Random) -> Mutation:
    """A field of a JSON file, at any depth, gets another value or goes missing."""
    name = draw.choice([*json_files(base), *["config.json"] * 3])
    places = list(_places(json.loads((base / name).read_text(encoding="utf-8"))))
    telling = [place for place in places if place[-1] in SIZED]
    place = draw.choice(telling if telling and draw.random() < 0.6 else places)
    value = draw.choice((*VALUES, _MISSING))
    return Mutation(f"{name} {'.'.join(map(str, place))} = {str(value)[:40]}", _setter(name, place, value))


_MISSING = type("Missing", (), {"__repr__": lambda self: "missing"})()
_Place = tuple[str | int, ...]


def _places(value: Any, at: _Place = (), most: int = 12) -> Iterator[_Place]:
    """The places of all values within a JSON value; of a long list or dictionary only the first and last ones."""
    keys: list[Any] = list(value) if isinstance(value, dict) else list(range(len(value)) if type(value) is list else ())
    for key in keys if len(keys) <= 4 * most else (*keys[:most], *keys[-most:]):
        yield (*at, key)
        yield from _places(value[key], (*at, key), most)


def _setter(name: str, place: _Place, value: Any) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        whole = json.loads((folder / name).read_text(encoding="utf-8"))
        inner = whole
        for key in place[:-1]:
            inner = inner[key]
        if value is _MISSING:
            del inner[place[-1]]
        else:
            inner[place[-1]] = value
        (folder / name).write_text(json.dumps(whole), encoding="utf-8")

    return apply


# Whole files


def damaged_files(base: Path) -> Iterator[Mutation]:
    """Each file empty, cut, of another kind, nested too deeply, enormous, a folder, a link to nothing, not there."""

    def written(name: str, data: bytes) -> Callable[[Path], None]:
        return lambda folder: (folder / name).write_bytes(data) and None

    def removed(name: str) -> Callable[[Path], None]:
        return lambda folder: (folder / name).unlink()

    def folded(name: str) -> Callable[[Path], None]:
        def apply(folder: Path) -> None:
            (folder / name).unlink()
            (folder / name).mkdir()

        return apply

    def dangling(name: str) -> Callable[[Path], None]:
        def apply(folder: Path) -> None:
            (folder / name).unlink()
            (folder / name).symlink_to(folder / "blobs" / "gone")

        return apply

    def enormous(name: str) -> Callable[[Path], None]:
        def apply(folder: Path) -> None:
            with (folder / name).open("r+b") as file:
                file.truncate(1 << 40)  # sparse: it takes no room

        return apply

    for path in sorted(base.iterdir()):
        name, data = path.name, path.read_bytes()
        kinds = {"removed": removed(name), "a folder": folded(name), "a link to nothing": dangling(name)}
        kinds |= {"empty": written(name, b""), "cut": written(name, data[: len(data) // 2])}
        kinds |= {"zeros": written(name, bytes(64))}
        if path.suffix == ".json":
            kinds |= {
                "a list": written(name, b"[]"),
                "null": written(name, b"null"),
                "a string": written(name, b'"a"'),
                "an empty object": written(name, b"{}"),
                "with a mark of its bytes' order": written(name, b"\xef\xbb\xbf" + data),
                "not UTF-8": written(name, data[:-2] + b"\xff\xfe}"),
                "in UTF-16": written(name, data.decode().encode("utf-16")),
                "nested lists": written(name, b"[" * 200_000),
                "nested objects": written(name, b'{"a":' * 200_000),
                "a nested value": written(name, data.rstrip()[:-1] + b',"deep":' + b"[" * 5000 + b"]" * 5000 + b"}"),
                "a key twice": written(name, data.rstrip()[:-1] + b',"model_type":"llama","model_type":"qwen2"}'),
                "an endless number": written(name, data.rstrip()[:-1] + b',"big":' + b"9" * 10_000 + b"}"),
                "something after it": written(name, data + b"{}"),
                "enormous": enormous(name),
            }
        yield from (Mutation(f"{name} {kind}", apply) for kind, apply in kinds.items())


# The header of a safetensors file

Header = dict[str, Any]


def read_header(path: Path) -> tuple[Header, bytes]:
    """The header of a safetensors file, and its tensors' bytes."""
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def write_header(path: Path, header: bytes, data: bytes, length: int | None = None) -> None:
    """A safetensors file from a header as it is. length: what its first bytes say, default the truth."""
    path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + data)


def damaged_headers(base: Path) -> Iterator[Mutation]:
    """Headers whose length, JSON, types, shapes or places are lies."""

    def raw(header: bytes | None = None, length: int | None = None) -> Callable[[Path], None]:
        def apply(folder: Path) -> None:
            original, data = read_header(folder / WEIGHTS)
            whole = json.dumps(original).encode() if header is None else header
            write_header(folder / WEIGHTS, whole, data, length)

        return apply

    for length in (0, 1, 2**31, 2**63, 2**64 - 1):
        yield Mutation(f"{WEIGHTS} header of {length} bytes", raw(length=length))
    for text in (b"", b"[]", b"null", b"{", b"[" * 200_000, b'{"a":' * 200_000, b"\xff" * 9, b'{"a":1}', b'{"a":{}}'):
        yield Mutation(f"{WEIGHTS} header {text[:8]!r}", raw(text))
    entries: dict[str, tuple[str, Any]] = {
        "no dtype": ("dtype", _MISSING), "no shape": ("shape", _MISSING), "no place": ("data_offsets", _MISSING),
        "type 5": ("dtype", 5), "type F99": ("dtype", "F99"), "type F64": ("dtype", "F64"), "type U8": ("dtype", "U8"),
        "type I32": ("dtype", "I32"),
        "shape a": ("shape", "a"), "shape 10**18": ("shape", [10**18]), "shape -1": ("shape", [-1, 64]),
        "shape none": ("shape", None), "shape overflowing": ("shape", [2**32, 2**32]), "shape nested": ("shape", [[1]]),
        "shape zero": ("shape", [0, 64]), "shape twice": ("shape", [128, 64]), "shape in floats": ("shape", [1.5, 2]),
        "shape of many dimensions": ("shape", [1] * 2000),
        "place past the end": ("data_offsets", [2**40, 2**40 + 4]), "place negative": ("data_offsets", [-8, 0]),
        "place backwards": ("data_offsets", [8, 0]), "place huge": ("data_offsets", [0, 2**63]),
        "place of words": ("data_offsets", ["a", "b"]), "one place": ("data_offsets", [0]),
        "place beyond 64 bits": ("data_offsets", [0, 2**70]), "place in floats": ("data_offsets", [0.5, 8.5]),
    }  # fmt: skip
    for kind, (key, value) in entries.items():
        yield Mutation(f"{WEIGHTS} {kind}", _entry_setter(key, value))


def _entry_setter(key: str, value: Any) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        header, data = read_header(folder / WEIGHTS)
        entry = header[sorted(name for name in header if name != "__metadata__")[0]]
        entry.pop(key) if value is _MISSING else entry.update({key: value})
        write_header(folder / WEIGHTS, json.dumps(header).encode(), data)

    return apply


def damaged_tensors(base: Path) -> Iterator[Mutation]:
    """Tensors that are missing, of another shape or type, or too many; and indexes that name files elsewhere."""

    def reshaped(shape: Callable[[list[int]], list[int]]) -> Callable[[Path], None]:
        def apply(folder: Path) -> None:
            header, data = read_header(folder / WEIGHTS)
            names = sorted(name for name, entry in header.items() if name != "__metadata__" and len(entry["shape"]) > 1)
            for name in names:
                header[name]["shape"] = shape(header[name]["shape"])
            write_header(folder / WEIGHTS, json.dumps(header).encode(), data)

        return apply

    def renamed(old: str, new: str) -> Callable[[Path], None]:
        def apply(folder: Path) -> None:
            header, data = read_header(folder / WEIGHTS)
            header = {name.replace(old, new): entry for name, entry in header.items()}
            write_header(folder / WEIGHTS, json.dumps(header).encode(), data)

        return apply

    def indexed(files: Any) -> Callable[[Path], None]:
        def apply(folder: Path) -> None:
            (folder / WEIGHTS).rename(folder / "model-00001-of-00001.safetensors")
            (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": files}))

        return apply

    yield Mutation("tensors turned", reshaped(lambda shape: shape[::-1]))
    yield Mutation("tensors flat", reshaped(lambda shape: [_product(shape)]))
    yield Mutation("tensors with one more dimension", reshaped(lambda shape: [1, *shape]))
    yield Mutation("tensors of layers far away", renamed(".0.", ".99999999999999999999."))
    yield Mutation("tensors of no layer", renamed(".0.", "."))
    yield Mutation("tensors of layer -1", renamed(".0.", ".-1."))
    yield Mutation("tensors with scales of nothing", renamed(".bias", ".scales"))
    yield Mutation("tensors named alike", renamed(".weight", ""))
    outside: list[Any] = [
        "../outside.safetensors",
        "/etc/passwd",
        "",
        ".",
        "a\x00b.safetensors",
        "x" * 5000 + ".safetensors",
    ]
    for files in [*({"lm_head.weight": name} for name in outside), [], {}, None, {"a": 1}, {"a": None}, {"a": [[]]}]:
        yield Mutation(f"an index of {str(files)[:50]}", indexed(files))


def _product(shape: list[int]) -> int:
    out = 1
    for side in shape:
        out *= side
    return out


# Tokens


def wrong_tokens(base: Path) -> Iterator[Mutation]:
    """Tokens past the embeddings, and end tokens that are none."""

    def vocabulary(id: int) -> Callable[[Path], None]:
        def apply(folder: Path) -> None:
            whole = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
            whole["model"]["vocab"]["hi"] = id
            (folder / "tokenizer.json").write_text(json.dumps(whole), encoding="utf-8")

        return apply

    def added(id: int, special: bool) -> Callable[[Path], None]:
        def apply(folder: Path) -> None:
            whole = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
            flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
            whole["added_tokens"].append({"id": id, "content": "hi", "special": special, **flags})
            (folder / "tokenizer.json").write_text(json.dumps(whole), encoding="utf-8")

        return apply

    def ends(value: Any) -> Callable[[Path], None]:
        return lambda folder: (
            (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": value})) and None
        )

    for id in (999_999, -1, 2**32 - 1, 2**32, 10**18):
        yield Mutation(f"tokenizer.json hi: {id}", vocabulary(id))
        yield Mutation(f"tokenizer.json added token hi: {id}", added(id, False))
    for value in ("a", 10**9, -1, [1, "a"], {}, [[1]], 1.5, True, 2**70, [None]):
        yield Mutation(f"generation_config.json eos_token_id = {value}", ends(value))


# Each of these was once a raw error, a hang or a crash


def known(base: Path) -> Iterator[Mutation]:
    """Fields with values that were not refused once, where this checkpoint has the field."""
    quantizations = [
        {"bits": -4, "group_size": 64}, {"bits": 4, "group_size": 0}, {"bits": 4, "group_size": 64, "mode": "int4"},
        {"bits": "4", "group_size": 64}, [], "4bit", {"bits": None}, {"quant_method": 5}, {"quant_method": "awq"},
        {"quant_method": "awq", "bits": 0, "group_size": 0, "version": "gemm"},
        {"quant_method": "gptq", "bits": "a", "group_size": [], "version": "gemm"},
    ]  # fmt: skip
    for value in quantizations:
        for key in ("quantization", "quantization_config"):
            yield Mutation(f"config.json {key} = {value}", _setter("config.json", (key,), value))
    huge = (0, -1, 10**6, 10**7, 10**9, 10**18, "a", None, True, [], 2.5)
    for name in json_files(base):
        if name.startswith("tokenizer"):
            continue
        for place in _places(json.loads((base / name).read_text(encoding="utf-8"))):
            if place[-1] not in SIZED:
                continue
            values = ([0, 0, 0], [1], [-1, 1, 1], [float("nan")] * 3) if "image_" in str(place[-1]) else huge
            for value in values:
                yield Mutation(f"{name} {'.'.join(map(str, place))} = {value}", _setter(name, place, value))
