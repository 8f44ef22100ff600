"""We do what docs/operations.md tells an operator to do."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from doors import opened
from executor import Document, DocumentArrayMemmap
from executor.store.run import RunState
from executor.store.runs import RunStore
from executor.store.workspace import Workspace
from serving import ROOT

WRITER = """
import sys
sys.modules["torch"] = None
from pathlib import Path
from executor import Document, DocumentArrayMemmap
from executor.store.runs import RunStore
from executor.store.workspace import Workspace
store = RunStore(Workspace(Path(sys.argv[1])))
docs = DocumentArrayMemmap(store.workspace.spool_file("a"))
number = 0
while True:
    docs.append(Document(id=f"d{number}", text="x" * 10_000))
    store.event("a", "note", str(number))
    number += 1
    if number == 20:
        print("writing", flush=True)
"""


def backup_script() -> str:
    blocks: list[str] = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "operations.md").read_text(), re.DOTALL)
    (script,) = (block for block in blocks if "backup" in block)
    return script


@pytest.mark.process
def test_a_workspace_in_use_is_backed_up_as_told_and_the_copy_goes_on(tmp_path: Path) -> None:
    source, target = tmp_path / "live", tmp_path / "copy"
    store = RunStore(Workspace(source))
    for name in ("done", "a"):
        store.create(name)
    for state in (RunState.QUEUED, RunState.TRAINING, RunState.SUCCEEDED):
        store.advance("done", state)
    store.promote("done")
    for part in ("model/weights.safetensors", "images/train-16", "checkpoints/0000000001/state.json", ".model-x/half"):
        (store.workspace.run_folder("done") / part).parent.mkdir(parents=True, exist_ok=True)
        (store.workspace.run_folder("done") / part).write_text(part)
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(source)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    assert writer.stdout.readline() == "writing\n"
    subprocess.run([sys.executable, "-c", backup_script(), str(source), str(target)], check=True, timeout=60)
    assert writer.poll() is None
    writer.kill()
    writer.communicate()
    store.close()

    copy = RunStore(Workspace(target))
    assert copy.promoted() == "done"
    assert [path.name for path in sorted(copy.workspace.run_folder("done").iterdir())] == ["model"]
    assert (
        copy.workspace.model_folder("done").joinpath("weights.safetensors").read_text() == "model/weights.safetensors"
    )
    with DocumentArrayMemmap(copy.workspace.spool_file("a")) as docs:
        assert list(docs.ids()) == [f"d{number}" for number in range(len(docs))]
        assert len(docs) >= len([event for event in copy.events("a", limit=10**6) if event[2] == "note"]) >= 20
        assert docs.append(Document(id="new", text="x"))
    assert copy.advance("a", RunState.QUEUED).state is RunState.QUEUED
    copy.close()


def test_every_limit_that_the_page_names_is_an_option() -> None:
    from executor.parameters import ExecutorOptions

    section = (ROOT / "docs" / "operations.md").read_text().split("## Limits")[1].split("\n## ")[0]
    named = set(re.findall(r"`([a-z_]+_[a-z_]+)`", section))
    assert named - {"uses_with"} <= ExecutorOptions.model_fields.keys()
    assert {name for name in ExecutorOptions.model_fields if name.startswith("max_")} <= named


def nginx_headers(**variables: str) -> dict[str, str]:
    """What the nginx of the documents sends to the service, by the values of its variables."""
    (block,) = re.findall(r"```nginx\n(.*?)```", (ROOT / "docs" / "operations.md").read_text(), re.DOTALL)
    (location,) = re.findall(r"location / \{(.*?)\n    \}", block, re.DOTALL)
    (upstream,) = re.findall(r"proxy_pass http://(.*?);", location)
    said = dict(re.findall(r"proxy_set_header (\S+) \$(\w+);", location))
    return {"Host": upstream} | {name: variables[variable] for name, variable in said.items()}


def test_behind_the_nginx_of_the_documents_the_page_may_call_and_its_cookie_needs_tls(tmp_path: Path) -> None:
    headers = nginx_headers(http_host="pictures.example", scheme="https")
    with opened(tmp_path) as door:
        shown = door.get("/ui/", headers)
        assert "; secure" in shown.headers["set-cookie"].lower()
        assert door.post("/status", headers=headers | {"Origin": "https://pictures.example"}).status_code == 200
        assert door.post("/status", headers=headers | {"Origin": "https://evil.example"}).status_code == 403
