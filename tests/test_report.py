"""The report of a run is complete in one file, shows bad results too, and is safe with any text."""

import dataclasses
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
from huggingface_hub import ModelCard
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA

from executor.documents import Document
from executor.errors import NotFound, WorkspaceError
from executor.evaluation.metrics import METRICS, score_classes
from executor.images.decoding import decode_image
from executor.images.policy import ImagePolicy
from executor.images.uris import read_uri
from executor.report.advice import advise
from executor.report.card import model_card
from executor.report.charts import Curve
from executor.report.classes import changes_by_class, confusions
from executor.report.gallery import choose_queries, make_gallery, rank_sessions
from executor.report.naming import name_of
from executor.report.page import render
from executor.report.parts import (
    Change,
    ClassChange,
    IndexWay,
    Interval,
    LabelErrors,
    ModelFacts,
    Neighbour,
    Query,
    SmallVectorForm,
    Suspect,
    Tried,
)
from executor.report.report import Report, compare, load
from executor.report.saving import save

HOSTILE = "</title></style><script>alert('x')</script><img src=https://example.com/x.png onerror=\"alert(1)\">&amp;"
VOID = {"meta", "link", "img", "br", "hr", "input"}
SHAPES = {"rect", "line", "circle", "polyline"}  # may close themselves within an SVG


class Page(HTMLParser):
    """A parsed page: its elements as (tag, attributes), its text; a tag closed out of order is an error."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.text += " "
        self.elements.append((tag, dict(attrs)))
        assert len(dict(attrs)) == len(attrs), f"<{tag}> repeats an attribute"
        assert tag not in SHAPES, f"<{tag}> does not close itself"
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        assert tag in SHAPES

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open and self._open[-1] not in ("style", "title"):
            self.text += data

    def having(self, style: str) -> list[str]:
        """The tags of the elements of this class."""
        return [tag for tag, attrs in self.elements if style in (attrs.get("class") or "").split()]

    @property
    def words(self) -> str:
        return " ".join(self.text.split())


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Images (N, 8, 8, 3), labels, and their embeddings by 2 and by 16 principal components."""
    values, labels = load_digits(return_X_y=True)
    values, labels = values[:300], labels[:300]
    images = np.repeat((values.reshape(-1, 8, 8, 1) * 15.9).astype(np.uint8), 3, axis=3)
    poor, good = (PCA(size, random_state=0).fit_transform(values) for size in (2, 16))
    return images, labels, poor, good


@pytest.fixture(scope="module")
def proven(digits) -> Report:
    images, labels, poor, good = digits
    before, after = score_classes(poor, labels.tolist()), score_classes(good, labels.tolist())
    metrics, difference, outcomes = compare(before, after)
    return Report(
        run="digits-7",
        kind="class",
        base="base",
        created_at="2026-11-22T14:30:01.100+00:00",
        started_at="2026-11-22T14:30:05.000+00:00",
        ended_at="2026-11-22T15:33:41.512+00:00",
        train_documents=1234,
        eval_documents=300,
        held_out=0,
        skipped=22,
        problems=[("broken.jpg", "The JPEG image is damaged or truncated")],
        classes=10,
        options={"epochs": 3, "loss": "proxy_anchor", "freeze": ["layer1"], "embedding_dim": None},
        device="cpu",
        history={
            "loss": [2.0, 1.0, 0.5],
            "learning_rate": [1e-3, 5e-4, 0.0],
            "mean_average_precision_at_r": [0.5, 0.6, 0.7],
        },
        metrics=metrics,
        difference=difference,
        outcomes=outcomes,
        queries=after.queries,
        queries_skipped=after.skipped,
        verdict="mAP@R went up, which is better. It was promoted.",
        promoted=True,
        gallery=make_gallery(
            choose_queries(poor, good, labels),
            image=lambda item: images[item],
            caption=lambda item: f"digit {labels[item]}",
            fits=lambda query, item: bool(labels[query] == labels[item]),
        ),
    )


