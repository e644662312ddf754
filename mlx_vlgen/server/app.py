"""The routes, and what stands before them."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from .. import __version__
from .anthropic import read_messages
from .anthropic_format import MessagesFormat
from .call import Call
from .completions import CompletionFormat, read_completion
from .errors import ApiError, dump
from .log import log_error
from .marks import find_marks
from .media import MediaRules
from .models import Models, Source
from .openai import read_chat
from .openai_format import ChatFormat
from .parameters import Log
from .reply import Interface, Reply, Server
from .responses import Talks, read_response
from .responses_format import ResponsesFormat
from .security import Guard
from .settings import Settings
from .static import ROUTES as PAGE


def _chat(body: Mapping[str, Any], rules: MediaRules, lenient: Log | None) -> tuple[Call, Any]:
    call, include_usage = read_chat(body, rules, lenient)
    return call, partial(ChatFormat, include_usage=include_usage, logprobs=call.logprobs is not None)


def _completion(body: Mapping[str, Any], rules: MediaRules, lenient: Log | None) -> tuple[Call, Any]:
    call, include_usage = read_completion(body, lenient)
    logprobs = call.logprobs is not None
    return call, partial(CompletionFormat, prompts=len(call.prompts), include_usage=include_usage, logprobs=logprobs)


def _messages(body: Mapping[str, Any], rules: MediaRules, lenient: Log | None) -> tuple[Call, Any]:
    return read_messages(body, rules, lenient), MessagesFormat


def _counted(body: Mapping[str, Any], rules: MediaRules, lenient: Log | None) -> tuple[Call, Any]:
    return read_messages(body, rules, lenient, counted=True), MessagesFormat


_ANTHROPIC: dict[str, Any] = {"error": ApiError.anthropic, "query": frozenset(["beta"])}


def _response(talks: Talks, body: Mapping[str, Any], rules: MediaRules, lenient: Log | None) -> tuple[Call, Any]:
    call, said = read_response(body, rules, lenient, talks)
    return call, partial(ResponsesFormat, said=said, keep=talks.add)


INTERFACES: Sequence[Interface] = (
    Interface("/v1/chat/completions", _chat),
    Interface("/v1/completions", _completion),
    Interface("/v1/messages", _messages, **_ANTHROPIC),
    Interface("/v1/messages/count_tokens", _counted, **_ANTHROPIC, counts=True),
)


def make_app(sources: Mapping[str, Source], settings: Settings) -> Starlette:
    """sources: models by the names that clients use; the first is loaded before the first request is taken."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        models = Models(sources, settings)
        app.state.server = Server(settings, models)
        try:
            await models.load_first()
            yield
        finally:
            await models.close()

    talks = Talks()
    responses = Interface("/v1/responses", partial(_response, talks))
    middleware = [Middleware(Guard, settings=settings, refuse=error_response)]
    if settings.allow_origins:
        headers: dict[str, Any] = {"allow_methods": ["GET", "POST"], "allow_headers": ["*"]}
        middleware.insert(0, Middleware(CORSMiddleware, allow_origins=settings.allow_origins, **headers))
    routes = [
        *(Route(item.path, _endpoint(item), methods=["POST"]) for item in (*INTERFACES, responses)),
        Route("/v1/responses/{id}", _stored(talks), methods=["GET", "DELETE"]),
        Route("/v1/responses/{id}/cancel", cancel_response, methods=["POST"]),
        *PAGE,
        Route("/v1/marks", show_marks, methods=["POST"]),
        Route("/v1/models", list_models),
        Route("/v1/models/{name:path}", show_model),
        Route("/health", health),
        Route("/metrics", metrics),
    ]
    handlers: dict[Any, Any] = {ApiError: _show, HTTPException: _show_http, Exception: _show_fault}
    return Starlette(routes=routes, middleware=middleware, exception_handlers=handlers, lifespan=lifespan)


def _endpoint(interface: Interface) -> Any:
    async def answer(request: Request) -> Any:
        return Reply(request.app.state.server, interface)

    return answer


def json_response(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(dump(value), status, headers, media_type="application/json")


def error_response(path: str, error: ApiError) -> Response:
    """In the form of the path's interface."""
    form = next((interface.error for interface in INTERFACES if interface.path == path), ApiError.openai)
    return json_response(form(error), error.status, error.headers)


async def _show(request: Request, error: ApiError) -> Response:
    return error_response(request.url.path, error)


async def _show_http(request: Request, error: HTTPException) -> Response:
    message = f"{request.method} {request.url.path}: {error.detail}"
    return error_response(request.url.path, ApiError(error.status_code, message, headers=error.headers or {}))


async def _show_fault(request: Request, error: Exception) -> Response:
    log_error(error)
    return error_response(request.url.path, ApiError(500, "the server failed; its log says more", code="internal"))


# What is known without a model


async def list_models(request: Request) -> Response:
    models = request.app.state.server.models
    data = [_model(models, name) for name in models.names]
    ids = {"first_id": models.names[0], "last_id": models.names[-1], "has_more": False}
    return json_response({"object": "list", "data": data, **ids})


async def show_model(request: Request) -> Response:
    models, name = request.app.state.server.models, request.path_params["name"]
    if name not in models.names:
        raise ApiError(404, f"model: {name!r:.80} is not served here", param="model", code="model_not_found")
    return json_response(_model(models, name))


def _model(models: Models, name: str) -> dict[str, Any]:
    """For clients of either interface. input_modalities: as model lists of other servers have it, once it is loaded."""
    kinds = models.kinds(name)
    return {
        "id": name,
        "object": "model",
        "created": models.created(name),
        "owned_by": "mlx-vlgen",
        "type": "model",
        "display_name": name,
    } | ({} if kinds is None else {"input_modalities": ["text", *kinds]})


def _stored(talks: Talks) -> Any:
    async def stored_response(request: Request) -> Response:
        id = request.path_params["id"]
        if request.method == "DELETE":
            talks.remove(id)
            return json_response({"id": id, "object": "response", "deleted": True})
        return json_response(talks.response(id))

    return stored_response


async def cancel_response(request: Request) -> Response:
    """Of one that is streamed, which ends as it would for a client that goes away."""
    server: Server = request.app.state.server
    return json_response(server.cancel(request.path_params["id"]))


async def show_marks(request: Request) -> Response:
    server: Server = request.app.state.server
    with server.recorded(request.url.path):
        return json_response(await find_marks(request))


async def health(request: Request) -> Response:
    server: Server = request.app.state.server
    status = "ok" if server.models.ready else "failed"
    return json_response({"status": status, "version": __version__}, 200 if status == "ok" else 503)


async def metrics(request: Request) -> Response:
    server: Server = request.app.state.server
    return Response(server.metrics.page(), media_type="text/plain; version=0.0.4; charset=utf-8")
