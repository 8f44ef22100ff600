"""In Chromium: the whole path, from pictures in a folder to a version that is served and taken back."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from browsing import Shop, assert_usable, write_pictures
from serving import ROOT

pytestmark = [pytest.mark.extra, pytest.mark.flow]


@pytest.fixture
def own_pictures(shop: Shop) -> Iterator[Path]:
    """A folder with a folder of pictures for each of two labels. After the test all is as it was."""
    folder = shop.folder / "own"
    write_pictures(folder, each=20, labels=("teapot", "kettle"))
    yield folder
    shop.call("/promote", run="base")
    words = [{"id": word["id"], "tags": {"finetuner_withdrawn": True}} for word in shop.call("/words", limit=1000)]
    shop.call("/feedback", words)


def test_from_pictures_in_a_folder_to_a_version_that_is_served_and_taken_back(
    page: Any, shop: Shop, own_pictures: Path
) -> None:
    # The pictures come in, and the page shows how they are learned from.
    page.goto("/ui/")
    command = [sys.executable, "-m", "executor", "fit", "own", "--service", shop.address]
    fitting = subprocess.run(
        [*command, "--epochs", "1", "--promote", "always"],
        cwd=shop.folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert fitting.returncode == 0, fitting.stderr
    served = page.get_by_role("region", name="Served now")
    served.get_by_role("link", name="own").wait_for()  # the page has kept itself up to date

    # What came of it.
    served.get_by_role("link", name="own").click()
    page.get_by_role("heading", name="It has ended").wait_for()
    page.get_by_text("pictures with labels").wait_for()
    assert_usable(page)

    # Two further pictures get a label.
    for number, label in enumerate(("teapot", "kettle")):
        page.get_by_role("link", name="Label", exact=True).click()
        page.get_by_label("Pictures to choose from").fill(str(shop.loose))
        page.get_by_role("button", name="Show").click()
        page.locator("#gallery a.cell").nth(number).click()
        page.get_by_role("combobox", name=re.compile("label|shows")).fill(label)
        page.get_by_role("button", name="Store the label").click()
        page.get_by_text(f"It is labelled “{label}”.").wait_for()

    # Train again: with these, and with the pictures that the served version has learned from.
    page.get_by_role("link", name="Train with these").click()
    plan = page.get_by_role("region", name="With the labels")
    assert re.search(r"2 pictures.*40 documents", plan.inner_text()), plan.inner_text()
    plan.get_by_role("button", name="Start this run").click()
    page.wait_for_url(re.compile("/ui/runs/"))
    run = page.url.partition("/ui/runs/")[2].partition("?")[0]
    page.get_by_role("heading", name="It has ended").wait_for(timeout=120_000)
    assert shop.wait(run)["sources"] == {"feedback": 2, "own": 40}
    shop.call("/promote", run="own")  # whatever was proven: a person decides

    # Compare, decide, and take it back.
    page.get_by_role("link", name="Compare").last.click()
    assert page.get_by_label("The version before").input_value() == "own"
    assert page.get_by_label("The other one").input_value() == run
    page.get_by_role("button", name="Compare").click()
    page.get_by_role("heading", name="Got worse").wait_for()
    page.get_by_role("button", name=f"Serve {run} from now on").click()
    page.get_by_text("This version is served now.").wait_for()
    assert shop.call("/status", run=run)[0]["promoted"]
    page.get_by_role("button", name="Serve own from now on").click()
    page.get_by_role("button", name=f"Serve {run} from now on").wait_for()
    page.get_by_role("link", name="Runs", exact=True).click()
    page.get_by_role("link", name="Go back to base").click()
    page.get_by_role("button", name="Serve it").click()
    page.get_by_role("region", name="Served now").get_by_text("base").first.wait_for()
    assert shop.call("/status")[0]["model"] == "base"
