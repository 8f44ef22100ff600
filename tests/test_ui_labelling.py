"""In Chromium: pictures are dropped and judged by keys, and nothing that was clicked is ever lost."""

import os
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from browsing import NAMES, WAIT, Shop, assert_usable

pytestmark = [pytest.mark.extra, pytest.mark.flow]

EVIL = "<img src=x onerror=alert(1)>"


@pytest.fixture(autouse=True)
def nothing_said(shop: Shop) -> Iterator[None]:
    """Each test begins with nothing said."""
    yield
    while found := [each for each in shop.call("/words", limit=1000) if not withdrawn(each)]:
        shop.call("/feedback", [{"id": each["id"], "tags": {"finetuner_withdrawn": True}} for each in found])


def withdrawn(word: Any) -> bool:
    return bool(word["tags"].get("finetuner_withdrawn"))


def sessions(shop: Shop) -> list[Any]:
    """The sessions that are kept, newest first."""
    return [word for word in shop.call("/words", limit=1000) if word["matches"] and not withdrawn(word)]


def signs(session: Any) -> list[int]:
    return [match["tags"]["finetuner_label"] for match in session["matches"]]


def open_first(page: Any, folder: Path) -> None:
    """Name a gallery, and take its first picture."""
    page.goto("/ui/label")
    page.get_by_label("Pictures to choose from").fill(str(folder))
    page.get_by_role("button", name="Show").click()
    page.locator("#gallery a.cell").first.click()
    page.get_by_text(re.compile(r"^1 of \d+:")).wait_for()


def press(page: Any, key: str, then: int) -> None:
    """Press a key, and wait until the neighbour with a number is shown."""
    page.keyboard.press(key)
    page.get_by_text(re.compile(rf"^{then} of \d+:")).wait_for()


def test_neighbours_are_judged_by_keys_and_clicks_and_each_word_is_stored_at_once(page: Any, shop: Shop) -> None:
    open_first(page, shop.loose)
    assert_usable(page)
    for number, key in enumerate(("f", "d", "ArrowUp", "ArrowDown", "s"), start=2):
        press(page, key, number)
        (session,) = sessions(shop)
        assert len(session["matches"]) == min(number - 1, 4)
    assert signs(session) == [1, -1, 1, -1]
    press(page, "ArrowLeft", 5)
    press(page, "u", 4)  # back to the last one of which something was said, of which nothing is said now
    page.locator("#say:not([aria-busy])").wait_for()
    assert signs(sessions(shop)[0]) == [1, -1, 1]
    page.get_by_role("button", name="Fits").click()
    page.get_by_text(re.compile(r"^5 of")).wait_for()
    assert signs(sessions(shop)[0]) == [1, -1, 1, 1]
    assert page.locator("#neighbours .badge:visible").all_inner_texts() == ["fits", "does not fit", "fits", "fits"]
    page.reload()  # what was said is there, and the first of which nothing was said is shown
    page.get_by_text(re.compile(r"^5 of")).wait_for()


def test_keys_that_are_faster_than_the_service_are_done_in_their_order(page: Any, shop: Shop) -> None:
    at_once = """keys => { for (const key of keys)
        document.body.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true })) }"""
    open_first(page, shop.pictures)
    page.evaluate(at_once, ["f", "f", "d", "d"])
    page.get_by_text(re.compile(r"^5 of \d+:")).wait_for()
    page.locator("#say:not([aria-busy])").wait_for()
    assert signs(sessions(shop)[0]) == [1, 1, -1, -1]
    page.route("**/label/say", lambda route: route.abort())
    page.watched.allowed.append("ERR_FAILED")
    page.evaluate(at_once, ["f", "d"])
    page.get_by_text("What was pressed after that was not stored either.").wait_for()
    assert signs(sessions(shop)[0]) == [1, 1, -1, -1]