@pytest.fixture(scope="module")
def unproven(proven) -> Report:
    return dataclasses.replace(
        proven, eval_documents=0, metrics={}, difference=None, outcomes=None, queries=0, verdict="", gallery=[]
    )


def hostile(report: Report) -> Report:
    """The same with markup in every text, and with content that is no image."""
    document = Neighbour(image=None, caption=HOSTILE, fits=False)
    return dataclasses.replace(
        report,
        run=HOSTILE,
        kind=HOSTILE,
        base=HOSTILE,
        device=HOSTILE,
        verdict=HOSTILE,
        problems=[(HOSTILE, HOSTILE), ("half a pair \ud800", "null \0")],
        options={HOSTILE: HOSTILE, "nested": {HOSTILE: [HOSTILE]}},
        history={HOSTILE: [1.0]},
        gallery=[
            Query(image=None, caption=HOSTILE, before=[document], after=[document]),
            dataclasses.replace(report.gallery[0], caption=HOSTILE, worst=True),
        ],
    )


# --- the page ----------------------------------------------------------------------------------------------------


def test_the_page_says_what_the_run_did(proven):
    words = Page(render(proven)).words
    change = proven.metrics["mean_average_precision_at_r"]
    for said in (
        "digits-7",
        "Proven better",
        "Promoted",
        proven.verdict,
        f"{change.before.mean:.3f}",
        f"{change.after.mean:.3f}",
        f"{change.after.low:.3f} to {change.after.high:.3f}",
        "10 classes",
        "1,234 documents",
        "300 eval documents",
        "1 h 3 min after its start",
        "broken.jpg",
        "And 21 more.",
        "proxy_anchor",
        '["layer1"]',
        "Loss",
        "Learning rate",
    ):
        assert said in words


def test_every_metric_has_a_row_with_two_bars(proven):
    page = Page(render(proven))
    assert len([tag for tag in page.having("track") if tag == "rect"]) == len(METRICS)
    for side in ("before", "after"):
        assert len([tag for tag in page.having(side) if tag == "rect"]) == len(METRICS)


def test_the_page_refers_to_nothing_outside_itself(proven):
    html = render(proven)
    page = Page(html)
    references = [
        value for _, attrs in page.elements for name, value in attrs.items() if name in ("src", "href", "srcset")
    ]
    assert references
    assert all(value.startswith("data:") for value in references)
    assert not re.search(r"@import|@font-face|url\(", html)
    assert not {"script", "iframe", "object", "base", "form", "a"} & {tag for tag, _ in page.elements}


def test_a_content_policy_forbids_what_is_not_inline(proven):
    policies = [
        attrs["content"] for tag, attrs in Page(render(proven)).elements if tag == "meta" and "http-equiv" in attrs
    ]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_hostile_texts_stay_text(proven):
    page = Page(render(hostile(proven)))
    assert not [tag for tag, _ in page.elements if tag == "script"]
    assert not [attrs for _, attrs in page.elements if any(attribute.startswith("on") for attribute in attrs)]
    assert all((attrs.get("src") or "data:").startswith("data:") for _, attrs in page.elements)
    assert page.words.count("<script>alert('x')</script>") > 10


def test_a_run_without_eval_documents_is_called_unproven_and_shows_no_metrics(unproven):
    words = Page(render(unproven)).words
    assert "Unproven" in words
    assert "There were no eval documents: nothing was measured" in words
    assert "Before and after" not in words
    assert "What queries find" not in words


def test_eval_documents_that_cannot_be_queries_are_not_called_absent(unproven):
    words = Page(render(dataclasses.replace(unproven, eval_documents=5, verdict="It was promoted."))).words
    assert "None of the eval documents could be a query" in words
    assert "It was promoted." in words


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [(0.01, 0.02, "Proven better"), (-0.01, 0.02, "Not proven better"), (-0.02, -0.01, "Proven worse")],
)
def test_the_interval_of_the_difference_decides_what_is_proven(proven, low, high, words):
    difference = dataclasses.replace(proven.difference, mean=(low + high) / 2, low=low, high=high)
    html = render(dataclasses.replace(proven, difference=difference))
    assert re.findall(r'class="badge \w+">([^<]+)', html) == [words, "Promoted"]


