"""What is seen of a run's documents while they are decoded, beyond what they are trained on: groups, odd tags."""

import re
from collections import Counter
from typing import Any

from ..documents import LABEL_TAG, group_of, has_label
from ..evaluation.fingerprints import Fingerprint
from ..store.spool_rows import content_digest

# What people call a label where they do not know our tag.
_LIKELY = re.compile(r"(finetuner[_-]?)?(labels?|class(es)?|categor(y|ies)|target|y)(_?id|_?name)?", re.IGNORECASE)


class Inspection:
    """Gathered document by document, in the order of the spool."""

    def __init__(self) -> None:
        self.groups: list[str | None] = []  # the user's group of each document
        self.prints: list[Fingerprint | None] = []  # of each document; None: it cannot be used
        self.matches: list[list[bytes]] = []  # digests of the contents of each document's matches
        self.labelled = 0
        self.likely_labels: Counter[str] = Counter()  # other tags that look like labels, of documents without one

    def see(self, doc: Any) -> None:
        """Take in the next document."""
        self.groups.append(group_of(doc))
        self.matches.append([content_digest(match) for match in doc.matches])
        if has_label(doc) or doc.matches:
            self.labelled += 1
            return
        for name in doc.tags:
            if name != LABEL_TAG and _LIKELY.fullmatch(str(name)):
                self.likely_labels[str(name)] += 1

    def warnings(self) -> list[str]:
        """Sentences about what looks like a mistake, most important first."""
        return [
            f"{count} documents have tags[{name!r}] and no tags['{LABEL_TAG}'], the only tag that is read as a label: "
            + (
                "they were trained on without labels. "
                if not self.labelled
                else "they are not among the labelled ones. "
            )
            + f"If {name!r} is the label, send it as tags['{LABEL_TAG}']."
            for name, count in self.likely_labels.most_common()
        ]
