"""Serve the executor over HTTP, without a Flow and without Jina."""

import argparse
import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..endpoints.reader import Reader
    from ..endpoints.service import Service
    from ..parameters import ExecutorOptions
    from ..web.server import Door

PORT = 8080
_DESCRIBED = {  # where a default differs from that in a Flow
    "http_port": f"port on which it serves; 0: a free one, which is printed; by default {PORT}"
}
_KEPT_MEMORY = 2**29  # bytes, as in `service.py`


def add(commands: Any) -> None:
    """Add the command and its arguments: each option of the executor is one."""
    from ..parameters import ExecutorOptions

    serve = commands.add_parser(
        "serve",
        help="serve the executor over HTTP, without a Flow",
        description=f"Serve the executor over HTTP, without a Flow; on port {PORT} unless --http-port names another.",
    )
    serve.add_argument(
        "--workspace",
        type=Path,
        default=Path("workspace"),
        help="where everything is kept: Jina's folder, or the FinetunerExecutor/0 in it; by default ./workspace",
    )
    serve.add_argument("--config", type=Path, help="a config.yml, whose `with` has options; flags come before it")
    options = serve.add_argument_group("options of the executor (docs/parameters.md); lists and objects as JSON")
    for name, field in ExecutorOptions.model_fields.items():
        text = _DESCRIBED.get(name, field.description or "").replace("%", "%%").replace("`", "")
        options.add_argument(f"--{name.replace('_', '-')}", dest=f"option_{name}", metavar="VALUE", help=text)


def run(arguments: argparse.Namespace) -> int:
    """Serve until SIGINT or SIGTERM. Returns: 0; 1: it could not start; 2: an option is wrong."""
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # before torch is imported; docs/operations.md says why
    import uvloop  # half the processor time of a call, compared with asyncio's own loop

    from ..errors import ConfigurationError, FinetunerError

    try:
        options = options_of(arguments)
        return uvloop.run(_serve(_folder(arguments.workspace), options))
    except ConfigurationError as error:
        print(error, file=sys.stderr)
        return 2
    except FinetunerError as error:
        print(error, file=sys.stderr)
        return 1


def options_of(arguments: argparse.Namespace) -> "ExecutorOptions":
    """Return the options: the defaults, those of the config, and the flags, of which the later ones count.

    Raises: ConfigurationError: one is unknown or wrong.
    """
    from ..parameters import ExecutorOptions, meant_by, parse_executor_options

    given: dict[str, Any] = {"http_port": PORT} | _configured(arguments.config)
    for name in ExecutorOptions.model_fields:
        text = getattr(arguments, f"option_{name}")
        if text is not None:
            given[name] = meant_by(ExecutorOptions, name, text)
    return parse_executor_options(given).with_roots()


def _configured(config: Path | None) -> dict[str, Any]:
    """Return the options in a config.yml, in the form of Jina's."""
    import yaml

    from ..errors import ConfigurationError

    if config is None:
        return {}
    try:
        found = yaml.safe_load(config.read_text())
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigurationError(f"The config {config} cannot be read: {error}") from None
    options = found.get("with") or {} if isinstance(found, dict) else None
    if not isinstance(options, dict):
        raise ConfigurationError(f"The config {config} must be a mapping, with options under `with`.")
    return options


def _folder(workspace: Path) -> Path:
    """Return the folder of the workspace: the one that a Flow would use, so that both serve the same."""
    from ..errors import WorkspaceError
    from ..store.workspace import Workspace, find_workspace

    if Workspace(workspace).database.is_file():
        return workspace.resolve()
    try:
        return find_workspace(workspace).root.resolve()
    except WorkspaceError:
        if list(workspace.glob("*/*/runs.sqlite")):
            raise  # there are several
        return (workspace / "FinetunerExecutor" / "0").resolve()


async def _serve(folder: Path, options: "ExecutorOptions") -> int:
    from .. import tracing
    from ..compute.memory import keep_freed_memory
    from ..endpoints.table import open_service
    from ..web.app import make_app, traced
    from ..web.room import OwnRoom
    from ..web.server import Door
    from ..wire.token import read_token

    told = _told_to_end()
    token = read_token(options.token_file)
    tracing.start("finetuner-executor")
    door = Door(options.http_host, options.http_port or 0)
    keep_freed_memory(_KEPT_MEMORY)
    service = open_service(folder, options)
    try:
        door.open(traced(make_app(OwnRoom(service), options, token)))
        _say(door, service, options)
        await told.wait()
        await door.end()
    finally:
        await asyncio.to_thread(service.close)
        await asyncio.to_thread(tracing.end)
    return 0


def _told_to_end() -> asyncio.Event:
    """Return what SIGINT and SIGTERM set. A second one ends the process at once."""
    told = asyncio.Event()

    def tell() -> None:
        if told.is_set():
            os._exit(1)
        told.set()

    for each in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(each, tell)
    return told


def _say(door: "Door", service: "Service | Reader", options: "ExecutorOptions") -> None:
    image = "--data-binary @photo.jpg -H 'Content-Type: image/jpeg'"
    print(f"FinetunerExecutor serves {service.folder}", flush=True)
    print(f"at {door.address}; the page: {door.address}/ui/; all routes: {door.address}/openapi.json", flush=True)
    print(f"Try: curl {image} {door.address}/embed", flush=True)
