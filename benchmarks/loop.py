"""The loop of use: simulated users click, the service learns from it by itself, and noise is never promoted.

    .venv/bin/python -m benchmarks.loop [--quick] [--photos FOLDER] [--rounds N] [--histories N] [--plot FILE]

**The loop.** A service with `retrain` serves a gallery. Round after round users search with pictures of it. They look
at the results from the top and leave off at some place. Of what they looked at they click what is of the query's class;
one time in ten they are wrong. What they clicked is 1, what they looked at and did not click is -1. It goes to
`/feedback`; the service starts a run by itself when a round is full, and promotes its model only by proof. After each
round recall@1 is measured on pictures that nobody has searched with. Beside it: a service that learns nothing, and an
oracle, one run on the whole gallery with all true labels. The pictures are scikit-learn's digits, or with `--photos`
those of a folder with `train/CLASS/*.jpg` and `test/CLASS/*.jpg`.

**Noise.** Histories of 40 rounds in which every click is a coin's. Each round a model is trained on all clicks so far,
but for those that are held out as the service holds them out. It is judged by the service's own interval and level, and
served if it is called better. Counted are the histories that promote anything; at most 2.5 % may. For comparison: with
2.5 % for each run. To be cheap, the model is a matrix on 16 numbers that stand for a picture.
"""

import argparse
import asyncio
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from sklearn.datasets import load_digits

from benchmarks.common import jpeg, options, print_headline, print_machine, print_table
from executor.documents import Document, DocumentArray, Match
from executor.endpoints.service import Service
from executor.endpoints.table import call
from executor.evaluation.hold_out import document_numbers, split_documents
from executor.evaluation.metrics import score_classes, score_sessions
from executor.evaluation.proof import LEAST_QUERIES, USUAL_LEVEL, verdict
from executor.loading.datasets import SessionDataset
from executor.parameters import parse_executor_options
from executor.store.budget import BUDGET, level_of

WRONG = 0.1  # share of the clicks
RESULTS = 10  # shown for a search
LOOKS_ON = 0.85  # chance to look at the next result
ROUNDS = 40  # of a history of noise
SEARCHES = 12  # in a round of it
NUMBERS = 16  # that stand for a picture there
STEPS = 15  # of training there
PATIENCE = 3600.0  # seconds that a run may take


class Pictures:
    """A gallery to search in and pictures to measure with: uris, and their classes."""

    def __init__(self, gallery: list[tuple[str, int]], test: list[tuple[str, int]]) -> None:
        self.gallery, self.test = gallery, test


def digits(folder: Path, count: int) -> Pictures:
    """Write digits as JPEG files: `count` for the gallery, half as many to measure with."""
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))[: count + count // 2]
    files = []
    for number in order:
        image = cv2.resize((data.images[number] * 15.9).astype(np.uint8), (32, 32))
        path = folder / f"{number}.jpg"
        path.write_bytes(jpeg(cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)))
        files.append((str(path), int(data.target[number])))
    return Pictures(files[:count], files[count:])


