"""The page at `/`: a table of its files, so that a path never reaches the file system."""

from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

_FOLDER = Path(__file__).parent / "page"
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}

FILES = {"/": "index.html"} | {
    f"/page/{path.name}": path.name for path in sorted(_FOLDER.iterdir()) if path.suffix in _TYPES
}
"""Path of a URL -> name of a file. The page has no secrets: it is shown without a key, which it asks for."""

# Nothing from elsewhere is loaded or asked, no other page may frame this one, and the browser itself refuses text as
# HTML (Trusted Types), whatever a model answers. Pictures and sounds are blobs
# of the browser's store.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; media-src blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Cache-Control": "no-cache",
}


async def show_file(request: Request) -> Response:
    path = _FOLDER / FILES[request.url.path]
    return Response(path.read_bytes(), headers=HEADERS, media_type=_TYPES[path.suffix])


ROUTES = [Route(path, show_file) for path in FILES]