def test_of_too_few_labels_no_interval_is_shown(proven):
    known = {name: Interval(mean=1.0, low=0.0, high=1.0) for name in ("before", "after")}
    difference = Interval(mean=0.0, low=-1.0, high=1.0)
    way = IndexWay(name="map index", value=known["after"], loss=difference, unseen=None, advised=True)
    rows = [
        SmallVectorForm(
            dimensions=size, encoding="float", size=4 * size, value=1.0, difference=0.0, low=-1.0, high=1.0,
            rescored=False,
        )
        for size in (128, 64)
    ]  # fmt: skip
    metrics = {name: Change(**known) for name in proven.metrics}
    few = dataclasses.replace(proven, difference=difference, metrics=metrics, ways=[way], small_vectors=rows)
    html = render(few)
    words = Page(html).words
    assert not re.search(r"[−-]1\.000 to|0\.000 to 1\.000", html)
    assert html.count('class="whisker"') == 0
    assert "128 float 512 1.000 –" in words
    assert "64 float 256 1.000 +0.000 too few labels or groups for an interval" in words
    card = model_card("m", "onnx", "small", "Load it.", few)
    assert "| 1.000 | 1.000 | too few labels or groups for an interval |" in card
    assert not any("would prove it" in sentence for sentence in advise(dataclasses.replace(few, difference=gain())))


def gain() -> Interval:
    return Interval(mean=0.2, low=-1.0, high=1.0)


def test_an_automatic_run_is_shown_with_the_interval_by_which_it_was_judged(proven):
    difference = dataclasses.replace(proven.difference, mean=0.2, low=0.1, high=0.3)
    judged = dataclasses.replace(proven, difference=difference, level=0.9924, queries=20)
    html = render(judged)
    assert "99.24 % interval on an axis" in html
    assert "that of the difference is one of 99.24 %" in html
    for report, words in ((judged, "Proven better"), (dataclasses.replace(judged, queries=19), "Unproven")):
        assert re.findall(r'class="badge \w+">([^<]+)', render(report)) == [words, "Promoted"]


def test_held_out_documents_are_not_counted_as_trained_on(proven):
    words = Page(render(dataclasses.replace(proven, eval_documents=0, held_out=34))).words
    assert "Trained on 1,200 documents" in words
    assert "34 held-out documents of 1,234 received for training" in words


# --- charts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values", [[0.7], [0.5, 0.5, 0.5], [0.0], [-3.0, 5.0], [float("nan"), 1.0, float("inf"), 2.0], [1e-7] * 100]
)
def test_a_chart_keeps_every_finite_value_in_its_box(values):
    curve = Curve("Loss", values, 0.25)
    points = [point for segment in curve.segments for point in segment]
    assert len(points) == np.isfinite(values).sum()
    assert all(curve.LEFT <= x <= curve.RIGHT and curve.TOP <= y <= curve.BOTTOM for x, y in points)
    assert curve.TOP <= curve.reference[0] <= curve.BOTTOM
    assert 2 <= len(curve.y_ticks) <= 7
    assert curve.x_ticks[-1][1] == len(values)


def test_a_line_is_broken_where_a_value_is_not_finite():
    assert [len(segment) for segment in Curve("Loss", [1, 2, float("nan"), 3]).segments] == [2, 1]


def test_a_history_that_is_not_finite_leaves_no_nan_in_the_drawing(proven):
    history = {"loss": [float("nan"), 2.0, float("inf")], "learning_rate": [float("nan")] * 3}
    html = render(dataclasses.replace(proven, history=history))
    drawn = " ".join(value or "" for tag, attrs in Page(html).elements if tag in SHAPES for value in attrs.values())
    assert not re.search(r"nan|inf", drawn)
    assert "2 epochs without a finite value are left out." in Page(html).words
    assert "Learning rate</figcaption>" not in html


