"""The server of an application: its socket, its bounds, its end."""

import asyncio
import resource
import socket
from typing import Any

import h11
from uvicorn import Config, Server
from uvicorn.protocols.http.h11_impl import H11Protocol

from ..errors import ConfigurationError
from ..wire.answering import answer_before_end
from ..wire.token import App

MAX_CONNECTIONS = 4096  # at a time; more are closed at once
HEADER_SECONDS = 10.0  # that a client has to send the header of a request
HEADER_BYTES = 32 * 1024  # of a header; a longer one is a 400
IDLE_SECONDS = 30  # after an answer, until the connection is closed


class Door:
    """Serves an application over HTTP. The port is bound at once, so that it is known, and a taken one is refused.

    Args: port: 0 for a free one.
    Raises: ConfigurationError: the address cannot be had.
    """

    def __init__(self, host: str, port: int) -> None:
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            self._socket = socket.create_server((host, port), family=family, backlog=2048)
            # Connections inherit it. uvloop sets it for each by itself, asyncio not for those of such a socket: the
            # second part of an answer then waits 40 ms, until the client has acknowledged the first.
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError as error:
            raise ConfigurationError(
                f"The HTTP door cannot listen on {host}:{port} ({error.strerror}); choose another http_host or "
                "http_port, or 0 for a free port."
            ) from error
        self.host, self.port = host, int(self._socket.getsockname()[1])
        self._serving: tuple[Server, asyncio.Task[None]] | None = None

    @property
    def address(self) -> str:
        """The url of the door."""
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    def open(self, app: App) -> None:
        """Serve in the running event loop from now on."""
        _allow_many_files()
        config = Config(
            app,
            http=_Bounded,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            h11_max_incomplete_event_size=HEADER_BYTES,
            timeout_keep_alive=IDLE_SECONDS,
        )
        config.load()
        server = Server(config)
        server.lifespan = config.lifespan_class(config)
        self._serving = server, asyncio.get_running_loop().create_task(self._serve(server))

    async def _serve(self, server: Server) -> None:
        await server.startup(sockets=[self._socket])
        await server.main_loop()

    async def end(self) -> None:
        """Take no more requests. Return when those under way are answered or cut off."""
        if self._serving is not None:
            server, serving = self._serving
            await answer_before_end(server)
            server.should_exit = True
            await serving


class _Bounded(H11Protocol):
    """Closes connections beyond `MAX_CONNECTIONS`, and those whose next header takes longer than `HEADER_SECONDS`."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            transport.abort()
        else:
            self._wait_for_header()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._stop_waiting()
        elif self._timer is None:
            self._wait_for_header()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def _wait_for_header(self) -> None:
        self._timer = self.loop.call_later(HEADER_SECONDS, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _allow_many_files() -> None:
    """Let this process have as many files open as it may: each connection is one, and the usual limit is 1,024."""
    most: Any
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_CONNECTIONS * 4 if most == resource.RLIM_INFINITY else most
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(wanted, resource.getrlimit(resource.RLIMIT_NOFILE)[0]), most))
