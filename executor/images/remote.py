"""Fetch an image over http(s), but never from the private network.

We resolve the host name once, check every address, and connect to a checked address. So it does not help an attacker
if the name resolves to something else the second time. We follow redirects ourselves and check each one as a new
uri. We ignore the proxies of the environment, because a proxy would resolve the name itself.

aiohttp would be a library for it, with a resolver that judges. But it asks no resolver about a host that is an address
already, and the bound on the whole of a slow transfer would be code of ours there, too.
"""

import contextlib
import contextvars
import functools
import http.client
import io
import ipaddress
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from types import MappingProxyType
from urllib.parse import SplitResult, quote, urljoin, urlsplit

from ..errors import BadDocument
from .policy import ImagePolicy

_MAX_REDIRECTS = 3
_REDIRECTS = (301, 302, 303, 307, 308)
_DEFAULT_PORTS = {"http": 80, "https": 443}
_CHUNK_BYTES = 1 << 16
_RESERVED = "/%:@!$&'()*+,;=~?"  # characters that are not percent-encoded (again)
_HEADERS = {
    "User-Agent": "FinetunerExecutor",
    "Accept": "image/*",
    "Accept-Encoding": "identity",
    "Connection": "close",
}

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def shown(text: object) -> str:
    """Return a uri, or an error that may quote one, for a message: what cannot be printed escaped, and shortened.

    A data: uri can have megabytes.
    """
    first = str(text)[:201]
    plain = "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in first)
    return plain if len(plain) <= 200 else f"{plain[:200]}…"


# What was fetched already, in another thread, for what this thread is about to decode.
_fetched: contextvars.ContextVar[Mapping[str, bytes | BadDocument]] = contextvars.ContextVar(
    "fetched", default=MappingProxyType({})
)


@contextlib.contextmanager
def given(fetched: Mapping[str, bytes | BadDocument]) -> Iterator[None]:
    """In this thread `read_remote` takes these bodies, or raises these errors, and does not fetch them."""
    token = _fetched.set(fetched)
    try:
        yield
    finally:
        _fetched.reset(token)


def read_remote(uri: str, policy: ImagePolicy) -> bytes:
    """Return the bytes behind a uri that is fetched from elsewhere. Raises: BadDocument: they cannot be had."""
    found = _fetched.get().get(uri)
    if isinstance(found, BadDocument):
        raise found
    return fetched_now(uri, policy) if found is None else found


def fetched_now(uri: str, policy: ImagePolicy) -> bytes:
    """Fetch a uri by its scheme: one of `SCHEMES`, or of a store that fsspec reads.

    Raises: BadDocument: it cannot be fetched.
    """
    from .object_store import read_object  # it shows uris as this module does

    return SCHEMES.get(uri.split(":", 1)[0].lower(), read_object)(uri, policy)


def host_of(uri: str) -> str:
    """Return what a uri is fetched from, for the bound on how much is fetched from it at a time."""
    return uri.split("/", 3)[2].rpartition("@")[2].lower()


def is_forbidden_address(address: Address) -> bool:
    """Whether `address` is anything but a public unicast address.

    Private, shared, loopback, link-local, multicast, reserved and unspecified addresses are forbidden. So is an
    IPv6 address that wraps a forbidden IPv4 address (IPv4-mapped, 6to4).
    """
    if isinstance(address, ipaddress.IPv6Address):
        address = address.ipv4_mapped or address.sixtofour or address
    return not address.is_global or address.is_multicast or address.is_reserved


def fetch(
    uri: str,
    *,
    max_bytes: int,
    timeout: float,
    forbidden: Callable[[Address], bool] = is_forbidden_address,
) -> bytes:
    """Return the body behind an http or https uri.

    Args:
        max_bytes: Limit for the body; a longer one is refused while it arrives.
        timeout: Seconds for the whole fetch, redirects included. (The time for resolving a name is limited only
            by the system's resolver.)
        forbidden: Is asked about every address before we connect to it.

    Raises: BadDocument: the address is forbidden, the transfer fails, takes too long or is too large, or the status is
        not 200.
    """
    deadline = time.monotonic() + timeout
    target = uri
    try:
        for _ in range(_MAX_REDIRECTS + 1):
            body, location = _request(target, max_bytes, deadline, forbidden)
            if location is None:
                return body
            target = _redirected(target, location)
    except TimeoutError as error:
        raise BadDocument(
            f"{shown(uri)} did not arrive within {timeout:g} seconds; raise remote_timeout or send the image itself"
        ) from error
    except (OSError, http.client.HTTPException) as error:
        raise BadDocument(f"{shown(uri)} cannot be fetched: {shown(error) or type(error).__name__}") from error
    raise BadDocument(f"{shown(uri)} was redirected more than {_MAX_REDIRECTS} times; give the final uri")


