"""What a server allows, in one place."""

from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

MAX_DEPTH = 64
"""Objects and arrays inside each other, in a body."""

MAX_COMMAS = 500_000
"""In a body: each is another value that would be built in memory, while the bulk of a picture has none."""

MAX_MESSAGES = 2048
MAX_TEXT = 4 << 20
"""Characters of all text in a request."""

MAX_MEDIA = 64
"""Pictures, videos and sounds in a request."""

MAX_CHOICES = 16
"""Answers to one request (`n`, or prompts of a completion times `n`)."""


@dataclass(frozen=True)
class Settings:
    """Each with a flag or a reason.

    host, port: where to listen.
    api_key: what clients must show; None: nothing.
    allow_origins: web pages that may ask.
    allow_hosts: names, beside this machine's own, that a Host header may have.
    media_path: the folder whose files messages may name; None: no files.
    lenient: fields that are not known are logged and left out, instead of refused.
    log_prompts: write what is asked into the log.
    max_queue: requests that wait, at most.
    max_batch_size: rows that run together.
    max_tokens: of an answer, at most; None: what the context has room for.
    timeout: seconds that a request may take in all.
    max_body_bytes: of one request.
    held_bytes: of all bodies that are being read.
    body_seconds: that a body may take to come.
    send_seconds: that a client may take to read what is sent.
    header_seconds: that a request's head may take to come.
    keepalive_seconds: between signs of life in a stream.
    drain_seconds: that running answers get at the end.
    reuse: whether what requests begin alike with is computed once.
    reuse_folder: where that is on disk, too; None: nowhere.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    api_key: str | None = None
    allow_origins: tuple[str, ...] = ()
    allow_hosts: tuple[str, ...] = ()
    media_path: Path | None = None
    lenient: bool = False
    log_prompts: bool = False
    max_queue: int = 64
    max_batch_size: int = 32
    max_tokens: int | None = None
    timeout: float = 600.0
    max_body_bytes: int = 64 << 20
    held_bytes: int = 512 << 20
    body_seconds: float = 60.0
    send_seconds: float = 60.0
    header_seconds: float = 10.0
    keepalive_seconds: float = 10.0
    drain_seconds: float = 30.0
    reuse: bool = True
    reuse_folder: Path | None = None

    def __post_init__(self) -> None:
        """ValueError for an address that others reach without a key; the message begins with the setting's name."""
        if not self.api_key and not is_loopback(self.host):
            raise ValueError(
                f"host={self.host}: other machines reach this address, and there is no key: give --api-key, "
                "--api-key-file or MLX_VLGEN_API_KEY, or listen on 127.0.0.1"
            )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
