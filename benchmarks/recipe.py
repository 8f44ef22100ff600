"""Compare settings of the recipe on photographs, on seen and unseen classes; the defaults were chosen by it.

    .venv/bin/python -m benchmarks.recipe --photos FOLDER [--part choose] [--sizes 96] [--seeds 0,1,2] [SETTING …]
    .venv/bin/python -m benchmarks.recipe --images shapes|digits [--model default|small|vit] [--device cuda] …

FOLDER has train/CLASS/NAME.jpg and test/CLASS/NAME.jpg, the latter from another visit. The classes are split once and
for all into two halves: settings are chosen on the part `choose`, and what was chosen is confirmed on the part
`confirm`. A seed draws two thirds of a part's classes to train on (seen); the others are unseen. The default model is
tuned by the real recipe (`training.recipe.fine_tune`), augmentation included, on the train photographs of the seen
classes, and measured on the test photographs of the seen and of the unseen classes, each by itself.

Without photographs: generated textured shapes (`shapes.py`, 50 classes) or scikit-learn's digits, some of whose images
are kept to measure on. `small` is the network that starts from nothing. `vit` is a small vision transformer that has
learned 40 other classes of shapes before, so that it has something to lose.

A SETTING is a JSON object of training options, such as '{"epochs": 5, "learning_rate": 3e-4}'; beside them
`augment` names one of the pipelines below. Without one, the untrained model, the defaults, and the recipe before them
are compared.
"""

import json
import tempfile
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import albumentations
import numpy as np
import torch
from scipy import stats
from sklearn.datasets import load_digits

from benchmarks.common import options, print_headline, print_machine, print_table
from benchmarks.shapes import classes as make_kinds
from benchmarks.shapes import make as make_shapes
from executor import ClassDataset, Document, DocumentArray, load_uri_to_image_blob
from executor.evaluation.eval_set import EvalSet
from executor.evaluation.metrics import DECIDING
from executor.loading.augmentation import Augmentation, default_augmentation
from executor.models.building import build_model
from executor.models.model import EmbeddingModel, ModelConfig
from executor.models.preprocessing import Preprocessing
from executor.parameters import TrainingOptions
from executor.training.micro_batch import MicroBatch
from executor.training.parts import prepare_model
from executor.training.progress_bar import ProgressBar
from executor.training.recipe import Task, fine_tune

CPU = torch.device("cpu")
PARTS = ("choose", "confirm", "all")
UNTRAINED: dict[str, Any] = {"untrained": True}
BEFORE = {"epochs": 10, "learning_rate": 1e-4, "norm_statistics": "trained"}
METRICS = (DECIDING, "recall_at_1")


@dataclass(frozen=True)
class Photos:
    """Images (N, S, S, 3) uint8 with their labels (N,), and whether each is to train on."""

    images: np.ndarray
    labels: np.ndarray
    training: np.ndarray

    def dataset(self, of: Iterable[str], *, training: bool) -> ClassDataset:
        """Return the photographs of some classes, of one visit."""
        chosen = np.flatnonzero((self.training == training) & np.isin(self.labels, list(of)))
        return ClassDataset(
            DocumentArray(
                Document(id=str(item), blob=self.images[item], tags={"finetuner_label": self.labels[item]})
                for item in chosen
            )
        )


def shapes(size: int, *, others: bool = False, measured: int = 10) -> Photos:
    """Generate textured shapes of 50 classes, or of the 40 others, 24 of each to train on and some to measure on."""
    kinds = make_kinds(90)[50:] if others else make_kinds(50)
    parts = [make_shapes(kinds, count, number) for number, count in enumerate((24, measured))]
    images = np.concatenate([part[0] for part in parts])
    labels = np.concatenate([part[1] for part in parts]).astype(str)
    return Photos(resized(images, size), labels, np.arange(len(labels)) < len(parts[0][1]))


