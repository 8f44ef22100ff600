"""The bearer token: every server asks for it, our gateway passes it on, and nobody is told it."""

import base64
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import psutil
import pytest
import requests
from jina import Client
from jina.excepts import BadClientCallback, BadServer, BadServerFlow

from conftest import coloured, encoded
from executor.__main__ import main
from executor.documents import Document, DocumentArray
from executor.endpoints.table import ENDPOINTS
from executor.parameters import TOKEN_VARIABLE
from fronts import SMALL, Served, deployment, executor, flow, ports_for, serving
from serving import ROOT

pytestmark = pytest.mark.flow

TOKEN = "tr0ub4dor-and-3"
REFUSAL = "This service wants a token"
PROTOCOLS = ("grpc", "http", "websocket")
GOOD = (f"Bearer {TOKEN}", f"bearer {TOKEN}", f"BEARER  {TOKEN}")
BAD = (
    None,
    "",
    TOKEN,
    "Bearer",
    "Bearer ",
    "Bearer wrong",
    f"Basic {TOKEN}",
    f"Bearer {TOKEN}x",
    f"Bearer {TOKEN[:-1]}",
)
TRUSTING_CLIENT = """
import sys
from docarray import DocList
from jina import Client
from executor.documents import RunStatus

authorization, *servers = sys.argv[1:]
presented = {"metadata": (("authorization", authorization),), "headers": {"Authorization": authorization}}
for protocol, port in zip(servers[::2], servers[1::2]):
    client = Client(host="localhost", port=int(port), protocol=protocol, tls=True)
    print(protocol, len(client.post("/status", return_type=DocList[RunStatus], **presented)))
"""


def image() -> str:
    """A small image as a `data:` uri."""
    return "data:image/png;base64," + base64.b64encode(encoded(coloured(0))).decode()


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A Flow with our gateway and the token in the environment."""
    folder, ports = tmp_path_factory.mktemp("guarded"), ports_for(*PROTOCOLS)
    gateway = {"uses": "executor.gateway.FinetunerGateway"}
    with serving(folder, ports, flow(folder, ports, gateway, SMALL), TOKEN) as served:
        yield served


@pytest.fixture(scope="module")
def behind_jinas(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A Flow with Jina's own gateway, and the token in a file that the executor reads."""
    folder, ports = tmp_path_factory.mktemp("jinas"), ports_for(*PROTOCOLS)
    (folder / "token").write_text(f"{TOKEN}\n")
    with serving(folder, ports, flow(folder, ports, {}, SMALL | {"token_file": "token"})) as served:
        yield served