def test_one_epoch_is_a_point(proven):
    html = render(dataclasses.replace(proven, history={"loss": [1.5]}))
    assert [tag for tag, _ in Page(html).elements].count("circle") == 1


def test_an_empty_history_is_said_in_words(proven):
    page = Page(render(dataclasses.replace(proven, history={})))
    assert "No epoch was recorded." in page.words
    assert not page.having("chart")


# --- gallery -----------------------------------------------------------------------------------------------------


def test_wrong_neighbours_are_marked_by_more_than_colour(proven):
    page = Page(render(proven))
    found = [neighbour for query in proven.gallery for neighbour in (*query.before, *query.after)]
    wrong = sum(not neighbour.fits for neighbour in found)
    assert 0 < wrong < len(found)
    assert len(page.having("wrong")) == page.text.count("does not fit") == wrong
    assert len(page.having("fits")) == len(found) - wrong
    assert page.text.count("✗") == wrong + 1  # one is the legend's


def test_neighbours_that_nothing_is_known_of_are_not_marked(proven):
    query = proven.gallery[0]
    unknown = [dataclasses.replace(neighbour, fits=None) for neighbour in query.before]
    page = Page(
        render(dataclasses.replace(proven, gallery=[dataclasses.replace(query, before=unknown, after=unknown)]))
    )
    assert not page.having("wrong") + page.having("fits") + page.having("mark")
    assert "nothing is marked" in page.words


def test_content_that_is_no_image_is_shown_as_its_text(proven):
    found = [Neighbour(image=None, caption="a red shoe", fits=True)]
    page = Page(
        render(dataclasses.replace(proven, gallery=[Query(image=None, caption="shoes", before=found, after=found)]))
    )
    assert page.words.count("a red shoe") == 2
    assert not [tag for tag, _ in page.elements if tag == "img"]


def test_neighbours_are_the_nearest_by_cosine_without_the_query(digits):
    _, labels, poor, good = digits
    for choice in choose_queries(poor, good, labels):
        for embeddings, found in ((poor, choice.before), (good, choice.after)):
            cosine = embeddings @ embeddings[choice.query]
            cosine /= np.linalg.norm(embeddings, axis=1)
            cosine[choice.query] = -np.inf
            assert found == np.argsort(-cosine)[:6].tolist()


def test_the_sample_takes_every_class_in_turn_and_does_not_look_at_results(digits):
    _, labels, poor, good = digits
    sample = [choice.query for choice in choose_queries(poor, good, labels, count=20) if not choice.worst]
    assert np.bincount(labels[sample]).tolist() == [2] * 10
    swapped = [choice.query for choice in choose_queries(good, poor, labels, count=20) if not choice.worst]
    assert swapped == sample
    assert sample != [choice.query for choice in choose_queries(poor, good, labels, count=20, seed=1)][:20]


def test_what_got_worse_is_shown_beside_the_sample(digits):
    _, labels, poor, good = digits
    choices = choose_queries(good, poor, labels)  # a run that made it worse
    worst = [choice for choice in choices if choice.worst]
    assert len(worst) == 3
    assert len({choice.query for choice in choices}) == len(choices) == 15
    for choice in worst:
        fits = [sum(labels[found] == labels[choice.query]) for found in (choice.before, choice.after)]
        assert fits[1] < fits[0]


def test_nothing_got_worse_between_a_model_and_itself(digits):
    _, labels, poor, _ = digits
    assert not any(choice.worst for choice in choose_queries(poor, poor, labels))


def test_a_document_alone_in_its_class_is_no_query():
    embeddings = np.eye(4, dtype=np.float32)
    labels = np.array([0, 1, 0, 2])
    assert sorted(choice.query for choice in choose_queries(embeddings, embeddings, labels)) == [0, 2]
    assert choose_queries(embeddings[:2], embeddings[:2], labels[:2]) == []


