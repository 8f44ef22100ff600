"""`embed` writes a corpus into a parquet file, every row once, also after it was killed."""

import asyncio
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from conftest import coloured, encoded
from executor.__main__ import main
from executor.bulk.embedding import Shard
from executor.bulk.parts import Embedded, Finished, Output
from executor.commands.local import Reader
from executor.documents import Document, RunStatus
from executor.errors import ConfigurationError
from executor.models.versions import WorkspaceVersions, ensure_base
from executor.parameters import parse_executor_options
from executor.serving.embedder import Embedder
from executor.store.runs import RunStore
from executor.store.workspace import Workspace
from serving import ROOT, Service

pytestmark = pytest.mark.compute


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace as a service leaves it that has trained nothing yet."""
    folder = tmp_path_factory.mktemp("workspace")
    place = Workspace(folder / "FinetunerExecutor" / "0")
    RunStore(place).close()
    ensure_base(place, parse_executor_options({"model": "small", "input_size": 16}))
    return folder


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Seven pictures, of which one is cut off."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    for number in range(7):
        (folder / f"{number}.png").write_bytes(encoded(coloured(number, number)))
    (folder / "3.png").write_bytes(encoded(coloured(3))[:60])
    return folder


def embed(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["executor", "embed", *map(str, arguments)])
    return main()


def test_a_corpus_becomes_a_table_and_a_bad_picture_a_row_with_the_reason(
    workspace, corpus, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "out.parquet"
    assert embed(monkeypatch, corpus, "--workspace", workspace, "--to", out, "--json") == 1
    told = json.loads(capsys.readouterr().out)
    table = parquet.read_table(out)
    assert table.column_names == ["id", "uri", "embedding", "model", "space", "error"]
    assert table.schema.field("embedding").type == pa.list_(pa.float32(), 128)
    rows = table.to_pylist()
    assert [row["id"] for row in rows] == [f"{number}.png" for number in range(7)]
    assert [row["uri"] for row in rows] == [str(corpus / f"{number}.png") for number in range(7)]
    assert [bool(row["error"]) for row in rows] == [number == 3 for number in range(7)]
    assert (rows[3]["embedding"], rows[3]["model"], rows[3]["space"]) == (None, None, None)
    assert {(row["model"], row["space"]) for row in rows if not row["error"]} == {("base", told["space"])}
    assert told == {"to": str(out), "model": "base", "rows": 7, "failed": 1, "space": told["space"]}
    assert not list(tmp_path.glob("*.parts"))


@pytest.mark.parametrize(("encoding", "value", "count"), [("int8", pa.int8(), 64), ("binary", pa.uint8(), 8)])
def test_vectors_are_shortened_and_encoded_as_embed_does(
    workspace, corpus, tmp_path, monkeypatch, capsys, encoding, value, count
):
    out = tmp_path / "out.parquet"
    form = ("--dimensions", 64, "--encoding", encoding)
    assert embed(monkeypatch, corpus, "--workspace", workspace, "--to", out, "--json", *form) == 1
    table = parquet.read_table(out)
    assert table.schema.field("embedding").type == pa.list_(value, count)
    assert json.loads(capsys.readouterr().out)["space"].endswith(f"/64/{encoding}")
    assert [row["embedding"] is None for row in table.to_pylist()] == [number == 3 for number in range(7)]


def test_the_embeddings_are_those_of_embed(workspace, corpus, tmp_path, monkeypatch):
    embed(monkeypatch, corpus, "--workspace", workspace, "--to", tmp_path / "out.parquet")
    place = Workspace(workspace / "FinetunerExecutor" / "0")
    options = parse_executor_options({"model": "small", "input_size": 16})
    embedder = Embedder(WorkspaceVersions(place, options, lambda: "base"), options)
    doc = Document(uri=str(corpus / "5.png"))
    asyncio.run(embedder.embed([doc]))
    embedder.close()
    found = parquet.read_table(tmp_path / "out.parquet").to_pylist()[5]["embedding"]
    np.testing.assert_allclose(found, doc.embedding, atol=1e-2)  # it may be in bf16


def test_uris_elsewhere_are_read_too_and_one_that_cannot_be_is_a_row_with_the_reason(
    workspace, corpus, tmp_path, monkeypatch
):
    (tmp_path / "all.txt").write_text(f"s3://shop/1.png\nftp://h/1.png\n{corpus}/1.png\n")
    assert embed(monkeypatch, tmp_path / "all.txt", "--workspace", workspace, "--to", tmp_path / "out.parquet") == 1
    first, second, third = parquet.read_table(tmp_path / "out.parquet").to_pylist()
    assert first["error"].startswith(
        "s3://shop/1.png cannot be fetched: "
    )  # there is no such package, or no such bucket
    assert second["error"].startswith("ftp://h/1.png lies below none of the remote_prefixes (s3://, ")
    assert (third["error"], third["id"]) == (None, f"{corpus}/1.png")


def test_shards_share_the_rows(workspace, corpus, tmp_path, monkeypatch):
    seen = []
    for number in (1, 2, 3):
        out = tmp_path / f"{number}.parquet"
        embed(monkeypatch, corpus, "--workspace", workspace, "--to", out, "--shard", f"{number}/3")
        seen.append(parquet.read_table(out)["id"].to_pylist())
    assert seen == [["0.png", "3.png", "6.png"], ["1.png", "4.png"], ["2.png", "5.png"]]


def test_a_shard_that_has_no_rows_is_an_empty_table(workspace, corpus, tmp_path, monkeypatch):
    out = tmp_path / "9.parquet"
    assert embed(monkeypatch, corpus, "--workspace", workspace, "--to", out, "--shard", "9/9") == 0
    table = parquet.read_table(out)
    assert (table.num_rows, table.column_names[0]) == (0, "id")


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "1/0", "-1/2"])
def test_a_shard_that_is_none_is_refused(text):
    with pytest.raises(ConfigurationError, match="must be I/N, from 1/N to N/N"):
        Shard.parse(text)


def test_an_output_that_exists_is_refused_and_left_alone(workspace, corpus, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out.parquet"
    out.write_text("mine")
    assert embed(monkeypatch, corpus, "--workspace", workspace, "--to", out) == 2
    assert capsys.readouterr().err == f"{out} exists already; name another file, or remove it.\n"
    assert out.read_text() == "mine"


def test_a_second_start_with_a_file_that_is_finished_leaves_it_and_ends_as_the_first(
    workspace, corpus, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "out.parquet"
    (corpus / "3.png").unlink()  # the broken one
    start = [corpus, "--workspace", workspace, "--to", out, "--shard", "1/2"]
    assert embed(monkeypatch, *start) == 0
    made, said = out.stat(), capsys.readouterr().err
    assert embed(monkeypatch, *start, "--part-rows", 1) == 0
    assert out.stat() == made
    assert capsys.readouterr().err == f"{out} was made before, of the same source, and stays as it is.\n{said}"
    for other in (["--shard", "2/2"], ["--encoding", "int8"]):
        assert embed(monkeypatch, *start, *other) == 2
        assert "exists already" in capsys.readouterr().err
    for number in (8, 9):
        (corpus / f"{number}.png").write_bytes(encoded(coloured(number)))
    assert embed(monkeypatch, *start) == 2
    assert "exists already" in capsys.readouterr().err


def test_a_workspace_that_is_not_there_is_refused_and_not_made(corpus, tmp_path, monkeypatch, capsys):
    nowhere = tmp_path / "nowhere"
    assert embed(monkeypatch, corpus, "--workspace", nowhere, "--to", tmp_path / "out.parquet") == 2
    assert "is no workspace" in capsys.readouterr().err
    assert sorted(place.name for place in tmp_path.iterdir()) == ["corpus"]


def test_a_version_that_is_not_there_leaves_nothing(workspace, corpus, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out.parquet"
    assert embed(monkeypatch, corpus, "--workspace", workspace, "--to", out, "--model", "tuned") == 2
    assert "There is no model 'tuned'" in capsys.readouterr().err
    assert sorted(place.name for place in tmp_path.iterdir()) == ["corpus"]


def test_an_output_that_was_begun_with_another_plan_is_refused(workspace, corpus, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out.parquet"
    (tmp_path / "out.parquet.parts").mkdir()
    (tmp_path / "out.parquet.parts" / "plan.json").write_text('{"model": "base", "shard": "1/4"}')
    assert embed(monkeypatch, corpus, "--workspace", workspace, "--to", out) == 2
    assert "was begun with another plan (" in (said := capsys.readouterr().err)
    assert "shard '1/4', now '1/1'" in said


def test_parts_without_a_plan_are_not_taken_and_a_kill_while_parts_are_removed_leaves_the_plan(tmp_path, monkeypatch):
    file, rows = tmp_path / "vectors.parquet", [Embedded("a", None, error="it is no picture")]
    output = Output(file, {"version": "base"})
    output.write(0, rows)
    output.write(1, rows)
    removed: list[str] = []

    def unlink(path: Path, missing_ok: bool = False) -> None:
        if removed:
            raise OSError("killed")
        removed.append(path.name)
        os.unlink(path)

    with monkeypatch.context() as killed:
        killed.setattr(Path, "unlink", unlink)
        output.join(2)
    left = {path.name for path in (tmp_path / "vectors.parquet.parts").iterdir()}
    assert len(left) == 2
    assert "plan.json" in left
    file.unlink()
    with pytest.raises(ConfigurationError, match="was begun with another plan"):
        Output(file, {"version": "shop"})
    (tmp_path / "vectors.parquet.parts" / "plan.json").unlink()
    again = Output(file, {"version": "shop"})
    assert not again.has(0)
    assert not again.has(1)


def test_parts_beside_a_finished_file_are_removed_if_they_are_its_own_however_many_rows_a_part_had(tmp_path):
    file, rows = tmp_path / "vectors.parquet", [Embedded("a", None, error="it is no picture")]
    parts = tmp_path / "vectors.parquet.parts"
    output = Output(file, {"version": "base"}, 1)
    output.write(0, rows)
    kept = {part.name: part.read_bytes() for part in parts.iterdir()}
    output.join(1)
    for name, content in kept.items():
        parts.mkdir(exist_ok=True)
        (parts / name).write_bytes(content)
    assert Output(file, {"version": "base"}, 2).finished == Finished(1, 1, None)
    assert not parts.exists()
    parts.mkdir()
    (parts / "plan.json").write_text('{"version": "shop", "part_rows": 1}')
    with pytest.raises(ConfigurationError, match="was begun with another plan"):
        Output(file, {"version": "base"}, 2)
    assert (parts / "plan.json").exists()


def interrupted(monkeypatch, *arguments: object) -> None:
    """Embed until two parts are written, as if somebody then pressed Ctrl-C."""
    real = Output.write

    def write(output: Output, number: int, rows: list[Embedded]) -> None:
        real(output, number, rows)
        if number == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as stopped:
        stopped.setattr(Output, "write", write)
        assert embed(monkeypatch, *arguments) == 130


@pytest.mark.parametrize("change", ["first", "last", "gone"])
def test_a_folder_that_changed_after_an_interruption_has_every_row_once(
    workspace, corpus, tmp_path, monkeypatch, capsys, change
):
    (corpus / "3.png").unlink()  # the broken one
    out, parts = tmp_path / "out.parquet", tmp_path / "out.parquet.parts"
    start = [corpus, "--workspace", workspace, "--to", out, "--part-rows", 2]
    interrupted(monkeypatch, *start)
    made = (parts / "00000000.parquet").stat().st_mtime_ns
    if change == "gone":
        (corpus / "2.png").unlink()
    else:
        (corpus / {"first": "00.png", "last": "z.png"}[change]).write_bytes(encoded(coloured(9)))
    kept: list[int] = []
    real = Output.join
    monkeypatch.setattr(
        Output, "join", lambda *given: kept.append((parts / "00000000.parquet").stat().st_mtime_ns) or real(*given)
    )
    capsys.readouterr()
    assert embed(monkeypatch, *start) == 0
    assert parquet.read_table(out)["id"].to_pylist() == sorted(picture.name for picture in corpus.iterdir())
    assert (kept == [made]) == (change != "first")
    anew = {"first": 2, "last": 0, "gone": 1}[change]
    assert (f"The source has changed: {anew} finished parts are made anew." in capsys.readouterr().err) == (anew > 0)


def test_a_finished_file_of_other_pictures_is_in_the_way_also_if_they_are_as_many(
    workspace, corpus, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "out.parquet"
    embed(monkeypatch, corpus, "--workspace", workspace, "--to", out)
    (corpus / "6.png").rename(corpus / "8.png")
    assert embed(monkeypatch, corpus, "--workspace", workspace, "--to", out) == 2
    assert "exists already" in capsys.readouterr().err


def test_the_version_of_the_begin_stays_if_another_is_promoted_before_the_end(
    workspace, corpus, tmp_path, monkeypatch, capsys
):
    (corpus / "3.png").unlink()  # the broken one
    out = tmp_path / "out.parquet"
    start = [corpus, "--workspace", workspace, "--to", out, "--part-rows", 2]
    interrupted(monkeypatch, *start)
    monkeypatch.setattr(Reader, "call", lambda *_: [RunStatus(model="shop")])
    assert embed(monkeypatch, *start) == 0
    assert set(parquet.read_table(out)["model"].to_pylist()) == {"base"}
    capsys.readouterr()
    assert embed(monkeypatch, *start) == 0  # it is finished
    assert "6 embedded with base" in capsys.readouterr().err
    assert embed(monkeypatch, *start, "--model", "shop") == 2


@pytest.mark.parametrize("change", ["columns", "rows"])
def test_a_table_that_changed_or_is_read_otherwise_is_not_gone_on_with(
    workspace, corpus, tmp_path, monkeypatch, capsys, change
):
    table, out = tmp_path / "all.csv", tmp_path / "out.parquet"
    lines = [f"corpus/{number}.png,corpus/{6 - number}.png" for number in range(7)]
    table.write_text("\n".join(["front,back", *lines]))
    start = [table, "--workspace", workspace, "--to", out, "--part-rows", 2]
    interrupted(monkeypatch, *start, "--uri-column", "front")
    if change == "rows":
        table.write_text("\n".join(["front,back", *reversed(lines), lines[0]]))
    other = ["--uri-column", "back"] if change == "columns" else ["--uri-column", "front"]
    assert embed(monkeypatch, *start, *other) == 2
    difference = "uri_column 'front', now 'back'" if change == "columns" else "size "
    assert f"was begun with another plan ({difference}" in capsys.readouterr().err


def test_a_plan_that_asks_for_less_than_the_one_begun_says_what_is_missing(tmp_path):
    file = tmp_path / "vectors.parquet"
    output = Output(file, {"model": "base", "encoding": "int8"}, encoding="int8")
    output.write(0, [Embedded("a", None, error="it is no picture")])
    with pytest.raises(ConfigurationError, match=r"another plan \(encoding 'int8', now None\)"):
        Output(file, {"model": "base"})


@pytest.mark.process
def test_after_a_kill_a_second_start_embeds_the_rest_and_every_row_is_there_once(workspace, tmp_path, monkeypatch):
    """Only what is killed is a process of its own."""
    source = tmp_path / "all.parquet"
    picture = io.BytesIO()
    Image.fromarray(coloured(0, size=400)).save(picture, "PNG")  # it takes a while to decode
    count = 750
    columns = {"id": [f"p{number}" for number in range(count)], "image": [picture.getvalue()] * count}
    parquet.write_table(pa.table(columns), source, row_group_size=50)
    out = tmp_path / "out.parquet"
    words = [source, "--workspace", workspace, "--to", out, "--part-rows", "50"]
    parts = tmp_path / "out.parquet.parts"
    first = subprocess.Popen(
        [sys.executable, "-m", "executor", "embed", *words], cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    with first:
        deadline = time.monotonic() + 120
        while len(list(parts.glob("0*.parquet"))) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        first.send_signal(signal.SIGKILL)
    done = {part.name: part.stat().st_mtime_ns for part in parts.glob("0*.parquet")}
    assert 3 <= len(done) < 15

    def watch() -> None:
        """Look whether the parts stay as they are until they are joined."""
        while not out.exists() and not ended.is_set():
            kept = {name: (parts / name).stat().st_mtime_ns for name in done if (parts / name).exists()}
            assert kept.items() <= done.items()
            time.sleep(0.01)

    ended = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        watching = pool.submit(watch)
        try:
            assert embed(monkeypatch, *words) == 0
        finally:
            ended.set()
    watching.result()
    assert parquet.read_table(out)["id"].to_pylist() == columns["id"]


@pytest.mark.flow
@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_service_embeds_what_it_is_sent(service: Service, corpus, tmp_path, monkeypatch, protocol):
    url = f"{protocol}://127.0.0.1:{service.ports[protocol]}"
    assert embed(monkeypatch, corpus, "--service", url, "--to", tmp_path / "out.parquet", "--model", "base") == 1
    rows = parquet.read_table(tmp_path / "out.parquet").to_pylist()
    assert [(row["id"], row["uri"]) for row in rows] == [
        (f"{number}.png", str(corpus / f"{number}.png")) for number in range(7)
    ]
    assert [row["model"] for row in rows] == ["base" if number != 3 else None for number in range(7)]
    out = ("--to", tmp_path / "bits.parquet", "--model", "base", "--encoding", "binary")
    assert embed(monkeypatch, corpus, "--service", url, *out) == 1
    assert parquet.read_table(tmp_path / "bits.parquet").schema.field("embedding").type == pa.list_(pa.uint8(), 16)
