"""The example that loads a parquet file of `embed` into Qdrant: a collection for each space, and an alias."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from extras import run_with_extras

pytestmark = [pytest.mark.extra, pytest.mark.process]

LOAD = """
import runpy, sys
sys.argv = ["into_qdrant", *sys.argv[1:]]
runpy.run_module("examples.into_qdrant", run_name="__main__")
"""
SEARCH = """
import json, sys
from qdrant_client import QdrantClient

client = QdrantClient(path=sys.argv[1])
vector = [0.0] * 8
vector[int(sys.argv[2])] = 1.0
found = client.query_points("photos", query=vector, limit=1).points[0].payload
names = sorted(each.name for each in client.get_collections().collections)
print(json.dumps([found["id"], names, client.count("photos").count]))
"""


def write(path: Path, space: str, order: list[int]) -> Path:
    """Pictures p0 to p7, each along one axis, and one that has an error."""
    vectors = np.eye(8, dtype=np.float32)[order]
    table = {
        "id": ["broken", *(f"p{number}" for number in range(8))],
        "uri": [f"/{number}.jpg" for number in range(9)],
        "embedding": pa.array([None, *vectors.tolist()], pa.list_(pa.float32(), 8)),
        "space": [None, *[space] * 8],
        "error": ["no picture", *[None] * 8],
    }
    parquet.write_table(pa.table(table), path)
    return path


def test_searches_change_over_to_another_space_at_once_and_the_old_collection_stays(tmp_path: Path) -> None:
    first = write(tmp_path / "first.parquet", "aaaaaaaaaaaa", list(range(8)))
    second = write(tmp_path / "second.parquet", "bbbbbbbbbbbb/64", list(reversed(range(8))))
    index = tmp_path / "index"
    said = run_with_extras(LOAD, first, "--path", index)
    assert said == "8 pictures in space-aaaaaaaaaaaa, searched as photos\n"
    assert json.loads(run_with_extras(SEARCH, index, 2)) == ["p2", ["space-aaaaaaaaaaaa"], 8]
    run_with_extras(LOAD, second, "--path", index)
    run_with_extras(LOAD, second, "--path", index)  # once more changes nothing
    both = ["space-aaaaaaaaaaaa", "space-bbbbbbbbbbbb-64"]
    assert json.loads(run_with_extras(SEARCH, index, 2)) == ["p5", both, 8]
