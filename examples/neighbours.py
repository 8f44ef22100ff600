"""One picture of query images and their nearest neighbours by two models."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from executor import DocumentArray, load_uri_to_image_blob

NEIGHBOURS = 6
SHOWN_CLASSES = 12
TILE, GAP, BORDER, MARGIN, TOP = 56, 12, 4, 28, 104
WHITE, INK, GREY, RED, GREEN = "#ffffff", "#1f2328", "#6e7781", "#d1242f", "#2da44e"


def draw_neighbours(path: Path, before: DocumentArray, after: DocumentArray) -> Path:
    """Draw a query of each of the first classes and its neighbours, framed green if of the same class, else red.

    Args: before, after: the same labelled documents, embedded by two models.
    """
    labels = np.array([doc.tags["finetuner_label"] for doc in before])
    queries = [int(np.argmax(labels == label)) for label in np.unique(labels)[:SHOWN_CLASSES]]
    step = TILE + GAP
    lefts = MARGIN + step + GAP * 2, MARGIN + step * (NEIGHBOURS + 1) + GAP * 5
    picture = Image.new("RGB", (lefts[1] + step * NEIGHBOURS - GAP + MARGIN, TOP + step * len(queries) + MARGIN), WHITE)
    draw = ImageDraw.Draw(picture)
    draw.text((MARGIN, 24), "Nearest neighbours of held-out images", INK, ImageFont.load_default(24))
    draw.text((MARGIN, TOP - 30), "query", GREY, ImageFont.load_default(16))
    for row, query in enumerate(queries):
        paste(picture, before[query], MARGIN, TOP + row * step, GREY)
    for left, docs, when in zip(lefts, (before, after), ("before", "after fine-tuning"), strict=True):
        right = 0
        for row, query in enumerate(queries):
            for column, found in enumerate(nearest(docs, query)):
                same = labels[found] == labels[query]
                right += same
                paste(picture, docs[found], left + column * step, TOP + row * step, GREEN if same else RED)
        heading = f"{when}: {right} of {len(queries) * NEIGHBOURS} are of the query's class"
        draw.text((left, TOP - 30), heading, GREY, ImageFont.load_default(16))
    picture.save(path)
    return path


def nearest(docs: DocumentArray, query: int) -> np.ndarray:
    """The documents most similar to one of them, nearest first."""
    embeddings = np.stack([doc.embedding for doc in docs])  # (N, D), of unit length
    similarity = embeddings @ embeddings[query]
    similarity[query] = -np.inf
    return np.argsort(-similarity)[:NEIGHBOURS]


def paste(picture: Image.Image, doc: object, left: int, top: int, colour: str) -> None:
    """Put the image of a document into the picture, with a frame."""
    image = Image.fromarray(load_uri_to_image_blob(doc)).resize((TILE - 2 * BORDER, TILE - 2 * BORDER))
    ImageDraw.Draw(picture).rounded_rectangle((left, top, left + TILE - 1, top + TILE - 1), BORDER, colour)
    picture.paste(image, (left + BORDER, top + BORDER))
