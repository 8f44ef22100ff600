"""`/compare`: two versions on the same documents, measured in the background, with the queries that changed."""

import asyncio
import base64
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from conftest import coloured, encoded, images
from doors import opened
from executor import Document, DocumentArray
from executor.__main__ import main
from executor.commands import compare as commands
from executor.documents import GROUP_TAG, Comparison, Match
from executor.endpoints.service import Service
from executor.endpoints.table import call
from executor.errors import BadRequest, InvalidParameter, Overloaded, UnknownModel, UnknownRun
from executor.evaluation.metrics import DECIDING, METRICS
from executor.evaluation.pairing import score_pair
from executor.parameters import FitParameters, parse_executor_options
from executor.serving import comparisons
from executor.store.proof_documents import save_proof
from sentences import assert_plain
from untrained import add_blind_run, add_version

pytestmark = pytest.mark.compute

SIZE = 16
OPTIONS = {"model": "small", "input_size": SIZE, "standby_seconds": 0, "fast_inference": False}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """What every door serves, without a door. `base` tells colours apart; the run `blind` sees nothing.

    It has 24 documents of four colours for evaluation, of which one has the wrong label, and 8 to train on. The run
    `sessions` has sessions.
    """
    folder = tmp_path_factory.mktemp("compare")
    options = parse_executor_options(OPTIONS | {"allowed_roots": [str(folder)]}).with_roots()
    running = Service(folder / "workspace", options)
    running.supervisor.close()  # the runs of these tests are made at once, and nobody shall train them
    add_blind_run(running, "blind", images(24, classes=4))
    add_blind_run(running, "sessions", sessions(12))
    yield running
    running.close()


def sessions(count: int) -> DocumentArray:
    return DocumentArray(
        Document(
            id=f"q{number}",
            blob=coloured(number, number),
            matches=[
                Match(
                    id=f"q{number}-{off}",
                    blob=coloured(number + off, 100 * number + off),
                    tags={"finetuner_label": 1 if off == 2 else -1},
                )
                for off in (1, 2, 3)
            ],
        )
        for number in range(count)
    )


def compare(service: Service, **parameters: Any) -> Comparison:
    (answer,) = asyncio.run(call(service, "/compare", [], parameters))
    return answer


@pytest.fixture(autouse=True)
def anew(service: Service) -> Iterator[None]:
    """Each test has an event loop of its own, so it keeps its own comparisons."""
    yield
    service.comparisons = comparisons.Comparisons(service.embedder)


def test_figures_are_those_of_evaluate_and_say_what_is_proven(service: Service) -> None:
    answer = compare(service, second="blind", limit=200)
    assert (answer.first, answer.second, answer.state, answer.kind) == ("base", "blind", "done", "class")
    assert (answer.done, answer.total) == (48, 48)
    assert answer.on == "the documents that prove run 'blind'"
    for side, version in (("first", "base"), ("second", "blind")):
        (evaluated,) = asyncio.run(call(service, "/evaluate", [], {"run": "blind", "model": version}))
        for name in METRICS:
            mean, low, high = answer.metrics[f"{side}/{name}"]
            assert mean == pytest.approx(evaluated.metrics[name])
            assert low <= mean <= high
    mean, low, high = answer.metrics[f"difference/{DECIDING}"]
    assert mean == pytest.approx(answer.metrics[f"second/{DECIDING}"][0] - answer.metrics[f"first/{DECIDING}"][0])
    assert low <= mean <= high < 0
    assert (answer.better + answer.same + answer.worse, answer.skipped) == (24, 0)
    assert "which does not prove it better" in answer.verdict


