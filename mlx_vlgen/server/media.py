"""Which media a message may name, and how those from elsewhere are fetched."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import MediaError
from ..inputs.fetch import Limits
from ..inputs.media import describe_source, is_local, local_path, read_source
from .errors import ApiError

Messages = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class MediaRules:
    """folder: whose files may be named; None: no files. download: bounds of all downloads of a request together."""

    folder: Path | None = None
    download: Limits = Limits()

    def source(self, url: Any, place: str) -> str | Path:
        """What a message's URL means, before anything is read. ApiError for what it may not name."""
        if not isinstance(url, str) or not url:
            raise ApiError(400, f"{place}: expected a URL, https: or data:", param=place)
        if not is_local(url):
            return url.strip()
        name = describe_source(url)
        if self.folder is None:
            raise ApiError(
                400, f"{place}: {name}: files are not read: give a data: or https: URL (--media-path DIR allows "
                "those in DIR)", param=place,
            )  # fmt: skip
        folder = self.folder.resolve()
        try:
            path = (folder / local_path(url)).resolve()
            if path.is_relative_to(folder) and path.is_file():
                return path
        except (MediaError, OSError, ValueError, RuntimeError):
            pass  # what is wrong with a path elsewhere is not told
        raise ApiError(400, f"{place}: {name}: no such file in the folder of --media-path", param=place)


def fetch_remote(messages: Messages, limits: Limits) -> list[dict[str, Any]]:
    """Messages with the bytes of media that have a URL, all within one budget of time and size.
    MediaError for one that cannot be had."""
    deadline, left = time.monotonic() + limits.download_seconds, limits.max_download_bytes

    def fetched(part: Mapping[str, Any]) -> dict[str, Any]:
        nonlocal left
        source = part.get(part["type"])
        if part["type"] == "text" or not isinstance(source, str) or not source.lower().startswith(("http:", "https:")):
            return dict(part)
        seconds = max(deadline - time.monotonic(), 0.001)
        data = read_source(source, Limits(download_seconds=seconds, max_download_bytes=left))
        left -= len(data)
        return {**part, part["type"]: data}

    return [
        {**message, "content": [fetched(part) for part in message["content"]]}
        if isinstance(message.get("content"), list)
        else dict(message)
        for message in messages
    ]
