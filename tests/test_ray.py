"""Embedding on a real Ray cluster of two nodes, of which one is killed: every row is there, and once."""

import io
import json
from pathlib import Path

import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from conftest import coloured
from executor.models.versions import ensure_base
from executor.parameters import parse_executor_options
from executor.store.runs import RunStore
from executor.store.workspace import Workspace
from extras import run_with_extras

pytestmark = [pytest.mark.extra, pytest.mark.process, pytest.mark.timeout(900)]  # a cluster takes a while to start

ROWS, PART = 2400, 200
CLUSTER = """
import json, os, subprocess, sys, time
from pathlib import Path
from ray.cluster_utils import Cluster

parts, kill, *command = Path(sys.argv[1]), sys.argv[2] == "kill", *sys.argv[3:]
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
embedding = subprocess.Popen([sys.executable, "-m", *command], env=os.environ | {"RAY_ADDRESS": cluster.address})
done = 0
if kill:
    while embedding.poll() is None and not list(parts.glob("0*.parquet")):
        time.sleep(0.05)
    done = len(list(parts.glob("0*.parquet")))
    cluster.remove_node(nodes[0], allow_graceful=False)
code = embedding.wait()
cluster.shutdown()
print(json.dumps([done, code]))
"""


def test_a_node_is_lost_and_every_row_is_embedded_once(tmp_path: Path) -> None:
    place = Workspace(tmp_path / "workspace" / "FinetunerExecutor" / "0")
    RunStore(place).close()
    ensure_base(place, parse_executor_options({"model": "small", "input_size": 16}))
    picture = io.BytesIO()
    Image.fromarray(coloured(0, size=500)).save(picture, "PNG")  # it takes a while to decode
    ids = [f"p{number}" for number in range(ROWS)]
    images = [picture.getvalue()] * (ROWS - 1) + [b"no picture"]
    parquet.write_table(pa.table({"id": ids, "image": images}), tmp_path / "all.parquet", row_group_size=100)
    out = tmp_path / "out.parquet"
    command = ["executor", "embed", tmp_path / "all.parquet", "--workspace", tmp_path / "workspace", "--to", out]
    options = ["--engine", "ray", "--actors", "2", "--part-rows", PART]
    done, code = json.loads(
        run_with_extras(CLUSTER, tmp_path / "out.parquet.parts", "kill", *command, *options).splitlines()[-1]
    )
    assert 0 < done < ROWS // PART  # it was in the middle
    assert code == 1  # one row failed
    table = parquet.read_table(out)
    assert table["id"].to_pylist() == ids
    assert table["error"].null_count == ROWS - 1
    assert table["embedding"].null_count == 1
