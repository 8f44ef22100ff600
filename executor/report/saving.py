"""A report as two files: `report.json`, from which it can be rendered again, and `report.html`."""

from pathlib import Path

from ..store.files import publish_file
from .page import render
from .report import Report, to_json


def save(report: Report, folder: Path) -> Path:
    """Write `report.json` and `report.html` into `folder`, each replaced as a whole; return the path of the latter."""
    folder.mkdir(parents=True, exist_ok=True)
    publish_file(folder / "report.json", to_json(report).encode())
    publish_file(folder / "report.html", render(report).encode(errors="replace"))
    return folder / "report.html"
