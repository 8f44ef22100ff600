"""Datasets of Hugging Face, as `Dataset.save_to_disk` and `DatasetDict.save_to_disk` leave them.

Such a folder has `state.json`, which names the files, in Arrow's stream format, and `dataset_info.json` with the
columns; a dictionary of datasets has `dataset_dict.json` and a folder for each split. Pyarrow reads all of that.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from ..errors import ConfigurationError
from .rows import SPLITS, Columns, Row, RowMaker, values_of

BATCH = 256


def is_dataset(folder: Path) -> bool:
    """Whether a folder was made by `save_to_disk`."""
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


def read_dataset(folder: Path, columns: Columns, *, labelled: bool) -> Iterator[Row]:
    """Yield the rows of a dataset, or of the splits of a dictionary of them.

    Without a split column, `train` is for training, and splits such as `validation` and `test` are for evaluation.

    Raises: ConfigurationError: a column is missing, a split's name says nothing, or a file cannot be read.
    """
    dictionary = folder / "dataset_dict.json"
    if not dictionary.is_file():
        yield from _read_one(folder, columns, "train", labelled)
        return
    for name in _json(dictionary).get("splits", []):
        if name not in SPLITS:
            raise ConfigurationError(
                f"{folder} has a split {name!r}, which is neither for training nor for evaluation; name one of its "
                f"folders instead, such as {folder / name}."
            )
        yield from _read_one(folder / name, columns, SPLITS[name], labelled)


def dataset_names(folder: Path) -> list[str]:
    """Return the names of the columns of a dataset, or of the first of a dictionary of them."""
    dictionary = folder / "dataset_dict.json"
    part = folder / _json(dictionary)["splits"][0] if dictionary.is_file() else folder
    return list(_json(part / "dataset_info.json").get("features") or {})


def _read_one(folder: Path, columns: Columns, split: Literal["train", "eval"], labelled: bool) -> Iterator[Row]:
    import pyarrow as pa

    features = _json(folder / "dataset_info.json").get("features") or {}
    files = [folder / entry["filename"] for entry in _json(folder / "state.json").get("_data_files", [])]
    pictures = [name for name, feature in features.items() if _type(feature) == "Image"]
    if columns.uri is None and pictures:
        columns = replace(columns, uri=pictures[0])
    found = columns.found_in(list(features), folder)
    feature = features.get(found.label or "", {})
    names = feature.get("names", []) if _type(feature) == "ClassLabel" else []
    maker = RowMaker(folder, found, labelled, names)
    wanted, number = [name for name in vars(found).values() if name is not None], 0
    for path in files:
        try:
            with pa.OSFile(str(path)) as file, pa.ipc.open_stream(file) as stream:
                for batch in stream:
                    for start in range(0, batch.num_rows, BATCH):
                        for values in values_of(batch.select(wanted).slice(start, BATCH)):
                            number += 1
                            yield maker.row(number, values, split)
        except (OSError, pa.ArrowException) as error:
            raise ConfigurationError(f"{path} cannot be read as a part of a dataset: {error}.") from error


def _type(feature: Any) -> Any:
    return feature.get("_type") if isinstance(feature, dict) else None


def _json(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}.") from error
    return content
