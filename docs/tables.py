"""Writes the tables of README.md and docs/parameters.md from the code: `python -m docs.tables`.

A table stands between `<!-- table: CLASS -->`, or `<!-- table: CLASS NAME NAME … -->` for some of its parameters, and
`<!-- end -->`. Instead of a class it may be one of `OTHERS`. A test says when one is out of date.
"""

import json
import re
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from executor import parameters
from executor.evaluation.metrics import METRICS
from executor.report.page import TITLES

ROOT = Path(__file__).resolve().parent.parent
PAGES = (ROOT / "README.md", ROOT / "docs" / "parameters.md")
SECTION = re.compile(r"(<!-- table: (\w+)([\w ]*) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
TYPES = {
    "integer": "whole number",
    "number": "number",
    "boolean": "true, false",
    "string": "text",
    "array": "names",
    "object": "object",
}


def main() -> None:
    """Bring the tables of all pages up to date."""
    for page in PAGES:
        page.write_text(up_to_date(page.read_text()))


def up_to_date(text: str) -> str:
    """Return a page with its tables written anew."""
    return SECTION.sub(lambda found: found[1] + named(found[2], found[3].split()) + found[5], text)


def named(what: str, names: list[str]) -> str:
    """The table of one of `OTHERS`, or of these parameters of a class."""
    return OTHERS[what]() if what in OTHERS else table(getattr(parameters, what), names)


def losses() -> str:
    """One line a kind: the losses there are for it."""
    lines = ["| kind | losses |", "|---|---|"]
    for kind, names in parameters.LOSS_NAMES.items():
        lines.append(f"| `{kind}` | {', '.join(f'`{name}`' for name in names if name != 'auto')} |")
    return "\n".join(lines) + "\n"


def metrics() -> str:
    """One line a metric: its name in an answer, in a report, and what it says."""
    lines = ["| name | in a report | meaning |", "|---|---|---|"]
    for name in METRICS:
        title, meaning = TITLES[name]
        lines.append(f"| `{name}` | {title} | {meaning} |")
    return "\n".join(lines) + "\n"


OTHERS = {"losses": losses, "metrics": metrics}


def table(model: type[BaseModel], names: list[str]) -> str:
    """One line a parameter, for these or, without names, for all: name, values, default, meaning."""
    properties = model.model_json_schema()["properties"]
    lines = ["| name | values | default | meaning |", "|---|---|---|---|"]
    for name in names or model.model_fields:
        field = model.model_fields[name]
        default = "needed" if field.is_required() else shown(field.default)
        lines.append(f"| `{name}` | {values(properties[name])} | {default} | {field.description} |")
    return "\n".join(lines) + "\n"


def values(schema: dict[str, Any]) -> str:
    """What a parameter accepts, in words."""
    if "anyOf" in schema:
        return " or ".join(values(each) for each in schema["anyOf"] if each.get("type") != "null")
    if "allOf" in schema:
        return values(schema["allOf"][0])
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    return TYPES[schema.get("type", "object")]  # a reference is to a model of its own


def shown(default: Any) -> str:
    """A default as one would write it in JSON; nothing for None."""
    if default is None:
        return ""
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    if isinstance(default, BaseModel):
        return f"`{json.dumps(default.model_dump())}`"
    if isinstance(default, (int, float)):
        return f"{default:,}"
    return f"`{default}`"


if __name__ == "__main__":
    main()