def test_sessions_rank_their_own_matches_only():
    labels = np.array([[7, 0], [7, 1], [7, -1], [9, 0], [9, -1], [9, 1], [11, 0], [11, 1]])
    angles = np.radians([0, 10, 20, 90, 85, 60, 180, 180])
    before = np.stack((np.cos(angles), np.sin(angles)), axis=1)
    after = before.copy()
    after[[1, 2]] = after[[2, 1]]
    found = {choice.query: (choice.before, choice.after) for choice in rank_sessions(before, after, labels)}
    assert found == {0: ([1, 2], [2, 1]), 3: ([4, 5], [4, 5])}


def test_every_image_of_the_page_can_be_decoded(proven):
    large = np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    page = Page(render(dataclasses.replace(proven, gallery=[dataclasses.replace(proven.gallery[0], image=large)])))
    images = [
        decode_image(read_uri(attrs["src"], ImagePolicy()), ImagePolicy())
        for tag, attrs in page.elements
        if tag == "img"
    ]
    assert [image.shape for image in images] == [(96, 144, 3)] + [(8, 8, 3)] * 12
    assert np.array_equal(images[1], proven.gallery[0].before[0].image)


# --- classes, labels, copies -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def detailed(proven, digits) -> Report:
    """The same with everything that is told of single classes and documents."""
    images, labels, poor, good = digits
    before, after = score_classes(poor, labels.tolist()), score_classes(good, labels.tolist())
    names = [f"digit {number}" for number in range(10)]

    def show(item: int) -> Neighbour:
        return Neighbour(image=images[item], caption=names[labels[item]], name=f"{item}.png", fits=None)

    pairs, looked = confusions(poor, good, labels, names, show)
    suspect = Suspect(
        image=images[0], caption="digit 3", name="scan-17.png", suggested="digit 0", margin=0.9, part="held out"
    )
    return dataclasses.replace(
        proven,
        by_class=changes_by_class(before, after, labels, names),
        confusions=pairs,
        confusion_queries=looked,
        label_errors=LabelErrors(checked=300, accuracy=0.9, extent="all", found=21, suspects=[suspect]),
        copies=[("a.jpg", "b.jpg", "kept on one side")],
        served="earlier",
        choosing=40,
        used={"loss": "proxy_anchor", "embedding_dim": 128, "epochs": 2, "weights": "of epoch 1 of 2"},
        model=ModelFacts(
            name="small", input_size=64, crop=False, parameters=2_800_000, embedding_size=128, image_side=480
        ),
    )


def test_a_file_is_named_by_the_end_of_its_uri_and_anything_else_by_its_id():
    names = {
        "/shop/red shoe.jpg": "red shoe.jpg",
        "file:///shop/a%20b.jpg": "a b.jpg",
        "https://example.com/x/y.png?size=2": "y.png",
        "data:image/png;base64,AAAA": "id",
        "C:\\shop\\c.jpg": "c.jpg",
        "https://[": "[",
        None: "id",
    }
    assert {uri: name_of(Document(id="id", uri=uri)) for uri in names} == names


def test_every_picture_is_captioned_with_its_label_and_its_file_in_full_on_demand(proven):
    long = "a-very-long-file-name-of-which-the-end-tells-it-from-the-others-0001.jpg"
    found = [dataclasses.replace(proven.gallery[0].before[0], name=long)]
    query = dataclasses.replace(proven.gallery[0], name="<query>.jpg", before=found, after=found)
    page = Page(render(dataclasses.replace(proven, gallery=[query])))
    titles = [attrs["title"] for _, attrs in page.elements if "title" in attrs]
    assert titles.count(long) == 2
    assert titles.count("<query>.jpg") == 1
    assert page.words.count(long) == 2
    assert titles.count(found[0].caption) == 2
    assert titles.count(query.caption) == 1


