"""The process of a command: at any moment Ctrl-C ends it with exit code 130 and without a traceback.

`python -m mlx_vlgen…` and the installed commands import this first, so it imports next to nothing.
"""

import os
import signal
import sys
from contextlib import contextmanager

TYPE_CHECKING = False  # typing takes time to import
if TYPE_CHECKING:
    from collections.abc import Iterator

# What Ctrl-C does now, and once it has raised: "exit" at once, "raise" KeyboardInterrupt, or "pass".
_now = _next = "exit"


def _on_interrupt(*_: object) -> None:
    """Ctrl-C: raise KeyboardInterrupt once in the command; before it, after it, or while it unwinds, exit at once."""
    global _now
    if _now == "exit":
        os._exit(130)
    if _now == "raise":
        _now = _next
        raise KeyboardInterrupt


@contextmanager
def staying() -> "Iterator[None]":
    """A conversation, which Ctrl-C does not end: it does nothing but inside `interruptible`."""
    global _now, _next
    before = _now, _next
    _now = _next = "pass"
    try:
        yield
    finally:
        _now, _next = before


@contextmanager
def interruptible() -> "Iterator[None]":
    """What Ctrl-C ends inside `staying`: KeyboardInterrupt is raised once, for whoever enters this to catch, and
    nothing comes of another Ctrl-C while that unwinds."""
    global _now
    before, _now = _now, "raise"
    try:
        yield
    finally:
        _now = before


def _on_unraisable(unraisable: "sys.UnraisableHookArgs") -> None:
    """Repeat a Ctrl-C that came in a finalizer, once that is over: Python would print it and go on."""
    global _now
    if not isinstance(unraisable.exc_value, KeyboardInterrupt):
        sys.__unraisablehook__(unraisable)
        return
    _now = "raise"
    signal.signal(signal.SIGALRM, _on_interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.05)


def handle_interrupts() -> None:
    """Handle Ctrl-C, unless whoever started this process wants it ignored."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _on_interrupt)
        sys.unraisablehook = _on_unraisable


def _replace_closed_streams() -> None:
    """Open /dev/null in the place of each closed stream: the next file opened, the weights, would become stdin."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def run(command: str) -> None:
    """Run a function of `cli` and end the process with the code it returns."""
    global _now
    handle_interrupts()
    _replace_closed_streams()
    from . import cli

    try:
        try:
            _now = "raise"
            code = getattr(cli, command)()
        except SystemExit as system_exit:  # argparse's
            code = system_exit.code
        _now = "exit"
    except KeyboardInterrupt:
        code = 130
    if code == 130:
        # Threads that still download must not delay the exit. And where the interrupt came in code made with exec, as a
        # dataclass's methods are, Python would end by the signal, whatever the code.
        os._exit(code)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is done and written
    sys.exit(code)


def commands() -> None:
    run("main")


def generate() -> None:
    run("main_generate")


def batch() -> None:
    run("main_batch")


def convert() -> None:
    run("main_convert")


def chat() -> None:
    run("main_chat")


def serve() -> None:
    run("main_serve")


def plan() -> None:
    run("main_plan")