def digits(size: int) -> Photos:
    """Return scikit-learn's digits; every third is to measure on."""
    known = load_digits()
    grey = (known.images * 255 / 16).astype(np.uint8)
    images = np.repeat(grey[..., None], 3, axis=3)
    return Photos(resized(images, size), known.target.astype(str), np.arange(len(images)) % 3 > 0)


def resized(images: np.ndarray, size: int) -> np.ndarray:
    return np.stack([Preprocessing(size=size).resize(image) for image in images])


def pretrained_vit(folder: Path, size: int, device: torch.device = CPU) -> str:
    """Pretrain a small vision transformer on other shapes, save it in `folder`, and return it as a model's name."""
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(0)
    config = ViTConfig(
        image_size=size, patch_size=8, hidden_size=96, num_hidden_layers=4, num_attention_heads=4, intermediate_size=192
    )
    ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    others = shapes(size, others=True)
    model = build_model(ModelConfig(model=str(folder), input_size=size))
    train_on(
        model, others.dataset(set(others.labels), training=True), {"epochs": 30, "learning_rate": 1e-3}, size, 0, device
    )
    backbone: Any = model.backbone
    backbone.cpu().save_pretrained(folder)
    return str(folder)


def read(folder: Path, size: int) -> Photos:
    """Read `train/CLASS/*` and `test/CLASS/*`. Raises: SystemExit: there are none."""
    files = sorted(folder.glob("train/*/*.jpg")) + sorted(folder.glob("test/*/*.jpg"))
    if not files:
        raise SystemExit(f"{folder} has no photographs as train/CLASS/NAME.jpg and test/CLASS/NAME.jpg.")
    resize = build_model(ModelConfig(input_size=size)).preprocessing.resize
    images = np.stack([resize(load_uri_to_image_blob(Document(uri=str(file)))) for file in files])
    labels = np.array([file.parent.name for file in files])
    return Photos(images, labels, np.array([file.parts[-3] == "train" for file in files]))


def split(classes: list[str], part: str, seed: int) -> tuple[list[str], list[str]]:
    """Return the seen and the unseen classes of a part."""
    order = np.random.default_rng(12345).permutation(len(classes))
    half = len(order) // 2 + 1
    pool = order[{"choose": slice(half), "confirm": slice(half, None), "all": slice(None)}[part]]
    drawn = [classes[pool[place]] for place in np.random.default_rng(seed + 100).permutation(len(pool))]
    seen = round(len(drawn) * 28 / 41)
    return drawn[:seen], drawn[seen:]


def pipeline(name: str, size: int) -> Augmentation | None:
    """Return an augmentation by name."""
    default = default_augmentation("class", size)
    if name in ("default", "none"):
        return default if name == "default" else None
    steps: dict[str, list[Any]] = {
        "flip": [*default.pipeline.transforms, albumentations.HorizontalFlip(p=0.5)],
        "photo": [
            albumentations.RandomResizedCrop((size, size), scale=(0.5, 1), ratio=(0.8, 1.25)),
            albumentations.HorizontalFlip(p=0.5),
            albumentations.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2, hue=0.02, p=0.8),
        ],
    }
    return Augmentation(albumentations.Compose(steps[name]))


def tuned(
    name: str, setting: dict[str, Any], dataset: ClassDataset, size: int, seed: int, device: torch.device = CPU
) -> EmbeddingModel:
    """Return a model, tuned by a setting."""
    model = build_model(ModelConfig(model=name, input_size=size, seed=seed))
    if not setting.get("untrained"):
        train_on(model, dataset, setting, size, seed, device)
    return model


