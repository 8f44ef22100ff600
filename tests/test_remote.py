"""Images are fetched over http(s) only from public addresses, and within limits of size, time and redirects."""

import os
import shutil
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path

import pytest

from executor.errors import BadDocument
from executor.images import remote
from executor.images.remote import fetch, is_forbidden_address
from serving import ROOT

BODY = b"the bytes of an image" * 100
ENOUGH = {"max_bytes": 1 << 20, "timeout": 10.0}


def nothing_is_forbidden(_address: object) -> bool:
    return False


def only_loopback_1_is_allowed(address: object) -> bool:
    return str(address) != "127.0.0.1"


class Handler(BaseHTTPRequestHandler):
    """Answers by the path asked for; notes what was asked."""

    server: "Server"

    def do_GET(self) -> None:
        self.server.asked.append((self.path, dict(self.headers)))
        self.server.answer(self)

    def log_message(self, *_args: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    answer: Callable[[BaseHTTPRequestHandler], None]
    asked: list[tuple[str, dict[str, str]]]
    stop: threading.Event

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def serve(answer: Callable[[BaseHTTPRequestHandler], None], tls: ssl.SSLContext | None = None) -> Iterator[Server]:
    server = Server(("127.0.0.1", 0), Handler)
    server.answer, server.asked, server.stop = answer, [], threading.Event()
    if tls:
        server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.stop.set()
        server.shutdown()
        server.server_close()
        thread.join()


def send_body(request: BaseHTTPRequestHandler) -> None:
    request.send_response(200)
    request.send_header("Content-Length", str(len(BODY)))
    request.end_headers()
    request.wfile.write(BODY)


def redirect_to(location: str) -> Callable[[BaseHTTPRequestHandler], None]:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(302)
        request.send_header("Location", location)
        request.end_headers()

    return answer


def by_path(**answers: Callable[[BaseHTTPRequestHandler], None]) -> Callable[[BaseHTTPRequestHandler], None]:
    return lambda request: answers[request.path.strip("/")](request)


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",
        "[::1]",
        "169.254.169.254",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "100.64.0.1",
        "0.0.0.0",
        "[::]",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "[::ffff:127.0.0.1]",
        "[::ffff:10.0.0.1]",
        "[::127.0.0.1]",
        "[2002:7f00:1::]",
        "[64:ff9b::7f00:1]",
        "[fe80::1]",
        "[fc00::1]",
        "[ff02::1]",
        "2130706433",
        "0x7f000001",
        "127.1",
        "017700000001",
    ],
)
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_an_address_that_is_not_public_is_refused(scheme, host):
    with pytest.raises(BadDocument, match="does not lead to a public address"):
        fetch(f"{scheme}://{host}/image.jpg", **ENOUGH)


def test_a_refused_address_is_never_connected_to():
    with serve(send_body) as server:
        with pytest.raises(BadDocument, match="public address"):
            fetch(f"{server.uri}/image.jpg", **ENOUGH)
        assert server.asked == []


@pytest.mark.parametrize("address", ["1.1.1.1", "8.8.8.8", "2606:4700:4700::1111", "::ffff:8.8.8.8"])
def test_a_public_address_is_allowed(address):
    assert not is_forbidden_address(ip_address(address))


def test_the_body_is_returned():
    with serve(send_body) as server:
        assert fetch(f"{server.uri}/image.jpg", **ENOUGH, forbidden=nothing_is_forbidden) == BODY


def test_a_body_without_a_length_is_returned():
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.end_headers()
        request.wfile.write(BODY)

    with serve(answer) as server:
        assert fetch(server.uri, **ENOUGH, forbidden=nothing_is_forbidden) == BODY


def test_a_chunked_body_is_returned_whole():
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.protocol_version = "HTTP/1.1"
        request.send_response(200)
        request.send_header("Transfer-Encoding", "chunked")
        request.end_headers()
        request.wfile.write(b"5\r\nabcde\r\n3\r\nfgh\r\n0\r\n\r\n")

    with serve(answer) as server:
        assert fetch(server.uri, **ENOUGH, forbidden=nothing_is_forbidden) == b"abcdefgh"


def test_the_host_and_the_encoded_path_are_sent():
    with serve(send_body) as server:
        port = server.server_address[1]
        fetch(f"http://localhost:{port}/a b/ü%20.jpg?x=1&y=ö", **ENOUGH, forbidden=nothing_is_forbidden)
        path, headers = server.asked[0]
    assert path == "/a%20b/%C3%BC%20.jpg?x=1&y=%C3%B6"
    assert headers["Host"] == f"localhost:{port}"


