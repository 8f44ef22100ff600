"""A client trains and searches over HTTP. Its environment has neither this package nor Jina."""

import base64
import json
import subprocess
from pathlib import Path

import pytest

from conftest import encoded, images
from serving import ROOT, Service

pytestmark = [pytest.mark.extra, pytest.mark.flow]

CLIENT = """
import importlib.util, json, sys, time
import requests
assert not [name for name in ("jina", "docarray", "executor", "numpy") if importlib.util.find_spec(name)]
url, data = sys.argv[1], json.load(open(sys.argv[2]))
def post(path, data=(), **parameters):
    answer = requests.post(url + path, json={"data": list(data), "parameters": parameters}, timeout=60)
    answer.raise_for_status()
    return answer.json()["data"]
post("/fit", data, run="foreign", total=len(data), epochs=1, promote="always")
while post("/status", run="foreign")[0]["ended_at"] is None:
    time.sleep(0.2)
embedded = post("/embed", data[:2])
print(json.dumps([post("/status", run="foreign")[0]["state"], [doc["tags"]["finetuner_model"] for doc in embedded]]))
"""


def test_a_client_that_knows_nothing_but_http_trains_and_searches(service: Service, tmp_path: Path) -> None:
    python = ROOT / ".venv-extra" / "bin" / "python"
    data = [
        {
            "id": doc.id,
            "uri": f"data:image/png;base64,{base64.b64encode(encoded(doc.blob)).decode()}",
            "tags": {"finetuner_label": number % 3},
        }
        for number, doc in enumerate(images(12))
    ]
    (tmp_path / "data.json").write_text(json.dumps(data))
    url = f"http://127.0.0.1:{service.ports['http']}"
    done = subprocess.run(
        [python, "-I", "-c", CLIENT, url, tmp_path / "data.json"], capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == ["succeeded", ["foreign", "foreign"]]