def train_on(
    model: EmbeddingModel,
    dataset: ClassDataset,
    setting: dict[str, Any],
    size: int,
    seed: int,
    device: torch.device = CPU,
) -> None:
    """Train by the recipe, in place."""
    wanted = dict(setting)
    augment = pipeline(wanted.pop("augment", "default"), size)
    chosen = TrainingOptions(seed=seed, **wanted)
    prepare_model(model.to(device), chosen)
    with ProgressBar(visible=False) as bar:
        fine_tune(
            model,
            Task(dataset=dataset, items=np.arange(len(dataset)), augment=augment, same_content=True),
            chosen,
            device=device,
            watcher=bar,
            micro_batch=MicroBatch(chosen.micro_batch, say=bar.say),
            max_cache_bytes=2**33,
        )


def measured(model: EmbeddingModel, dataset: ClassDataset, device: torch.device = CPU) -> list[float]:
    """Return mAP@R and recall@1."""
    scores = EvalSet(dataset, np.arange(len(dataset)), device=device).score(model.to(device)).mean()
    return [scores[name] for name in METRICS]


def with_interval(values: list[float]) -> str:
    """Return the mean over the seeds, with the 95 % t interval's half width."""
    if len(values) < 2:
        return f"{values[0]:.3f}"
    half = stats.sem(values) * stats.t.ppf(0.975, len(values) - 1)
    return f"{np.mean(values):.3f} ± {half:.3f}"


def main() -> None:
    """Measure and print."""
    parser = options(__doc__)
    parser.add_argument("settings", nargs="*", type=json.loads, metavar="SETTING")
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--images", choices=("shapes", "digits"), default="shapes", help="where there are no --photos")
    parser.add_argument("--model", choices=("default", "small", "vit"), default="default")
    parser.add_argument("--part", choices=PARTS, help="choose; all, where there are no --photos")
    parser.add_argument("--sizes", default="96", help="pixels, separated by commas")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--device", type=torch.device, default=CPU, help="such as cuda")
    arguments = parser.parse_args()
    device = arguments.device
    settings = arguments.settings or [UNTRAINED, {}, BEFORE]
    sizes, seeds = ([int(value) for value in text.split(",")] for text in (arguments.sizes, arguments.seeds))
    if arguments.quick:
        settings, seeds, sizes = [UNTRAINED, {"epochs": 1}], seeds[:1], sizes[:1]
    if arguments.tiny:
        sizes = [32]
    part = arguments.part or ("choose" if arguments.photos else "all")
    print_machine(device)
    gain = float("nan")
    for size in sizes:
        if arguments.photos:
            photos = read(arguments.photos, size)
        else:
            photos = shapes(size) if arguments.images == "shapes" else digits(size)
        place = tempfile.mkdtemp(prefix="finetuner-")
        name = pretrained_vit(Path(place), size, device) if arguments.model == "vit" else arguments.model
        classes = sorted(set(photos.labels[photos.training]))
        found: dict[str, list[list[float]]] = defaultdict(list)
        for seed in seeds:
            groups = split(classes, part, seed)
            for setting in settings:
                model = tuned(name, setting, photos.dataset(groups[0], training=True), size, seed, device)
                row = [
                    value
                    for group in groups
                    for value in measured(model, photos.dataset(group, training=False), device)
                ]
                found[json.dumps(setting)].append(row)
                print(f"{size} px, seed {seed}, {setting or 'defaults'}: {np.round(row, 3).tolist()}", flush=True)
        print(f"\n{arguments.model}, {size} px, part {part}, {len(seeds)} seeds, mean and 95 % interval\n")
        columns = ("setting", "seen mAP@R", "seen recall@1", "unseen mAP@R", "unseen recall@1")
        print_table(
            columns,
            [
                (
                    name if name != "{}" else "defaults",
                    *(with_interval(list(column)) for column in zip(*rows, strict=True)),
                )
                for name, rows in found.items()
            ],
        )
        first, second = (np.mean(rows, axis=0) for rows in list(found.values())[:2])
        gain = min(second[0] - first[0], second[2] - first[2])
    print_headline("least_gain_of_the_second_setting", gain)


if __name__ == "__main__":
    main()
