"""In Chromium: every page can be used by everybody, leaves nothing to others, and bears what is bad or breaks."""

import re
from collections.abc import Callable
from typing import Any

import pytest

from browsing import FIRST, Shop, assert_usable

pytestmark = [pytest.mark.extra, pytest.mark.flow]

COMPARED = f"first=base&second={FIRST}"
PAGES = [
    "/ui/",
    f"/ui/runs/{FIRST}",
    f"/ui/runs/{FIRST}/left-out",
    f"/ui/runs/{FIRST}/events",
    f"/ui/runs/{FIRST}/promote",
    f"/ui/runs/{FIRST}/delete",
    "/ui/start",
    "/ui/compare",
    f"/ui/compare?{COMPARED}",
]  # those to label: test_ui_labelling.py
NASTY = "<img src=x onerror=\"document.title='run'\"><script>document.title='run'</script>"


@pytest.mark.parametrize(("width", "colour"), [(360, "dark"), (2560, "light")])
def test_every_page_can_be_used_on_narrow_and_wide_screens_light_and_dark(
    visitors: Callable[..., Any], shop: Shop, width: int, colour: str
) -> None:
    shop.call("/compare", first="base", second=FIRST)
    page = visitors(width, colour)
    for path in PAGES:
        answer = page.goto(path)
        assert answer.status == 200, path
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert_usable(page)


def test_every_page_is_reached_and_left_by_the_keyboard(page: Any) -> None:
    page.goto("/ui/")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Go to the content"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    for name in ("Compare", "Label", "What to label next", "Runs"):
        link = page.get_by_role("navigation", name="Pages").get_by_role("link", name=name, exact=True)
        link.focus()
        assert link.evaluate("each => getComputedStyle(each).outlineStyle") == "solid"  # the focus can be seen
        page.keyboard.press("Enter")
        page.wait_for_url(re.compile("/ui/"))
        current = page.locator("nav [aria-current=page]")
        current.filter(has_text=name).wait_for()


def test_markup_in_labels_and_names_is_shown_and_does_not_run(page: Any, shop: Shop) -> None:
    run = "markup"
    folder = shop.folder / "nasty"
    for number, path in enumerate(sorted(shop.pictures.glob("*/*.png"))[:8]):
        file = folder / f"{NASTY.replace('/', '%')} {number % 2}" / f"<b onclick=alert(1)>{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.hardlink_to(path)
    bad = [{"id": f"{NASTY}{number}", "uri": "data:,", "tags": {"finetuner_label": [NASTY]}} for number in range(3)]
    shop.call("/fit", bad, run=run, total=99)
    try:
        shop.call("/compare", first="base", second=FIRST, gallery=str(folder))
        page.goto(f"/ui/compare?{COMPARED}&gallery={folder}")
        page.get_by_text("document.title='run'").first.wait_for()
        assert "run" not in page.title()
        for path in (f"/ui/runs/{run}", f"/ui/runs/{run}/left-out"):
            page.goto(path)
            page.get_by_text("document.title='run'").first.wait_for()
            assert page.title() != "run"
        assert not page.locator("main img[onerror], main script, main [onclick]").count()
    finally:
        shop.call("/cancel", run=run)
        shop.call("/delete", run=run)


def test_a_service_that_restarts_beneath_an_open_page_is_waited_for(page: Any, shop: Shop) -> None:
    page.watched.allowed += ["Failed to load resource", "ERR_"]
    page.goto("/ui/")
    page.get_by_role("region", name="Served now").get_by_text("base").first.wait_for()
    shop.end()
    page.get_by_text("The service behind this page does not answer").wait_for()
    shop.start()
    page.get_by_text("The service behind this page does not answer").wait_for(state="hidden")
    # The page goes on as if nothing had been: its forms are still good.
    page.get_by_role("link", name="Compare", exact=True).click()
    page.get_by_label("The version before").select_option("base")
    page.get_by_label("The other one").select_option(FIRST)
    page.get_by_role("button", name="Compare").click()
    page.get_by_role("heading", name=re.compile("Measuring|Got worse")).first.wait_for()


def test_the_page_asks_for_the_token_once_and_a_script_never_sees_it(
    chromium: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "token").write_text("open-sesame")
    guarded = Shop(folder, "--token-file", "token")
    try:
        context = chromium.new_context(base_url=guarded.start().address)
        page = context.new_page()
        page.goto("/ui/compare")
        assert_usable(page)
        page.get_by_label("Token").fill("a guess")
        page.keyboard.press("Enter")
        page.get_by_text("This is not the token of this service").wait_for()
        page.get_by_label("Token").fill("open-sesame")
        page.keyboard.press("Enter")
        page.get_by_role("heading", name="Compare two versions").wait_for()
        (cookie,) = context.cookies()
        assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Strict")
        assert "sesame" not in cookie["value"]
        assert page.evaluate("document.cookie") == ""
        page.get_by_role("button", name="Sign out").click()
        page.get_by_label("Token").wait_for()
    finally:
        guarded.end()
