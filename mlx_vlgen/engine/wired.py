"""Keeping the weights in memory while rows run, on a Mac."""

import threading

from .._runtime import mx

_lock = threading.Lock()
_users = 0
_before = 0


def acquire() -> None:
    """Let MLX wire as much memory as the device recommends, until the last user releases it: macOS otherwise takes
    the weights of a large model away between steps. Nothing to do where there is no Metal."""
    global _users, _before
    if not mx.metal.is_available():
        return
    with _lock:
        if _users == 0:
            _before = mx.set_wired_limit(int(mx.device_info()["max_recommended_working_set_size"]))
        _users += 1


def release() -> None:
    global _users
    if not mx.metal.is_available():
        return
    with _lock:
        _users -= 1
        if _users == 0:
            mx.set_wired_limit(_before)