def test_the_classes_are_those_of_the_queries_and_the_one_that_lost_most_comes_first(digits):
    _, labels, poor, good = digits
    before, after = score_classes(good, labels.tolist()), score_classes(poor, labels.tolist())
    rows = changes_by_class(before, after, labels, [str(number) for number in range(10)])
    assert sorted(row.label for row in rows) == [str(number) for number in range(10)]
    assert sum(row.queries for row in rows) == before.queries
    changes = [row.after - row.before for row in rows]
    assert changes == sorted(changes)
    mine = labels[before.query_index] == int(rows[0].label)
    assert rows[0].before == pytest.approx(before.per_query["mean_average_precision_at_r"][mine].mean())


def test_of_many_classes_the_middle_is_folded_away(proven):
    rows = [ClassChange(label=f"class-{number}", queries=2, before=0.5, after=number / 40) for number in range(40)]
    html = render(dataclasses.replace(proven, by_class=rows))
    assert "The other 20 classes" in html
    shown, folded = html.split("The other 20 classes")
    assert all(f"class-{number}<" in shown for number in (0, 9, 30, 39))
    assert all(f"class-{number}<" in folded for number in (10, 29))


def test_confused_classes_are_counted_before_and_after_with_the_nearest_example():
    angles = np.radians([0, 5, 90, 95, 180, 185])
    before = np.stack((np.cos(angles), np.sin(angles)), axis=1)
    after = before[[0, 2, 1, 3, 4, 5]]  # an item of the first class changes places with one of the second
    labels = np.array([0, 0, 1, 1, 2, 2])

    def show(item: int) -> Neighbour:
        return Neighbour(image=None, caption=str(item), fits=None)

    pairs, looked = confusions(before, after, labels, ["a", "b", "c"], show)
    assert looked == 6
    assert [(set(pair.labels), pair.before, pair.after) for pair in pairs] == [({"a", "b"}, 0, 4)]
    assert {pairs[0].query.caption, pairs[0].found.caption} in ({"0", "2"}, {"1", "3"})


def test_the_page_tells_of_classes_labels_copies_settings_and_the_model(detailed):
    words = Page(render(detailed)).words
    for said in (
        "Class by class",
        "What is taken for each other",
        "21 documents of 300 have a label that most of their nearest neighbours do not have",
        "labelled digit 3, looks like digit 0",
        "scan-17.png",
        "held out; ahead by 90 % of the votes",
        "a.jpg b.jpg kept on one side",
        "epochs 2 asked for: 3",
        "embedding_dim 128 asked for: by default",
        "weights of epoch 1 of 2",
        "Measured against earlier",
        "64 × 64 pixels yours: usually 480 on the shorter side",
        "2,800,000 parameters",
        "40 more kept to choose the best epoch by",
        "mAP@R on the 40 documents to choose by",
    ):
        assert said in words


@pytest.mark.parametrize(
    ("extent", "words"), [("surest", "Only the surest are counted"), ("none", "The model knows too little to say")]
)
def test_what_a_weak_model_says_of_the_labels_is_shown_with_its_limits(detailed, extent, words):
    errors = dataclasses.replace(detailed.label_errors, extent=extent, accuracy=0.4)
    page = Page(render(dataclasses.replace(detailed, label_errors=errors)))
    assert words in page.words
    assert ("scan-17.png" in page.words) is (extent != "none")


def test_hostile_names_stay_text_too(detailed):
    suspect = dataclasses.replace(
        detailed.label_errors.suspects[0], image=None, caption=HOSTILE, name=HOSTILE, suggested=HOSTILE
    )
    report = dataclasses.replace(
        detailed,
        by_class=[ClassChange(label=HOSTILE, queries=1, before=0.5, after=0.1)],
        label_errors=dataclasses.replace(detailed.label_errors, suspects=[suspect]),
        copies=[(HOSTILE, HOSTILE, HOSTILE)],
        used={"loss": HOSTILE},
        model=dataclasses.replace(detailed.model, name=HOSTILE),
        difference=Interval(mean=-0.1, low=-0.2, high=0.0),
    )
    page = Page(render(report))
    assert not [tag for tag, _ in page.elements if tag == "script"]
    assert page.words.count("<script>alert('x')</script>") >= 8


