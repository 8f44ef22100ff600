"""In Chromium: two versions are compared, looked at, and one of them is served and taken back."""

import re
from typing import Any

import pytest

from browsing import FIRST, Shop, assert_usable

pytestmark = [pytest.mark.extra, pytest.mark.flow]


@pytest.fixture
def compared(page: Any) -> Any:
    """The page with `base` and the first run compared, after a click."""
    page.goto("/ui/")
    page.get_by_role("link", name="Compare", exact=True).click()
    page.get_by_label("The version before").select_option("base")
    page.get_by_label("The other one").select_option(FIRST)
    page.get_by_role("button", name="Compare").click()
    page.get_by_role("heading", name="Got worse").wait_for()
    return page


def test_a_person_sees_what_got_better_and_worse_and_what_is_found_for_a_picture(compared: Any) -> None:
    rows = compared.get_by_role("table", name="The figures of both versions").get_by_role("row").all_inner_texts()
    assert len(rows) == 7
    assert re.search(r"mAP@R.*0\.\d{3}\s+0\.\d{3} to [01]\.\d{3}", rows[1], re.DOTALL)
    changed = compared.locator("a.compared")
    assert changed.count() > 0
    assert_usable(compared)
    name = changed.first.locator(".file").inner_text()
    changed.first.focus()
    compared.keyboard.press("Enter")  # the keyboard will do
    compared.get_by_role("heading", level=1, name=name).wait_for()
    for version in ("base", FIRST):
        found = compared.get_by_role("region", name=f"What {version} finds").get_by_role("listitem")
        assert found.count() == 8
        assert all(re.search("✓ fits|✗ does not fit", text) for text in found.all_inner_texts())
    assert_usable(compared)
    compared.get_by_role("link", name="Back to the comparison").click()
    compared.get_by_role("heading", name="Decide").wait_for()


def test_the_decision_says_what_it_will_do_and_can_be_taken_back(compared: Any, shop: Shop) -> None:
    try:
        decide = compared.get_by_role("region", name="Decide")
        assert "Nothing is deleted" in decide.inner_text()
        assert decide.get_by_role("table", name="What can be done with an index").get_by_role("row").count() == 5
        decide.get_by_role("button", name=f"Serve {FIRST} from now on").click()
        compared.get_by_text("This version is served now.").wait_for()
        assert shop.call("/status", run=FIRST)[0]["promoted"]
        assert FIRST in compared.get_by_text("Served now:").inner_text()
        compared.get_by_role("button", name="Serve base from now on").click()
        compared.get_by_role("button", name=f"Serve {FIRST} from now on").wait_for()
        assert not shop.call("/status", run=FIRST)[0]["promoted"]
    finally:
        shop.call("/promote", run="base")


def test_of_two_people_who_decide_at_once_the_second_is_told(visitors: Any, shop: Shop) -> None:
    one, other = visitors(), visitors()
    try:
        for page in (one, other):
            page.goto(f"/ui/compare?first=base&second={FIRST}")
        serve = f"Serve {FIRST} from now on"
        one.get_by_role("button", name=serve).click()
        one.get_by_text("This version is served now.").wait_for()
        other.watched.allowed.append("409")
        other.get_by_role("button", name=serve).click()
        other.get_by_text("Meanwhile somebody has decided otherwise").wait_for()
    finally:
        shop.call("/promote", run="base")


def test_a_long_comparison_shows_how_far_it_is_while_others_are_answered(page: Any, shop: Shop) -> None:
    folder = shop.folder / "many"
    for label in ("one", "other"):  # the same pictures again and again
        (folder / label).mkdir(parents=True)
        for number, path in enumerate(sorted(shop.pictures.glob("*/*.png")) * 5):
            (folder / label / f"{number}.png").hardlink_to(path)
    page.goto("/ui/compare")
    page.get_by_label("Or in a folder of the service").fill(str(folder))
    page.get_by_role("button", name="Compare").click()
    progress = page.get_by_role("progressbar", name="Pictures that were looked at")
    progress.wait_for()
    page.get_by_text(re.compile(r"of 1,200 pictures")).wait_for()
    assert len(shop.call("/embed", [{"uri": str(next(shop.loose.iterdir()))}])[0]["embedding"]) == 128
    page.get_by_role("heading", name="Got worse").wait_for()
