"""A stand-in for the Hugging Face Hub on loopback, with the few addresses that a download uses."""

import hashlib
import json
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Serves `repositories` {id: {file: bytes}}. `refusals` {id: (status, X-Error-Code, what)}, `what` being "all" or
    "files" (a gated repository shows its listing). `downloads` lists the files that were fetched."""

    def __init__(self, repositories, refusals):
        self.repositories, self.refusals, self.downloads = repositories, refusals, []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self):
                hub.answer(self, body=False)

            def do_GET(self):
                hub.answer(self, body=True)

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    def answer(self, request, body):
        path = unquote(urlsplit(request.path).path)
        listing = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        repo, revision = (listing[1], listing[3]) if listing else (file[1], file[2]) if file else ("", None)
        status, code, what = self.refusals.get(repo, (200, "", ""))
        if repo not in self.repositories and status == 200:
            status, code, what = 404, "RepoNotFound", "all"
        if status != 200 and (what == "all" or file):
            return send(request, status, b"{}", {"X-Error-Code": code} if code else {})
        if revision not in (None, "main", COMMIT):
            return send(request, 404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        files = self.repositories[repo]
        if listing and listing[2] == "tree":
            entries = [{"type": "file", "path": n, "size": len(d), "oid": etag(d)} for n, d in files.items()]
            return send(request, 200, json.dumps(entries).encode(), {"Content-Type": "application/json"})
        if listing:
            siblings = [{"rfilename": name, "size": len(data), "blobId": etag(data)} for name, data in files.items()]
            info = {"id": repo, "modelId": repo, "sha": COMMIT, "private": False, "tags": [], "siblings": siblings}
            return send(request, 200, json.dumps(info).encode(), {"Content-Type": "application/json"})
        if file[3] not in files:
            return send(request, 404, b"{}", {"X-Error-Code": "EntryNotFound"})
        data = files[file[3]]
        if body:
            self.downloads.append((repo, file[3]))
        return send(request, 200, data, {"ETag": f'"{etag(data)}"', "X-Repo-Commit": COMMIT}, body)


def etag(data):
    return hashlib.sha1(data).hexdigest()


def send(request, status, data, headers, body=True):
    request.send_response(status)
    for name, value in (headers | {"Content-Length": str(len(data))}).items():
        request.send_header(name, value)
    request.end_headers()
    if body and request.command != "HEAD":
        request.wfile.write(data)
