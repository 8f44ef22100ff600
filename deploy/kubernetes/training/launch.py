"""Train one run as a Kubernetes Job: `launch.py FOLDER RUN`, run in the writer's pod as its `train_command`.

It makes the Job of `job.yaml`, which lies beside it, through the API server, waits until that has ended, and deletes it
when it is told to end itself. It may do so by the writer's service account. Exit code 0: the Job is complete.
"""

import json
import os
import re
import signal
import ssl
import sys
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path
from typing import Any

import yaml

ACCOUNT = Path(os.environ.get("SERVICE_ACCOUNT", "/var/run/secrets/kubernetes.io/serviceaccount"))
POLL_SECONDS = 2.0
CALL_SECONDS = 2.0  # for one call: when a run is cancelled the writer gives this program eight seconds to end
CREATE_SECONDS = 30.0  # the same for the first ones, of which one makes the Job: webhooks may look at it
PATIENCE_SECONDS = 300.0  # with an API server that does not answer: an upgrade of it takes minutes
UNSURE_SECONDS = 10.0  # in which a Job may still appear whose creation was not answered
BUSY = 429


class Cluster:
    """The API server, as far as this program uses it."""

    def __init__(self) -> None:
        host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
        self._context = ssl.create_default_context(cafile=str(ACCOUNT / "ca.crt"))
        self._url = f"https://{f'[{host}]' if ':' in host else host}:{port}"
        self._namespace = (ACCOUNT / "namespace").read_text().strip()
        self._appears_until = 0.0  # by `time.monotonic`

    def image(self) -> str:
        """The image of this pod: the trainers run the same release."""
        path = f"api/v1/namespaces/{self._namespace}/pods/{os.environ['HOSTNAME']}"
        pod = self._call("GET", path, seconds=CREATE_SECONDS)
        return str(pod["spec"]["containers"][0]["image"])

    def create(self, job: dict[str, Any]) -> None:
        self._appears_until = time.monotonic() + CREATE_SECONDS + UNSURE_SECONDS
        self._call("POST", self._jobs(), job, seconds=CREATE_SECONDS)
        self._appears_until = 0.0

    def status(self, name: str) -> dict[str, Any]:
        """The conditions of a Job that are true, each with its message."""
        status = self._call("GET", f"{self._jobs()}/{name}").get("status", {})
        true = [each for each in status.get("conditions") or () if each["status"] == "True"]
        return {each["type"]: each.get("message", "") for each in true}

    def delete(self, name: str) -> None:
        """Delete a Job, if it is there; try again while the API server does not answer: else it would train on."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                self._call("DELETE", f"{self._jobs()}/{name}?propagationPolicy=Background")
                return
            except OSError as error:
                code = error.code if isinstance(error, urllib.error.HTTPError) else 500
                if code == 404 and time.monotonic() > self._appears_until:
                    return
                if (code < 500 and code not in (404, BUSY)) or time.monotonic() > deadline:
                    print(f"The Job {name} could not be deleted and may train on; delete it by kubectl.", flush=True)
                    raise
                print(f"The Job {name} is not deleted yet: {error}", flush=True)
                time.sleep(POLL_SECONDS / 4)

    def _jobs(self) -> str:
        return f"apis/batch/v1/namespaces/{self._namespace}/jobs"

    def _call(
        self, method: str, path: str, body: dict[str, Any] | None = None, *, seconds: float = CALL_SECONDS
    ) -> dict[str, Any]:
        token = (ACCOUNT / "token").read_text().strip()  # read anew: it is renewed every hour
        content = None if body is None else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        request = urllib.request.Request(f"{self._url}/{path}", content, headers, method=method)
        with urllib.request.urlopen(request, context=self._context, timeout=seconds) as answer:
            found: dict[str, Any] = json.load(answer)
        return found


def job_for(folder: str, run: str, image: str) -> dict[str, Any]:
    """Return the Job of a run. Each attempt has a name of its own: the Job of an earlier one may be ending still."""
    job: dict[str, Any] = yaml.safe_load((Path(__file__).parent / "job.yaml").read_text())
    plain = re.sub(r"[^a-z0-9]+", "-", run.lower())[:30].strip("-")
    name = f"finetuner-{plain}-{uuid.uuid4().hex[:8]}".replace("--", "-")
    job["metadata"]["name"] = name
    (container,) = job["spec"]["template"]["spec"]["containers"]
    container["image"] = image
    values = {"JOB_NAME": name, "JOB_FOLDER": folder}
    for variable in container["env"]:
        variable["value"] = values.get(variable["name"], variable["value"])
    return job


def wait(cluster: Cluster, name: str) -> int:
    """Wait until a Job has ended, or this program is told to end, and return the exit code."""
    answered = time.monotonic()
    while signal.sigtimedwait({signal.SIGTERM}, POLL_SECONDS) is None:
        try:
            conditions = cluster.status(name)
            answered = time.monotonic()
        except urllib.error.HTTPError as error:
            if error.code == 404:
                print(f"The Job {name} is gone: somebody has deleted it.")
                return 1
            if error.code < 500 and error.code != BUSY:
                raise
            conditions = {}
        except OSError as error:
            if time.monotonic() - answered > PATIENCE_SECONDS:
                raise
            print(f"The API server does not answer: {error}", flush=True)
            conditions = {}
        if "Complete" in conditions:
            return 0
        if "Failed" in conditions:
            print(f"The Job {name} has failed: {conditions['Failed']} See the logs of its pods.")
            return 1
    return 1


def main() -> int:
    folder, run = sys.argv[1:]
    # It is heard between two calls: of one that it cuts off nobody would know whether a Job was made.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    cluster = Cluster()
    job = job_for(folder, run, cluster.image())
    name = job["metadata"]["name"]
    code = 1
    try:
        cluster.create(job)
        print(f"Made the Job {name}", flush=True)
        code = wait(cluster, name)
    finally:
        if code:  # else it is kept for its logs, for as long as ttlSecondsAfterFinished says
            cluster.delete(name)
    return code


if __name__ == "__main__":
    sys.exit(main())
