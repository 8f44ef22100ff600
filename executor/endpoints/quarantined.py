"""`/quarantined`: the documents of a run that could not be used, each with the reason."""

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any

from ..documents import ERROR_TAG, Document
from ..errors import BadDocument
from ..images.policy import ImagePolicy
from ..images.reading import image_of
from ..parameters import QuarantinedParameters
from ..report.pictures import THUMBNAIL, data_uri
from ..store.spool import DocumentArrayMemmap
from .outward import outward_documents
from .service import Service


async def quarantined(service: Service, docs: Sequence[Document], wanted: QuarantinedParameters) -> list[Document]:
    """Return the quarantined documents of a run, each with the reason as `tags['finetuner_error']`.

    `uri` is a thumbnail, where there is a picture. `tags['number']` counts them; `tags['split']` is that of the
    document, or `train match` and `eval match`.

    Raises: UnknownRun.
    """
    return await asyncio.to_thread(_found, service, wanted)


def _found(service: Service, wanted: QuarantinedParameters) -> list[Document]:
    store = service.store
    run = store.get(wanted.run)
    answer = []
    with contextlib.ExitStack() as stack:
        spools: dict[str, DocumentArrayMemmap] = {}
        for number, split, found, is_spooled in store.problems_after(run.name, wanted.after, wanted.limit):
            doc = Document(id=found.document, tags={ERROR_TAG: found.reason, "number": number, "split": split})
            if is_spooled:
                side = split.split()[0]
                if side not in spools:
                    spool = DocumentArrayMemmap(store.workspace.spool_file(run.name), split=side)
                    spools[side] = stack.enter_context(spool)
                doc.uri = _thumbnail(spools[side], found.place, service.policy)
            answer.append(doc)
    outward_documents(answer, service.places)
    return answer


def _thumbnail(spool: DocumentArrayMemmap, place: str, policy: ImagePolicy) -> str | None:
    """Return the picture at a place of a spool; None: there is none that can be read, which may be why it is here."""
    root, _, number = place.partition(".")
    try:
        doc: Any = spool[int(root)]
        return data_uri(image_of(doc.matches[int(number) - 1] if number else doc, policy, min_size=THUMBNAIL))
    except (BadDocument, IndexError, ValueError):
        return None