def test_proxies_of_the_environment_are_not_used(monkeypatch):
    with serve(send_body) as server, serve(redirect_to("http://proxy.invalid/")) as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.uri)
        monkeypatch.delenv("no_proxy", raising=False)
        assert fetch(server.uri, **ENOUGH, forbidden=nothing_is_forbidden) == BODY
        assert proxy.asked == []


@pytest.mark.parametrize("location", ["/image", "//127.0.0.1:{port}/image", "http://127.0.0.1:{port}/image"])
def test_a_redirect_is_followed(location):
    with serve(send_body) as target:
        port = target.server_address[1]
        target.answer = by_path(start=redirect_to(location.format(port=port)), image=send_body)
        assert fetch(f"{target.uri}/start", **ENOUGH, forbidden=nothing_is_forbidden) == BODY


def test_a_fourth_redirect_is_refused():
    with serve(redirect_to("/again")) as server:
        with pytest.raises(BadDocument, match="redirected more than 3 times"):
            fetch(server.uri, **ENOUGH, forbidden=nothing_is_forbidden)
        assert len(server.asked) == 4


def test_a_redirect_to_a_private_address_is_refused():
    with (
        serve(redirect_to("http://127.0.0.2:9/metadata")) as server,
        pytest.raises(BadDocument, match=r"127\.0\.0\.2:9/metadata does not lead to a public address"),
    ):
        fetch(server.uri, **ENOUGH, forbidden=only_loopback_1_is_allowed)


@pytest.mark.parametrize("location", ["file:///etc/passwd", "ftp://127.0.0.1/x", "data:,x"])
def test_a_redirect_to_another_scheme_is_refused(location):
    with serve(redirect_to(location)) as server, pytest.raises(BadDocument, match="not a valid http or https uri"):
        fetch(server.uri, **ENOUGH, forbidden=nothing_is_forbidden)


def test_a_redirect_to_a_malformed_uri_is_refused():
    with serve(redirect_to("http://[::1")) as server, pytest.raises(BadDocument, match="not a valid uri"):
        fetch(server.uri, **ENOUGH, forbidden=nothing_is_forbidden)


def test_what_a_server_says_that_speaks_no_http_is_repeated_shortly_and_printably():
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.wfile.write(b"\x02" * 5000 + b"\r\n")

    with serve(answer) as server, pytest.raises(BadDocument, match="cannot be fetched") as refused:
        fetch(server.uri, **ENOUGH, forbidden=nothing_is_forbidden)
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 500


def test_one_forbidden_address_of_several_refuses_the_name(monkeypatch):
    # no name of this machine has two addresses for sure, so the resolver's answer is given
    monkeypatch.setattr(
        remote.socket,
        "getaddrinfo",
        lambda *_args, **_kwargs: [(2, 1, 6, "", (address, 80)) for address in ("1.1.1.1", "10.0.0.1")],
    )
    with pytest.raises(BadDocument, match="does not lead to a public address"):
        fetch("http://two-faced.example/", **ENOUGH)


def test_an_announced_length_over_the_limit_is_refused_before_the_body_arrives():
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Length", str(10**12))
        request.end_headers()
        request.server.stop.wait()

    with serve(answer) as server, pytest.raises(BadDocument, match="99 bytes that max_image_bytes allows"):
        fetch(server.uri, max_bytes=99, timeout=5, forbidden=nothing_is_forbidden)


def test_an_unannounced_endless_body_is_refused_by_option_name():
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.end_headers()
        while not request.server.stop.is_set():
            try:
                request.wfile.write(b"x" * 65536)
            except OSError:
                return

    with serve(answer) as server, pytest.raises(BadDocument, match="bytes that max_image_bytes allows"):
        fetch(server.uri, max_bytes=1 << 20, timeout=60, forbidden=nothing_is_forbidden)


def test_a_body_of_just_the_limit_is_returned():
    with serve(send_body) as server:
        assert fetch(server.uri, max_bytes=len(BODY), timeout=10, forbidden=nothing_is_forbidden) == BODY


def drip(request: BaseHTTPRequestHandler, first: bytes, then: bytes) -> None:
    """Send a byte every 50 ms, so that no single read ever times out."""
    request.wfile.write(first)
    while not request.server.stop.wait(0.05):
        try:
            request.wfile.write(then)
        except OSError:
            return