def _request(
    uri: str, max_bytes: int, deadline: float, forbidden: Callable[[Address], bool]
) -> tuple[bytes, str | None]:
    """Return (body, None), or (b"", new location) for a redirect. Raises: TimeoutError: `deadline` has passed."""
    parts, host, port = _parse(uri)
    connection = http.client.HTTPConnection(host, port)
    with closing(connection):
        sock = _connect(_public_addresses(uri, host, port, forbidden), deadline)
        connection.sock = sock  # closed with the connection; with a socket set, http.client does not resolve the name
        sock.settimeout(_left(deadline))
        if parts.scheme == "https":
            connection.sock = sock = _tls_context().wrap_socket(sock, server_hostname=host)
        connection.request("GET", _request_target(parts), headers={**_HEADERS, "Host": _host_header(parts, host, port)})
        response = http.client.HTTPResponse(_DeadlineReader(sock, deadline), method="GET")  # type: ignore[arg-type]
        response.begin()
        if response.status in _REDIRECTS and (location := response.headers.get("Location")):
            return b"", location
        if response.status != 200:
            raise BadDocument(f"{shown(uri)} answered with status {response.status}")
        return _read(uri, response, max_bytes), None


def _redirected(uri: str, location: str) -> str:
    try:
        return urljoin(uri, location)
    except ValueError as error:
        raise BadDocument(f"{shown(uri)} was redirected to {shown(location)}, not a valid uri") from error


def _parse(uri: str) -> tuple[SplitResult, str, int]:
    """Split an http(s) uri; return its parts, its host in ASCII and its port."""
    try:
        parts = urlsplit(uri)
        host = (parts.hostname or "").encode("idna").decode("ascii")
        port = parts.port
    except ValueError as error:  # UnicodeError is a ValueError
        raise BadDocument(f"{shown(uri)} is not a valid uri: {shown(error)}") from error
    if parts.scheme not in _DEFAULT_PORTS or not host:
        raise BadDocument(f"{shown(uri)} is not a valid http or https uri")
    return parts, host, port if port is not None else _DEFAULT_PORTS[parts.scheme]


def _request_target(parts: SplitResult) -> str:
    """Return the path and query, percent-encoded where they are not yet."""
    path = quote(parts.path or "/", safe=_RESERVED)
    return f"{path}?{quote(parts.query, safe=_RESERVED)}" if parts.query else path


def _host_header(parts: SplitResult, host: str, port: int) -> str:
    bracketed = f"[{host}]" if ":" in host else host
    return bracketed if port == _DEFAULT_PORTS[parts.scheme] else f"{bracketed}:{port}"


def _public_addresses(uri: str, host: str, port: int, forbidden: Callable[[Address], bool]) -> list[tuple[str, int]]:
    """Resolve `host`. Raises: BadDocument: at least one of its addresses is forbidden."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = [(str(sockaddr[0]), port) for *_, sockaddr in found]
    for address, _ in addresses:
        if forbidden(ipaddress.ip_address(address)):
            raise BadDocument(f"{shown(uri)} does not lead to a public address; send the image as a data: uri instead")
    return addresses


def _connect(addresses: list[tuple[str, int]], deadline: float) -> socket.socket:
    """Connect to the first address that answers; each may take an equal share of the remaining time."""
    for waiting, address in zip(range(len(addresses), 0, -1), addresses, strict=True):
        try:
            return socket.create_connection(address, timeout=_left(deadline) / waiting)
        except OSError:
            if waiting == 1:
                raise
    raise OSError("the name has no address")


def _left(deadline: float) -> float:
    """Return the seconds until `deadline`. Raises: TimeoutError: it has passed."""
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        raise TimeoutError
    return seconds


@functools.cache
def _tls_context() -> ssl.SSLContext:
    """Return a context that checks certificates by the system's authorities (or SSL_CERT_FILE), and host names."""
    return ssl.create_default_context()


class _DeadlineReader(io.RawIOBase):
    """Reads a socket; all reads together must end by `deadline`, however slowly the bytes arrive."""

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self._sock = sock
        self._deadline = deadline

    def makefile(self, _mode: str) -> io.BufferedReader:
        """Act as the socket: this is the only method that `http.client.HTTPResponse` calls on it."""
        return io.BufferedReader(self, _CHUNK_BYTES)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        self._sock.settimeout(_left(self._deadline))
        return self._sock.recv_into(buffer)


def _read(uri: str, response: http.client.HTTPResponse, max_bytes: int) -> bytes:
    """Read the body. Raises: BadDocument: it has more than `max_bytes`, or ends early."""
    too_large = BadDocument(
        f"{shown(uri)} has more than the {max_bytes} bytes that max_image_bytes allows; send a smaller file or raise it"
    )
    if (response.length or 0) > max_bytes:  # from Content-Length; None without that header
        raise too_large
    body = bytearray()
    while chunk := response.read(min(_CHUNK_BYTES, max_bytes + 1 - len(body))):
        body += chunk
        if len(body) > max_bytes:
            raise too_large
    if response.length:
        raise BadDocument(f"{shown(uri)} ended {response.length} bytes early; try again")
    return bytes(body)


def _over_http(uri: str, policy: ImagePolicy) -> bytes:
    return fetch(uri, max_bytes=policy.max_image_bytes, timeout=policy.remote_timeout)


# How each remote scheme is fetched. A further scheme is a further line.
SCHEMES: dict[str, Callable[[str, ImagePolicy], bytes]] = {"http": _over_http, "https": _over_http}
