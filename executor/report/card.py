"""A model card in the form of Hugging Face, from the report of a run: README.md of an exported model."""

from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from ..evaluation.intervals import said
from .report import Report

LIBRARIES = {"onnx": "onnx", "transformers": "transformers", "safetensors": "finetuner-executor"}
TASK = "image-feature-extraction"


def model_card(name: str, form: str, base_model: str, loading: str, report: Report | None) -> str:
    """Return the card: the metadata that Hugging Face reads, how to load the model, how it was trained and measured.

    Args:
        name: of the version. form: that it is exported in. base_model: the option `model` that it began with.
        loading: a page in Markdown on how to load it. report: of the run; None for `base`, which was not trained.
    """
    metadata = ModelCardData(
        library_name=LIBRARIES[form],
        pipeline_tag=TASK,
        tags=["image-embedding", "metric-learning", "finetuner-executor"],
        base_model=base_model if "/" in base_model and not base_model.startswith((".", "/")) else None,
        model_name=name if report is not None and report.metrics else None,
        eval_results=_results(report) if report is not None and report.metrics else None,
    )
    sections = [f"---\n{metadata.to_yaml()}\n---\n", loading.rstrip() + "\n"]
    if report is not None:
        sections += [_training(report), _evaluation(report)]
    return "\n".join(sections)


def _results(report: Report) -> list[EvalResult]:
    return [
        EvalResult(
            task_type=TASK,
            dataset_type="private",
            dataset_name=f"{report.queries} queries of the run {report.run}",
            metric_type=name,
            metric_name=name,
            metric_value=round(change.after.mean, 4),
        )
        for name, change in report.metrics.items()
    ]


def _training(report: Report) -> str:
    epochs = len(report.history.get("loss", []))
    changed = [f"| `{name}` | {_shown(value)} |" for name, value in (report.options | report.used).items()]
    of_all = f" of {report.train_documents}" if report.trained_on < report.train_documents else ""
    classes = f" of {report.classes} labels" if report.classes else ""
    during = f", from {report.started_at} to {report.ended_at}" if report.started_at and report.ended_at else ""
    return "\n".join(
        [
            "## Training",
            "",
            f"The run `{report.run}` began with `{report.base}` and trained {epochs} epochs on "
            f"{report.trained_on}{of_all} documents{classes} ({report.kind} data, on {report.device})"
            f"{during}. {report.skipped} documents were left out.",
            "",
            "| option | value |",
            "|---|---|",
            *changed,
            "",
        ]
    )


def _evaluation(report: Report) -> str:
    lines = ["## Evaluation", "", report.verdict, ""]
    if report.metrics:
        lines += ["| metric | before | after | 95 % interval |", "|---|---|---|---|"]
        lines += [
            f"| {name} | {change.before.mean:.3f} | {change.after.mean:.3f} | "
            f"{said(change.after.low, change.after.high)} |"
            for name, change in report.metrics.items()
        ]
        lines += ["", f"Before: the version `{report.served or 'base'}`, which was served then."]
    lines += ["", "Pictures of other things than these may do worse: measure it on your own before you rely on it.", ""]
    return "\n".join(lines)


def _shown(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")
