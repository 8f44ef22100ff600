"""The page that compares two versions, as a browser without scripts sees it. In Chromium: test_ui_paths.py."""

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import coloured, encoded, images
from executor.errors import BadRequest
from executor.parameters import FitParameters
from executor.store.run import Progress
from pages import Visitor, page_over
from untrained import add_blind_run, add_version

NASTY = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def visitor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Visitor]:
    """A visitor of a service that serves `base`; it has the run `blind`, and one without a proof."""
    folder = tmp_path_factory.mktemp("compare_page")
    with page_over(folder, fast_inference=False, allowed_roots=[str(folder)]) as visiting:
        visiting.service.supervisor.close()
        proof = images(24, classes=4)
        for doc in proof:
            doc.id = f"{NASTY}{doc.id}"
        add_blind_run(visiting.service, "blind", proof)
        yield visiting


@pytest.fixture(autouse=True)
def base_is_served(visitor: Visitor) -> Iterator[None]:
    yield
    visitor.service.serve("base")


def measured(visitor: Visitor, **asked: str) -> str:
    """Compare, and return the text of the page when it is done."""
    answer = visitor.submit("/ui/compare", {"first": "base", "second": "blind", **asked})
    deadline = time.monotonic() + 60
    while "Measuring" in answer.text:
        assert time.monotonic() < deadline
        time.sleep(0.05)
        answer = visitor.get(str(answer.url))
    assert answer.status_code == 200, answer.text
    return str(answer.text)


def test_with_one_version_there_is_nothing_to_compare(tmp_path: Path) -> None:
    with page_over(tmp_path) as visiting:
        assert "There is nothing to compare yet" in visiting.get("/ui/compare").text


def test_what_nobody_has_measured_is_not_measured_by_looking(visitor: Visitor) -> None:
    text = visitor.get("/ui/compare?first=blind&second=base").text
    assert "Nobody has compared" in text
    assert not re.search("Measuring|Got worse", text)


def test_the_candidate_is_the_newest_run_and_what_is_served_stands_beside_it(visitor: Visitor) -> None:
    text = visitor.get("/ui/compare").text
    assert re.findall(r'<option value="(\w+)" selected>([^<]+)<', text)[:2] == [
        ("base", "base (served now)"),
        ("blind", "blind"),
    ]


def test_figures_lists_and_the_decision_are_on_one_page(visitor: Visitor) -> None:
    text = measured(visitor)
    assert "blind is proven worse than base" in text
    assert len(re.findall(r'<th scope="row">(mAP@R|Recall@|Precision@|NDCG@|MRR)', text)) == 6
    worse = int(re.search(r"Got worse: (\d+) quer", text)[1])
    assert worse > 10
    assert "No query got better" in text or "Got better: " in text
    assert "If you serve <bdi>blind</bdi>" in text
    assert "From the next search on, the service answers with vectors of <bdi>blind</bdi>" in text
    assert "Serve blind from now on" in text


def test_what_was_measured_can_be_measured_again(visitor: Visitor) -> None:
    folder = Path(visitor.service.policy.allowed_roots[0]) / "growing"
    for number in range(6):
        file = folder / str(number % 2) / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encoded(coloured(number % 2, number)))
    assert re.search(r"6 queries.*Measure again", measured(visitor, gallery=str(folder)), re.DOTALL)
    (folder / "0" / "more.png").write_bytes(encoded(coloured(0, 9)))
    assert "6 queries" in measured(visitor, gallery=str(folder))
    assert "7 queries" in measured(visitor, gallery=str(folder), anew="yes")


def test_markup_in_names_is_shown_as_text(visitor: Visitor) -> None:
    text = measured(visitor)
    number = re.search(r"compare/query\?[^\"]*number=(\d+)", text)[1]
    query = visitor.get(f"/ui/compare/query?first=base&second=blind&number={number}").text
    for page in (text, query):
        assert "<img src=x" not in page
        assert "&lt;img src=x onerror=alert(1)&gt;" in page
    assert query.count("What <bdi>") == 2
    assert query.count('class="found') == 16
    assert "✗ does not fit" in query


def test_a_list_has_pages_of_its_own(visitor: Visitor, monkeypatch: pytest.MonkeyPatch) -> None:
    measured(visitor)
    monkeypatch.setattr("executor.web.ui.compare.PAGE", 5)
    address, seen = "/ui/compare?first=base&second=blind&which=worse", []
    while address:
        text = visitor.get(address).text
        seen += re.findall(r"number=(\d+)", text)
        after = re.search(r'href="([^"]+)">After<', text)
        address = after[1].replace("&amp;", "&") if after else ""
    assert len(seen) == len(set(seen)) == int(re.search(r"Got worse: (\d+) quer", text)[1])


def test_progress_is_told_and_at_its_end_that_it_is_done(visitor: Visitor) -> None:
    measured(visitor)
    with visitor.stream("GET", "/ui/compare/progress?first=base&second=blind") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert [line for line in answer.iter_lines() if line] == ["event: done", "data: {}"]