def photographs(folder: Path, count: int) -> Pictures:
    """Take at most `count` photographs for the gallery, and half as many to measure with."""
    random = np.random.default_rng(0)
    classes = sorted({file.parent.name for file in folder.glob("t*/*/*.jpg")})

    def some(part: str, most: int) -> list[tuple[str, int]]:
        files = sorted(folder.glob(f"{part}/*/*.jpg"))
        chosen = random.permutation(len(files))[:most]
        return [(str(files[number]), classes.index(files[number].parent.name)) for number in chosen]

    pictures = Pictures(some("train", count), some("test", count // 2))
    if not pictures.gallery or not pictures.test:
        raise SystemExit(f"{folder} has no photographs as train/CLASS/NAME.jpg and test/CLASS/NAME.jpg.")
    return pictures


# --- the loop --------------------------------------------------------------------------------------------------------


class Shop:
    """A service over the pictures."""

    def __init__(self, folder: Path, pictures: Pictures, **configured: Any) -> None:
        self.pictures = pictures
        roots = sorted({str(Path(uri).parent.parent) for uri, _ in (*pictures.gallery, *pictures.test)})
        chosen = {"allowed_roots": roots, "trainer_yields": False, "trainer_nice": 0, **configured}
        self.service = Service(folder, parse_executor_options(chosen).with_roots())

    async def post(self, path: str, docs: Any = (), **parameters: Any) -> Any:
        return await call(self.service, path, DocumentArray(docs), parameters)

    async def embeddings(self, files: list[tuple[str, int]], **version: str) -> np.ndarray:
        """(N, D) float32, of the served version, or of the `model` named."""
        found = []
        for start in range(0, len(files), 256):
            docs = DocumentArray(Document(uri=uri) for uri, _ in files[start : start + 256])
            found += [doc.embedding for doc in await self.post("/embed", docs, **version)]
        return np.stack(found)

    async def recall(self, **version: str) -> float:
        """recall@1 of the served version, or of another, on the pictures to measure with."""
        labels = [label for _, label in self.pictures.test]
        return score_classes(await self.embeddings(self.pictures.test, **version), labels).mean()["recall_at_1"]

    async def ended(self, runs: int) -> Any:
        """Wait until so many runs have ended; return the status of the newest."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            statuses = await self.post("/status")
            if len(statuses) >= runs and all(status.ended_at for status in statuses):
                return statuses[0]
            await asyncio.sleep(0.2)
        raise SystemExit("A run did not end.")


def clicks(pictures: Pictures, vectors: np.ndarray, searches: int, number: int) -> Iterator[Document]:
    """What users of one round do with the results that these embeddings give."""
    random = np.random.default_rng([1, number])
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    for search in range(searches):
        query = int(random.integers(len(unit)))
        uri, label = pictures.gallery[query]
        results = [item for item in np.argsort(-unit @ unit[query])[: RESULTS + 1].tolist() if item != query][:RESULTS]
        matches = []
        for item in results:
            fits = (pictures.gallery[item][1] == label) != (random.random() < WRONG)
            tags = {"finetuner_label": 1 if fits else -1}
            matches.append(Match(id=str(item), uri=pictures.gallery[item][0], tags=tags))
            if random.random() > LOOKS_ON:
                break
        yield Document(id=f"search-{number}-{search}", uri=uri, matches=matches)


class Round(NamedTuple):
    """Attributes: recall: recall@1 after it. model: that of its run's model, whether it is served or not."""

    recall: float
    model: float | None = None
    outcome: str = ""


async def loop(shop: Shop, rounds: int, searches: int) -> list[Round]:
    """Return how things stand after each round, beginning before the first."""
    found = [Round(await shop.recall())]
    for number in range(rounds):
        vectors = await shop.embeddings(shop.pictures.gallery)
        await shop.post("/feedback", clicks(shop.pictures, vectors, searches, number))
        status = await shop.ended(number + 1)
        if status.error:
            raise SystemExit(f"Run {status.run} {status.state}: {status.error}")
        outcome = "promoted" if status.promoted else "not proven better"
        found.append(Round(await shop.recall(), await shop.recall(model=status.run), outcome))
        print(f"round {number + 1}: recall@1 {found[-1].recall:.3f}, {outcome}. {status.verdict}", flush=True)
    return found


async def oracle(shop: Shop) -> float:
    """recall@1 after one run on the whole gallery, truly labelled."""
    docs = (Document(id=uri, uri=uri, tags={"finetuner_label": label}) for uri, label in shop.pictures.gallery)
    await shop.post("/fit", docs, run="oracle", start=True, promote="always")
    await shop.ended(1)
    return await shop.recall()


def measure_loop(pictures: Pictures, rounds: int, searches: int, configured: dict[str, Any]) -> list[float]:
    """Print the loop's table; return recall@1 by round, with the oracle's at the end."""
    with tempfile.TemporaryDirectory() as folder:
        retrain = {"retrain": {"every_documents": searches}}
        shop = Shop(Path(folder) / "loop", pictures, **configured, **retrain)
        try:
            found = asyncio.run(loop(shop, rounds, searches))
        finally:
            shop.service.close()
        shop = Shop(Path(folder) / "oracle", pictures, **configured)
        try:
            best = asyncio.run(oracle(shop))
        finally:
            shop.service.close()
    rows = [
        (number, each.recall, found[0].recall, best, each.model if each.model is not None else "", each.outcome)
        for number, each in enumerate(found)
    ]
    print_table(("round", "recall@1", "no feedback", "oracle", "its run's model", "the run was"), rows)
    return [*(each.recall for each in found), best]


# --- noise -----------------------------------------------------------------------------------------------------------


class Sessions(SessionDataset):
    """The labels of a session dataset, without documents. Args: signs: (S, R) 1 or -1."""

    def __init__(self, signs: np.ndarray) -> None:
        kinds = np.concatenate([np.zeros((len(signs), 1), np.int64), signs], axis=1)
        self.labels = np.stack([np.repeat(np.arange(len(signs)), kinds.shape[1]), kinds.ravel()], axis=1)

    def __len__(self) -> int:
        return len(self.labels)


class Noise:
    """Clicks that are a coin's, and models that are trained on them. A model is a matrix (`NUMBERS`, `NUMBERS`)."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.vectors = np.empty((0, 1 + RESULTS, NUMBERS))
        self.signs = np.empty((0, RESULTS), np.int64)
        self.taught = np.zeros(0, bool)  # of the sessions, by the model served now
        self.proved = np.zeros(0, bool)
        self.served = np.eye(NUMBERS)

    def round(self, *, level: float) -> bool | None:
        """One round; return whether its model was promoted. None: there were too few queries to judge it."""
        self._click()
        dataset = Sessions(self.signs)
        numbers = document_numbers(dataset)
        lineage = {"taught": self.taught[numbers], "proved": self.proved[numbers]} if self.taught.any() else {}
        parts = split_documents(dataset, np.arange(len(dataset)), "auto", seed=0, **lineage)
        proof = np.unique(numbers[parts.proof])
        if not len(proof):
            return None
        train = np.setdiff1d(np.arange(len(self.signs)), proof)
        tuned = self._trained(train)
        before, after = self._scores(self.served, proof), self._scores(tuned, proof)
        if after.queries < LEAST_QUERIES:
            return None
        better, _ = verdict(before, after, level=level)
        if better:
            self.served = tuned
            self.taught[:], self.proved[:] = False, False
            self.taught[train], self.proved[proof] = True, True
        return better

    def _click(self) -> None:
        self.signs = np.concatenate([self.signs, self.random.choice([1, -1], (SEARCHES, RESULTS))])
        new = self.random.standard_normal((SEARCHES, 1 + RESULTS, NUMBERS))
        self.vectors = np.concatenate([self.vectors, new])
        none = np.zeros(SEARCHES, bool)
        self.taught, self.proved = np.concatenate([self.taught, none]), np.concatenate([self.proved, none])

    def _trained(self, sessions: np.ndarray) -> np.ndarray:
        """Raise the products of roots with what was clicked, and lower those with the rest, in a few steps."""
        vectors, signs = self.vectors[sessions], self.signs[sessions]
        matrix = self.served.copy()
        for _ in range(STEPS):
            roots, others = vectors[:, 0] @ matrix, vectors[:, 1:] @ matrix
            gradient = vectors[:, 0].T @ (signs[:, :, None] * others).sum(1)
            gradient += (signs[:, :, None] * vectors[:, 1:]).sum(1).T @ roots
            matrix += 0.3 * gradient / np.linalg.norm(gradient)
        return matrix

    def _scores(self, matrix: np.ndarray, sessions: np.ndarray) -> Any:
        embedded = (self.vectors[sessions] @ matrix).astype(np.float32)
        owners = np.repeat(np.arange(len(sessions)), RESULTS)
        matches = embedded[:, 1:].reshape(-1, NUMBERS)
        return score_sessions(embedded[:, 0], matches, owners.tolist(), self.signs[sessions].ravel().tolist())


def promoting(histories: int, rounds: int, *, shared: bool) -> float:
    """The share of histories of noise that promote anything. Args: shared: whether the rounds share one budget."""
    promoted = 0
    for seed in range(histories):
        noise = Noise(seed)
        promotes, judged = False, 0
        for _ in range(rounds):
            better = noise.round(level=1 - 2 * level_of(judged + 1) if shared else USUAL_LEVEL)
            judged += better is not None
            promotes |= better is True
        promoted += promotes
    return promoted / histories


def main() -> None:
    """Print both figures. The last line is the share of histories that promoted no noise; 0.975 is due."""
    parser = options(__doc__)
    parser.add_argument("--photos", type=Path, help="photographs in place of the digits")
    parser.add_argument("--rounds", type=int, help="of the loop")
    parser.add_argument("--searches", type=int, help="in a round of the loop")
    parser.add_argument("--histories", type=int, help="of noise")
    parser.add_argument("--plot", type=Path, help="write the loop's curves to this PNG file")
    chosen = parser.parse_args()
    print_machine()
    histories, rounds = chosen.histories or (4 if chosen.tiny else 12 if chosen.quick else 200), ROUNDS
    if chosen.tiny:
        rounds = 3
    recalls = _loop(chosen)
    if chosen.plot is not None:
        plot(recalls, chosen.plot)
    share = promoting(histories, rounds, shared=True)
    each = promoting(histories, rounds, shared=False)
    rows = [("one budget for all rounds", share, BUDGET), (f"{BUDGET:.1%} for each round", each, "")]
    print_table((f"{histories} histories of {rounds} rounds", "promote noise", "allowed"), rows)
    print_headline("histories_without_promoted_noise", 1 - share)


def _loop(chosen: argparse.Namespace) -> list[float]:
    small = chosen.tiny or chosen.quick
    rounds = chosen.rounds or (1 if chosen.tiny else 2 if chosen.quick else 8)
    searches = chosen.searches or (48 if small else 100)
    with tempfile.TemporaryDirectory() as folder:
        if chosen.photos:
            pictures = photographs(chosen.photos, 200 if small else 900)
            configured: dict[str, Any] = {"input_size": 96, "fit_defaults": {"norm_statistics": "fixed"}}
        else:
            place = Path(folder) / "digits"
            place.mkdir()
            pictures = digits(place, 200 if small else 800)
            configured = {"model": "small", "input_size": 32}
        if small:
            configured["fit_defaults"] = configured.get("fit_defaults", {}) | {"epochs": 1 if chosen.tiny else 4}
        return measure_loop(pictures, rounds, searches, configured)


def plot(recalls: list[float], file: Path) -> None:
    """Draw recall@1 by round, between no feedback and the oracle. Args: recalls: as `measure_loop` returns them."""
    width, height, left, bottom = 720, 400, 60, 40
    canvas = np.full((height, width, 3), 255, np.uint8)
    *rounds, best = recalls
    low, high = min(recalls) - 0.02, max(recalls) + 0.02

    def at(number: float, recall: float) -> tuple[int, int]:
        x = left + number / max(1, len(rounds) - 1) * (width - left - 120)
        return int(x), int(height - bottom - (recall - low) / (high - low) * (height - 2 * bottom))

    def text(words: str, place: tuple[int, int], colour: tuple[int, int, int] = (60, 60, 60)) -> None:
        cv2.putText(canvas, words, place, cv2.FONT_HERSHEY_SIMPLEX, 0.45, colour, 1, cv2.LINE_AA)

    last = len(rounds) - 1
    curves = (("loop", rounds, (0, 120, 0)), ("oracle", [best] * len(rounds), (150, 80, 0)))
    for name, values, colour in (*curves, ("no feedback", [rounds[0]] * len(rounds), (120, 120, 120))):
        points = np.array([at(number, value) for number, value in enumerate(values)], np.int32)
        cv2.polylines(canvas, [points], False, colour, 2, cv2.LINE_AA)
        text(f"{name} {values[-1]:.3f}", (at(last, values[-1])[0] + 8, at(last, values[-1])[1] + 4), colour)
    for number in range(len(rounds)):
        text(str(number), (at(number, low)[0] - 4, height - bottom + 20))
    text("recall@1 by round", (left, bottom - 15))
    for value in (low, (low + high) / 2, high):
        text(f"{value:.2f}", (10, at(0, value)[1] + 4))
    cv2.imwrite(str(file), canvas)


if __name__ == "__main__":
    main()
