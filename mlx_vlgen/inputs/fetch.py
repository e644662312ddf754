"""Download one picture, video or audio clip without giving access to the machine's network.

A host name is resolved once. Every address it gives must be public, and the connection goes to a checked address, so
that no second answer of the resolver is ever used (DNS rebinding). Each redirect is checked again. One deadline covers
look-up, connection, TLS, redirects and body. Proxies named in the environment are not used: behind one, the address
that is reached could not be checked.
"""

import http.client
import io
import ipaddress
import os
import re
import socket
import ssl
import threading
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, quote, urljoin, urlsplit

from ..errors import MediaError, printable

ALLOW_PRIVATE_VARIABLE = "MLX_VLGEN_ALLOW_PRIVATE_URLS"
_HEADERS = {
    "User-Agent": "mlx-vlgen",
    "Accept": "image/*, video/*, audio/*, */*;q=0.5",
    "Accept-Encoding": "identity",
    "Connection": "close",
}
_PRINTABLE = "".join(map(chr, range(0x21, 0x7F)))
_HEADER_BYTES = 1 << 20  # what headers and chunk framing may add to a body on the wire
_URL_LENGTH = 1 << 16


@dataclass(frozen=True)
class Limits:
    """How much a picture, video or audio clip from outside may ask for.

    Args:
        max_image_pixels: width x height of one picture or frame, read from its header before anything is decoded.
            Pillow has its cap, 2 x `PIL.Image.MAX_IMAGE_PIXELS`, with this same value; raising one does not
            raise the other.
        max_decoded_bytes: memory that decoding a picture, an animation or one frame of a video takes at its peak,
            estimated from the header before anything is decoded.
        max_video_pixels: width x height x frames kept of one video (2**31 is 6.4 GB of RGB).
        max_animation_pixels: width x height x all frames of a GIF, PNG or WebP, which are drawn one upon the other; a
            frame counts as 10,000 at least.
        max_audio_seconds: length of one audio clip (two hours are 460 MB at 16,000 samples a second).
        max_audio_samples: channels x samples of one audio clip, all of which are decoded.
        max_file_bytes: encoded size of a picture, and of a video or audio clip that must be held in memory.
        max_download_bytes: size of a download.
        download_seconds: one deadline for a whole download, redirects included.
        max_redirects: redirects followed in one download.
        allow_private: whether URLs may lead to addresses that are not public. None: what the environment variable
            MLX_VLGEN_ALLOW_PRIVATE_URLS says when the download starts ("1" allows), otherwise no.
    """

    max_image_pixels: int = 178_956_970
    max_decoded_bytes: int = 1_000_000_000
    max_video_pixels: int = 1 << 31
    max_animation_pixels: int = 1 << 30
    max_audio_seconds: int = 7200
    max_audio_samples: int = 1 << 30
    max_file_bytes: int = 512 << 20
    max_download_bytes: int = 64 << 20
    download_seconds: float = 30.0
    max_redirects: int = 5
    allow_private: bool | None = None


def show_url(url: str) -> str:
    """The URL without what may be secret (user, password, query, fragment) and without control characters."""
    scheme, _, rest = url.strip().partition("://")
    host, slash, path = re.split(r"[?#]", rest, maxsplit=1)[0].partition("/")
    shown = f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"[:300]
    return printable(shown)


def fetch(url: str, limits: Limits = Limits()) -> bytes:
    """Download `url` (http or https, any port) and return its body.

    Certificates are verified against the system's authorities (OpenSSL's variable SSL_CERT_FILE names others).

    Raises:
        MediaError: the URL is malformed, carries a user name, leads (also by redirect) to another scheme, from https
            back to http or to an address that is not public; the answer is not 200, is compressed, incomplete or
            larger than `limits.max_download_bytes`; `limits.download_seconds` have passed. The message names the URL
            as `show_url` writes it.
    """
    download = _Download(url, limits)
    try:
        return download.run()
    except _Refused as refused:
        reason = str(refused)
    except TimeoutError:
        reason = f"the download took longer than {limits.download_seconds:g} s (Limits.download_seconds)"
    except ssl.SSLCertVerificationError as error:
        reason = f"its TLS certificate is not accepted ({error.verify_message}); SSL_CERT_FILE names other authorities"
    except ssl.SSLError:
        reason = "the TLS connection failed"
    except http.client.IncompleteRead:
        reason = "the connection broke before the whole file had come; try again"
    except http.client.HTTPException:
        reason = "the server's answer is not valid HTTP"
    except OSError as error:
        reason = f"the connection failed ({error.strerror or type(error).__name__})"
    via = "" if download.url == url else f" (redirected to {show_url(download.url)})"
    raise MediaError(f"{show_url(url)}{via}: {reason}")


