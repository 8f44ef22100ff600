"""The page to label, as a browser without scripts sees it: galleries, clicks, labels, dropped pictures, suggestions."""

import base64
import html
import io
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from PIL import Image

from conftest import coloured, encoded, images
from executor import Document, DocumentArray
from executor.documents import has_label
from executor.parameters import FitParameters
from executor.web.ui import label, pictures
from pages import Visitor, csrf_of, page_over

EVIL = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight pictures of two colours, one of which has markup for a name."""
    place: Path = tmp_path_factory.mktemp("photos")
    for colour in range(2):
        for seed in range(4):
            (place / f"c{colour}-{seed}.png").write_bytes(encoded(coloured(colour, seed, 64)))
    (place / "c1-3.png").rename(place / f"z{EVIL}.png")
    return place


@pytest.fixture(scope="module")
def visitor(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Iterator[Visitor]:
    with page_over(tmp_path_factory.mktemp("page"), allowed_roots=[str(folder)]) as running:
        running.service.supervisor.close()  # else it would start a trainer
        yield running


def said(visitor: Visitor, id: str) -> Any:
    """The latest word of an id; None: there is none."""
    found = list(visitor.service.receiver.feedback.words([id]))
    return found[0].document if found else None


def words(visitor: Visitor) -> list[Any]:
    """What is kept, newest first."""
    return [word.document for word in visitor.service.receiver.feedback.latest_words(None, 100) if word.document]


def inputs(page: str, form: str) -> dict[str, str]:
    """The hidden fields of the form with an id."""
    (inside,) = re.findall(rf'<form id="{form}".*?</form>', page, re.DOTALL)
    found = re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', inside)
    return {name: html.unescape(value) for name, value in found}


def shown(visitor: Visitor, **query: Any) -> str:
    answer = visitor.get(f"/ui/label?{urlencode(query)}")
    assert answer.status_code == 200, answer.text
    return str(answer.text)


# galleries ----------------------------------------------------------------------------------------------------------


def test_without_a_gallery_the_page_asks_for_one_and_names_those_at_hand(visitor, folder):
    page = shown(visitor)
    assert "Which pictures?" in page
    assert f"the folder {folder}" in page


def test_a_gallery_is_shown_with_lazy_thumbnails_page_by_page(visitor, folder, monkeypatch):
    monkeypatch.setattr(label, "ON_A_PAGE", 5)
    monkeypatch.setattr(pictures, "SOON_SECONDS", 60.0)
    page = shown(visitor, of=folder)
    assert "8 pictures" in page
    made = re.findall(r'<img class="picture" src="data:image/jpeg;base64,([^"]+)" alt="" loading="lazy"', page)
    assert [Image.open(io.BytesIO(base64.b64decode(each))).size for each in made] == [(64, 64)] * 5
    more = visitor.get(f"/ui/label/pictures?{urlencode({'of': folder, 'offset': 5})}").text
    assert more.count("<li>") == 3
    assert EVIL not in more
    assert html.escape(EVIL) in more


def test_a_thumbnail_that_a_page_does_not_bring_along_has_an_address(visitor, folder):
    place = folder / "few"
    place.mkdir()
    (place / "broken.png").write_bytes(b"none")
    (address,) = re.findall(
        r'<img class="picture" src="(/ui/thumbnail[^"]+)" alt="" loading="lazy"', shown(visitor, of=place)
    )
    answer = visitor.get(html.unescape(address))
    assert (answer.status_code, answer.headers["content-type"]) == (422, "image/svg+xml")
    shutil.rmtree(place)


def test_a_thumbnail_is_kept_by_the_browser_and_asked_for_again_by_its_tag(visitor, folder):
    address = f"/ui/thumbnail?{urlencode({'uri': folder / 'c0-0.png', 'side': 192})}"
    first = visitor.get(address)
    assert first.headers["content-type"] == "image/jpeg"
    assert first.headers["cache-control"].startswith("private, max-age=")
    assert Image.open(io.BytesIO(first.content)).size == (64, 64)
    again = visitor.get(address, headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize("uri", ["/etc/passwd", "file:///etc/hostname", "http://127.0.0.1/x.png", "../secret.png"])
def test_what_may_not_be_read_has_no_thumbnail(visitor, uri):
    answer = visitor.get(f"/ui/thumbnail?{urlencode({'uri': uri})}")
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "image/svg+xml"
    assert answer.headers["cache-control"] == "no-store"


def test_a_gallery_that_is_none_is_said_in_plain_words(visitor):
    answer = visitor.get("/ui/label?of=/etc")
    assert (answer.status_code, "outside the allowed roots" in answer.text) == (400, True)
    assert 'name="of" list="galleries" value="/etc"' in answer.text  # to be corrected there
    assert visitor.get("/ui/label?of=run:gone").status_code == 404


# clicks -------------------------------------------------------------------------------------------------------------


def first_neighbour(visitor: Visitor, folder: Path, name: str = "c0-0.png", **query: Any) -> dict[str, str]:
    """The form that says something of the neighbour that is shown."""
    return inputs(shown(visitor, of=folder, id=name, uri=folder / name, **query), "say")


def test_a_click_is_a_session_and_the_next_neighbour_is_shown(visitor, folder):
    form = first_neighbour(visitor, folder)
    assert form["uri"] == str(folder / "c0-0.png")
    assert form["n_id"].startswith("c0-")
    answer = visitor.submit("/ui/label/say", form | {"say": "fits"})
    assert "2 of 7" in answer.text
    (session,) = words(visitor)
    assert session.uri == str(folder / "c0-0.png")
    assert [(match.uri, match.tags["finetuner_label"]) for match in session.matches] == [(form["n_uri"], 1)]
    following = inputs(answer.text, "say")
    visitor.submit("/ui/label/say", following | {"say": "not"})
    (session,) = words(visitor)
    signs = {match.uri: match.tags["finetuner_label"] for match in session.matches}
    assert signs == {form["n_uri"]: 1, following["n_uri"]: -1}


def test_a_click_can_be_changed_and_taken_back_and_the_last_one_withdraws_all(visitor, folder):
    form = first_neighbour(visitor, folder, "c0-1.png")
    visitor.submit("/ui/label/say", form | {"say": "fits"})
    (session, *_) = words(visitor)
    visitor.submit("/ui/label/say", form | {"say": "not", "shown": "fits"})
    assert [match.tags["finetuner_label"] for match in said(visitor, session.id).matches] == [-1]
    visitor.submit("/ui/label/say", form | {"say": "undo", "shown": "not"})
    assert said(visitor, session.id) is None
    assert first_neighbour(visitor, folder, "c0-1.png")["n_uri"] == form["n_uri"]  # nothing is said of it any more


def test_what_was_said_is_shown_again_and_the_first_unsaid_comes_first(visitor, folder):
    form = first_neighbour(visitor, folder, "c0-2.png")
    visitor.submit("/ui/label/say", form | {"say": "fits"})
    page = shown(visitor, of=folder, id="c0-2.png", uri=folder / "c0-2.png")
    assert inputs(page, "say")["n_uri"] != form["n_uri"]
    assert f'data-key="{html.escape(form["n_uri"])}"' in page
    assert '<span class="badge good">fits</span>' in page


def test_to_skip_says_nothing(visitor, folder):
    before = len(words(visitor))
    answer = visitor.submit("/ui/label/say", first_neighbour(visitor, folder, "c0-3.png") | {"say": "skip"})
    assert (len(words(visitor)), "2 of 7" in answer.text) == (before, True)


def by_script(visitor: Visitor, path: str, fields: dict[str, str]) -> Any:
    answer = visitor.post(path, data=fields, headers={"X-CSRF": csrf_of(visitor)})
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_of_two_tabs_nothing_is_lost_and_each_learns_what_the_other_said(visitor, folder):
    item = {"of": str(folder), "id": "c1-0.png", "uri": str(folder / "c1-0.png")}
    one = {"n_id": "c1-1.png", "n_uri": str(folder / "c1-1.png")}
    other = {"n_id": "c1-2.png", "n_uri": str(folder / "c1-2.png")}
    first = by_script(visitor, "/ui/label/say", item | one | {"say": "fits", "shown": ""})
    assert first["told"] == ""
    second = by_script(visitor, "/ui/label/say", item | other | {"say": "not", "shown": ""})  # a tab that knows of none
    assert second["clicks"] == {one["n_uri"]: "fits", other["n_uri"]: "not"}
    third = by_script(visitor, "/ui/label/say", item | one | {"say": "not", "shown": ""})
    assert "another tab had said that it fits; your word, the later one, counts" in third["told"]
    assert third["clicks"][one["n_uri"]] == "not"
    news = visitor.get(f"/ui/label/news?{urlencode(item)}").json()
    assert (news["word"], news["clicks"]) == (third["word"], third["clicks"])


def test_a_run_s_documents_can_be_queries_and_neighbours_with_their_content(visitor):
    docs = DocumentArray(Document(id=f"r{n}", blob=coloured(n % 2, n, 64)) for n in range(4))
    visitor.service.receiver.receive(docs, FitParameters(run="arrays", kind="unlabeled"))
    form = inputs(shown(visitor, of="run:arrays", id="r0", at=0), "say")
    assert (form["at"], form["n_at"]) == ("0", "2")
    visitor.submit("/ui/label/say", form | {"say": "fits"})
    (session, *_) = words(visitor)
    assert (session.blob == coloured(0, 0, 64)).all()
    assert (session.matches[0].blob == coloured(0, 2, 64)).all()
    thumbnail = visitor.get("/ui/thumbnail?of=run:arrays&at=0")
    assert thumbnail.headers["content-type"] == "image/jpeg"
    assert shown(visitor, of="run:arrays").count('<img class="picture" src="data:image/jpeg;base64,') == 4


# labels -------------------------------------------------------------------------------------------------------------


def test_a_label_is_kept_corrected_and_taken_back(visitor, folder):
    item = {"of": str(folder), "id": "c0-0.png", "uri": str(folder / "c0-0.png")}
    visitor.submit("/ui/label/name", item | {"label": EVIL})
    assert said(visitor, "c0-0.png").tags["finetuner_label"] == EVIL
    page = shown(visitor, **item)
    assert EVIL not in page
    assert f'value="{html.escape(EVIL)}"' in page
    visitor.submit("/ui/label/name", item | {"label": " apple "})
    assert said(visitor, "c0-0.png").tags["finetuner_label"] == "apple"
    assert said(visitor, "c0-0.png").uri == item["uri"]
    visitor.submit("/ui/label/name", item | {"label": ""})
    assert said(visitor, "c0-0.png") is None


def test_what_cannot_be_seen_cannot_be_labelled(visitor, folder):
    (folder / "empty.png").write_bytes(b"")
    item = {"of": str(folder), "id": "empty.png", "uri": str(folder / "empty.png")}
    assert 'id="name"' not in shown(visitor, **item)
    answer = visitor.submit("/ui/label/name", item | {"label": "lemon"})
    assert (answer.status_code, "this is no picture that can be used" in answer.text) == (422, True)
    assert said(visitor, "empty.png") is None
    (folder / "empty.png").unlink()


def test_a_label_that_is_a_number_in_use_stays_that_number(visitor, folder):
    visitor.service.feedback.receive([Document(id="n", uri="data:,x", tags={"finetuner_label": 7})])
    item = {"of": str(folder), "id": "c0-1.png", "uri": str(folder / "c0-1.png")}
    visitor.submit("/ui/label/name", item | {"label": "7"})
    assert said(visitor, "c0-1.png").tags["finetuner_label"] == 7
    visitor.submit("/ui/label/name", item | {"label": "8"})
    assert said(visitor, "c0-1.png").tags["finetuner_label"] == "8"


def test_pictures_of_two_folders_with_one_name_keep_their_labels(visitor, folder):
    mine, other = str(folder / "c1-0.png"), str(folder / "c1-1.png")
    visitor.submit("/ui/label/name", {"of": "a", "id": "1.png", "uri": mine, "label": "one"})
    visitor.submit("/ui/label/name", {"of": "b", "id": "1.png", "uri": other, "label": "two"})
    assert said(visitor, "1.png").tags["finetuner_label"] == "one"
    assert said(visitor, other).tags["finetuner_label"] == "two"


def test_a_tab_is_told_that_another_had_labelled_the_picture(visitor, folder):
    item = {"of": str(folder), "id": "c0-2.png", "uri": str(folder / "c0-2.png")}
    first = by_script(visitor, "/ui/label/name", item | {"label": "kiwi", "known": "0"})
    assert (first["label"], first["told"]) == ("kiwi", "")
    second = by_script(visitor, "/ui/label/name", item | {"label": "plum", "known": "0"})
    assert "another tab had labelled it “kiwi”; your word, the later one, counts" in second["told"]
    assert (
        by_script(visitor, "/ui/label/name", item | {"label": "fig", "known": str(second["label_word"])})["told"] == ""
    )


def test_a_label_of_a_run_s_document_speaks_of_that_document(visitor):
    docs = DocumentArray([Document(id="mine", blob=coloured(0, 9, 64)), Document(id="b", blob=coloured(1, 9, 64))])
    visitor.service.receiver.receive(docs, FitParameters(run="named", kind="unlabeled"))
    visitor.submit("/ui/label/name", {"of": "run:named", "id": "mine", "at": "0", "label": "red"})
    assert (said(visitor, "mine").blob == coloured(0, 9, 64)).all()
    assert said(visitor, "mine").tags["finetuner_label"] == "red"


# dropped pictures ---------------------------------------------------------------------------------------------------


def drop(visitor: Visitor, content: bytes, name: str = "mine.png", of: str = "") -> Any:
    return visitor.submit("/ui/label/drop", {"of": of}, files={"picture": (name, content, "image/png")})


def test_a_dropped_picture_is_shown_and_kept_with_the_first_click(visitor, folder):
    content = encoded(coloured(1, 77, 64))
    answer = drop(visitor, content, f"{EVIL}.png", str(folder))
    assert answer.status_code == 200
    assert EVIL not in answer.text
    form = inputs(answer.text, "say")
    assert re.fullmatch(r"[0-9a-f]{24}", form["drop"])
    visitor.submit("/ui/label/say", form | {"say": "fits"})
    (session, *_) = words(visitor)
    assert (session.id, session.buffer) == (f"clicks-{form['drop']}", content)
    visitor.submit("/ui/label/name", inputs(answer.text, "name") | {"label": "pear"})
    assert said(visitor, f"dropped-{form['drop']}").buffer == content


def test_a_dropped_picture_outlives_the_service_once_something_was_said_of_it(visitor, folder, tmp_path, monkeypatch):
    form = inputs(drop(visitor, encoded(coloured(0, 78, 64)), of=str(folder)).text, "say")
    address = f"/ui/label?{urlencode({'of': folder, 'drop': form['drop']})}"
    forget_drops(visitor, monkeypatch)
    gone = visitor.get(address)
    assert (gone.status_code, "drop it again" in gone.text) == (404, True)
    monkeypatch.undo()
    visitor.submit("/ui/label/say", form | {"say": "fits"})
    forget_drops(visitor, monkeypatch)
    assert visitor.get(address).status_code == 200


def forget_drops(visitor: Visitor, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a restart of the service does to pictures of which nothing was said."""
    from executor.web.ui.pictures import Drops

    monkeypatch.setattr(Drops, "find", lambda self, digest: None)


