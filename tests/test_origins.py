"""Which pages may call Jina's own servers: those of the service, and of the sites that the operator names."""

from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.middleware.cors import CORSMiddleware
from starlette.testclient import TestClient
from starlette.websockets import WebSocket, WebSocketDisconnect

from executor.wire.origins import OwnOrigin
from executor.wire.refusals import extended

SERVICE = "http://service.example:8080"
SHOP = "https://shop.example"
EVIL = "https://evil.example"
UNASKED = {"Content-Type": "text/plain"}  # what a browser sends to any address before it asks whether it may


def server(*origins: str, cors: bool = False) -> TestClient:
    """A client of the HTTP server of an executor, as far as it matters. Args: cors: Jina's own option."""
    app = FastAPI()
    if cors:
        app.add_middleware(CORSMiddleware, allow_origins=["*"])

    @app.post("/cancel")
    async def cancel(request: Request) -> Any:
        return await request.json()

    return TestClient(extended(app, None, 1 << 20, origins), SERVICE)


def status(client: TestClient, origin: str | None) -> int:
    said = {} if origin is None else {"Origin": origin}
    return client.post("/cancel", content='{"parameters": {"run": "mine"}}', headers=UNASKED | said).status_code


def test_a_page_of_another_site_may_not_call_the_server_of_an_executor_and_its_own_and_programs_may():
    answer = server().post("/cancel", content="{}", headers=UNASKED | {"Origin": EVIL})
    assert answer.json() == {
        "detail": f"Pages of {EVIL} may not call this service; the operator can name them in cors_origins."
    }
    assert {origin: status(server(), origin) for origin in (EVIL, SHOP, "null", SERVICE, None)} == {
        EVIL: 403,
        SHOP: 403,
        "null": 403,
        SERVICE: 200,
        None: 200,
    }


@pytest.mark.parametrize("cors", [False, True])
def test_pages_that_the_operator_names_may_and_their_browsers_are_told_so(cors):
    client = server(SHOP, cors=cors)
    assert (status(client, SHOP), status(client, EVIL)) == (200, 403)
    asked = {"Origin": SHOP, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "Content-Type"}
    assert client.options("/cancel", headers=asked).headers["access-control-allow-origin"] == SHOP
    assert client.options("/cancel", headers=asked | {"Origin": EVIL}).status_code == 400


def test_who_lets_all_pages_call_by_jinas_own_option_is_obeyed():
    assert status(server(cors=True), EVIL) == 200


def test_a_page_of_another_site_opens_no_websocket():
    app = FastAPI()

    @app.websocket("/")
    async def greet(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.close()

    client = TestClient(OwnOrigin(app, [SHOP]), SERVICE)
    with pytest.raises(WebSocketDisconnect) as refused, client.websocket_connect("/", headers={"Origin": EVIL}):
        pass
    assert refused.value.code == 1008
    for origin in (SHOP, SERVICE):
        with client.websocket_connect("/", headers={"Origin": origin, "Host": "service.example:8080"}):
            pass
