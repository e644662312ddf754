"""`POST /v1/marks`, ours: the boxes, points and polygons that an answer names, for the page to draw."""

import asyncio
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request

from ..grounding import Box, Mark, Point, for_model
from ..inputs.prompt import MediaInputs
from .errors import ApiError
from .parameters import Parameter, items, read_fields, text, whole
from .reply import Server
from .settings import MAX_MEDIA

MAX_ANSWER = 100_000
"""Characters of an answer: reading one that was made to be slow takes half a second."""

_FIELDS = (
    Parameter("model", text),
    Parameter("text", text),
    Parameter("sizes", items),
    Parameter("max_pixels", whole(1, 1 << 40), "media"),
)
_side = whole(1, 1 << 20)


async def find_marks(request: Request) -> dict[str, Any]:
    """Body: text; sizes: [[width, height], …] of the original pictures, all of the request that was answered; model and
    max_pixels as there. Gives {"marks": [[{"type", "points", "label"}, …], …]}, a list a picture, in its pixels; a box
    has two points, its upper left and its lower right corner. A mark that the answer puts onto a picture stands in that
    one's list and has its index as "picture"; any other stands in each list. ApiError names what is wrong."""
    server: Server = request.app.state.server
    async with server.place():
        try:
            body = await server.bodies.read(request.headers, request.receive)
        except ConnectionError:
            raise ApiError(400, "the client went away") from None
        groups = read_fields(_FIELDS, {}, body, None)
        call, media = groups["call"], MediaInputs(**groups["media"])
        answer, sizes = _answer(call), _sizes(call)
        async with server.models.lease(call.get("model")) as engine:
            find = for_model(engine.model, engine.processor, media)
            found = await asyncio.to_thread(
                lambda: [[_mark_json(mark) for mark in find(answer, size, i)] for i, size in enumerate(sizes)]
            )
    return {"marks": found}


def _answer(call: Mapping[str, Any]) -> str:
    answer: str = call.get("text", "")
    if len(answer) > MAX_ANSWER:
        raise ApiError(413, f"text: more than {MAX_ANSWER:,} characters", "text", "too_large")
    return answer


def _sizes(call: Mapping[str, Any]) -> list[tuple[int, int]]:
    sizes = call.get("sizes", [])
    try:
        if len(sizes) > MAX_MEDIA:
            raise ValueError
        return [(_side(width), _side(height)) for width, height in sizes]
    except (TypeError, ValueError):
        raise ApiError(400, f"sizes: expected at most {MAX_MEDIA} of [width, height], in pixels", "sizes") from None


def _mark_json(mark: Mark) -> dict[str, Any]:
    if isinstance(mark, Box):
        kind, points = "box", [(mark.x1, mark.y1), (mark.x2, mark.y2)]
    elif isinstance(mark, Point):
        kind, points = "point", [(mark.x, mark.y)]
    else:
        kind, points = "polygon", list(mark.points)
    picture = {} if mark.picture is None else {"picture": mark.picture}
    return {"type": kind, "points": points, "label": mark.label, **picture}
