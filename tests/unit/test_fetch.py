"""Downloads against local servers that redirect, lie, drip and never end."""

import contextlib
import http.server
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mlx_vlgen.errors import MediaError
from mlx_vlgen.inputs.fetch import Limits, fetch, is_public, show_url
from mlx_vlgen.inputs.media import load_image

LOCAL = Limits(allow_private=True, download_seconds=5)
Answer = Callable[[http.server.BaseHTTPRequestHandler], None]


@contextlib.contextmanager
def serving(answer: Answer, host: str = "127.0.0.1") -> Iterator[str]:
    """A local server that answers every GET by `answer`; gives its URL."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            with contextlib.suppress(OSError):
                answer(self)

        def log_message(self, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer((host, 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://{host}:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def reply(body: bytes = b"", status: int = 200, **headers: str) -> Answer:
    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in ({"Content_Length": str(len(body))} | headers).items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def test_a_body_comes_whole_and_the_request_says_who_asks() -> None:
    headers: dict[str, str] = {}

    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        headers.update(handler.headers.items(), path=handler.path)
        reply(b"x" * 300_000)(handler)

    with serving(answer) as url:
        assert fetch(f"{url}/a b/é%20?q=ü&r=1#part", LOCAL) == b"x" * 300_000
    assert headers["path"] == "/a%20b/%C3%A9%20?q=%C3%BC&r=1"
    assert headers["Host"] == url.removeprefix("http://")
    assert headers["Accept"].startswith("image/*")
    assert headers["Accept-Encoding"] == "identity"
    assert headers["User-Agent"].startswith("mlx-vlgen")


def test_a_chunked_body() -> None:
    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        handler.wfile.write(b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")

    with serving(answer) as url:
        assert fetch(url, LOCAL) == b"abcde"


def test_a_picture_by_url(monkeypatch: pytest.MonkeyPatch) -> None:
    from test_media import encode, photo

    with serving(reply(encode(photo()))) as url:
        assert load_image(f"  {url}/x.png", limits=LOCAL).size == (64, 48)
        with pytest.raises(MediaError, match=r"127\.0\.0\.1.*MLX_VLGEN_ALLOW_PRIVATE_URLS=1"):
            load_image(url)
        monkeypatch.setenv("MLX_VLGEN_ALLOW_PRIVATE_URLS", "1")
        assert load_image(url).size == (64, 48)
        with pytest.raises(MediaError, match="not a public address"):  # what a caller says wins
            load_image(url, limits=Limits(allow_private=False))


def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    with serving(reply(b"direct")) as url:
        assert fetch(url, LOCAL) == b"direct"


# Answers that are refused


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (reply(b"gone", 404), "404 Not Found"),
        (reply(b"", 204), "204"),
        (reply(b"part", 206), "206"),
        (reply(b"secret words", 500), "500"),
        (reply(b"x", Content_Encoding="gzip"), "compressed"),
        (reply(b"x", Content_Length="3"), "connection broke"),
        (reply(b"", 302), "without saying where"),
        (reply(b"", 302, Location="http://["), "not a URL"),
        (reply(b"", 302, Location="file:///etc/passwd"), "only http and https"),
        (reply(b"", 302, Location="ftp://example.com/"), "only http and https"),
        (reply(b"", 302, Location="http://me:secret@example.com/"), "user name"),
        (lambda handler: handler.wfile.write(b"nonsense\r\n\r\n"), "not valid HTTP"),
        (lambda handler: handler.wfile.write(b"HTTP/1.1 200 " + b"x" * 70_000), "not valid HTTP"),
        (lambda handler: handler.wfile.write(b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 200 + b"\r\n"), "not valid HTTP"),
    ],
)
def test_answers_that_are_refused(answer: Answer, says: str) -> None:
    def answer_and_close(handler: http.server.BaseHTTPRequestHandler) -> None:
        answer(handler)
        handler.close_connection = True

    with serving(answer_and_close) as url, pytest.raises(MediaError, match=says) as caught:
        fetch(f"{url}/x?token=secret", LOCAL)
    assert url in str(caught.value)
    assert "secret" not in str(caught.value)
    assert caught.value.__context__ is None


def test_the_byte_cap_by_header_and_by_body() -> None:
    limits = Limits(allow_private=True, max_download_bytes=1000)
    with serving(reply(b"", Content_Length="1001")) as url, pytest.raises(MediaError, match="larger than 1,000 bytes"):
        fetch(url, limits)
    with serving(reply(b"x" * 1000)) as url:
        assert len(fetch(url, limits)) == 1000

    def endless(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        while True:
            handler.wfile.write(bytes(1 << 16))

    with serving(endless) as url, pytest.raises(MediaError, match="larger than 1,000 bytes"):
        fetch(url, limits)


def test_answers_that_never_begin_and_chunks_that_never_end() -> None:
    """Each goes on for as long as the client reads; the cap counts all that comes over the wire."""
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    for start, endless in (
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (chunked, b"1\r\na\r\n"),
        (chunked, b"1;" + b"x" * 60_000 + b"\r\na\r\n"),
        (chunked + b"0\r\n", b"Trailer: x\r\n"),
    ):

        def answer(handler: http.server.BaseHTTPRequestHandler, start: bytes = start, endless: bytes = endless) -> None:
            handler.wfile.write(start)
            while True:
                handler.wfile.write(endless * (1 + 65536 // len(endless)))

        with serving(answer) as url, pytest.raises(MediaError, match="larger than 1,000 bytes"):
            fetch(url, Limits(allow_private=True, max_download_bytes=1000))


@pytest.mark.parametrize("length", ["-1", "1e9", "9" * 5000, "5, 5", "\u0665", ""])
def test_lengths_that_are_no_numbers(length: str) -> None:
    """The body is what comes before the connection ends, or the answer is refused."""

    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: " + length.encode() + b"\r\n\r\nhello")
        handler.close_connection = True

    with serving(answer) as url:
        try:
            assert fetch(url, LOCAL) == b"hello"
        except MediaError as error:
            assert "larger than" in str(error) or "broke" in str(error)


@pytest.mark.parametrize(
    "location",
    [
        b"http://127.0.0.1:1/\x1b[2J\x9b2J\xe2\x80\xae",
        b"//[::1",
        b"http://127.0.0.1:99999999/",
        b"http://%00/",
        b"http://\xff\xfe/",
        b"\\\\127.0.0.1:1\\",
        b"data:,x",
        b"javascript:0",
        b"http:",
        b"///",
        b"?" + b"a" * 60_000,
    ],
)
def test_odd_redirects_end_in_a_printable_error(location: bytes) -> None:
    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: " + location + b"\r\n\r\n")
        handler.close_connection = True

    with serving(answer) as url, pytest.raises(MediaError) as caught:
        fetch(url, Limits(allow_private=True, download_seconds=5))
    assert str(caught.value).isprintable()


def test_a_chunk_of_negative_size_does_not_lift_the_cap() -> None:
    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n")
        while True:
            handler.wfile.write(bytes(1 << 16))

    with serving(answer) as url, pytest.raises(MediaError, match="larger than"):
        fetch(url, Limits(allow_private=True, max_download_bytes=1000))


@pytest.mark.parametrize(
    "start", [b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\n\r\n"], ids=["status", "header", "body"]
)
def test_one_deadline_covers_a_server_that_drips_for_ever(start: bytes) -> None:
    def drip(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.wfile.write(start)
        while True:
            handler.wfile.write(b"a")
            time.sleep(0.02)

    with serving(drip) as url:
        began = time.monotonic()
        with pytest.raises(MediaError, match=r"longer than 0\.3 s"):
            fetch(url, Limits(allow_private=True, download_seconds=0.3))
        assert 0.25 < time.monotonic() - began < 2


def test_the_deadline_covers_a_silent_server_and_a_slow_resolver(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = Limits(allow_private=True, download_seconds=0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(MediaError, match="longer than"):
        fetch(f"http://127.0.0.1:{silent.getsockname()[1]}", limits)
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(MediaError, match="longer than"):
        fetch(f"https://127.0.0.1:{silent.getsockname()[1]}", limits)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: time.sleep(1))
    began = time.monotonic()
    with pytest.raises(MediaError, match="longer than"):
        fetch("http://slow.example/", limits)
    assert time.monotonic() - began < 0.9


def test_no_server() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(MediaError, match="connection failed"):
        fetch(f"http://127.0.0.1:{port}/", LOCAL)


# Redirects


def hops(count: int) -> Answer:
    """/0 leads to /1 and so on; /count is the picture."""

    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        at = int(handler.path.strip("/"))
        (reply(b"here") if at == count else reply(b"", 302, Location=f"/{at + 1}"))(handler)

    return answer


def test_five_redirects_and_no_more() -> None:
    with serving(hops(5)) as url:
        assert fetch(f"{url}/0", LOCAL) == b"here"
    with serving(hops(6)) as url, pytest.raises(MediaError, match="more than 5 redirects"):
        fetch(f"{url}/0", LOCAL)
    with serving(reply(b"", 307, Location="/")) as url, pytest.raises(MediaError, match="more than 5 redirects"):
        fetch(url, LOCAL)


def test_a_redirect_with_bytes_that_are_not_ascii() -> None:
    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        if handler.path == "/":
            reply(b"", 301, Location="/é b".encode().decode("latin-1"))(handler)
        else:
            reply(handler.path.encode())(handler)

    with serving(answer) as url:
        assert fetch(url + "/", LOCAL) == b"/%C3%A9%20b"


class Network:
    """A resolver with fixed answers, and a connect that goes to local servers and remembers where it was sent."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, answers: dict[str, list[str]], port: int = 0) -> None:
        self.hosts: list[str] = []
        self.connected: list[tuple[str, int]] = []
        real = socket.socket.connect

        def getaddrinfo(host: str, at: int, *args: object, **kwargs: object) -> list[Any]:
            self.hosts.append(host)
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (answers[host].pop(0), at))]

        class Recording(socket.socket):
            def connect(sock, where: Any) -> None:
                self.connected.append(where)
                real(sock, ("127.0.0.1", port))

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
        monkeypatch.setattr(socket, "socket", Recording)