# --- what to try -------------------------------------------------------------------------------------------------


def test_a_model_that_is_proven_better_needs_no_advice(detailed):
    assert advise(detailed) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "21 of 300 (7.0%)"),
        ({"history": {"loss": [2.0, 1.99]}, "used": {"learning_rate": 1e-4}}, "learning_rate to 0.0003 instead of"),
        (
            {"history": {"loss": [2.0, 1.0, 0.5], "mean_average_precision_at_r": [0.5, 0.6, 0.4]}},
            "Set epochs to 2, or let less of the model move",
        ),
        ({"difference": Interval(mean=-0.2, low=-0.3, high=-0.1)}, "keep more of the model that it started from"),
        ({"difference": Interval(mean=0.01, low=-0.01, high=0.03)}, "300 queries: if it is real, about 1,200"),
        ({"difference": None, "metrics": {}}, "Nothing was measured"),
        ({"classes": 3}, "There are 3 labels"),
        ({"label_errors": None}, "yours usually have 480"),
        ({"label_errors": None}, "The model small begins without any knowledge"),
    ],
)
def test_a_model_that_is_not_better_is_told_what_to_try_from_what_was_seen(detailed, changes, words):
    report = dataclasses.replace(
        detailed, **({"difference": Interval(mean=0.0, low=-0.1, high=0.1), "history": {"loss": [2.0, 1.0]}} | changes)
    )
    advice = advise(report)
    assert words in " ".join(advice)
    assert len(advice) <= 4
    assert advice[0] in Page(render(report)).words


def test_the_settings_that_were_tried_are_shown_with_the_chosen_one(proven):
    trials = [({"learning_rate": 1e-3, "norm_statistics": "fixed"}, 3, 0.5, False)]
    trials += [({"learning_rate": 3.2e-3, "norm_statistics": "fixed"}, 3, 0.625, True)]
    trials += [({"learning_rate": 1e-2, "norm_statistics": "trained"}, 1, float("nan"), False)]
    tried = [Tried(settings=settings, epochs=n, score=score, chosen=best) for settings, n, score, best in trials]
    words = Page(render(dataclasses.replace(proven, tried=tried, choosing=80))).words
    assert "Settings tried" in words
    assert "judged on 80 train documents" in words
    assert "1 0.001 fixed 3 0.5 2 chosen 0.0032 fixed 3 0.625 3 0.01 trained 1 not finite" in words
    assert "Settings tried" not in Page(render(proven)).words


# --- files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["proven", "unproven", "hostile", "detailed"])
def test_a_saved_report_renders_the_same_again(name, proven, unproven, detailed, tmp_path):
    report = {"proven": proven, "unproven": unproven, "hostile": hostile(proven), "detailed": detailed}[name]
    path = save(report, tmp_path / "new" / "folder")
    assert render(load(path.parent)) == render(report)
    assert path.read_bytes() == render(report).encode("utf-8", errors="replace")
    assert sorted(file.name for file in path.parent.iterdir()) == ["report.html", "report.json"]


def test_large_images_are_saved_small_and_render_the_same_again(proven, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (1500, 1000, 3), dtype=np.uint8)
    query = dataclasses.replace(proven.gallery[0], image=noise)
    report = dataclasses.replace(proven, gallery=[query])
    path = save(report, tmp_path)
    assert load(tmp_path).gallery[0].image.shape == (144, 96, 3)
    assert render(load(tmp_path)) == path.read_text(encoding="utf-8")


@pytest.mark.parametrize(("given", "proposed"), [(3, 12), ("3", "12"), ("apple", "pear")])
def test_a_label_is_kept_as_it_is_written_in_the_data(detailed, tmp_path, given, proposed):
    (suspect,) = detailed.label_errors.suspects
    written = dataclasses.replace(suspect, id="a", given=given, proposed=proposed)
    save(
        dataclasses.replace(detailed, label_errors=dataclasses.replace(detailed.label_errors, suspects=[written])),
        tmp_path,
    )
    (read,) = load(tmp_path).label_errors.suspects
    assert (read.id, read.given, read.proposed) == ("a", given, proposed)


