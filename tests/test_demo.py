"""./scripts/demo, run for real with fewer images."""

import json
import re
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from examples.demo import photographs
from flows import ENVIRONMENT, served_by, wait_until_served
from serving import ROOT, free_ports

pytestmark = pytest.mark.flow

DEMO = [str(ROOT / "scripts/demo"), "--quick"]


def row(name: str, output: str) -> tuple[float, float]:
    """The figures before and after of a line of the table."""
    found = re.search(rf"│ {name} +│ +([\d.]+) +│ +([\d.]+) +│", output)
    assert found, output
    return float(found[1]), float(found[2])


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder that the demo wrote, and what it printed."""
    output = tmp_path_factory.mktemp("demo") / "digits"
    done = subprocess.run(
        [*DEMO, "--output", output], capture_output=True, text=True, env=ENVIRONMENT | {"COLUMNS": "100"}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert not done.stderr
    return output, done.stdout


@pytest.mark.parametrize("metric", ["recall@1", "mAP@R"])
def test_the_demo_prints_that_held_out_images_are_found_better_than_before(demo, metric):
    before, after = row(metric, demo[1])
    assert 0 < before < after <= 1


def test_the_demo_draws_neighbours_with_right_and_wrong_frames(demo):
    output, _ = demo
    with Image.open(output / "neighbours.png") as picture:
        assert min(picture.size) > 500
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    middle = picture.size[0] // 2
    colours = {tuple(int(value) for value in colour) for colour in np.unique(pixels, axis=0)}
    assert {(0xD1, 0x24, 0x2F), (0x2D, 0xA4, 0x4E)} <= colours
    red = (pixels == (0xD1, 0x24, 0x2F)).all(axis=1).reshape(picture.size[::-1])
    assert red[:, :middle].sum() > red[:, middle:].sum(), "more wrong neighbours before than after"


def test_the_demo_writes_images_of_all_ten_digits_as_png_files(demo):
    output, _ = demo
    files = list((output / "images").iterdir())
    assert len(files) > 500
    for file in files[:5]:
        with Image.open(file) as image:
            assert image.format == "PNG"


def test_the_commands_that_the_demo_ends_with_work_when_pasted_in_order(demo, tmp_path):
    output, printed = demo
    serve, *commands = [line.strip() for line in printed.split("Next, ")[1].splitlines()[1:] if line.strip()]
    http = yaml.safe_load((output / "flow.yml").read_text())["with"]["port"][1]
    answers = []
    with served_by(["bash", "-c", f"exec {serve}"], tmp_path, http):
        for command in commands:
            done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            answers.append(json.loads(done.stdout)["data"])
    statuses, embedded, back, forward = answers
    assert statuses[0]["state"] == "succeeded"
    assert len(embedded[0]["embedding"]) == 128
    assert embedded[0]["tags"]["finetuner_model"] == statuses[0]["run"]
    assert [each[0]["model"] for each in (back, forward)] == ["base", statuses[0]["run"]]


def test_the_demo_ends_all_its_processes_when_it_is_told_to(tmp_path):
    port = free_ports(1)[0]
    command = [*DEMO, "--output", str(tmp_path / "digits"), "--port", str(port)]
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    wait_until_served(port, running)
    running.send_signal(signal.SIGTERM)
    assert running.wait(60) == 143
    deadline = time.monotonic() + 20
    while processes_of_session(running.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not processes_of_session(running.pid)


def processes_of_session(session: int) -> list[int]:
    """The living processes of a session."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


def test_the_demo_trains_on_a_folder_of_class_folders_and_shows_its_neighbours(tmp_path):
    for label in ("cat", "dog"):
        folder = tmp_path / "photos" / label
        folder.mkdir(parents=True)
        for number in range(12):
            pixels = np.random.default_rng([label == "cat", number]).integers(0, 256, (4, 4, 3), dtype=np.uint8)
            pixels[..., label == "cat"] //= 4
            Image.fromarray(pixels).resize((96, 72)).save(folder / f"{number:02d}.jpg")
    output = tmp_path / "out"
    command = [*DEMO, "--photos", str(tmp_path / "photos"), "--output", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT | {"COLUMNS": "100"})
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Sending 18 documents to /fit" in done.stdout
    assert "6 held-out images" in done.stdout
    assert "model: default" in (output / "flow.yml").read_text()
    with Image.open(output / "neighbours.png") as picture:
        assert min(picture.size) > 200


def test_the_demo_says_how_a_folder_of_photographs_must_look(tmp_path):
    """In this process: it would take another one seconds to import all that the demo needs."""
    with pytest.raises(SystemExit) as ended:
        photographs(tmp_path, quick=True)
    # Python prints a text to stderr, and exits with 1.
    assert isinstance(ended.value.code, str)
    assert "needs a folder of images for each of at least two classes" in ended.value.code
