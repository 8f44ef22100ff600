"""Looks for wrong labels among the documents of a run. Two models embed each document once more for that."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from ..compute.ranks import Ranks
from ..documents import LABEL_TAG, Label, normalise_label
from ..errors import BadDocument
from ..evaluation.eval_set import EvalSet, embed_in_steps
from ..evaluation.label_errors import LabelCheck, find_label_errors
from ..loading.datasets import ClassDataset
from ..models.backbones import Backbone
from ..models.model import EmbeddingModel
from ..report.naming import label_of, name_of
from ..report.parts import LabelErrors, Suspect

MOST = 20_000  # documents that are checked; if there are more, a random choice of them
SHOWN = 20


@dataclass(frozen=True)
class Part:
    """Some of the documents to check.

    Attributes:
        name: `train`, `held out` or `eval`.
        units: (N,) int64, a number for each item. Items of any part with equal numbers belong together.
    """

    name: str
    items: EvalSet
    units: np.ndarray


def check_labels(
    parts: list[Part],
    untrained: EmbeddingModel,
    tuned: EmbeddingModel,
    *,
    prepared_for: Callable[[EmbeddingModel, EvalSet], EvalSet],
    check: Callable[[], None],
    device: torch.device,
    ranks: Ranks,
) -> LabelErrors | None:
    """Return which labels are probably wrong; None: this is no class data, or it is too little, or cannot be read.

    Args:
        parts: no two share an item. untrained: a model that was not trained on these labels.
        prepared_for: returns the documents with their images preprocessed for a model.
        check: called now and then; it raises an exception to stop the work.
    """
    parts = [part for part in parts if part.items.dataset.kind == "class" and len(part.items.items)]
    if not parts:
        return None
    parts = _sampled(parts)
    try:
        features = [
            np.concatenate(
                [embed_in_steps(features_of(model), prepared_for(model, part.items), check) for part in parts]
            )
            for model in (untrained.to(device), tuned)
        ]
    except BadDocument:  # an image has disappeared since the training; the report does without the check
        if not ranks.alone:
            raise
        return None
    if not ranks.first:
        return None
    labels, known = _joined_labels(parts)
    units = np.concatenate([part.units for part in parts])
    found = find_label_errors(features[0], features[1], labels, units)
    return None if found is None else _told(found, parts, known)


def features_of(model: EmbeddingModel) -> nn.Module:
    """Return the model without its head. Where only the head was trained, return it with the head."""
    if model.is_backbone_frozen:
        return model
    backbone = Backbone(module=model.backbone, preprocessing=model.preprocessing, options=model.options)
    return EmbeddingModel(backbone, model.config, features=model.features, normalise=False)


def _sampled(parts: list[Part]) -> list[Part]:
    """Return at most `MOST` documents: the same share of each part."""
    total = sum(len(part.items.items) for part in parts)
    if total <= MOST:
        return parts
    random = np.random.default_rng(0)
    sampled = []
    for part in parts:
        count = len(part.items.items)
        kept = np.sort(random.permutation(count)[: count * MOST // total])
        sampled.append(Part(part.name, part.items.part(kept), part.units[kept]))
    return sampled


def _joined_labels(parts: list[Part]) -> tuple[np.ndarray, list[Label]]:
    """Number the labels of all parts alike. Return the number of each item's label, (N,) int64, and the labels."""
    numbers: dict[Label, int] = {}
    labels = []
    for part in parts:
        dataset = part.items.dataset
        assert isinstance(dataset, ClassDataset)  # only labelled documents have labels to check
        known = np.array([numbers.setdefault(label, len(numbers)) for label in dataset.classes])
        labels.append(known[part.items.labels])
    return np.concatenate(labels), list(numbers)


def _told(found: LabelCheck, parts: list[Part], labels: list[Label]) -> LabelErrors:
    places = [(part, position) for part in parts for position in range(len(part.items.items))]
    suspects = []
    for position, label, margin in zip(found.suspects[:SHOWN], found.suggested, found.margins, strict=False):
        part, place = places[position]
        doc = part.items.dataset.document(int(part.items.items[place]))
        suspects.append(
            Suspect(
                image=part.items.image(place),
                caption=label_of(doc),
                name=name_of(doc),
                suggested=str(labels[label]),
                margin=float(margin),
                part=part.name,
                id=str(doc.id),
                given=normalise_label(doc.tags[LABEL_TAG]),
                proposed=labels[label],
            )
        )
    return LabelErrors(
        checked=found.checked,
        accuracy=found.accuracy,
        extent=found.extent,
        found=len(found.suspects),
        suspects=suspects,
    )
