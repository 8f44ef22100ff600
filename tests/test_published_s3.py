"""A writer publishes to a real S3 server, and a reader follows: promotions, damage, a server that ends."""

import json
from pathlib import Path

import pytest

from extras import run_with_extras

PROGRAM = """
import asyncio, json, logging, os, sys, time
from hashlib import sha256
from pathlib import Path

os.environ |= {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1"}
from moto.server import ThreadedMotoServer

looks = []

class Looks(logging.Handler):
    def emit(self, record):
        if "served.json" in record.getMessage() and "GET" in record.getMessage():
            looks.append(time.monotonic())

requests = logging.getLogger("werkzeug")
requests.setLevel(logging.INFO)
requests.propagate = False
requests.addHandler(Looks())

def serve(port):
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=True)
    server.start()
    return server

server = serve(0)
host, port = server.get_host_and_port()
os.environ["AWS_ENDPOINT_URL"] = f"http://{host}:{port}"

import boto3
import numpy as np

sys.path.insert(0, "tests")
from conftest import images
from executor.documents import ERROR_TAG, MODEL_TAG, SPACE_TAG
from executor.endpoints.table import call, open_service
from executor.models.building import build_model
from executor.models.model import ModelConfig
from executor.models.saving import save_model, space_of
from executor.parameters import ExecutorOptions, parse
from executor.serving import following, publishing

following.LAST_RETRY_SECONDS = publishing.LAST_RETRY_SECONDS = 1.0  # else a server that is back is seen late
bucket = boto3.client("s3")
bucket.create_bucket(Bucket="models")
folder, shop = Path(sys.argv[1]), "s3://models/shop"

def opened(name, **options):
    model = {"model": "small", "input_size": 16, "fast_inference": False, "standby_seconds": 0}
    return open_service(folder / name, parse(ExecutorOptions, model | options, where="the executor"))

reader = opened("reader", role="serve", serve_from=shop)
writer = opened("writer", role="train", publish_to=shop)
spaces = {}
for seed, name in enumerate(("first", "second"), 1):
    writer.store.create(name)
    place = writer.store.workspace.model_folder(name)
    save_model(build_model(ModelConfig(model="small", input_size=16, seed=seed)), place)
    spaces[name] = space_of(place)

def until(found):
    while not found():
        time.sleep(0.05)

def ask():
    docs = asyncio.run(call(reader, "/embed", images(4), {}))
    ((version, space),) = {(doc.tags[MODEL_TAG], doc.tags[SPACE_TAG]) for doc in docs}
    assert not [doc for doc in docs if ERROR_TAG in doc.tags]
    return version, space, np.stack([doc.embedding for doc in docs])

def serves(version):
    return lambda: reader.versions.pointer is not None and reader.versions.pointer.version == version

def degraded(*words):
    return lambda: any(all(word in said for word in words) for said in reader.degraded())

said = {}
until(serves("base"))
spaces["base"] = space_of(writer.store.workspace.base)
base = ask()
writer.serve("first")
until(serves("first"))
first = ask()
writer.serve("base")
until(serves("base"))
back = ask()
said["followed"] = [base[0], first[0], back[0]] == ["base", "first", "base"] and first[1] == spaces["first"]
said["back as before"] = bool(np.array_equal(base[2], back[2])) and not np.allclose(base[2], first[2])

began, before = time.monotonic(), len(looks)
until(lambda: len(looks) >= before + 3)
said["looks"], said["seconds"] = len(looks) - before, time.monotonic() - began

pointer = json.loads(bucket.get_object(Bucket="models", Key="shop/served.json")["Body"].read())
weights = (writer.store.workspace.model_folder("second") / "weights.safetensors").read_bytes()
settings = (writer.store.workspace.model_folder("second") / "model.json").read_bytes()
digests = {"weights.safetensors": sha256(weights).hexdigest(), "model.json": sha256(settings).hexdigest()}
half = pointer | {"version": "second", "space": spaces["second"], "sha256": digests}
bucket.put_object(Bucket="models", Key=f"shop/versions/{spaces['second']}/model.json", Body=settings)
bucket.put_object(Bucket="models", Key="shop/served.json", Body=json.dumps(half).encode())
until(degraded("not whole"))
said["half"] = ask()[0]
there = f"shop/versions/{spaces['second']}/weights.safetensors"
bucket.put_object(Bucket="models", Key=there, Body=weights[:-1] + b"?")
before = len(looks)
until(lambda: len(looks) >= before + 3 and degraded("damaged")())
said["damaged"] = ask()[0]
writer.serve("second")
until(serves("second"))
until(lambda: not reader.degraded())
said["mended"] = ask()[0]

server.stop()
until(degraded("out of reach"))
said["unreachable"] = ask()[0]
writer.serve("first")
until(writer.degraded)
said["writer"] = writer.degraded()
server = serve(port)
until(serves("first"))
until(lambda: not reader.degraded() and not writer.degraded())
said["again"] = ask()[0]
reader.close()
writer.close()
print(json.dumps(said), flush=True)
os._exit(0)
"""


@pytest.mark.extra
@pytest.mark.process
def test_a_reader_follows_a_writer_through_a_real_s3_server(tmp_path: Path) -> None:
    said = json.loads(run_with_extras(PROGRAM, tmp_path).splitlines()[-1])
    assert said["followed"]
    assert said["back as before"]
    assert said["looks"] <= said["seconds"] + 1
    assert (said["half"], said["damaged"], said["mended"]) == ("base", "base", "second")
    assert (said["unreachable"], said["again"]) == ("second", "first")
    assert "could not be published" in said["writer"][0]