@pytest.fixture(scope="module", params=["deployment", "executor"])
def alone(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The executor without a gateway."""
    folder = tmp_path_factory.mktemp("alone")
    if request.param == "deployment":
        ports = ports_for("grpc", "http")
        command = deployment(folder, ports)
    else:
        ports = ports_for("http")
        command = executor(folder, ports)
    with serving(folder, ports, command, TOKEN) as served:
        yield served


# a Flow with our gateway ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_with_the_token_documents_are_embedded(guarded, protocol):
    (embedded,) = guarded.client(protocol, GOOD[0], "/embed", DocumentArray([Document(uri=image())]))
    assert embedded.embedding is not None


def test_an_error_over_a_websocket_is_raised_by_jinas_client(guarded):
    client = Client(host="localhost", port=guarded.ports["websocket"], protocol="websocket")
    for _ in range(5):  # without a moment between the error and the end, the client loses most of them
        with pytest.raises(BadServer, match="/status has no parameter"):
            client.post("/status", parameters={"runs": 1}, headers={"Authorization": GOOD[0]})


@pytest.mark.parametrize("protocol", ["grpc", "http"])
@pytest.mark.parametrize("token", [TOKEN, "wrong", None])
def test_the_commands_take_the_token_from_the_environment(guarded, protocol, token, monkeypatch, capsys):
    monkeypatch.setattr(
        sys, "argv", ["executor", "runs", "--json", "--service", f"{protocol}://127.0.0.1:{guarded.ports[protocol]}"]
    )
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    if token is not None:
        monkeypatch.setenv(TOKEN_VARIABLE, token)
    assert main() == (0 if token == TOKEN else 2)
    said = capsys.readouterr()
    assert (said.out == "[]\n") is (token == TOKEN)
    assert (
        token == TOKEN or f"wants a token, and there was none or a wrong one: set {TOKEN_VARIABLE} to it." in said.err
    )


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("authorization", GOOD)
def test_the_scheme_may_be_written_in_any_case(guarded, protocol, authorization):
    assert list(guarded.client(protocol, authorization)) == []


@pytest.mark.parametrize("authorization", BAD)
def test_without_the_token_http_answers_401_with_a_sentence(guarded, authorization):
    response = guarded.post("/status", authorization)
    assert response.status_code == 401
    assert response.json()["detail"].startswith(REFUSAL)
    assert response.headers["WWW-Authenticate"] == "Bearer"


@pytest.mark.parametrize("authorization", BAD)
def test_without_the_token_grpc_answers_unauthenticated(guarded, authorization):
    with pytest.raises(BadServerFlow, match=rf"UNAUTHENTICATED {REFUSAL}"):
        guarded.client("grpc", authorization)


@pytest.mark.parametrize("authorization", BAD)
def test_without_the_token_no_websocket_is_opened(guarded, authorization):
    with pytest.raises(ConnectionError, match="403"):
        guarded.client("websocket", authorization)


def test_a_page_of_another_site_opens_no_websocket(guarded):
    handshake = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
    handshake |= {"Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==", "Authorization": GOOD[0]}
    address = f"http://localhost:{guarded.ports['websocket']}/"
    refused = requests.get(address, headers=handshake | {"Origin": "https://evil.example"}, timeout=60)
    assert refused.status_code == 403


def test_what_is_sent_over_grpc_without_the_token_fills_no_memory(guarded):
    gateway = max(_processes(guarded), key=lambda each: guarded.ports["grpc"] in _listening(each))
    before = gateway.memory_info().rss
    address, unlimited = f"localhost:{guarded.ports['grpc']}", [("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(address, unlimited) as channel, pytest.raises(grpc.RpcError):
        list(channel.stream_stream("/jina.JinaRPC/Call")(iter([bytes(2**27)]), timeout=60))
    assert gateway.memory_info().rss - before < 2**25
    with pytest.raises(BadServerFlow, match=f"UNAUTHENTICATED {REFUSAL}"):  # a call of ordinary size is told why
        guarded.client("grpc", "Bearer wrong", "/fit", DocumentArray(Document(uri=image() * 30) for _ in range(100)))


def _listening(process: psutil.Process) -> set[int]:
    return {each.laddr.port for each in process.net_connections() if each.status == psutil.CONN_LISTEN}


def test_a_token_that_is_no_ascii_is_a_wrong_one(guarded):
    assert guarded.post("/status", f"Bearer {TOKEN}é".encode()).status_code == 401
    assert guarded.post("/status", f"Bearer {TOKEN}é".encode("latin-1")).status_code == 401


@pytest.mark.parametrize("path", [*ENDPOINTS, "/nowhere", "//"])
def test_every_path_over_http_wants_the_token(guarded, path):
    assert guarded.post(path).status_code == 401


@pytest.mark.parametrize("path", ["/watch?run=absent", "/docs", "/redoc", "/openapi.json", "/dry_run", "/status"])
def test_streams_and_pages_want_the_token_too(guarded, path):
    assert guarded.get(path).status_code == 401


def test_health_needs_no_token(guarded):
    assert guarded.get("/").status_code == 200


def test_watch_over_http_streams_with_the_token(guarded):
    assert "There is no run 'absent'" in guarded.get("/watch?run=absent", GOOD[0]).text


def test_watch_over_grpc_wants_the_token(guarded):
    (status,) = guarded.watch(GOOD[0])
    assert "There is no run 'absent'" in status.error
    with pytest.raises(grpc.RpcError) as raised:
        guarded.watch("Bearer wrong")
    assert raised.value.code() is grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize("service", ["JinaInfoRPC/_status", "JinaDiscoverEndpointsRPC/endpoint_discovery"])
def test_what_else_grpc_serves_wants_the_token(guarded, service):
    with grpc.insecure_channel(f"localhost:{guarded.ports['grpc']}") as channel:
        ask = channel.unary_unary(f"/jina.{service}")
        with pytest.raises(grpc.RpcError) as raised:
            ask(b"", timeout=30)
        assert raised.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert ask(b"", timeout=30, metadata=(("authorization", GOOD[0]),))


def test_the_token_reaches_no_trainer_no_log_and_no_file(guarded):
    answer = guarded.post("/fit", GOOD[0], data=[{"uri": image()}], parameters={"run": "secret", "start": False})
    assert answer.status_code == 200
    trainer = _found(lambda: [each for each in _processes(guarded) if "train" in each.cmdline()])[0]
    environment = _found(trainer.environ)
    assert TOKEN_VARIABLE not in environment
    assert "PATH" in environment
    written = [path for path in guarded.folder.rglob("*") if path.is_file()]
    assert any(path.suffix == ".sqlite" for path in written)
    assert [path for path in written if TOKEN.encode() in path.read_bytes()] == []
    assert [each for each in _processes(guarded) if TOKEN in " ".join(each.cmdline())] == []
    assert TOKEN not in guarded.post("/status", GOOD[0]).text


def _processes(served: Served) -> list[psutil.Process]:
    return psutil.Process(served.process.pid).children(recursive=True)


def _found(look: Callable[[], Any]) -> Any:
    """What `look` finds, once it finds something."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with contextlib.suppress(psutil.NoSuchProcess):
            if found := look():
                return found
        time.sleep(0.02)
    raise TimeoutError("nothing was found")


# a Flow with Jina's gateway -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("authorization", [None, GOOD[0]])
def test_behind_jinas_gateway_everything_is_refused_with_the_way_out(behind_jinas, authorization):
    with pytest.raises(BadClientCallback, match="FinetunerGateway"):
        behind_jinas.client("grpc", authorization)
    response = behind_jinas.post("/status", authorization)
    assert response.status_code == 500
    assert "FinetunerGateway" in response.json()["detail"]
    assert "FinetunerGateway" in behind_jinas.watch(authorization)[-1].error
    assert "FinetunerGateway" in behind_jinas.get("/watch?run=absent", authorization).text


def test_behind_jinas_gateway_nothing_is_stored(behind_jinas):
    assert behind_jinas.post("/fit", GOOD[0], data=[{"uri": "data:image/png;base64,AAAA"}]).status_code == 500
    assert list((behind_jinas.folder / "workspace").rglob("documents.sqlite")) == []


# the executor alone ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("authorization", BAD)
def test_the_executor_alone_answers_401_over_http(alone, authorization):
    response = alone.post("/status", authorization)
    assert response.status_code == 401
    assert response.json()["detail"].startswith(REFUSAL)
    assert alone.get("/watch?run=absent", authorization).status_code == 401
    assert alone.get("/openapi.json", authorization).status_code == 401


@pytest.mark.parametrize("authorization", GOOD)
def test_the_executor_alone_serves_over_http_with_the_token(alone, authorization):
    assert alone.post("/status", authorization).status_code == 200
    assert "There is no run 'absent'" in alone.get("/watch?run=absent", authorization).text


def test_the_executor_alone_asks_for_the_token_over_grpc(alone):
    if "grpc" not in alone.ports:
        pytest.skip("this one serves HTTP alone")
    assert list(alone.client("grpc", GOOD[0])) == []
    with pytest.raises(BadServerFlow, match="UNAUTHENTICATED"):
        alone.client("grpc", "Bearer wrong")
    assert REFUSAL in alone.watch(None)[-1].error
    assert "There is no run 'absent'" in alone.watch(GOOD[0])[-1].error


# TLS ------------------------------------------------------------------------------------------------------------------


def test_our_gateway_serves_over_tls(tmp_path, monkeypatch):
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1"]
    files = ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run(["openssl", "req", "-x509", *curve, *files, *names], check=True, capture_output=True)
    gateway = {"uses": "executor.gateway.FinetunerGateway", "ssl_certfile": str(certificate), "ssl_keyfile": str(key)}
    ports = ports_for(*PROTOCOLS)
    with serving(tmp_path, ports, flow(tmp_path, ports, gateway, SMALL), TOKEN, certificate) as served:
        assert served.post("/status", GOOD[0]).status_code == 200
        assert served.post("/status").status_code == 401
        with pytest.raises(requests.ConnectionError):
            requests.post(f"http://localhost:{ports['http']}/status", json={}, timeout=30)
        trusting = os.environ | {
            "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH": str(certificate),
            "SSL_CERT_FILE": str(certificate),
        }
        servers = [str(part) for pair in ports.items() for part in pair]
        command = [sys.executable, "-c", TRUSTING_CLIENT, GOOD[0], *servers]
        done = subprocess.run(command, cwd=ROOT, env=trusting, capture_output=True, text=True, timeout=120)
        assert done.stdout.splitlines() == [f"{protocol} 0" for protocol in PROTOCOLS], done.stderr[-2000:]


def test_a_service_with_an_unusable_token_does_not_start(tmp_path):
    ports = ports_for("http")
    with (
        pytest.raises(AssertionError, match="must be printable ASCII"),
        serving(tmp_path, ports, executor(tmp_path, ports), ""),
    ):
        pass
