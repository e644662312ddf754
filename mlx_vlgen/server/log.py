"""The server's log: one JSON object a line, on stderr."""

import json
import time
import traceback
from typing import Any

from ..notices import print_stderr


def log(event: str, **fields: Any) -> None:
    now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    line = json.dumps({"time": now, "event": event, **fields}, default=str)
    print_stderr(line + "\n", end="")  # in one piece: several threads write


def log_error(error: BaseException) -> None:
    """An error of ours, which clients learn nothing of."""
    notes = getattr(error, "__notes__", [])
    text = "".join(traceback.format_exception(error))
    log("error", error=f"{type(error).__name__}: {error}", traceback="\n".join([text.rstrip(), *notes]))
