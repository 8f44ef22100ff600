"""The page: who may see it, what it tells browsers to forbid, and what it says when something is wrong."""

import html
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from pages import PAGE, csrf_of, page_over


@pytest.fixture(scope="module")
def open_page(tmp_path_factory) -> Iterator[TestClient]:
    with page_over(tmp_path_factory.mktemp("open")) as client:
        yield client


@pytest.fixture
def guarded(guarded_service) -> TestClient:
    guarded_service.cookies.clear()
    return guarded_service


@pytest.fixture(scope="module")
def guarded_service(tmp_path_factory) -> Iterator[TestClient]:
    with page_over(tmp_path_factory.mktemp("guarded"), token="s3cret") as client:
        yield client


# where it is --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/", "/ui"])
def test_the_door_leads_to_the_page(open_page, path):
    answer = open_page.get(path)
    assert (answer.status_code, answer.url.path) == (200, "/ui/")
    assert "<h1>Runs</h1>" in answer.text


def test_every_answer_of_the_page_forbids_what_it_does_not_need(open_page):
    styles = re.findall(r'href="(/ui/static/[^"]+)"', open_page.get("/ui/").text)
    for path in ("/ui/", "/ui/nowhere", *styles):
        headers = open_page.get(path).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"


def test_no_page_has_a_script_or_style_of_its_own_or_an_address_elsewhere(open_page):
    folder = Path(__file__).resolve().parent.parent / "executor" / "web" / "ui"
    for file in (*folder.glob("templates/*"), *folder.glob("static/*")):
        text = file.read_text()
        assert not re.search(r"<style|\sstyle=|\son[a-z]+=|<script(?![^>]*src=)|\|\s*safe", text), file.name
        assert not re.search(r"https?://", text), file.name


def test_a_stylesheet_is_kept_for_ever_under_an_address_that_a_new_one_does_not_have(open_page):
    (style,) = re.findall(r'href="(/ui/static/[^"]+css)"', open_page.get("/ui/").text)
    answer = open_page.get(style)
    assert answer.headers["content-type"].startswith("text/css")
    assert "immutable" in answer.headers["cache-control"]
    assert open_page.get("/ui/static/older/page.css").headers["cache-control"] == "no-cache"
    assert open_page.get("/ui/static/older/..%2fapp.py").status_code == 404


def test_what_is_not_there_is_said_in_plain_words(open_page):
    answer = open_page.get("/ui/nowhere")
    assert answer.status_code == 404
    assert "<h1>There is nothing here</h1>" in answer.text


def test_a_reader_says_what_it_has_and_where_the_rest_is(tmp_path):
    with page_over(tmp_path, role="serve", serve_from=str(tmp_path / "shop")) as client:
        answer = client.get("/ui/")
        assert answer.status_code == 200
        assert "This service only reads" in answer.text
        assert "Start a run" not in answer.text
        assert re.findall(r'href="/ui/(\w*)"', answer.text) == [""]  # no way to what a reader refuses
        assert "serve_from" in answer.text or "published" in answer.text  # why there is no version yet
        refused = client.get("/ui/start")
        assert (refused.status_code, "call the service that trains" in refused.text) == (409, True)


# who may be there ---------------------------------------------------------------------------------------------------


def test_with_a_token_every_page_asks_for_it_and_the_right_one_opens_it(guarded):
    for path in ("/ui/", "/ui/nowhere", "/ui/runs/some"):
        answer = guarded.get(path)
        assert answer.status_code == 401
        assert 'name="token"' in answer.text
    wrong = guarded.post("/ui/enter", data={"token": "guess", "to": "/"})
    assert (wrong.status_code, "not the token" in wrong.text) == (401, True)
    right = guarded.post("/ui/enter", data={"token": "s3cret", "to": "/"})
    assert (right.status_code, "<h1>Runs</h1>" in right.text) == (200, True)
    assert guarded.get("/status").status_code == 401  # the endpoints want it in each call


def test_who_enters_comes_to_what_was_asked_for(guarded):
    asked = guarded.get("/ui/compare?first=base&second=a%20b").text
    (to,) = re.findall(r'name="to" value="([^"]*)"', asked)
    answer = guarded.post("/ui/enter", data={"token": "s3cret", "to": html.unescape(to)}, follow_redirects=False)
    assert answer.headers["location"] == "/ui/compare?first=base&second=a%20b"


def test_the_cookie_is_strict_and_does_not_hold_the_token(guarded):
    answer = guarded.post("/ui/enter", data={"token": "s3cret"}, follow_redirects=False)
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert "Path=/ui" in cookie
    assert "s3cret" not in cookie
    https = TestClient(guarded.app, "https://page.example")
    assert "Secure" in https.post("/ui/enter", data={"token": "s3cret"}, follow_redirects=False).headers["set-cookie"]


def test_a_cookie_that_was_changed_or_made_up_opens_nothing(guarded):
    guarded.post("/ui/enter", data={"token": "s3cret"})
    ((name, value),) = guarded.cookies.items()
    for made_up in (value[:-1] + ("0" if value[-1] != "0" else "1"), "x.9999999999.0", "x", "x.é.0"):
        guarded.cookies.clear()
        assert guarded.get("/ui/", headers={"Cookie": f"{name}={made_up}".encode()}).status_code == 401


def test_a_cookie_with_an_endless_number_opens_nothing(guarded):
    guarded.post("/ui/enter", data={"token": "s3cret"})
    ((name, _),) = guarded.cookies.items()
    guarded.cookies.clear()
    assert guarded.get("/ui/", headers={"Cookie": f"{name}=a.{'9' * 5000}.x"}).status_code == 401


def test_one_who_enters_is_sent_nowhere_else(guarded):
    for elsewhere in ("https://evil.example", "//evil.example", "/\\evil.example"):
        answer = guarded.post("/ui/enter", data={"token": "s3cret", "to": elsewhere}, follow_redirects=False)
        assert answer.headers["location"] == "/ui/"


def test_who_signs_out_is_asked_again(guarded):
    guarded.post("/ui/enter", data={"token": "s3cret"})
    assert guarded.post("/ui/leave", data={"csrf": csrf_of(guarded)}).status_code == 401
    assert guarded.get("/ui/").status_code == 401


# changes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("brought", [{}, {"csrf": "made up"}])
def test_a_change_that_does_not_come_from_a_page_of_this_session_is_refused(guarded, brought):
    guarded.post("/ui/enter", data={"token": "s3cret"})
    answer = guarded.post("/ui/leave", data=brought)
    assert (answer.status_code, "Nothing was changed" in answer.text) == (403, True)
    assert guarded.post("/ui/leave", headers={"X-CSRF": "made up"}).status_code == 403
    assert guarded.get("/ui/").status_code == 200


def test_a_change_that_the_browser_says_comes_from_another_page_is_refused(open_page):
    brought = {"csrf": csrf_of(open_page)}
    for headers in (
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Origin": "http://page.example:1"},
    ):
        assert open_page.post("/ui/leave", data=brought, headers=headers).status_code == 403
    own = open_page.post("/ui/leave", data=brought, headers={"Origin": PAGE, "Sec-Fetch-Site": "same-origin"})
    assert own.status_code == 200


def test_a_form_that_is_too_large_is_refused_in_plain_words(tmp_path):
    with page_over(tmp_path, max_request_bytes=1000) as client:
        answer = client.post("/ui/leave", data={"csrf": csrf_of(client), "more": "x" * 2000})
        assert answer.status_code == 413
        assert "This is too large" in answer.text
        assert "1 kB" in answer.text