class _Refused(Exception):
    """Why a download ends, without the URL, which `fetch` adds."""


class _Download:
    """One call of `fetch`. url: the last one that it was redirected to."""

    def __init__(self, url: str, limits: Limits) -> None:
        self.url = url
        self.limits = limits
        self.deadline = time.monotonic() + limits.download_seconds
        self.wire_bytes = 0

    def run(self) -> bytes:
        for _ in range(self.limits.max_redirects + 1):
            parts = _split(self.url)
            host = _ascii_host(parts)
            port = parts.port or (443 if parts.scheme == "https" else 80)
            with self._connect(host, port) as plain:
                sock = plain
                if parts.scheme == "https":
                    plain.settimeout(self.time_left())
                    sock = ssl.create_default_context().wrap_socket(plain, server_hostname=host)
                with sock:
                    response = self._request(sock, parts, host, port)
                    if response.status in (301, 302, 303, 307, 308):
                        self._follow(response, parts)
                        continue
                    return self._body(response)
        raise _Refused(f"more than {self.limits.max_redirects} redirects (Limits.max_redirects)")

    def time_left(self) -> float:
        seconds = self.deadline - time.monotonic()
        if seconds <= 0:
            raise TimeoutError
        return seconds

    def count(self, received: int) -> None:
        """Bound everything that arrives, so that no trick of framing makes http.client read without end."""
        self.wire_bytes += received
        if self.wire_bytes > self.limits.max_download_bytes + _HEADER_BYTES * (self.limits.max_redirects + 1):
            raise self._too_large()

    def _too_large(self) -> _Refused:
        return _Refused(f"larger than {self.limits.max_download_bytes:,} bytes (Limits.max_download_bytes)")

    def _connect(self, host: str, port: int) -> socket.socket:
        addresses = self._resolve(host, port)
        allowed = self.limits.allow_private
        if allowed is None:
            allowed = os.environ.get(ALLOW_PRIVATE_VARIABLE) == "1"
        for *_, address in addresses:
            if not allowed and not is_public(str(address[0])):
                raise _Refused(
                    f"leads to {address[0]}, which is not a public address; if you trust it, set "
                    f"{ALLOW_PRIVATE_VARIABLE}=1 or pass Limits(allow_private=True)"
                )
        failure = OSError()
        for index, (family, kind, protocol, _, address) in enumerate(addresses):
            share = self.time_left() / (len(addresses) - index)  # so that one dead address leaves time for the others
            try:
                sock = socket.socket(family, kind, protocol)
            except OSError as error:  # a family that this machine does not speak
                failure = error
                continue
            try:
                sock.settimeout(share)
                sock.connect(address)
                return sock
            except OSError as error:
                sock.close()
                failure = error
        raise failure

    def _resolve(self, host: str, port: int) -> list[tuple[Any, ...]]:
        """Ask the resolver once. It takes no timeout, so a thread waits for it and is left behind if it must be."""
        addresses: list[tuple[Any, ...]] = []
        errors: list[Exception] = []

        def ask() -> None:
            try:
                addresses.extend(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
            except Exception as error:  # UnicodeError too: whatever the resolver dislikes about a name
                errors.append(error)

        thread = threading.Thread(target=ask, daemon=True, name="mlx-vlgen-resolve")
        thread.start()
        thread.join(self.time_left())
        if thread.is_alive():
            raise TimeoutError
        if errors or not addresses:
            raise _Refused("the host was not found; check the name and the network")
        return addresses

    def _request(self, sock: socket.socket, parts: SplitResult, host: str, port: int) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection(host, port)
        connection.sock = _TimedSocket(sock, self)
        target = _quoted(parts.path or "/") + (f"?{_quoted(parts.query)}" if parts.query else "")
        name = f"[{host}]" if ":" in host else host
        connection.request("GET", target, headers={"Host": f"{name}:{port}" if parts.port else name, **_HEADERS})
        return connection.getresponse()

    def _follow(self, response: http.client.HTTPResponse, parts: SplitResult) -> None:
        location = response.getheader("Location")
        if not location:
            raise _Refused(f"the server answered {response.status} without saying where to go")
        # http.client reads headers as Latin-1; back to the bytes that came, then quoted.
        try:
            self.url = urljoin(self.url, _quoted(location.strip().encode("latin-1")))
        except ValueError:
            raise _Refused("the server redirects to something that is not a URL") from None
        if parts.scheme == "https" and self.url.lower().startswith("http:"):
            raise _Refused("a redirect from https to http is not followed")

    def _body(self, response: http.client.HTTPResponse) -> bytes:
        if response.status != 200:
            phrase = http.client.responses.get(response.status, "")
            raise _Refused(f"the server answered {response.status} {phrase}".rstrip() + "; expected 200")
        if response.getheader("Content-Encoding", "identity").strip().lower() != "identity":
            raise _Refused("the server sent a compressed body though none was asked for")
        expected = response.length
        if expected is not None and expected > self.limits.max_download_bytes:
            raise self._too_large()
        body = io.BytesIO()
        while block := response.read(1 << 16):
            if body.tell() + len(block) > self.limits.max_download_bytes:
                raise self._too_large()
            body.write(block)
        if expected is not None and body.tell() != expected:
            raise http.client.IncompleteRead(b"")
        return body.getvalue()  # shares what was written


class _TimedSocket:
    """What http.client needs of a socket, each operation with the time that is left as its timeout."""

    def __init__(self, sock: socket.socket, download: _Download) -> None:
        self._sock, self._download = sock, download

    def sendall(self, data: bytes) -> None:
        self._sock.settimeout(self._download.time_left())
        self._sock.sendall(data)

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_TimedReader(self._sock, self._download))

    def close(self) -> None:
        """The socket belongs to `_Download.run`, which closes it."""