def test_a_redirect_to_a_private_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(reply(b"", 302, Location="http://inside.example:8080/admin")) as url:
        network = Network(
            monkeypatch, {"outside.example": ["93.184.216.34"], "inside.example": ["127.0.0.1"]}, int(url.split(":")[2])
        )
        with pytest.raises(MediaError, match=r"outside\.example/ \(redirected to http://inside\.example:8080/admin\)"):
            fetch("http://outside.example/", Limits(download_seconds=5))
    assert network.connected == [("93.184.216.34", 80)]


def test_a_name_is_resolved_once_and_the_checked_address_is_the_one_that_is_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with serving(reply(b"outside")) as url:
        network = Network(monkeypatch, {"rebind.example": ["93.184.216.34", "127.0.0.1"]}, int(url.split(":")[2]))
        assert fetch("http://rebind.example/", Limits(download_seconds=5)) == b"outside"
    assert network.hosts == ["rebind.example"]
    assert network.connected == [("93.184.216.34", 80)]


def test_one_private_address_among_several_is_enough_to_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 80)) for address in ("93.184.216.34", "10.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: answer)
    monkeypatch.setattr(socket, "socket", lambda *args: pytest.fail("nothing may be connected"))
    with pytest.raises(MediaError, match=r"10\.0\.0\.1"):
        fetch("http://both.example/")


def test_a_dead_address_leaves_time_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(reply(b"here")) as url:
        port = int(url.split(":")[2])
        with socket.create_server(("127.0.0.1", 0)) as server:
            dead = server.getsockname()[1]
        answer = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", at)) for at in (dead, port)]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: answer)
        assert fetch("http://two.example/", LOCAL) == b"here"


def test_a_silent_address_leaves_time_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(reply(b"here")) as url:
        port = int(url.split(":")[2])

        class Silent(socket.socket):
            def connect(self, where: Any) -> None:
                if where[1] == port:
                    return super().connect(where)
                time.sleep(min(self.gettimeout() or 9, 9))
                raise TimeoutError

        answer = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", at)) for at in (1, port)]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: answer)
        monkeypatch.setattr(socket, "socket", Silent)
        assert fetch("http://two.example/", Limits(allow_private=True, download_seconds=0.6)) == b"here"


def test_https_does_not_fall_back_to_http(monkeypatch: pytest.MonkeyPatch) -> None:
    class Plain:
        def wrap_socket(self, sock: socket.socket, server_hostname: str) -> socket.socket:
            assert server_hostname == "safe.example"
            return sock

    monkeypatch.setattr("ssl.create_default_context", Plain)
    with serving(reply(b"", 302, Location="http://safe.example/")) as url:
        Network(monkeypatch, {"safe.example": ["93.184.216.34"]}, int(url.split(":")[2]))
        with pytest.raises(MediaError, match="from https to http"):
            fetch("https://safe.example/", Limits(download_seconds=5))


def test_a_server_that_speaks_no_tls() -> None:
    with serving(reply(b"x")) as url, pytest.raises(MediaError, match="TLS connection failed"):
        fetch(url.replace("http:", "https:"), LOCAL)


# Addresses and URLs


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",
        "[::1]",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "255.255.255.255",
        "2130706433",
        "0x7f000001",
        "017700000001",
        "0177.0.0.1",
        "127.1",
        "127。0。0。1",
        "[::ffff:127.0.0.1]",
        "[::127.0.0.1]",
        "[64:ff9b::10.0.0.1]",
        "[2002:7f00:1::]",
        "[fe80::1]",
        "[fc00::1]",
        "[ff02::1]",
        "[::]",
    ],
)
def test_addresses_that_are_not_public_are_refused(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket.socket, "connect", lambda *args: pytest.fail("nothing may be connected"))
    with pytest.raises(MediaError, match="not a public address"):
        fetch(f"http://{host}/x.png", Limits(download_seconds=5))


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1::1", True),
        ("::ffff:93.184.216.34", True),
        ("64:ff9b::5db8:d822", True),
        ("198.18.0.1", False),
        ("240.0.0.1", False),
        ("192.0.2.1", False),
        ("2001:db8::1", False),
        ("2001::1", False),
        ("fec0::1", False),
        ("64:ff9b:1::1", False),
        ("fe80::1%eth0", False),
        ("::ffff:169.254.169.254", False),
    ],
)
def test_is_public(address: str, public: bool) -> None:
    assert is_public(address) is public


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("ftp://example.com/x", "only http and https"),
        ("gopher://example.com/x", "only http and https"),
        ("http://me:secret@example.com/", "user name or password"),
        ("http://good.example\\@127.0.0.1/", "user name or password"),
        ("http://a b/", "not a valid name"),
        ("http://a\tb/", "control characters"),
        ("http://exam\nple.com/", "control characters"),
        ("http:///x", "not a valid URL"),
        ("http://[::1/", "not a valid URL"),
        ("http://[v1.x:y]/", "not a valid"),
        ("http://example.com:99999/", "not a valid URL"),
        ("http://example.com:0/", "not a valid URL"),
        ("http://a..b/", "not a valid name"),
        ("http://" + "a" * 70 + ".com/", "not a valid name"),
        ("http://example.com/\ud800", "half characters"),
        ("http://\udcff.example/", "half characters"),
        ("http://example.com/" + "a" * 70_000, "longer than 65,536 characters"),
    ],
)
def test_urls_that_are_refused(url: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: pytest.fail("nothing may be looked up"))
    with pytest.raises(MediaError, match=says) as caught:
        fetch(url, LOCAL)
    assert "secret" not in str(caught.value)


def test_a_unicode_host_is_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    hosts: list[str] = []

    def getaddrinfo(host: str, *args: object, **kwargs: object) -> list[Any]:
        hosts.append(host)
        raise socket.gaierror

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    with pytest.raises(MediaError, match="host was not found"):
        fetch("http://bücher.example/", LOCAL)
    assert hosts == ["xn--bcher-kva.example"]


def test_urls_are_shown_without_secrets() -> None:
    assert show_url("https://me:pass@host:8/a?b#c") == "https://host:8/a"
    assert show_url("http://host?secret") == "http://host"
    assert show_url("http://host/\x1b[2J") == "http://host/\ufffd[2J"