def test_a_body_that_drips_in_is_ended():
    head = b"HTTP/1.0 200 OK\r\n\r\n"
    with (
        serve(lambda request: drip(request, head, b"x")) as server,
        pytest.raises(BadDocument, match=r"did not arrive within 0\.4 seconds; raise remote_timeout"),
    ):
        fetch(server.uri, max_bytes=1 << 20, timeout=0.4, forbidden=nothing_is_forbidden)


def test_headers_that_drip_in_are_ended():
    head = b"HTTP/1.0 200 OK\r\nX-Slow: "
    with (
        serve(lambda request: drip(request, head, b"x")) as server,
        pytest.raises(BadDocument, match="did not arrive within"),
    ):
        fetch(server.uri, max_bytes=1 << 20, timeout=0.4, forbidden=nothing_is_forbidden)


def test_a_server_that_says_nothing_is_ended():
    with (
        serve(lambda request: request.server.stop.wait()) as server,
        pytest.raises(BadDocument, match="did not arrive within"),
    ):
        fetch(server.uri, max_bytes=1 << 20, timeout=0.2, forbidden=nothing_is_forbidden)


def test_a_body_shorter_than_announced_is_refused():
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Length", "10")
        request.end_headers()
        request.wfile.write(b"abc")

    with serve(answer) as server, pytest.raises(BadDocument, match="ended 7 bytes early"):
        fetch(server.uri, **ENOUGH, forbidden=nothing_is_forbidden)


def test_a_status_other_than_200_is_named():
    with (
        serve(lambda request: request.send_error(404)) as server,
        pytest.raises(BadDocument, match="answered with status 404"),
    ):
        fetch(server.uri, **ENOUGH, forbidden=nothing_is_forbidden)


def test_a_server_that_does_not_speak_http_is_refused():
    with (
        serve(lambda request: request.wfile.write(b"220 ftp ready\r\n")) as server,
        pytest.raises(BadDocument, match="cannot be fetched"),
    ):
        fetch(server.uri, **ENOUGH, forbidden=nothing_is_forbidden)


def test_a_refused_connection_is_named():
    with serve(send_body) as server:
        uri = server.uri
    with pytest.raises(BadDocument, match=r"cannot be fetched: .*refused"):
        fetch(uri, **ENOUGH, forbidden=nothing_is_forbidden)


@pytest.mark.parametrize(
    "uri", ["http://", "http:///image.jpg", "http://host:notaport/", "http://[::1/", "http://a..b/", "ftp://host/x"]
)
def test_a_malformed_uri_is_refused(uri):
    with pytest.raises(BadDocument, match="is not a valid"):
        fetch(uri, **ENOUGH)


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A self-signed certificate for the name `localhost`, and no address, with its key in the same file."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs the openssl command to make a certificate")
    key, cert, both = tmp_path / "key.pem", tmp_path / "cert.pem", tmp_path / "both.pem"
    subprocess.run(
        [
            *(openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", cert, "-days", "1"),
            *("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"),
        ],
        check=True,
        capture_output=True,
    )
    both.write_bytes(key.read_bytes() + cert.read_bytes())
    return both


@pytest.fixture
def tls(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


# A process decides once whom it trusts, so one of its own fetches each uri.
FETCH = """
import sys
from executor.errors import BadDocument
from executor.images.remote import fetch
for uri in sys.argv[1:]:
    try:
        print(len(fetch(uri, max_bytes=1 << 20, timeout=10.0, forbidden=lambda address: False)))
    except BadDocument as refusal:
        print(refusal)
"""


@pytest.mark.process
def test_https_verifies_the_name_and_not_the_address_connected_to(tls, certificate):
    with serve(send_body, tls) as server:
        uris = [f"https://{host}:{server.server_address[1]}/" for host in ("localhost", "127.0.0.1")]
        trusting = os.environ | {"SSL_CERT_FILE": str(certificate)}
        command = [sys.executable, "-c", FETCH, *uris]
        done = subprocess.run(command, cwd=ROOT, env=trusting, capture_output=True, text=True, timeout=60)
    by_name, by_address = done.stdout.splitlines()
    assert by_name == str(len(BODY))
    assert "certificate is not valid for '127.0.0.1'" in by_address


def test_an_unknown_authority_is_refused(tls):
    with serve(send_body, tls) as server, pytest.raises(BadDocument, match="self-signed certificate"):
        fetch(f"https://localhost:{server.server_address[1]}/", **ENOUGH, forbidden=nothing_is_forbidden)