class _TimedReader(io.RawIOBase):
    def __init__(self, sock: socket.socket, download: _Download) -> None:
        self._sock, self._download = sock, download

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._sock.settimeout(self._download.time_left())
        received = self._sock.recv_into(buffer)
        self._download.count(received)
        return received


def is_public(address: str) -> bool:
    """Whether a numeric address is on the public internet.

    An IPv6 address that carries an IPv4 one (mapped, 6to4, NAT64) is judged by that one; of the others only global
    unicast counts (2000::/3, RFC 4291).
    """
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv4Address):
        return ip.is_global and not ip.is_multicast and not ip.is_reserved
    inner = ip.ipv4_mapped or ip.sixtofour
    if ip in ipaddress.ip_network("64:ff9b::/96"):
        inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    if inner is not None:
        return is_public(str(inner))
    return ip.is_global and ip in ipaddress.ip_network("2000::/3")


def _split(url: str) -> SplitResult:
    if len(url) > _URL_LENGTH:
        raise _Refused(f"the URL is longer than {_URL_LENGTH:,} characters")
    if re.search(r"[\x00-\x1f\x7f\ud800-\udfff]", url):  # urlsplit would drop some, quote fail on others
        raise _Refused("the URL contains control characters or half characters")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise _Refused("not a valid URL") from None
    if parts.scheme not in ("http", "https"):
        raise _Refused("only http and https URLs are read")
    if "@" in parts.netloc:
        raise _Refused("a URL with a user name or password is refused; download the file and give its path")
    if not parts.hostname or port == 0:
        raise _Refused("not a valid URL")
    return parts


def _ascii_host(parts: SplitResult) -> str:
    host = parts.hostname or ""
    try:
        if ":" in host:
            return str(ipaddress.IPv6Address(host))
        host = host.encode("idna").decode("ascii")
    except ValueError:  # UnicodeError is one
        host = ""
    if not re.fullmatch(r"[A-Za-z0-9._-]+", host):
        raise _Refused("its host is not a valid name or address")
    return host


def _quoted(text: str | bytes) -> str:
    """Percent-encode what may not stand in a request line; what is already encoded stays as it is."""
    return quote(text, safe=_PRINTABLE)
