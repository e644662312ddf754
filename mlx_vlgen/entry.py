"""The process of a command. From its first line to its last Ctrl-C ends it with 130 and without a traceback.

`python -m mlx_vlgen…` imports this first, and so do the installed commands; it imports next to nothing itself.
"""

import os
import signal
import sys

_running = False  # whether there is something to unwind


def _interrupt(*_: object) -> None:
    """Ctrl-C: unwind what runs, once; where nothing runs, as while modules are imported, or still unwinds, leave."""
    global _running
    if not _running:
        os._exit(130)
    _running = False
    raise KeyboardInterrupt


def _unraisable(told: "sys.UnraisableHookArgs") -> None:
    """A Ctrl-C that came in a finalizer, which Python would print and forget, comes once more when that is over."""
    global _running
    if not isinstance(told.exc_value, KeyboardInterrupt):
        sys.__unraisablehook__(told)
        return
    _running = True
    signal.signal(signal.SIGALRM, _interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.05)


def heed_interrupts() -> None:
    """Take Ctrl-C over from Python, unless whoever started this process wants it ignored."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)
        sys.unraisablehook = _unraisable


def _open_streams() -> None:
    """Take the places of closed streams, lest the next file that is opened, the weights, be taken for stdin."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def run(command: str) -> None:
    """Run a function of `cli` and end the process with the code it returns."""
    global _running
    heed_interrupts()
    _open_streams()
    from . import cli

    try:
        try:
            _running = True
            code = getattr(cli, command)()
        except SystemExit as ended:  # argparse's
            code = ended.code
        _running = False
    except KeyboardInterrupt:
        code = 130
    if code == 130:
        # Threads that still download must not keep the process. And where the interrupt came in code that is made from
        # text, as a dataclass's is, Python would end by the signal whatever the code: it notes that at the raise.
        os._exit(code)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is done and written
    sys.exit(code)


def commands() -> None:
    run("main")


def generate() -> None:
    run("main_generate")


def convert() -> None:
    run("main_convert")