def test_copies_of_a_query_and_documents_of_a_group_count_as_one(
    service: Service, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clicks = sessions(24)
    for number, doc in enumerate(clicks):
        doc.blob = clicks[number % 8].blob  # eight pictures, each three times, and of these two have a group
        doc.tags = {GROUP_TAG: 1 if number % 2 else 1.0} if number % 8 < 2 else {}
    add_blind_run(service, "clicks", clicks)
    answer = compare(service, second="clicks")
    assert " on 24 queries of 7 groups: " in answer.verdict
    folder = str(service.store.workspace.root)
    monkeypatch.setattr(sys, "argv", ["executor", "compare", "base", "clicks", "--workspace", folder])
    assert main() == 0
    _, low, high = answer.metrics[f"difference/{DECIDING}"]
    assert f"95 % interval {low:+.3f} to {high:+.3f}" in " ".join(capsys.readouterr().out.split())


def test_what_a_run_found_to_be_copies_counts_as_one(service: Service) -> None:
    add_blind_run(service, "found", sessions(12))
    positions, units = {"train": [], "eval": list(range(12))}, {"train": [], "eval": [7] * 8 + list(range(100, 104))}
    save_proof(service.store.workspace, "found", positions, units)
    assert " on 12 queries of 5 groups: " in compare(service, second="found").verdict


def test_the_queries_that_got_worse_come_first_by_how_much(service: Service) -> None:
    worse = compare(service, second="blind", limit=200)
    assert worse.matching == worse.worse == len(worse.queries) > 10
    losses = [query.second - query.first for query in worse.queries]
    assert losses == sorted(losses)
    assert max(losses) < 0
    part = compare(service, second="blind", offset=3, limit=2)
    assert [query.number for query in part.queries] == [query.number for query in worse.queries[3:5]]
    assert part.queries[0].picture == ""
    # The same the other way round: what got worse has got better.
    better = compare(service, first="blind", second="base", which="better", limit=200)
    gains = [query.second - query.first for query in better.queries]
    assert gains == sorted(gains, reverse=True)
    assert {query.number for query in better.queries} == {query.number for query in worse.queries}
    everything = compare(service, second="blind", which="all", limit=200)
    assert sorted(query.number for query in everything.queries) == list(range(24))


def test_a_query_is_shown_with_what_each_version_finds(service: Service) -> None:
    answer = compare(service, second="blind", query=5, pictures=True)
    (query,) = answer.queries
    assert (query.number, query.name, query.label, answer.matching) == (5, "d5", "1", 1)
    assert np.asarray(shown(query.picture)).shape == (24, 24, 3)
    for found in (answer.found_first, answer.found_second):
        assert len(found) == comparisons.NEIGHBOURS
        assert len({each.name for each in found} - {"d5"}) == comparisons.NEIGHBOURS
        assert all(each.fits == (each.label == "1") for each in found)
    assert all(each.fits for each in answer.found_first[:5])
    assert not all(each.fits for each in answer.found_second[:5])
    with pytest.raises(BadRequest, match="There is no query with the number 999"):
        compare(service, second="blind", query=999)


def shown(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,"))))


def test_sessions_rank_their_own_candidates(service: Service) -> None:
    answer = compare(service, second="sessions", which="all", limit=200)
    assert (answer.kind, answer.total, answer.matching) == ("session", 96, 12)
    number = answer.queries[3].number
    answer = compare(service, second="sessions", query=number, pictures=True)
    for found in (answer.found_first, answer.found_second):
        assert {each.name for each in found} == {f"{answer.queries[0].name}-{off}" for off in (1, 2, 3)}
        assert [each.name[-1] == "2" for each in found] == [each.fits for each in found]
        assert all(each.picture for each in found)


def test_a_folder_with_a_folder_for_each_label_will_do(service: Service) -> None:
    gallery = service.policy.allowed_roots[0]
    folder = Path(gallery) / "shop"
    for number in range(12):
        file = folder / f"colour {number % 3}" / f"<b>{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encoded(coloured(number % 3, number)))
    (folder / "colour 0" / "broken.png").write_bytes(b"no picture")
    answer = compare(service, second="blind", gallery=str(folder), which="all", pictures=True)
    assert (answer.on, answer.total, answer.matching, answer.skipped) == (f"the folder {folder}", 26, 12, 1)
    assert {query.label for query in answer.queries} == {"colour 0", "colour 1", "colour 2"}
    assert all(query.picture.startswith("data:image/png") for query in answer.queries)
    (folder / "colour 1" / "<b>1.png").unlink()
    pictures = {
        query.name: query.picture
        for query in compare(service, second="blind", gallery=str(folder), which="all", pictures=True).queries
    }
    assert pictures["<b>1.png"] == ""  # gone since then
    assert compare(service, second="blind", gallery=str(folder), anew=True).total == 24
    with pytest.raises(BadRequest, match="allowed_roots"):
        compare(service, second="blind", gallery="/etc")
    with pytest.raises(BadRequest, match="has no folders in it"):
        compare(service, second="blind", gallery=str(folder / "colour 2"))


def test_a_version_that_was_trained_on_the_documents_is_said_to_be_flattered(service: Service) -> None:
    folder = Path(service.policy.allowed_roots[0]) / "known"
    for number in range(8):
        file = folder / str(number % 2) / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encoded(coloured(number % 2, number)))
    docs = DocumentArray(
        Document(id=f"{number % 2}/{number}.png", uri=str(folder / str(number % 2) / f"{number}.png"))
        for number in range(6)
    )
    for number, doc in enumerate(docs):
        doc.tags = {"finetuner_label": number % 2}
    assert not [each for each in compare(service, second="blind").warnings if "trained on" in each]
    service.receiver.receive(docs, FitParameters(run="learned"))
    add_version(service, "learned")
    (warning, *_) = compare(service, second="learned", gallery=str(folder)).warnings
    assert warning == "'learned' was trained on 6 of these 8 documents, so it looks better on them than it is."
    with pytest.raises(BadRequest, match="has no eval documents"):
        compare(service, second="learned")


def test_it_is_measured_in_the_background_and_kept(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparisons, "CHUNK", 4)

    async def ask() -> list[Comparison]:
        async def once(**parameters: Any) -> Comparison:
            (answer,) = await call(service, "/compare", [], {"second": "blind", **parameters})
            return answer

        answers = [await once(start=False), await once(wait=0)]
        while answers[-1].state != "done":
            answers.append(await once(start=False, wait=0))
            assert len(await call(service, "/embed", [Document(blob=coloured(0))], {})) == 1  # which is not held up
        answers.append(await once(start=False, wait=0))
        return answers

    unknown, begun, *middle, last = asyncio.run(ask())
    assert (unknown.state, unknown.total, unknown.metrics) == ("unknown", 0, {})
    assert (begun.state, begun.metrics) == ("measuring", {})
    done = [each.done for each in middle]
    assert done == sorted(done)
    assert len({each for each in done if 0 < each < 48}) > 1
    assert (last.state, last.done) == ("done", 48)


def test_a_failure_is_kept_for_who_looks_and_ends_who_asks_again_and_again(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = []

    def fail(*_: object) -> None:
        begun.append(1)
        raise BadRequest("nothing can be scored")

    monkeypatch.setattr(comparisons, "_compared", fail)

    async def ask() -> None:
        async def once(**parameters: Any) -> Comparison:
            (answer,) = await call(service, "/compare", [], {"second": "blind", "limit": 0, **parameters})
            return answer

        async def until_done() -> None:
            while (await once(wait=0)).state == "measuring":  # as a client does
                await asyncio.sleep(0.01)

        with pytest.raises(BadRequest, match="nothing can be scored"):
            await until_done()
        assert len(begun) == 1
        for _ in range(2):
            with pytest.raises(BadRequest, match="nothing can be scored"):
                await once(start=False)
        monkeypatch.undo()
        assert (await once()).state == "done"

    asyncio.run(ask())


def test_one_is_measured_at_a_time_and_too_many_are_refused(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparisons, "WAITING", 2)

    async def ask() -> None:
        one, two = {"first": "base", "second": "blind"}, {"first": "blind", "second": "base"}
        for parameters in (one, two, one):
            await call(service, "/compare", [], parameters | {"wait": 0})
        with pytest.raises(Overloaded) as refused:
            await call(service, "/compare", [], {"second": "sessions", "wait": 0})
        assert_plain(str(refused.value), "2 comparisons are being measured or wait for that")
        for parameters in (one, two):
            ((answer),) = await call(service, "/compare", [], parameters)
            assert answer.state == "done"

    asyncio.run(ask())


def test_what_fails_says_why_to_who_asks_and_may_be_asked_again(service: Service) -> None:
    folder = Path(service.policy.allowed_roots[0]) / "alone"
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / "one.png").write_bytes(encoded(coloured(0)))

    async def ask() -> None:
        for _ in range(2):
            with pytest.raises(BadRequest) as refused:
                await call(service, "/compare", [], {"second": "blind", "gallery": str(folder)})
            assert_plain(str(refused.value), "None of the 2 pictures can be scored")

    asyncio.run(ask())


@pytest.mark.parametrize(
    ("parameters", "error", "words"),
    [
        ({}, InvalidParameter, "second"),
        ({"second": "base"}, BadRequest, "Both versions are 'base'"),
        ({"second": "nobody"}, UnknownRun, "nobody"),
        ({"first": "nobody", "second": "blind"}, UnknownModel, "There is no model 'nobody'"),
        ({"second": "blind", "run": "nobody"}, UnknownRun, "nobody"),
        ({"second": "blind", "run": "blind", "gallery": "x"}, BadRequest, "'run' and 'gallery'"),
        ({"second": "blind", "gallery": "nowhere"}, BadRequest, "gallery"),
        ({"second": "blind", "which": "nicer"}, InvalidParameter, "which"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_a_sentence(
    service: Service, parameters: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error) as refused:
        compare(service, **parameters)
    assert_plain(str(refused.value), words)


def test_documents_are_refused(service: Service) -> None:
    with pytest.raises(BadRequest, match="/compare takes no documents"):
        asyncio.run(call(service, "/compare", images(2), {"second": "blind"}))


def test_an_item_that_one_version_cannot_embed_is_left_out_for_both() -> None:
    vectors = list(np.eye(6, dtype=np.float32))
    labels = np.array([0, 0, 1, 1, 2, 2])
    pair = score_pair("class", labels, np.array([0, 0, -1, -1, 1, 2]), [None, *vectors[1:]], vectors)
    assert pair is not None
    assert pair.kept.tolist() == [1, 2, 3, 4, 5]
    assert pair.first.query_index.tolist() == pair.second.query_index.tolist() == [1, 2, 3, 4]
    sessions = np.array([[0, 0], [0, 1], [0, -1], [1, 0], [1, 1], [1, -1]])
    pair = score_pair("session", sessions, np.full(6, -1), vectors, [*vectors[:2], None, *vectors[3:]])
    assert pair is not None
    assert pair.kept.tolist() == [3, 4, 5]
    assert score_pair("class", labels, np.full(6, -1), [None] * 6, vectors) is None


def test_the_command_prints_for_a_service_what_it_prints_for_a_workspace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(commands, "WAIT_SECONDS", 0.05)  # so that it asks more than once
    with opened(tmp_path) as door:
        door.service.supervisor.close()
        add_blind_run(door.service, "blind", images(24, classes=4))
        said = []
        for place in (["--service", door.address], ["--workspace", str(tmp_path)]):
            monkeypatch.setattr(sys, "argv", ["executor", "compare", "base", "blind", "--json", *place])
            assert main() == 0
            said.append(json.loads(capsys.readouterr().out))
    by_service, here = said
    assert by_service["intervals"].keys() == set(METRICS)
    for name in METRICS:
        np.testing.assert_allclose(by_service["intervals"][name], here["intervals"][name], atol=1e-6)
    np.testing.assert_allclose(by_service["difference"], here["difference"], atol=1e-6)
    assert [version["queries"] for version in by_service["versions"]] == [24, 24]
    assert [version["skipped"] for version in by_service["versions"]] == [0, 0]


def test_the_command_says_what_else_to_do_where_a_service_embeds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(4):
        file = tmp_path / "photos" / f"c{number % 2}" / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encoded(coloured(number)))
    with opened(tmp_path, role="train") as door:
        arguments = ["compare", "base", "blind", "--service", door.address, "--on", str(tmp_path / "photos")]
        monkeypatch.setattr(sys, "argv", ["executor", *arguments])
        assert main() == 2
    assert "Without --on this one compares on the documents that prove a run" in capsys.readouterr().err
