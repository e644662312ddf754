import base64
from collections.abc import Iterator
from typing import Any

import pytest
from parity import media

from mlx_vlgen import GenerationResult, generate, load
from mlx_vlgen.server.models import Source

from .serving import Loaded, Running, running

SHAPES = media.DEMO / "pictures" / "shapes.png"


@pytest.fixture(scope="session")
def loaded() -> Loaded:
    return load("demo")


@pytest.fixture(scope="session")
def served(loaded: Loaded) -> Iterator[Running]:
    """Open to all, with the built-in model as "demo", and as "other"."""
    sources = {"demo": Source(lambda: loaded), "other": Source(lambda: loaded)}
    with running(sources, media_path=media.DEMO / "pictures") as server:
        yield server


@pytest.fixture(scope="session")
def data_uri() -> str:
    return "data:image/png;base64," + base64.b64encode(SHAPES.read_bytes()).decode()


@pytest.fixture(scope="session")
def messages(data_uri: str) -> list[dict[str, Any]]:
    """About a picture."""
    picture = {"type": "image_url", "image_url": {"url": data_uri, "detail": "high"}}
    return [{"role": "user", "content": [picture, {"type": "text", "text": "Describe this image."}]}]


@pytest.fixture(scope="session")
def described(loaded: Loaded) -> GenerationResult:
    """What `generate` says of it, after it has thought."""
    messages = [{"role": "user", "content": "Describe this image."}]
    return generate(*loaded, messages, image=SHAPES, max_tokens=24, enable_thinking=True, thinking_budget=6)
