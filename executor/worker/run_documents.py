"""The documents of a run: decoded while they arrive, then made into datasets for training and evaluation."""

import copy
import functools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..compute.ranks import Ranks
from ..documents import Label
from ..errors import NotTrainable, brief
from ..evaluation.eval_set import EvalSet
from ..evaluation.hold_out import Parts, document_numbers, queries, split_documents, suffices
from ..evaluation.kinship import Kinship, Side, find_kinship, flattery
from ..loading.augmentation import Augmentation, load_augmentation
from ..loading.cache import ImageCache
from ..loading.content import item_content, make_preprocess
from ..loading.datasets import ClassDataset, Dataset, SessionDataset, kind_of
from ..loading.hard_negatives import HarderSessions, find_hard_negatives
from ..models.model import EmbeddingModel
from ..report.naming import name_of
from ..store.files import publish_file, read_kept
from ..store.lineage import Lineage, lineage_of
from ..store.proof_documents import save_proof
from ..store.run import Run, RunState
from ..store.runs import RunStore
from ..store.spool import DocumentArrayMemmap
from ..training.loop import Interrupted
from ..training.recipe import Task
from .decoding import Decoded
from .inspection import Inspection
from .label_check import Part
from .seen import Seen, keys_of, known_labels, lineage_of_run, seen_before

POLL_SECONDS = 0.05
SHOWN = 5  # documents that a sentence names
COPIES_TOLD = 1000