def test_a_file_that_is_no_picture_is_refused_in_plain_words(visitor):
    for content in (b"no picture", b"\xff\xd8\xff" + b"x" * 100):
        answer = drop(visitor, content)
        assert answer.status_code == 422
        assert "This file is no picture that can be used." in answer.text
    assert "This file is empty." in drop(visitor, b"").text
    assert "No picture was chosen." in visitor.submit("/ui/label/drop", {"of": "x"}).text


def test_a_picture_that_is_too_large_is_refused_in_plain_words(visitor, monkeypatch):
    monkeypatch.setattr(label, "LARGEST_DROP", 1000)
    answer = drop(visitor, encoded(coloured(0, 0, 64)))
    assert answer.status_code == 422
    assert "at most 1 kB are taken" in html.unescape(answer.text)


# what to label next, and training ------------------------------------------------------------------------------------


def test_suggestions_come_with_their_reasons_and_can_be_labelled_there(visitor, folder):
    labelled = {word.uri for word in words(visitor) if has_label(word)}  # by other tests
    unlabelled = sum(str(picture) not in labelled for picture in folder.iterdir())
    page = visitor.get(f"/ui/suggest?{urlencode({'of': folder, 'wait': 'yes'})}").text
    assert page.count('class="card suggestion"') == unlabelled > 3
    assert "It is the nearest suggestion to about" in page or "stands for itself" in page
    assert EVIL not in page
    assert f"/ui/label?of={urlencode({'x': folder})[2:]}" in page  # a way into Label
    assert re.search(r'id="kept">\d+ labels?<', page)
    assert 'href="/ui/label/train">Train with these' in page
    waiting = visitor.get(f"/ui/suggest?{urlencode({'of': folder})}").text
    assert 'id="waiting"' in waiting
    assert visitor.get(f"/ui/suggest/pictures?{urlencode({'of': folder})}").text.count("<form") == unlabelled