def test_a_browser_that_is_killed_loses_nothing(shop: Shop, chromium: Any, tmp_path: Path) -> None:
    executable = next(found for name in NAMES if (found := shutil.which(name)))
    arguments = ["--disable-dev-shm-usage", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    browser = chromium.browser_type.launch_persistent_context(
        tmp_path / "profile", executable_path=executable, args=arguments, base_url=shop.address
    )
    mine = [each for each in psutil.process_iter(["cmdline"]) if str(tmp_path) in " ".join(each.info["cmdline"] or ())]
    page = browser.new_page()
    page.set_default_timeout(WAIT)
    open_first(page, shop.loose)
    for number, key in enumerate(("f", "d", "f"), start=2):
        press(page, key, number)
    before = shop.call("/feedback")[0]["total"]
    for process in mine:
        if process.is_running():
            process.send_signal(signal.SIGKILL)
    (session,) = sessions(shop)
    assert (before, shop.call("/feedback")[0]["total"]) == (1, 1)
    assert signs(session) == [1, -1, 1]


def test_a_picture_of_one_s_own_is_dropped_and_kept_with_the_first_click(page: Any, shop: Shop, tmp_path: Path) -> None:
    mine = tmp_path / f"{EVIL.replace('/', '')}.png"
    mine.write_bytes(next(shop.pictures.glob("*/*.png")).read_bytes())
    page.goto(f"/ui/label?of={shop.loose}")
    page.get_by_label("Drop a picture here").set_input_files(mine)
    page.get_by_text(re.compile(r"^1 of")).wait_for()
    assert page.get_by_text(EVIL).count() >= 1  # as text
    press(page, "f", 2)
    (session,) = shop.call("/words", limit=1, content=True)
    assert session["id"].startswith("clicks-")
    assert session["buffer"]
    page.get_by_label("What it shows").fill(EVIL)
    page.get_by_role("button", name="Store the label").click()
    page.get_by_text("It is labelled").wait_for()
    labelled = [each for each in shop.call("/words") if each["id"].startswith("dropped-")]
    assert [each["tags"]["finetuner_label"] for each in labelled] == [EVIL]


def test_what_cannot_be_taken_is_said_before_anything_is_sent(page: Any, shop: Shop, tmp_path: Path) -> None:
    page.goto(f"/ui/label?of={shop.loose}")
    sent: list[str] = []
    page.on("request", lambda request: sent.append(request.url) if request.method == "POST" else None)
    large = tmp_path / "large.png"
    with large.open("wb") as file:
        file.truncate(200_000_000)
    drop_file(page, large.name, 200_000_000)
    page.get_by_text(re.compile(r"The picture has 200 MB; at most 33\.6 MB are taken\. Nothing was sent\.")).wait_for()
    assert sent == []
    page.watched.allowed.append("422")
    drop_file(page, "notes.png", 1000)
    page.get_by_text("This file is no picture that can be used.").wait_for()
    assert page.url.endswith(f"/ui/label?of={shop.loose}")
    drop_nothing(page)
    page.get_by_text("What was dropped is no file.").wait_for()


def drop_file(page: Any, name: str, size: int) -> None:
    """Drop a file of zeros on the page."""
    page.evaluate(
        """([name, size]) => {
            const data = new DataTransfer();
            data.items.add(new File([new ArrayBuffer(size)], name, {type: "image/png"}));
            dispatchEvent(new DragEvent("drop", {dataTransfer: data, cancelable: true, bubbles: true}));
        }""",
        [name, size],
    )


def drop_nothing(page: Any) -> None:
    page.evaluate('() => dispatchEvent(new DragEvent("drop", {dataTransfer: new DataTransfer(), cancelable: true}))')


def test_of_two_tabs_with_one_picture_each_learns_what_the_other_says(visitors: Callable[..., Any], shop: Shop) -> None:
    one, other = visitors(), visitors()
    for page in (one, other):
        open_first(page, shop.loose)
    press(one, "f", 2)
    other.get_by_text("Another tab labels this picture, too.").wait_for()
    assert other.locator("#neighbours .badge:visible").all_inner_texts() == ["fits"]
    press(other, "d", 2)  # the latest word counts
    assert signs(sessions(shop)[0]) == [-1]
    one.get_by_text("Another tab labels this picture, too.").wait_for()
    assert one.locator("#neighbours .badge:visible").all_inner_texts() == ["does not fit"]
    one.get_by_label("What it shows").fill("brick")
    one.keyboard.press("Enter")
    other.get_by_text("Another tab has labelled this picture “brick”.").wait_for()
    assert other.get_by_label("What it shows").input_value() == "brick"


def test_a_gallery_goes_on_as_somebody_scrolls(page: Any, shop: Shop) -> None:
    folder = shop.folder / "scrolled"
    if not folder.exists():
        folder.mkdir()
        files = sorted(shop.pictures.glob("*/*.png"))
        for number in range(400):
            (folder / f"{number:04}.png").hardlink_to(files[number % len(files)])
    page.goto(f"/ui/label?of={folder}")
    cells = page.locator("#gallery a.cell")
    cells.first.wait_for()
    deadline = time.monotonic() + WAIT / 1000
    while "0399.png" not in cells.last.inner_text() and time.monotonic() < deadline:
        page.mouse.wheel(0, 3000)
        page.wait_for_timeout(50)
    assert "0399.png" in cells.last.inner_text()
    assert cells.count() < 400  # those far above were let go of
    page.evaluate("scrollTo(0, 0)")
    page.get_by_text("0000.png").wait_for()


@pytest.mark.parametrize("width", [360, 2560])
@pytest.mark.parametrize("colour", ["light", "dark"])
def test_each_page_is_usable(visitors: Callable[..., Any], shop: Shop, width: int, colour: str) -> None:
    page = visitors(width, colour)
    shop.call("/feedback", [{"id": "x", "uri": str(next(shop.loose.glob("*.png"))), "tags": {"finetuner_label": EVIL}}])
    for path in ("/ui/label", f"/ui/label?of={shop.loose}", "/ui/label/said", "/ui/label/train"):
        page.goto(path)
        assert_usable(page)
    page.goto(f"/ui/suggest?of={shop.loose}")
    page.locator(".suggestion").first.wait_for()
    assert_usable(page)


def test_what_to_label_next_is_labelled_right_there_by_the_keyboard(page: Any, shop: Shop) -> None:
    page.goto("/ui/")
    page.get_by_role("link", name="What to label next").click()
    page.get_by_label("Pictures to choose from").fill(str(shop.loose))
    page.keyboard.press("Enter")
    first = page.locator(".suggestion input[name=label]").first
    first.wait_for()
    assert page.get_by_text(re.compile("nearest suggestion to about|stands for itself")).count() >= 3
    page.keyboard.type("brick")  # the first one has the cursor
    page.keyboard.press("Enter")
    page.get_by_text("It is labelled “brick”.").wait_for()
    page.keyboard.type("slate")  # in the field of the next one
    page.keyboard.press("Enter")
    page.get_by_text("It is labelled “slate”.").wait_for()
    labels = [word["tags"]["finetuner_label"] for word in shop.call("/words") if not withdrawn(word)]
    assert labels == ["slate", "brick"]
    page.watched.allowed += ["403", "400"]
    page.context.clear_cookies()  # without a token, that is another visitor: the page is of an old session
    page.keyboard.type("brick")
    page.keyboard.press("Enter")
    page.get_by_text("Load it again, and repeat what you did.").wait_for()
    page.goto("/ui/suggest?of=nowhere")
    page.get_by_text("is neither a folder of pictures nor a parquet file").wait_for()


def test_training_with_what_was_said_says_what_it_does_and_starts(page: Any, shop: Shop) -> None:
    open_first(page, shop.loose)
    press(page, "f", 2)
    press(page, "d", 3)
    page.get_by_role("link", name="Train with these").click()
    page.get_by_text("1 document cannot prove that the new version is better").wait_for()
    page.get_by_role("button", name="Start this run").click()
    page.wait_for_url("**/ui/runs/*")
    run = page.url.partition("/ui/runs/")[2].partition("?")[0]
    assert shop.wait(run)["sources"] == {"feedback": 1}