def test_a_loss_that_is_not_finite_survives_saving(proven, tmp_path):
    report = dataclasses.replace(proven, history={"loss": [1.0, float("nan"), 2.0]})
    save(report, tmp_path)
    assert render(load(tmp_path)) == render(report)


def test_a_second_report_replaces_the_first(proven, unproven, tmp_path):
    save(proven, tmp_path)
    save(unproven, tmp_path)
    assert render(load(tmp_path)) == render(unproven)


def test_a_folder_without_a_report_is_not_found(tmp_path):
    with pytest.raises(NotFound, match="There is no report in"):
        load(tmp_path)


def test_a_report_of_another_format_is_refused(proven, tmp_path):
    save(proven, tmp_path)
    text = (tmp_path / "report.json").read_text()
    (tmp_path / "report.json").write_text(text.replace('"format": 2', '"format": 3', 1))
    with pytest.raises(WorkspaceError, match="has a format that this release does not read"):
        load(tmp_path)


def test_a_report_of_the_first_format_is_still_read(proven, tmp_path):
    save(proven, tmp_path)
    values = json.loads((tmp_path / "report.json").read_text()) | {"format": 1}
    later = ("served", "used", "model", "by_class", "confusions", "confusion_queries", "label_errors", "copies")
    for name in (*later, "choosing", "tried"):
        del values[name]
    for query in values["gallery"]:
        for document in (query, *query["before"], *query["after"]):
            del document["name"]
    (tmp_path / "report.json").write_text(json.dumps(values))
    assert render(load(tmp_path)) == render(proven)


# --- browser -----------------------------------------------------------------------------------------------------


@pytest.mark.process
@pytest.mark.skipif(shutil.which("chromium") is None, reason="there is no chromium on the PATH")
def test_a_browser_opens_the_page_without_an_error(proven, tmp_path):
    path = save(hostile(proven), tmp_path)
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    flags += " --disable-component-update --disable-sync --enable-logging=stderr --dump-dom"
    command = ["chromium", *flags.split(), f"--user-data-dir={tmp_path / 'profile'}", path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "</footer>" in done.stdout
    assert "CONSOLE" not in done.stderr


# the model card ------------------------------------------------------------------------------------------------------


def test_the_card_has_the_metrics_where_hugging_face_looks_for_them(proven):
    card = ModelCard(model_card("shop", "onnx", "facebook/dino-vits16", "# Loading\n", proven))
    said = card.data.to_dict()
    assert (said["library_name"], said["pipeline_tag"]) == ("onnx", "image-feature-extraction")
    assert card.data.base_model == "facebook/dino-vits16"
    assert {result.metric_type: result.metric_value for result in card.data.eval_results} == {
        name: round(change.after.mean, 4) for name, change in proven.metrics.items()
    }
    assert proven.verdict in card.text
    assert card.text.index("# Loading") < card.text.index("## Training") < card.text.index("## Evaluation")


def test_the_card_counts_what_the_model_was_trained_on(proven):
    part = dataclasses.replace(proven, train_documents=600, held_out=220, choosing=190, classes=100)
    assert "epochs on 190 of 600 documents of 100 labels" in model_card("shop", "onnx", "x", "", part)
    whole = dataclasses.replace(part, held_out=0, choosing=0)
    assert "epochs on 600 documents of 100 labels" in model_card("shop", "onnx", "x", "", whole)


def test_the_card_of_a_model_that_was_not_measured_claims_nothing(unproven):
    for report in (unproven, None):
        card = ModelCard(model_card("base", "safetensors", "default", "# Loading\n", report))
        assert (card.data.eval_results, card.data.base_model) == (None, None)
        assert ("## Evaluation" in card.text) is (report is not None)
