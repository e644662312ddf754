"""`python -m mlx_vlgen.serve`: parsed flags to a server, which runs until Ctrl-C or SIGTERM."""

if __name__ == "__main__":  # before the imports below, which take a second: --help is instant, Ctrl-C works
    from .entry import run

    run("main_serve")

import argparse
import asyncio
import os
import plistlib
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ._runtime import share_heap
from .cli import on_ranks
from .engine.disk import default_folder
from .errors import UnsupportedError, VlgenError
from .loading import load
from .loading.checkpoint import weight_files
from .loading.hub import locate
from .notices import print_stderr

try:
    import uvicorn

    from .server.app import make_app
    from .server.models import Source
    from .server.security import Connection
    from .server.settings import Settings
except ModuleNotFoundError as error:
    if (error.name or "").startswith("mlx_vlgen"):  # a fault of ours
        raise
    raise UnsupportedError('serve needs packages that are not installed: pip install "mlx-vlgen[server]"') from error

KEY_VARIABLE = "MLX_VLGEN_API_KEY"
INTERRUPTED = 130


def settings_of(args: argparse.Namespace) -> Settings:
    """ValueError for what a server may not be; the message begins with the setting's name."""
    if args.media_path is not None and not Path(args.media_path).is_dir():
        raise ValueError(f"media_path={args.media_path}: no such folder")
    for name in ("max_queue", "max_batch_size", "max_tokens", "timeout", "max_body"):
        value = getattr(args, name)
        if value is not None and value <= 0:
            raise ValueError(f"{name}={value}: expected more than 0")
    if not 0 <= args.port < 1 << 16:
        raise ValueError(f"port={args.port}: expected 0 to 65535")
    return Settings(
        host=args.host,
        port=args.port,
        api_key=read_key(args),
        allow_origins=tuple(origin.rstrip("/") for origin in args.allow_origin),
        allow_hosts=tuple(args.allow_host),
        media_path=None if args.media_path is None else Path(args.media_path),
        lenient=args.lenient,
        log_prompts=args.log_prompts,
        max_queue=args.max_queue,
        max_batch_size=args.max_batch_size,
        max_tokens=args.max_tokens,
        timeout=args.timeout,
        max_body_bytes=args.max_body << 20,
        reuse=not args.no_reuse,
        reuse_folder=None if on_ranks(args) else default_folder(),
    )


def read_key(args: argparse.Namespace) -> str | None:
    """Of the flag, the file or the environment, in this order. ValueError for an empty one."""
    source, key = "api_key", args.api_key
    if args.api_key_file is not None:
        source = "api_key_file"
        try:
            key = Path(args.api_key_file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"api_key_file={args.api_key_file}: cannot be read: {error}") from None
    elif key is None:
        source, key = KEY_VARIABLE, os.environ.get(KEY_VARIABLE)
    if key == "":
        raise ValueError(f"{source}: the key is empty")
    return key


def serve(args: argparse.Namespace, settings: Settings, load_model: Callable[[argparse.Namespace], Any]) -> int:
    """Serve until a signal comes. The exit code. load_model: loads args.model, or the default one, and names it
    there."""
    names = args.model or [None]
    if len(set(names)) < len(names):
        raise ValueError(f"--model: {next(name for name in names if names.count(name) > 1)} is given twice")
    if names[1:] and on_ranks(args):
        raise ValueError("--model: several ranks serve one model: give it once")
    if names[1:] and args.adapter_path:
        raise ValueError("--adapter-path belongs to one model: give one --model with it")
    listener = bind(settings)
    share_heap()
    args.model = names[0]
    first = [load_model(args)]
    options = {"revision": args.revision, "dtype": args.dtype, "quantization": args.quantize}

    def source(name: str, loaded: list[Any]) -> Source:
        return Source(lambda: loaded.pop() if loaded else load(name, **options), lambda: 0 if loaded else size(name))

    sources = {args.model: source(args.model, first)} | {name: source(name, []) for name in names[1:]}
    config = uvicorn.Config(
        make_app(sources, settings),
        http=Connection,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=int(settings.drain_seconds),
        h11_max_incomplete_event_size=32 << 10,
    )
    server = _Server(config)
    asyncio.run(server.serve([listener]))
    return INTERRUPTED if server.interrupted else 0


def launchd_plist(args: argparse.Namespace, arguments: Sequence[str]) -> str:
    """A property list for ~/Library/LaunchAgents: the same server, started at login and again after a fault."""
    if args.api_key is not None or KEY_VARIABLE in os.environ:
        raise ValueError("--launchd: a key does not belong into this file: give --api-key-file")
    flags = [argument for argument in arguments if argument != "--launchd"]
    value = {
        "Label": "mlx-vlgen.serve",
        "ProgramArguments": [sys.executable, "-m", "mlx_vlgen.serve", *flags],
        "WorkingDirectory": os.getcwd(),
        "RunAtLoad": True,
        "KeepAlive": {"SuccessfulExit": False},
        "StandardErrorPath": str(Path.home() / "Library" / "Logs" / "mlx-vlgen.log"),
    }
    return plistlib.dumps(value).decode()


def size(name: str) -> int:
    """Bytes of a checkpoint's weights."""
    return sum(path.stat().st_size for path in weight_files(locate(name)))


def bind(settings: Settings) -> socket.socket:
    """The socket, before a model is loaded: an address that is taken is told at once."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        where = f"{settings.host}:{settings.port}"
        raise VlgenError(
            f"cannot listen on {where} ({error.strerror or error}): give another --host or --port"
        ) from None
    return listener


class _Server(uvicorn.Server):
    """Says where it answers. A signal lets running answers come to their end, a second one does not."""

    interrupted = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        print_stderr(f"mlx_vlgen: a page on {url}/ and, for programs, answering on {url}/v1")

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._on_signal, number)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)

    def _on_signal(self, number: int) -> None:
        self.interrupted |= number == signal.SIGINT
        self.force_exit |= self.should_exit
        self.should_exit = True
