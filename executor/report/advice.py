"""Says what to try if a model was not proven better: at most four sentences, each about something seen in the run."""

import math
from collections.abc import Iterator

from ..evaluation.intervals import is_open
from ..evaluation.metrics import DECIDING
from .report import Report

MOST = 4
HARDLY = 0.05  # if the loss fell by a smaller share than this, it has hardly fallen
OVERFITTED = 0.01  # more mAP@R than this was lost since the best epoch
FEW_CLASSES = 5
FEW_DOCUMENTS = 500  # a whole network learns fewer than these by heart
ENLARGED = 1.5  # if images are so much larger than the model sees them, it misses details


def advise(report: Report) -> list[str]:
    """Return what to try next, the most promising first, or nothing if the model is proven better."""
    if report.difference is not None and report.difference.low > 0:
        return []
    return list(_sentences(report))[:MOST]


def _sentences(report: Report) -> Iterator[str]:
    yield from _about_labels(report)
    yield from _about_training(report)
    yield from _about_queries(report)
    yield from _about_size(report)
    yield from _about_model(report)


def _about_labels(report: Report) -> Iterator[str]:
    found = report.label_errors
    if found is not None and found.found:
        share = found.found / max(found.checked, 1)
        yield (
            f"Look through the labels that may be wrong: {found.found:,} of {found.checked:,} ({share:.1%}). "
            "Mend them in your data and train again; wrong labels hide a gain in the proof, too."
        )


def _about_training(report: Report) -> Iterator[str]:
    loss = [value for value in report.history.get("loss", []) if math.isfinite(value)]
    if len(loss) < 2 or loss[0] <= 0:
        return
    rate = report.used.get("learning_rate", report.options.get("learning_rate"))
    if min(loss[1:]) > (1 - HARDLY) * loss[0]:
        tried = f" instead of {rate:g}" if isinstance(rate, (int, float)) else ""
        higher = f" {3 * rate:g}" if isinstance(rate, (int, float)) else " a higher one"
        yield (
            f"The loss hardly fell, from {loss[0]:.3g} to {loss[-1]:.3g}: set learning_rate to{higher}{tried}, or "
            f"epochs to {3 * len(loss)} instead of {len(loss)}."
        )
        return
    scores = report.history.get(DECIDING, [])
    best = max(range(len(scores)), key=scores.__getitem__, default=0)
    if scores and scores[-1] < scores[best] - OVERFITTED and best < len(scores) - 1:
        yield (
            f"It learned the train documents by heart: from epoch {best + 1} on the loss fell and mAP@R fell, from "
            f"{scores[best]:.3f} to {scores[-1]:.3f}. Set epochs to {best + 1}, or let less of the model move: "
            "freeze: true, backbone_rate: 0.1 or wise_ft: 0.5."
        )
    elif report.difference is not None and report.difference.high < 0 and report.options.get("wise_ft", 1) == 1:
        yield (
            "It learned, and became worse at what the eval documents ask: keep more of the model that it started from, "
            "by freeze: true, backbone_rate: 0.1 or wise_ft: 0.5."
        )


def _about_queries(report: Report) -> Iterator[str]:
    gain = report.difference
    if gain is None:
        yield (
            "Nothing was measured: send labelled documents with split: eval, or at least 40 labelled train documents, "
            "of which some are then held out."
        )
        return
    if gain.mean > 0 and gain.low <= 0 and not is_open(gain.low, gain.high, signed=True):
        reach = gain.mean - gain.low
        wanted = math.ceil(report.queries * (reach / gain.mean) ** 2 / 10) * 10
        if wanted <= 100 * report.queries:
            yield (
                f"A gain of {gain.mean:+.3f} was measured and is too small for {report.queries:,} queries: if it is "
                f"real, about {wanted:,} would prove it. Send more documents, of more labels above all."
            )
    if report.classes is not None and report.classes < FEW_CLASSES:
        yield (
            f"There are {report.classes} labels: send documents of more labels, or finer ones, from which the model "
            "learns what tells your images apart."
        )


def _about_size(report: Report) -> Iterator[str]:
    model = report.model
    if model is None or model.image_side is None or model.image_side < ENLARGED * model.input_size:
        return
    yield (
        f"The model sees images of {model.input_size} pixels a side, and yours usually have {model.image_side}: what "
        f"is small in them is lost. Configure input_size: {_larger(model.input_size, model.image_side)}, which takes "
        "more time."
    )


def _larger(size: int, side: int) -> int:
    """Return a larger input size, in steps of 32 pixels: at most twice as large, unless it is very small."""
    return max(size + 32, min(2 * size, side) // 32 * 32)


def _about_model(report: Report) -> Iterator[str]:
    if report.model is not None and report.model.name == "small":
        yield (
            "The model small begins without any knowledge of images: for photographs configure model: default, which "
            "is pretrained and needs far fewer documents."
        )
    elif report.trained_on < FEW_DOCUMENTS and not report.options.get("freeze"):
        yield f"{report.trained_on:,} documents are few for a whole network: freeze: true trains the head alone."
