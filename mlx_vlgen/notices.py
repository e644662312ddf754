"""What a person should know and need not act on: one line on stderr."""

import sys


def notice(text: str) -> None:
    print(f"mlx_vlgen: {text}", file=sys.stderr, flush=True)
