"""The program that trains a run as a Kubernetes Job, with an API server that is none but speaks its language."""

import json
import os
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from serving import ROOT

pytestmark = pytest.mark.process
LAUNCH = ROOT / "deploy" / "kubernetes" / "training" / "launch.py"
JOBS = "/apis/batch/v1/namespaces/shop/jobs"


class Api:
    """A server with one pod, and the Jobs that are made. Attributes: failing: it answers 503."""

    def __init__(self, folder: Path) -> None:
        certificate = folder / "ca.crt"
        made = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", folder / "key")
        names = ("-out", certificate, "-subj", "/CN=api", "-addext", "subjectAltName=IP:127.0.0.1")
        subprocess.run(["openssl", "req", "-x509", *made, *names], check=True, capture_output=True)
        (folder / "namespace").write_text("shop")
        (folder / "token").write_text("a token")
        self.jobs: dict[str, dict[str, Any]] = {}
        self.failing = False
        self.asked: list[tuple[str, str]] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, folder / "key")
        # Each connection's thread shakes hands: a caller that leaves in the middle of it holds up no other.
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.environment = os.environ | {
            "KUBERNETES_SERVICE_HOST": "127.0.0.1",
            "KUBERNETES_SERVICE_PORT": str(self._server.server_port),
            "SERVICE_ACCOUNT": str(folder),
            "HOSTNAME": "finetuner-writer-0",
        }

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        api = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                size = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(size)) if size else None
                api.asked.append((self.command, self.path))
                status, content = api.call(self.command, self.path, body)
                if self.headers["Authorization"] != "Bearer a token":
                    status = 401
                self.send_response(status)
                self.end_headers()
                self.wfile.write(json.dumps(content).encode())

            do_GET = do_POST = do_DELETE = answer  # noqa: N815

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        return Handler

    def call(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        if self.failing:
            return 503, {}
        if path == "/api/v1/namespaces/shop/pods/finetuner-writer-0":
            return 200, {"spec": {"containers": [{"image": "registry/finetuner:1.2"}]}}
        if method == "POST" and path == JOBS:
            self.jobs[body["metadata"]["name"]] = body
            return 201, body
        name = path.removeprefix(f"{JOBS}/").partition("?")[0]
        if name not in self.jobs:
            return 404, {}
        return 200, self.jobs.pop(name) if method == "DELETE" else self.jobs[name]

    def end(self, condition: str) -> None:
        (job,) = self.jobs.values()
        job["status"] = {"conditions": [{"type": condition, "status": "True", "message": "it is so."}]}

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    made = Api(tmp_path)
    yield made
    made.close()


def launched(api: Api) -> "subprocess.Popen[str]":
    """Start the program and wait until it has made the Job."""
    command = [sys.executable, str(LAUNCH), "/jobs/Run_1-0011", "Run_1.x"]
    process = subprocess.Popen(
        command, env=api.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    wait_until(lambda: bool(api.jobs) or process.poll() is not None)
    assert process.poll() is None, process.communicate()[0]
    return process


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_job_of_the_writers_image_is_made_and_waited_for(api: Api) -> None:
    process = launched(api)
    (job,) = api.jobs.values()
    (container,) = job["spec"]["template"]["spec"]["containers"]
    values = {each["name"]: each["value"] for each in container["env"]}
    assert container["image"] == "registry/finetuner:1.2"
    assert (values["JOB_FOLDER"], values["JOB_NAME"]) == ("/jobs/Run_1-0011", job["metadata"]["name"])
    assert job["metadata"]["name"].startswith("finetuner-run-1-x-")
    api.failing = True  # for a while, as in an upgrade
    asked = len(api.asked)
    wait_until(lambda: len(api.asked) > asked)
    api.failing = False
    assert process.poll() is None
    api.end("Complete")
    assert process.wait(60) == 0
    assert api.jobs  # kept for its logs


def test_a_job_that_has_failed_is_deleted_and_says_why(api: Api) -> None:
    process = launched(api)
    api.end("Failed")
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 1
    assert "has failed: it is so." in output
    assert not api.jobs


def test_a_job_is_deleted_when_its_program_is_told_to_end(api: Api) -> None:
    process = launched(api)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 1
    assert not api.jobs
    assert api.asked[-1][1].endswith("?propagationPolicy=Background")


def test_a_job_is_deleted_once_the_api_server_answers_again(api: Api) -> None:
    process = launched(api)
    api.failing = True
    process.send_signal(signal.SIGTERM)
    wait_until(lambda: any(method == "DELETE" for method, _ in api.asked))
    assert process.poll() is None
    api.failing = False
    assert process.wait(60) == 1
    assert not api.jobs
