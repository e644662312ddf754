"""The import of MLX: the BLAS that is loaded before it, and the messages without one or without a backend."""

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest

from mlx_vlgen import _runtime

ROOT = Path(__file__).parents[2]
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="MLX's wheels for other systems have a fast BLAS")


def run(code, tmp_path, **environment):
    """Runs in a fresh interpreter; (exit status, stdout, stderr)."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": f"{tmp_path}:{ROOT}", "PATH": "/usr/bin:/bin", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout.strip(), done.stderr


@on_linux
def test_the_library_is_global_before_mlx(tmp_path):
    code = (
        "import ctypes; from mlx_vlgen._runtime import blas, blas_hint, mx\n"
        "process = ctypes.CDLL(None)\n"
        "print(blas() is not None, hasattr(process, 'cblas_sgemm'), blas_hint() is None)\n"
        "a = mx.ones((8, 8)); print((a @ a).sum().item())"
    )
    status, out, error = run(code, tmp_path)
    loaded, product = out.splitlines()
    assert status == 0, error
    assert loaded in ("True True True", "False False False")  # with and without a BLAS on this machine
    assert product == "512.0"


@on_linux
def test_off(tmp_path):
    code = "from mlx_vlgen._runtime import blas, blas_hint; print(blas(), blas_hint())"
    assert run(code, tmp_path, MLX_VLGEN_BLAS="off")[1] == "None None"


@on_linux
def test_no_number_of_lengths_ends_a_process_on_cuda(tmp_path):
    """MLX reads this when it is imported; what a user has set stays."""
    code = "import mlx_vlgen._runtime, os; print(*(os.environ[name] for name in mlx_vlgen._runtime._FOR_CUDA))"
    assert run(code, tmp_path)[1] == "0 1024"
    assert run(code, tmp_path, MLX_CUDA_SDPA_CACHE_SIZE="8")[1] == "0 8"


@on_linux
@pytest.mark.parametrize(("name", "message"), [("missing.so", "cannot open"), ("other.so", "")])
def test_a_chosen_library_that_is_no_blas(tmp_path, name, message):
    (tmp_path / "other.so").write_bytes(b"not a library")
    status, _, error = run("import mlx_vlgen._runtime", tmp_path, MLX_VLGEN_BLAS=str(tmp_path / name))
    assert status == 1
    assert f"ImportError: MLX_VLGEN_BLAS={tmp_path / name}" in error
    assert message in error


@on_linux
def test_a_library_without_cblas_is_not_made_global(monkeypatch):
    modes = []

    class Library:
        def __init__(self, name, mode):
            modes.append(mode)
            if name == "good":
                self.cblas_sgemm = None

    monkeypatch.setattr(ctypes, "CDLL", Library)
    assert "cblas_sgemm" in _runtime._load_globally("bad")
    assert modes == [ctypes.RTLD_LOCAL]
    assert _runtime._load_globally("good") is None
    assert modes[1:] == [ctypes.RTLD_LOCAL, ctypes.RTLD_GLOBAL]


@on_linux
def test_none_installed(monkeypatch):
    monkeypatch.delitem(sys.modules, "mlx.core")
    monkeypatch.delenv("MLX_VLGEN_BLAS", raising=False)
    monkeypatch.setattr(_runtime, "_LIBRARIES", ("libno-such-blas.so",))
    assert _runtime._preload_blas() is None
    monkeypatch.setattr(_runtime, "_blas", None)
    monkeypatch.setattr(_runtime, "_mlx_came_first", False)
    if _runtime.mx.default_device().type == _runtime.mx.DeviceType.cpu:
        assert "libopenblas0-pthread" in _runtime.blas_hint()
    monkeypatch.setattr(_runtime, "_mlx_came_first", True)
    if _runtime.mx.default_device().type == _runtime.mx.DeviceType.cpu:
        assert "imported before" in _runtime.blas_hint()


@on_linux
def test_after_mlx_it_is_too_late(monkeypatch):
    monkeypatch.delenv("MLX_VLGEN_BLAS", raising=False)
    assert "mlx.core" in sys.modules
    assert _runtime._preload_blas() is None


def test_no_search_elsewhere(monkeypatch):
    monkeypatch.delitem(sys.modules, "mlx.core")
    monkeypatch.setattr(_runtime.sys, "platform", "darwin")
    monkeypatch.setattr(_runtime, "_load_globally", lambda library: pytest.fail("looked for a BLAS"))
    assert _runtime._preload_blas() is None
    assert _runtime.blas_hint() is None


@on_linux
def test_mlx_without_a_backend_names_the_extras(tmp_path):
    (tmp_path / "mlx").mkdir()
    (tmp_path / "mlx/__init__.py").write_text("")
    (tmp_path / "mlx/core.py").write_text("raise ImportError('libmlx.so: cannot open shared object file')")
    status, _, error = run("import mlx_vlgen._runtime", tmp_path)
    assert status == 1
    for message in ("libmlx.so", '"mlx-vlgen[cpu]"', '"mlx-vlgen[cuda12]"', '"mlx-vlgen[cuda13]"'):
        assert message in error
    assert "direct cause" not in error


def test_importing_mlx_lm_leaves_the_limit_of_open_files(tmp_path):
    code = (
        "import resource; before = resource.getrlimit(resource.RLIMIT_NOFILE)\n"
        "import mlx_vlgen._mlx_lm; print(resource.getrlimit(resource.RLIMIT_NOFILE) == before)"
    )
    assert run(code, tmp_path)[1] == "True"


@on_linux
def test_memory_that_is_free_goes_back_to_the_system(tmp_path):
    """Of a thread, too, and what lies before a block that is used."""
    code = (
        "import re, threading; from pathlib import Path; from mlx_vlgen._runtime import mx, return_memory, share_heap\n"
        "def resident(): return int(re.search(r'RssAnon:\\s+(\\d+)', Path('/proc/self/status').read_text())[1])\n"
        "def work():\n"
        "    blocks = [b'x' * 65000 for _ in range(1000)]\n"
        "    kept.append(blocks[900]); del blocks; before.append(resident())\n"
        "share_heap(); kept, before = [], []\n"
        "thread = threading.Thread(target=work); thread.start(); thread.join()\n"
        "mx.eval(mx.zeros(1 << 20)); assert mx.get_cache_memory()\n"
        "return_memory(); print(mx.get_cache_memory(), before[0] - resident() > 40_000)"
    )
    status, out, error = run(code, tmp_path)
    assert status == 0, error
    assert out == f"0 {hasattr(ctypes.CDLL(None), 'malloc_trim')}"
