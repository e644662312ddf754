"""The only door to MLX: every other module takes `mx` and `nn` from here.

MLX's CPU wheel for Linux has the reference BLAS, which is about twenty times slower at matrix products than OpenBLAS
or MKL. The dynamic linker binds a symbol to the first library that exports it. So this module first loads a library
with `cblas_sgemm` globally, then imports MLX.

`MLX_VLGEN_BLAS=off` leaves MLX's BLAS in place; `MLX_VLGEN_BLAS=/path/to/lib.so` chooses one.

On Linux it also sets variables that MLX's CUDA backend reads when it is imported, where the user has not: `_FOR_CUDA`.
"""

import ctypes
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

_SETTING = "MLX_VLGEN_BLAS"

# Threaded builds first: on Fedora libopenblas.so.0 is the serial one. Those with 64-bit integers are other libraries.
_LIBRARIES = (
    "libopenblasp.so.0",
    "libopenblas.so.0",
    "libopenblaso.so.0",
    "libopenblas.so",
    "libmkl_rt.so.3",
    "libmkl_rt.so.2",
    "libmkl_rt.so.1",
    "libblis.so.4",
)

# cuDNN's attention has a plan for each length of a prompt, and MLX keeps 256. After twice as many it raises "Cache
# thrashing is happening", which ends whoever reads prompts of all lengths for long; plans cost 43 ms on an H100.
_FOR_CUDA = {"MLX_ENABLE_CACHE_THRASHING_CHECK": "0", "MLX_CUDA_SDPA_CACHE_SIZE": "1024"}

_NO_BACKEND = """MLX cannot be imported: {reason}
On Linux MLX needs a backend beside it. Install the extra for this machine:
  pip install "mlx-vlgen[cpu]"     no GPU
  pip install "mlx-vlgen[cuda12]"  NVIDIA, CUDA 12
  pip install "mlx-vlgen[cuda13]"  NVIDIA, CUDA 13"""


def _load_globally(library: str) -> str | None:
    """Load `library` globally if it is a BLAS for C, and return None; otherwise return the reason why not."""
    try:
        candidate = ctypes.CDLL(library, mode=ctypes.RTLD_LOCAL)
    except OSError as error:
        return str(error)
    if not hasattr(candidate, "cblas_sgemm"):
        return "it does not export cblas_sgemm"
    ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)
    return None


def _preload_blas() -> str | None:
    """Load the BLAS that `MLX_VLGEN_BLAS` names, or the first that is installed, and return its name; None for none."""
    setting = os.environ.get(_SETTING, "")
    if sys.platform != "linux" or "mlx.core" in sys.modules or setting == "off":
        return None
    if setting:
        if reason := _load_globally(setting):
            raise ImportError(
                f"{_SETTING}={setting}: cannot be used as MLX's BLAS: {reason}. "
                "Give the path of a shared library that exports cblas_sgemm, or 'off', or unset it."
            )
        return setting
    # pip and conda install MKL and OpenBLAS into the environment, which the dynamic linker does not search.
    in_environment = [Path(sys.prefix, "lib", name) for name in _LIBRARIES]
    for library in [*(str(path) for path in in_environment if path.exists()), *_LIBRARIES]:
        if _load_globally(library) is None:
            return library
    return None


_mlx_came_first = "mlx.core" in sys.modules
_blas = _preload_blas()
if sys.platform == "linux":
    for _name, _value in _FOR_CUDA.items():
        os.environ.setdefault(_name, _value)

try:
    import mlx.core as mx
    from mlx import nn
    from mlx.utils import tree_flatten, tree_unflatten
except ImportError as error:
    if sys.platform != "linux":
        raise
    raise ImportError(_NO_BACKEND.format(reason=error)) from None


def blas() -> str | None:
    """The BLAS library that was loaded in the place of MLX's; None when MLX uses the one in its wheel."""
    return _blas


# Names of what gives and sets the threads of OpenBLAS, MKL and BLIS.
_BLAS_THREADS = (
    ("openblas_get_num_threads", "openblas_set_num_threads"),
    ("MKL_Get_Max_Threads", "MKL_Set_Num_Threads"),
    ("bli_thread_get_num_threads", "bli_thread_set_num_threads"),
)
_limits: list[int] = []  # of those who are inside `blas_threads`
_limits_lock = threading.Lock()


@contextmanager
def blas_threads(count: int) -> Iterator[None]:
    """Have each product of matrices on the CPU take at most so many threads meanwhile, in this process. MLX's own BLAS
    takes one."""
    get, set_to = _thread_functions()
    with _limits_lock:
        if not _limits:
            _limits.append(get())  # what it was
        _limits.append(count)
        set_to(min(_limits))
    try:
        yield
    finally:
        with _limits_lock:
            _limits.remove(count)
            set_to(min(_limits))
            if len(_limits) == 1:
                _limits.clear()


@cache
def _thread_functions() -> tuple[Callable[[], int], Callable[[int], object]]:
    library = None if _blas is None else ctypes.CDLL(_blas)
    for get, set_to in _BLAS_THREADS:
        if hasattr(library, get):
            return getattr(library, get), getattr(library, set_to)
    return lambda: 1, lambda count: None


def blas_hint() -> str | None:
    """One line for a person whose CPU runs could be faster; None when there is nothing to gain."""
    off = os.environ.get(_SETTING) == "off"
    if sys.platform != "linux" or _blas is not None or off or mx.default_device().type != mx.DeviceType.cpu:
        return None
    if _mlx_came_first:
        return "MLX was imported before mlx_vlgen and keeps its slow BLAS: import from mlx_vlgen first."
    return (
        "MLX runs on the CPU with its slow BLAS; OpenBLAS makes reading prompts about twenty times faster: "
        f"apt-get install libopenblas0-pthread, or set {_SETTING} to the path of one."
    )


def memory_available() -> int | None:
    """Bytes that are free on MLX's default device; None where that is not known."""
    if mx.default_device().type == mx.DeviceType.gpu:
        info = mx.device_info()
        if "free_memory" in info:  # CUDA
            return int(info["free_memory"])
        limit = info.get("max_recommended_working_set_size")  # Metal
        return None if limit is None else int(limit) - mx.get_active_memory()
    if sys.platform != "linux":
        return None
    with open("/proc/meminfo", encoding="ascii") as file:
        fields = dict(line.split(":", 1) for line in file)
    return int(fields["MemAvailable"].split()[0]) * 1024


def return_memory() -> None:
    """Give back to the system what MLX keeps for arrays to come, and with glibc what lies free in its heaps: a server
    keeps 80 MB of both after some hundred requests."""
    mx.clear_cache()
    if trim := getattr(_c_library(), "malloc_trim", None):
        trim(0)


def share_heap() -> None:
    """Have threads that begin from now on allocate in one heap of glibc's. Of heaps of their own `return_memory` leaves
    the ends: 10 MB at times."""
    if set_option := getattr(_c_library(), "mallopt", None):
        set_option(_M_ARENA_MAX, 1)


_M_ARENA_MAX = -8  # glibc's malloc.h


def _c_library() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if sys.platform == "linux" else None


__all__ = [
    "blas",
    "blas_hint",
    "blas_threads",
    "memory_available",
    "mx",
    "nn",
    "return_memory",
    "share_heap",
    "tree_flatten",
    "tree_unflatten",
]