class RunDocuments:
    """Both splits of a run's spool.

    Args:
        check: called now and then; it raises an exception to stop the work. warn: adds a warning to the history.
        beat: called for each document that is read.
    """

    def __init__(
        self,
        store: RunStore,
        run: Run,
        model: EmbeddingModel,
        ranks: Ranks,
        *,
        check: Callable[[], None],
        warn: Callable[[str], None],
        beat: Callable[[], None] = lambda: None,
    ) -> None:
        self._store = store
        self._run = run
        self._ranks = ranks
        self._check = check
        self._warn = warn
        self._beat = beat
        self._options = run.options
        self._configuration = run.configuration.options
        self._preprocessing = model.preprocessing
        self._model = model  # of the version that the run starts from
        self._left_out: list[str] = []  # why some eval documents prove nothing
        self._flattery: str | None = None
        self._partial: str | None = None
        self._train, self._eval = self._decoded("train", model), self._decoded("eval", model)

    def _decoded(self, split: str, model: EmbeddingModel) -> Decoded:
        cache = None
        if self._configuration.preprocess_fn is None:  # another function may return something else each time
            size = model.preprocessing.size
            path = self._store.workspace.image_folder(self._run.name) / f"{split}-{size}"
            cache = ImageCache(size, path, max_bytes=self._configuration.max_cache_bytes, warn=self._warn)
        return Decoded(
            split,
            self._store,
            self._run.name,
            self._beating(make_preprocess(self._configuration, model)),
            cache,
            with_matches=self._options.kind in ("auto", "session"),
        )

    def _beating(self, preprocess: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def beat_and_preprocess(doc: Any) -> Any:
            self._beat()
            return preprocess(doc)

        return beat_and_preprocess

    def receive(self) -> None:
        """Decode what arrives until the run is in training. Raises: Interrupted: the run has ended before that."""
        splits = (self._train, self._eval) if self._ranks.first else ()
        while True:
            self._check()
            state = self._store.get(self._run.name).state
            if state is RunState.TRAINING:
                return
            if state.ended:
                raise Interrupted
            advanced = [split.decode_next() for split in splits]
            if not any(advanced):
                time.sleep(POLL_SECONDS)

    def decode(self) -> None:
        """Decode the rest. Raises: NotTrainable: no document can be trained on."""
        for split in (self._train, self._eval):
            split.bad_items, split.inspection = self._ranks.agree(functools.partial(self._rest_of, split))
        if not len(self._train.docs):
            refused = self._store.count_problems(self._run.name)
            only = (
                f"only {len(self._eval.docs)} eval documents; send those to train on with split: train to another run"
            )
            raise NotTrainable(
                f"The run has no usable train documents{'; its problems say why' if refused else f', {only}'}."
            )

    def _rest_of(self, split: Decoded) -> tuple[set[int], Inspection]:
        """Decode the rest of a split. Return the items that cannot be used, and what was seen of all documents."""
        while split.decode_next():
            self._check()
        return split.bad_items, split.inspection

    def kind(self) -> str:
        """The kind of dataset: the one asked for, else the one that the train documents have."""
        return self._options.kind if self._options.kind != "auto" else kind_of(self._train.docs)

    def task(self, kind: str, device: torch.device, batch: int) -> Task:
        """Divide the documents: to train on, to prove the model on and, if there are enough, to choose its epoch by.

        Args: batch: images embedded at a time. Raises: NotTrainable: `val_split` asks for more than can be held out.
        """
        make_eval = functools.partial(EvalSet, device=device, batch=batch, ranks=self._ranks)
        dataset, items = self._train.dataset(kind)
        given = bool(len(self._eval.docs))
        share = 0.0 if given else self._options.val_split
        others, those = self._eval.dataset(self._eval_kind(self._eval.docs)) if given else (None, items[:0])
        kin = self._ranks.agree(functools.partial(self._find_kinship, dataset, others))
        seen, seen_eval, known = self._ranks.agree(functools.partial(self._find_seen, dataset, others))
        parts = self._divided(dataset, items, share, kin, seen, known)
        eval_set = None
        related = those[kin.related[those]]
        if others is not None:
            those = self._proving(others, those, kin, seen_eval)
            if len(those):
                eval_set = make_eval(others, those, cache=self._eval.cache, groups=kin.eval[those])
        elif len(parts.proof):
            eval_set = make_eval(dataset, parts.proof, cache=self._train.cache, groups=kin.train[parts.proof])
        if self._ranks.first and eval_set is not None:
            other = _side(self._train, dataset) if others is None else _side(self._eval, others)
            self._flattery = flattery(_side(self._train, dataset), parts.train, other, eval_set.items)
            self._partial = _about_served(eval_set, seen if others is None else seen_eval)
        self.parts = parts
        self._kin = kin
        self._labels = [*_labels_of(dataset), *(() if others is None else _labels_of(others))]
        if self._ranks.first:
            proof: dict[str, list[int]] = {"train": [], "eval": []}
            units: dict[str, list[int]] = {"train": [], "eval": []}
            for split, docs, proving, kin_of in (
                ("train", dataset, parts.proof, kin.train),
                ("eval", others, those, kin.eval),
            ):
                if docs is not None:
                    numbers, first = np.unique(document_numbers(docs)[proving], return_index=True)
                    proof[split], units[split] = numbers.tolist(), kin_of[proving][first].tolist()
            save_proof(self._store.workspace, self._run.name, proof, units)
            self._save_lineage(dataset, proof, [] if others is None else document_numbers(others)[related].tolist())
        learned, items = dataset, parts.train
        if self._options.hard_negatives and isinstance(dataset, SessionDataset):
            learned, items = self._with_hard_negatives(dataset, make_eval(dataset, items, cache=self._train.cache))
        return Task(
            dataset=learned,
            items=items,
            eval_set=eval_set,
            choose_set=make_eval(dataset, parts.choose, cache=self._train.cache) if len(parts.choose) else None,
            cache=self._train.cache,
            same_content=self._train.cache is not None,
            augment=self._augmentation(kind),
        )

    def _find_seen(self, dataset: Dataset, others: Dataset | None) -> tuple[Seen, Seen, np.ndarray]:
        """What versions from before have seen of the train documents, of the eval documents, and of the labels."""
        base, version = self._base_lineage, self._store.served_now()
        served = base if version == self._options.base else lineage_of(self._store.workspace, version)
        seen, seen_eval = (
            seen_before(keys_of(split), base, served, sessions=isinstance(of, SessionDataset))
            for split, of in ((self._train, dataset), (self._eval, others))
        )
        return seen, seen_eval, known_labels(dataset, base, served)

    @functools.cached_property
    def _base_lineage(self) -> Lineage:
        return lineage_of(self._store.workspace, self._options.base)

    def _save_lineage(self, dataset: Dataset, proof: dict[str, list[int]], related: list[int]) -> None:
        """Write down what the model will have seen. Args: related: numbers of eval documents like some trained on."""
        keys, keys_eval = keys_of(self._train), keys_of(self._eval)
        trained = np.unique(document_numbers(dataset)[np.concatenate([self.parts.train, self.parts.choose])])
        own = lineage_of_run(
            dataset,
            self._train,
            trained,
            taught=[*(keys[number] for number in trained.tolist()), *(keys_eval[number] for number in related)],
            proved=[*(keys[number] for number in proof["train"]), *(keys_eval[number] for number in proof["eval"])],
        )
        workspace, run = self._store.workspace, self._run.name
        file = workspace.lineage_file(run)
        # An attempt before this one may have trained on a picture that cannot be fetched any more.
        before = lineage_of(workspace, run) if file.exists() else self._base_lineage
        before.with_more(own).save(file)

    def _divided(
        self, dataset: Dataset, items: np.ndarray, share: float | str, kin: Kinship, seen: Seen, known: np.ndarray
    ) -> Parts:
        """Divide the documents. A run that is resumed has the same parts, less what cannot be used any more.

        Otherwise a picture that can be fetched now and could not before would shift all that is drawn, and the
        model would be proven by what it has been trained on.
        """
        file = self._store.workspace.parts_file(self._run.name)
        kept = self._ranks.agree(lambda: _kept_parts(file))
        if kept is not None:
            train, proof, choose = (part[np.isin(part, items)] for part in (kept.train, kept.proof, kept.choose))
            return Parts(train, proof, choose, kept.whole_classes)
        numbers = document_numbers(dataset)
        parts = split_documents(
            dataset,
            items,
            share,
            seed=self._options.seed,
            units=kin.train,
            taught=seen.taught[numbers],
            taught_served=seen.taught_served[numbers],
            proved=seen.proved[numbers],
            known_labels=known,
        )
        if self._ranks.first:
            publish_file(file, json.dumps({name: [*map(int, part)] for name, part in vars(parts).items()}).encode())
        return parts

    def trained_items(self, task: Task, device: torch.device, batch: int) -> EvalSet:
        """The items that were trained on, to be embedded by several models."""
        return EvalSet(task.dataset, task.items, device=device, cache=task.cache, batch=batch, ranks=self._ranks)

    def _with_hard_negatives(self, dataset: SessionDataset, train: EvalSet) -> tuple[SessionDataset, np.ndarray]:
        """Return the dataset with further negatives, and the items to train on. A resumed run finds the same ones."""
        file = self._store.workspace.negatives_file(self._run.name)

        def find() -> list[list[int]]:
            found = find_hard_negatives(dataset, train.items, embeddings, self._options.hard_negatives)
            return [part.tolist() for part in found]

        pairs = self._ranks.agree(lambda: _kept_pairs(file))
        if pairs is None:
            embeddings = train.embed(self._model)
            pairs = self._ranks.agree(find)
            if self._ranks.first:
                publish_file(file, json.dumps(pairs).encode())
                told = f"{len(pairs[0])} hard negatives were added to {len(set(pairs[0]))} sessions"
                self._store.event(self._run.name, "negatives", told)
        harder = HarderSessions(dataset, *(np.asarray(part, np.int64) for part in pairs))
        return harder, np.concatenate([train.items, np.arange(len(dataset), len(harder))])

    def labelled_parts(self, task: Task, device: torch.device, batch: int) -> list[Part]:
        """All usable documents in their parts, to look for wrong labels."""
        held_out = np.concatenate([self.parts.proof, self.parts.choose])
        found = []
        for name, items in (("train", self.parts.train), ("held out", held_out)):
            eval_set = EvalSet(task.dataset, items, device=device, cache=task.cache, batch=batch, ranks=self._ranks)
            found.append(Part(name, eval_set, self._kin.train[items]))
        if task.eval_set is not None and len(self._eval.docs):
            found.append(Part("eval", task.eval_set, self._kin.eval[task.eval_set.items]))
        return found

    def copies(self) -> list[tuple[str, str, str]]:
        """The first `COPIES_TOLD` copies for the report, each (document, its copy, what was done)."""
        trained = len(self._train.docs)
        contradicting = set(self._contradicting())

        def done(one: int, other: int) -> str:
            if other < trained:
                found = "never on both sides of the proof"
            else:
                found = "the copy is left out of the proof" if one < trained else "both count as one in the intervals"
            labels = f"; labelled {self._labels[one]!r} and {self._labels[other]!r}"
            return found + labels if (one, other) in contradicting else found

        told = self._kin.pairs[:COPIES_TOLD]
        return [(self._name(one), self._name(other), done(one, other)) for one, other in told]

    def _contradicting(self) -> list[tuple[int, int]]:
        """Pairs of copies with different labels, as in `Kinship.pairs`."""
        return [pair for pair in self._kin.pairs if len({self._labels[number] for number in pair} - {None}) > 1]

    def _name(self, number: int) -> str:
        """The name of a document. The numbers of the eval documents follow those of the train documents."""
        trained = len(self._train.docs)
        split, place = (self._train, number) if number < trained else (self._eval, number - trained)
        return name_of(split.docs[place])

    def _about_labels(self) -> str | None:
        pairs = self._contradicting()
        if not pairs:
            return None
        some = ", ".join(
            " and ".join(f"{brief(self._name(number))!r} as {self._labels[number]!r}" for number in pair)
            for pair in pairs[:SHOWN]
        ) + (", …" if len(pairs) > SHOWN else "")
        pictures = "1 picture was" if len(pairs) == 1 else f"{len(pairs)} pictures were"
        return (
            f"{pictures} sent with another label too ({some}): no model can learn both. Correct one of the labels, or "
            "leave such pictures out."
        )

    def eval_set_for(self, model: EmbeddingModel, like: EvalSet) -> EvalSet:
        """Return the same eval set, with images that are preprocessed for another model."""
        if model.preprocessing == self._preprocessing:
            return like
        dataset = copy.copy(like.dataset)
        dataset.preprocess_fn = make_preprocess(self._configuration, model)
        return like.on(dataset)

    def noticed(self) -> list[str]:
        """Warnings about the documents, most important first."""
        found = [*self._train.inspection.warnings(), *self._left_out, *filter(None, (self._flattery, self._partial))]
        found += [warning for split in (self._train, self._eval) if (warning := _about_ids(split.docs))]
        found += filter(None, [self._about_labels()])
        run = self._store.get(self._run.name)  # read again: the numbers of rows are known since it was queued
        if run.total is not None and run.arrived is not None and run.arrived < run.total:
            found.append(
                f"{run.arrived} of the {run.total} documents that `total` announced had arrived when the run began: it "
                "was started, or no more came for as long as receive_timeout. Train again with all of them."
            )
        return found

    def _find_kinship(self, dataset: Dataset, others: Dataset | None) -> Kinship:
        def image(train: bool, number: int) -> np.ndarray:
            split, of = (self._train, dataset) if train else (self._eval, others)
            assert of is not None
            item = int(np.searchsorted(document_numbers(of), number))  # the first item of a session is its root
            content: np.ndarray = item_content(of, item, split.cache)
            return content

        return find_kinship(_side(self._train, dataset), None if others is None else _side(self._eval, others), image)

    def _proving(self, others: Dataset, items: np.ndarray, kin: Kinship, seen: Seen) -> np.ndarray:
        """Leave out the eval items that prove nothing. Return the others."""
        numbers = document_numbers(others)
        taught, taught_served = (
            np.isin(kin.eval, kin.eval[known[numbers]]) for known in (seen.taught, seen.taught_served)
        )
        given = items
        why = "they are copies of train documents, or in a group with some"
        items = self._without(others, items, kin.related, why, "Send others, of other moments or customers.")
        why = "the version that the run starts from was trained on them"
        items = self._without(others, items, taught, why, "Send others.")
        if suffices(others, items[~taught_served[items]], items):
            items = self._without(others, items, taught_served, "the version served was trained on them", "")
        return items if queries(others, items) or not queries(others, given) else items[:0]

    def _without(self, others: Dataset, items: np.ndarray, left_out: np.ndarray, why: str, cure: str) -> np.ndarray:
        """Return the items but those that are left out, (M,) bool, and note which documents these are of."""
        if left_out[items].any():
            numbers = np.unique(document_numbers(others)[items[left_out[items]]]).tolist()
            some = ", ".join(repr(brief(self._eval.docs[number].id)) for number in numbers[:SHOWN])
            self._left_out.append(
                f"{len(numbers)} of {len(self._eval.docs)} eval documents were left out of the proof: {why} "
                f"({some}{', …' if len(numbers) > SHOWN else ''}). {cure}".rstrip()
            )
        kept: np.ndarray = items[~left_out[items]]
        return kept

    def counts(self, task: Task) -> tuple[int, int, int]:
        """Count the usable train and eval documents, and those train documents that are held out."""
        held_out = task.eval_set.documents if task.eval_set is not None and not len(self._eval.docs) else 0
        return len(self._train), len(self._eval), held_out

    def _augmentation(self, kind: str) -> Augmentation | None:
        """Return the augmentation. With a `preprocess_fn` of the operator's there is none unless it is configured."""
        configured = self._configuration.augment
        if self._train.cache is None and configured is None and kind != "unlabeled":
            return None
        return load_augmentation(configured, kind, self._preprocessing.size)

    def _eval_kind(self, docs: DocumentArrayMemmap) -> str:
        """The kind of the eval documents. Labelled ones may also prove a model that was trained without labels."""
        if self._options.kind in ("class", "session"):
            return self._options.kind
        found = kind_of(docs)
        return "unlabeled" if self._options.kind == "unlabeled" and found == "session" else found


def _about_served(eval_set: EvalSet, seen: Seen) -> str | None:
    numbers = np.unique(document_numbers(eval_set.dataset)[eval_set.items])
    known = int(seen.taught_served[numbers].sum())
    if not known:
        return None
    return (
        f"The version served was trained on {known} of the {len(numbers)} documents that prove the model, so it looks "
        "better on them than it is: there are too few others. Send labelled documents that are new."
    )


def _labels_of(dataset: Dataset) -> list[Label | None]:
    """The label of each document; None where they have none of their own."""
    if isinstance(dataset, ClassDataset):
        return [dataset.classes[label] for label in dataset.labels.tolist()]
    return [None] * len(dataset.docs)


def _about_ids(docs: DocumentArrayMemmap) -> str | None:
    count, some = docs.shared_ids()
    if not count:
        return None
    shown = ", ".join(repr(brief(id)) for id in some[:SHOWN]) + (", …" if count > SHOWN else "")
    return (
        f"{count} ids in the {docs.split} documents belong to several documents with other content each ({shown}). All "
        "were kept. If that was meant, give each document an id of its own, so that reports name one."
    )


def _side(split: Decoded, dataset: Dataset) -> Side:
    return Side(dataset, split.inspection.groups, split.inspection.prints)


def _kept_parts(file: Path) -> Parts | None:
    """The parts in a file; None: there is no file, or it was edited or cut short."""
    found = read_kept(file)
    if not isinstance(found, dict) or set(found) != {"train", "proof", "choose", "whole_classes"}:
        return None
    if not all(isinstance(part, list) and all(type(item) is int for item in part) for part in found.values()):
        return None
    train, proof, choose = (np.array(found[name], np.int64) for name in ("train", "proof", "choose"))
    return Parts(train, proof, choose, tuple(found["whole_classes"]))


def _kept_pairs(file: Path) -> list[list[int]] | None:
    """The hard negatives in a file; None: there is no file, or it was edited or cut short."""
    found = read_kept(file)
    lists = isinstance(found, list) and len(found) == 2 and all(isinstance(part, list) for part in found)
    is_whole = lists and len(found[0]) == len(found[1]) and all(type(item) is int for part in found for item in part)
    return found if is_whole else None