def test_what_was_said_is_listed_and_taken_back(visitor, folder):
    item = {"of": str(folder), "id": "c1-2.png", "uri": str(folder / "c1-2.png")}
    visitor.submit("/ui/label/name", item | {"label": "l'été \\ 🍋"})
    assert "label “l'été \\ 🍋”" in html.unescape(visitor.get("/ui/label/said").text)  # as it was typed
    assert visitor.get(f"/ui/thumbnail?{urlencode({'word': 'c1-2.png'})}").headers["content-type"] == "image/jpeg"
    after = visitor.submit("/ui/label/withdraw", {"id": "c1-2.png"})
    assert "That was taken back." in after.text
    assert said(visitor, "c1-2.png") is None


def test_to_train_says_what_it_does_and_what_so_few_can_prove(tmp_path, folder):
    with page_over(tmp_path, allowed_roots=[str(folder)]) as visitor:
        visitor.service.supervisor.close()
        assert "Nothing was said yet" in visitor.get("/ui/label/train").text
        item = {"of": str(folder), "id": "c0-0.png", "uri": str(folder / "c0-0.png")}
        one = {"n_id": "c0-1.png", "n_uri": str(folder / "c0-1.png"), "say": "fits"}
        visitor.submit("/ui/label/say", item | one)
        page = visitor.get("/ui/label/train").text
        assert "No picture has both a neighbour that fits and one that does not" in page
        assert "Start this run" not in page
        assert visitor.submit("/ui/label/train", {"kind": "session"}).status_code == 400
        visitor.submit("/ui/label/say", item | {"n_id": "c1-1.png", "n_uri": str(folder / "c1-1.png"), "say": "not"})
        page = visitor.get("/ui/label/train").text
        assert "from 40 on, some are held out for that, so 39 more are needed" in page
        receiver = visitor.service.receiver
        receiver.receive(images(3), FitParameters(run="upload"))  # of somebody else, who will send more
        started = visitor.submit("/ui/label/train", {"kind": "session"}, follow=False)
        name = started.headers["location"].removeprefix("/ui/runs/").partition("?")[0]
        run = visitor.service.store.get(name)
        assert (run.options.feedback, run.options.kind, run.options.base) == (True, "session", "base")
        assert run.options.documents_from == ()
        assert name == "said-1"
        assert receiver.receive(images(3, prefix="more"), FitParameters()) == "upload", "it takes more documents"
