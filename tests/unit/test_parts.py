"""Parts of tensors are read from their files without the rest."""

from pathlib import Path

import pytest

from mlx_vlgen._runtime import mx
from mlx_vlgen.loading import parts
from mlx_vlgen.loading.checkpoint import read_weights

TENSORS = {
    "float": mx.arange(6000.0).reshape(60, 100),
    "half": mx.arange(6000.0).reshape(20, 3, 100).astype(mx.float16),
    "bfloat": mx.arange(6000.0).reshape(60, 100).astype(mx.bfloat16),
    "packed": mx.arange(6000, dtype=mx.uint32).reshape(60, 100),
    "scales": mx.arange(60, dtype=mx.uint8),
    "long": mx.arange(60, dtype=mx.int64),  # of a type that is read whole
}


@pytest.mark.parametrize("piece", [1, parts.PIECE])
def test_a_part_is_a_slice(piece: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "PIECE", piece)
    files = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    mx.save_safetensors(str(files[0]), {"half": TENSORS["half"], "float": TENSORS["packed"]})
    mx.save_safetensors(str(files[1]), {name: tensor for name, tensor in TENSORS.items() if name != "half"})
    stored = read_weights(files)
    stored["bfloat"] = stored["bfloat"].astype(mx.float32)  # as on a CPU, which the part has too
    take = parts.Parts(files, stored).take
    for name, tensor in [*stored.items(), ("made", stored["float"] + 1)]:
        for axis in range(-1, tensor.ndim):
            length = tensor.shape[axis]
            for start, stop in ((0, length), (1, length // 2), (length - 1, length), (2, 2)):
                part, index = take(tensor, axis, start, stop), [slice(None)] * tensor.ndim
                index[axis] = slice(start, stop)
                assert part.dtype == tensor.dtype and mx.array_equal(part, tensor[tuple(index)]), (name, axis, start)


def test_the_rest_is_not_read(tmp_path: Path) -> None:
    """What lies behind the part may be missing."""
    file = tmp_path / "a.safetensors"
    mx.save_safetensors(str(file), {"weight": mx.ones((64, 4096))})
    whole = parts.Parts([file], read_weights([file]))
    [tensor] = whole._stored.values()
    file.write_bytes(file.read_bytes()[: -32 * 4096 * 4])
    assert mx.array_equal(whole.take(tensor, 0, 8, 32), mx.ones((24, 4096)))
    assert mx.array_equal(whole.take(tensor, 0, 0, 0), mx.ones((0, 4096)))
    with pytest.raises(ValueError, match="ends before"):
        whole.take(tensor, 0, 8, 33)
