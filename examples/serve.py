"""Serve a Flow with this Executor and its own gateway: `./scripts/serve`. It says in three lines where.

    ./scripts/serve [--grpc 54321] [--http 8080] [--host 127.0.0.1] [--workspace workspace] [--option NAME=VALUE ...]

An option is one of those in docs/parameters.md, its value JSON or plain text: `--option model=small --option
'fit_defaults={"epochs": 3}'`. Files can be read below the current directory, or where `allowed_roots` says. Ctrl-C, or
SIGTERM, ends it. What cannot be served is said in one sentence, with exit code 1; a wrong use has exit code 2.
"""

import argparse
import io
import json
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
NAME = "FinetunerExecutor"  # as in config.yml: Jina makes a folder of this name in the workspace


class Unservable(Exception):
    """Why nothing can be served, in one sentence."""


def main() -> int:
    """Serve until a signal comes; return the exit code."""
    arguments = _arguments()
    for how in (signal.SIGTERM, signal.SIGINT):
        signal.signal(how, lambda *_: sys.exit(0))
    try:
        _check(arguments)
        return _serve(arguments)
    except Unservable as reason:
        print(reason, file=sys.stderr)
        return 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/serve", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--grpc", type=int, default=54321, help="port for gRPC (54321)")
    parser.add_argument("--http", type=int, default=8080, help="port for HTTP (8080)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1: this machine only)")
    parser.add_argument("--workspace", type=Path, default=Path("workspace"), help="folder for runs and models")
    parser.add_argument("--option", action="append", default=[], metavar="NAME=VALUE", help="an option of the executor")
    found = parser.parse_args()
    if wrong := [each for each in found.option if "=" not in each]:
        parser.error(f"--option {wrong[0]} lacks its value; write --option {wrong[0]}=VALUE")
    found.options = {name: _value(text) for name, _, text in (each.partition("=") for each in found.option)}
    return found


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _check(arguments: argparse.Namespace) -> None:
    """Raise Unservable for what can be found out before anything is started."""
    from executor.errors import FinetunerError
    from executor.parameters import parse_executor_options
    from executor.store.lock import WorkspaceLock
    from executor.store.runs import RunStore
    from executor.store.workspace import Workspace

    workspace = Workspace(arguments.workspace.resolve() / NAME / "0")
    try:
        parse_executor_options(arguments.options)
        lock = WorkspaceLock(workspace)
        RunStore(workspace).close()
        lock.release()
    except FinetunerError as error:
        raise Unservable(str(error)) from error
    for option, port in (("--grpc", arguments.grpc), ("--http", arguments.http)):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: a port just left is free
            try:
                probe.bind((arguments.host, port))
            except (OSError, OverflowError) as error:
                reason = getattr(error, "strerror", None) or error
                raise Unservable(
                    f"Port {port} of {arguments.host} cannot be used ({reason}); end what uses it, or name another "
                    f"with {option}."
                ) from error


def _serve(arguments: argparse.Namespace) -> int:
    from jina import Flow
    from jina.excepts import RuntimeFailToStart

    flow = Flow(protocol=["grpc", "http"], port=[arguments.grpc, arguments.http], host=arguments.host).config_gateway(
        uses="executor.gateway.FinetunerGateway"
    )
    flow = flow.add(
        name="finetuner",
        uses=str(ROOT / "config.yml"),
        uses_with=arguments.options,
        workspace=str(arguments.workspace.resolve()),
    )
    stdout, sys.stdout = sys.stdout, _OfChildren()
    try:
        with flow:
            sys.stdout = stdout
            print(f"gRPC       {arguments.host}:{arguments.grpc}")
            print(f"HTTP       http://{arguments.host}:{arguments.http}")
            print(f"workspace  {arguments.workspace.resolve()} (Ctrl-C ends the service)", flush=True)
            flow.block()
    except RuntimeFailToStart:
        raise Unservable("The service could not be started; the lines above say why.") from None
    return 0


class _OfChildren(io.StringIO):
    """Standard output while the Flow starts: this process has only Jina's banner to print, its children have errors."""

    def __init__(self) -> None:
        super().__init__()
        self._parent = os.getpid()

    def write(self, text: str) -> int:
        return len(text) if os.getpid() == self._parent else sys.stderr.write(text)


if __name__ == "__main__":
    sys.exit(main())