def test_what_fails_is_said_beside_what_was_asked_for(visitor: Visitor) -> None:
    folder = Path(visitor.service.policy.allowed_roots[0]) / "alone"
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / "one.png").write_bytes(encoded(coloured(0)))
    answer = visitor.submit("/ui/compare", {"first": "base", "second": "blind", "gallery": "/etc"})
    assert answer.status_code == 400
    assert "allowed_roots" in answer.text
    assert 'value="/etc"' in answer.text
    visitor.submit("/ui/compare", {"first": "base", "second": "blind", "gallery": str(folder)}, follow=False)
    with visitor.stream("GET", f"/ui/compare/progress?first=base&second=blind&gallery={folder}") as answer:
        said = [line for line in answer.iter_lines() if line][-2:]
    assert said[0] == "event: failed"
    assert "None of the 2 pictures can be scored" in json.loads(said[1].removeprefix("data: "))["why"]
    assert visitor.get("/ui/compare?first=base&second=nobody").status_code == 400
    assert visitor.get("/ui/compare/query?first=base&second=blind&number=x").status_code == 400
    assert visitor.get("/ui/compare?first=base&second=blind&which=worse&from=x").status_code == 400


def test_why_a_comparison_failed_stays_on_the_page_until_it_is_asked_for_again(visitor: Visitor) -> None:
    folder = Path(visitor.service.policy.allowed_roots[0]) / "loose"
    folder.mkdir()
    asked = {"first": "base", "second": "blind", "gallery": str(folder)}
    address = f"/ui/compare?first=base&second=blind&gallery={folder}"
    for name in ("1.png", "2.png"):
        (folder / name).write_bytes(encoded(coloured(0)))
    answer = visitor.submit("/ui/compare", asked)
    for page in (answer, visitor.get(address), visitor.get(address)):
        assert page.status_code == 400
        assert "has no folders in it. Put the pictures of each class into a folder named after it.<" in page.text
        assert f'value="{folder}"' in page.text
        assert not re.search("Nobody has compared|--kind", page.text)
    for number in range(6):  # what it said is mended
        file = folder / str(number % 2) / f"{number}.png"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(encoded(coloured(number % 2, number)))
    assert "6 queries" in measured(visitor, gallery=str(folder))


def test_what_fails_in_the_background_is_shown_to_who_comes_later(
    visitor: Visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    from executor.serving import comparisons

    monkeypatch.setattr("executor.web.ui.compare.PROGRESS_SECONDS", 0)  # nobody waits for the start
    address = "/ui/compare?first=blind&second=base&run=blind"
    for failure, status in ((BadRequest("None of them can be scored."), 400), (MemoryError("no room"), 500)):

        def fail(*_: object, failure: Exception = failure) -> None:
            raise failure

        monkeypatch.setattr(comparisons, "_compared", fail)
        visitor.submit("/ui/compare", {"first": "blind", "second": "base", "run": "blind"})
        deadline = time.monotonic() + 60
        while (page := visitor.get(address)).status_code == 200:
            assert "Measuring" in page.text
            assert time.monotonic() < deadline
            time.sleep(0.05)
        for shown in (page, visitor.get(address)):
            assert shown.status_code == status
            assert ("None of them can be scored." if status == 400 else "failed with MemoryError") in shown.text
            assert "Nobody has compared" not in shown.text


def test_what_could_not_begin_because_others_wait_is_said(visitor: Visitor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("executor.serving.comparisons.WAITING", 0)
    answer = visitor.submit("/ui/compare", {"first": "blind", "second": "base", "gallery": str(Path.cwd())})
    assert "allowed_roots" in answer.text
    folder = visitor.service.policy.allowed_roots[0]
    answer = visitor.submit("/ui/compare", {"first": "blind", "second": "base", "gallery": folder})
    assert answer.status_code == 400
    assert "try again when one is done" in answer.text
    assert "Nobody has compared" not in answer.text


def test_promoting_serves_the_version_and_the_page_offers_the_way_back(visitor: Visitor) -> None:
    text = measured(visitor)
    assert "Serve blind from now on" in text
    asked = {"first": "base", "second": "blind"}
    text = visitor.submit("/ui/compare/promote", {**asked, "version": "blind", "served": "base"}).text
    assert visitor.service.served() == "blind"
    assert "This version is served now." in text
    assert "If you serve <bdi>base</bdi>" in text
    text = visitor.submit("/ui/compare/promote", {**asked, "version": "base", "served": "blind"}).text
    assert visitor.service.served() == "base"
    assert "If you serve <bdi>blind</bdi>" in text


def test_a_decision_on_a_page_that_is_out_of_date_changes_nothing(visitor: Visitor) -> None:
    answer = visitor.submit("/ui/compare/promote", {"version": "blind", "served": "older"})
    assert answer.status_code == 409
    assert "Meanwhile somebody has decided otherwise" in answer.text
    assert visitor.service.served() == "base"


def test_the_index_plan_is_in_words_with_its_figures(visitor: Visitor) -> None:
    plan = {
        "from": "base",
        "advice": "map queries",
        "nothing": [],
        "map queries": [0.812, 0.78, 0.84],
        "map index": [0.83, 0.8, 0.86],
        "embed anew": [0.85, 0.82, 0.88],
    }
    service = visitor.service
    service.receiver.receive(images(4), FitParameters(run="planned"))
    add_version(service, "planned")
    service.store.report("planned", Progress(index_plan=plan))
    text = visitor.get("/ui/compare?first=base&second=planned").text
    rows = re.findall(r'<th scope="row">([^<]+)</th><td data-name="mAP@R">([^<]+)</td>(.*?)</tr>', text)
    assert [value for _, value, _ in rows] == ["not possible", "0.812", "0.830", "0.850"]
    assert ["advised" in rest for *_, rest in rows] == [False, True, False, False]
    assert "let the service translate each query" in rows[1][0]
    # The plan is one for an index of the version that was served then.
    service.serve("blind")
    assert "it was not measured what can be done cheaply" in visitor.get("/ui/compare?first=base&second=planned").text
