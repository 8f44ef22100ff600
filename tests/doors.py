"""The executor's own HTTP door in this process: a real server on a real port, in a thread with its own event loop."""

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import requests

from executor.endpoints.service import Service
from executor.parameters import parse_executor_options
from executor.web.app import make_app
from executor.web.room import OwnRoom
from executor.web.server import Door
from serving import QUICK


class Opened:
    """An open door. Attributes: service: what is behind it."""

    def __init__(self, address: str, service: Service) -> None:
        self.address = address
        self.service = service

    def post(self, path: str, data: Any = (), *, headers: Any = None, **parameters: Any) -> requests.Response:
        body = {"data": list(data), "parameters": parameters}
        return requests.post(self.address + path, json=body, headers=headers, timeout=60)

    def send(self, path: str, body: Any, kind: str, **query: Any) -> requests.Response:
        """POST a body of another content type."""
        return requests.post(self.address + path, data=body, params=query, headers={"Content-Type": kind}, timeout=60)

    def get(self, path: str, headers: Any = None) -> requests.Response:
        return requests.get(self.address + path, headers=headers, timeout=60)

    def series(self) -> dict[str, float]:
        """What `/metrics` says: the value of each series, by its name and labels."""
        lines = [line for line in self.get("/metrics").text.splitlines() if not line.startswith("#")]
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


@contextlib.contextmanager
def opened(folder: Path, *, token: str | None = None, **options: Any) -> Iterator[Opened]:
    """Open a door over a service with a workspace of its own. Args: options: those of the executor, over `QUICK`."""
    settings = parse_executor_options(QUICK | {"receive_timeout": 1000.0} | options).with_roots()
    door, loop, told = Door("127.0.0.1", 0), asyncio.new_event_loop(), asyncio.Event()
    service = Service(folder / "workspace", settings)

    async def serve() -> None:
        door.open(make_app(OwnRoom(service), settings, token))
        await told.wait()
        await door.end()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    try:
        yield Opened(door.address, service)
    finally:
        loop.call_soon_threadsafe(told.set)
        thread.join()
        loop.close()
        service.close()
