"""What users said of documents: sessions and labelled documents in SQLite, the latest word of each id.

A *word* is what one request says of one id. A later word of the same id replaces it: a correction, or a withdrawal. The
number of a word is higher than that of every word before it. So "all up to number N" is a snapshot, and what follows N
is news. Only the service writes here.
"""

import threading
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

from docarray.proto import DocProto

from ..documents import Document
from .database import Database
from .spool import StoredForm, restored

# As in database.py: never change a released step, add one. `taken`: whether a run was trained on an earlier word.
STEPS: tuple[tuple[str, ...], ...] = (
    (
        """CREATE TABLE words (
            number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, at REAL NOT NULL, sort TEXT NOT NULL,
            taken INTEGER NOT NULL, bytes INTEGER NOT NULL, document BLOB
        )""",
        "CREATE INDEX words_by_sort ON words (sort, number, bytes)",
        "CREATE TABLE takers (run INTEGER PRIMARY KEY, name TEXT NOT NULL, upto INTEGER NOT NULL, at REAL NOT NULL)",
        "CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL)",
        """CREATE TABLE automatic (
            number INTEGER PRIMARY KEY AUTOINCREMENT, run INTEGER NOT NULL UNIQUE, name TEXT NOT NULL,
            level REAL NOT NULL, began REAL NOT NULL, ended REAL, outcome TEXT, before TEXT,
            looks INTEGER NOT NULL DEFAULT 0
        )""",
    ),
    ("ALTER TABLE automatic ADD COLUMN before_run INTEGER",),  # a name may be given again, a number never is
    ("ALTER TABLE automatic ADD COLUMN begun INTEGER NOT NULL DEFAULT 0",),
)
WITHDRAWN = "withdrawn"
_PAGE = 100  # documents read at a time
_FEW = 20  # the same, where people look at them: pictures that they dropped may have megabytes each
_WORDS = "SELECT id, number, at, sort, document FROM words"
_DAY = 86_400.0


class Withdrawn(NamedTuple):
    """A word that takes back what was said of an id.

    Attributes: content: the digest of a document of an earlier run, which later runs shall leave out; empty: of none.
    """

    content: bytes = b""


class Rule(NamedTuple):
    """What is kept: at most so many documents and bytes, none older than so many days. The oldest words go first."""

    documents: int
    bytes: int
    days: float


class Kept(NamedTuple):
    """What is kept now.

    Attributes:
        total: documents, withdrawn ones not counted. sessions, labelled: of each sort.
        since: words after number `after` that say something new: withdrawals count if a run had taken what they
            withdraw.
        bytes: of the documents. oldest: seconds since the epoch; None: there are none.
        thinned: how many documents the rule has removed so far. last: the number of the latest word.
    """

    total: int
    sessions: int
    labelled: int
    since: int
    bytes: int
    oldest: float | None
    thinned: int
    last: int


class Word(NamedTuple):
    """The latest word of an id. Attributes: number: as said above. at: seconds since the epoch.

    document: None: it was withdrawn.
    """

    id: str
    number: int
    at: float
    document: Document | None


class Taker(NamedTuple):
    """A run that was trained on the words up to number `upto`. `run` is its number; `at`: seconds since the epoch."""

    run: int
    name: str
    upto: int
    at: float


class FeedbackStore:
    """The words of one workspace. Threads may share an instance. The file is created when it is first needed.

    Raises: WorkspaceError, from every method: the file cannot be used, or a newer version of this software wrote it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._opening = threading.Lock()
        self._opened: Database | None = None

    @property
    def database(self) -> Database:
        """The open file."""
        with self._opening:
            if self._opened is None:
                self._opened = Database(self.path, STEPS)
            return self._opened

    def close(self) -> None:
        """Close the file, if it was opened."""
        with self._opening:
            if self._opened is not None:
                self._opened.close()

    def put(self, words: Sequence[tuple[str, StoredForm | Withdrawn]], rule: Rule) -> None:
        """Store words durably, all or none, then thin what is kept. A word that says nothing new changes nothing.

        Args: words: the id of a document, and its form, or that it is withdrawn.
        """
        at = now()
        with self.database.transaction() as db:
            ((upto,),) = db.execute("SELECT coalesce(max(upto), 0) FROM takers")
            for id, form in words:
                found = db.execute("SELECT number, sort, document, taken FROM words WHERE id = ?", (id,)).fetchone()
                number, was, known, was_taken = found or (None, WITHDRAWN, None, 0)
                sort, payload = _stored(form)
                if _same(was, known, sort, payload):
                    continue
                is_trained_on = sort == WITHDRAWN and payload is not None  # by the run that the document is of
                taken = was_taken or is_trained_on or (number is not None and number <= upto)
                db.execute("DELETE FROM words WHERE id = ?", (id,))
                db.execute(
                    "INSERT INTO words (id, at, sort, taken, bytes, document) VALUES (?, ?, ?, ?, ?, ?)",
                    (id, at, sort, int(taken), len(payload or b""), payload),
                )
            self._thin(db, rule, at)

    def thin(self, rule: Rule) -> None:
        """Remove what the rule does not keep."""
        with self.database.transaction() as db:
            self._thin(db, rule, now())

    def kept(self, after: int = 0) -> Kept:
        """What is kept now. Args: after: the number of the word from which on `since` counts."""
        sorts = {
            sort: (count, size)
            for sort, count, size in self._rows("SELECT sort, count(*), sum(bytes) FROM words GROUP BY sort")
        }
        sessions, labelled = (sorts.get(sort, (0, 0)) for sort in ("sessions", "labelled"))
        ((since,),) = self._rows(
            "SELECT count(*) FROM words WHERE number > ? AND (sort != ? OR taken)", after, WITHDRAWN
        )
        first = "SELECT at FROM words WHERE sort != ? ORDER BY number LIMIT 1"
        ((oldest,),) = self._rows(first, WITHDRAWN) or [(None,)]
        ((thinned,),) = self._rows("SELECT value FROM counters WHERE name = 'thinned'") or [(0,)]
        return Kept(
            total=sessions[0] + labelled[0],
            sessions=sessions[0],
            labelled=labelled[0],
            since=since,
            bytes=sessions[1] + labelled[1],
            oldest=oldest,
            thinned=thinned,
            last=self.last(),
        )

    def last(self) -> int:
        """The number of the latest word."""
        return int(self._rows("SELECT coalesce(max(number), 0) FROM words")[0][0])

    def documents(self, after: int, upto: int) -> Iterator[Document]:
        """Iterate over the documents with a number above `after`, up to `upto`, oldest first, in constant memory."""
        query = "SELECT number, document FROM words WHERE number > ? AND number <= ? AND sort != ? ORDER BY number"
        while rows := self._rows(f"{query} LIMIT {_PAGE}", after, upto, WITHDRAWN):
            for number, payload in rows:
                after = number
                yield restored(payload)

    def latest_documents(self, after: int) -> Iterator[Document]:
        """Iterate over the documents with a number above `after`, newest first, in constant memory."""
        query = "SELECT number, document FROM words WHERE number > ? AND number < ? AND sort != ? ORDER BY number DESC"
        last = 2**62
        while rows := self._rows(f"{query} LIMIT {_PAGE}", after, last, WITHDRAWN):
            for number, payload in rows:
                last = number
                yield restored(payload)

    def latest(self, id: str) -> Document | Withdrawn | None:
        """The latest word of an id; None: nothing was said of it."""
        rows = self._rows("SELECT sort, document FROM words WHERE id = ?", id)
        if not rows:
            return None
        sort, payload = rows[0]
        return Withdrawn(payload or b"") if sort == WITHDRAWN else restored(payload)

    def ids(self) -> set[str]:
        """All ids of which something was said, withdrawn ones included."""
        return {id for (id,) in self._rows("SELECT id FROM words")}

    def words(self, ids: Sequence[str]) -> Iterator[Word]:
        """Iterate over the latest words of those of these ids that are known, in constant memory."""
        for start in range(0, len(ids), _FEW):
            some = ids[start : start + _FEW]
            marks = ", ".join("?" * len(some))
            yield from map(_word, self._rows(f"{_WORDS} WHERE id IN ({marks})", *some))

    def latest_words(self, before: int | None, limit: int) -> Iterator[Word]:
        """Iterate over the latest words, newest first. Args: before: only those before the word with this number."""
        last = 2**62 if before is None else before
        while limit > 0 and (
            rows := self._rows(f"{_WORDS} WHERE number < ? ORDER BY number DESC LIMIT ?", last, min(limit, _FEW))
        ):
            yield from map(_word, rows)
            last, limit = rows[-1][1], limit - len(rows)

    def words_after(self, number: int) -> Iterator[Word]:
        """Iterate over the words after a number, oldest first."""
        while rows := self._rows(f"{_WORDS} WHERE number > ? ORDER BY number LIMIT ?", number, _FEW):
            yield from map(_word, rows)
            number = rows[-1][1]

    # the runs that were trained on it -----------------------------------------------------------------------------

    def take(self, run: int, name: str, upto: int) -> None:
        """Note that a run is trained on the words up to a number. Doing it again changes nothing."""
        with self.database.transaction() as db:
            db.execute("INSERT OR IGNORE INTO takers VALUES (?, ?, ?, ?)", (run, name, upto, now()))

    def takers(self) -> list[Taker]:
        """The runs that were trained on feedback, newest first."""
        return [Taker(*row) for row in self._rows("SELECT run, name, upto, at FROM takers ORDER BY run DESC")]

    def give_back(self, run: int) -> None:
        """Forget a run that came to nothing: what it had taken is news again."""
        with self.database.transaction() as db:
            db.execute("DELETE FROM takers WHERE run = ?", (run,))

    # ----------------------------------------------------------------------------------------------------------------

    def _rows(self, query: str, *arguments: Any) -> list[tuple[Any, ...]]:
        return self.database.rows(query, *arguments)

    def _thin(self, db: Any, rule: Rule, at: float) -> None:
        oldest = at - rule.days * _DAY
        db.execute("DELETE FROM words WHERE sort = ? AND at < ?", (WITHDRAWN, oldest))
        gone = db.execute("DELETE FROM words WHERE at < ?", (oldest,)).rowcount
        ((total, size),) = db.execute(
            "SELECT count(*), coalesce(sum(bytes), 0) FROM words WHERE sort != ?", (WITHDRAWN,)
        )
        while total > rule.documents or size > rule.bytes:
            query = "SELECT number, bytes FROM words WHERE sort != ? ORDER BY number LIMIT 1"
            number, taken = db.execute(query, (WITHDRAWN,)).fetchone()
            db.execute("DELETE FROM words WHERE number = ?", (number,))
            total, size, gone = total - 1, size - taken, gone + 1
        if gone:
            db.execute(
                "INSERT INTO counters VALUES ('thinned', ?1) ON CONFLICT (name) DO UPDATE SET value = value + ?1",
                (gone,),
            )


def _word(row: tuple[Any, ...]) -> Word:
    id, number, at, sort, payload = row
    return Word(id, number, at, None if sort == WITHDRAWN or payload is None else restored(payload))


def now() -> float:
    """The current time in seconds since the epoch: what is kept here is older than any process."""
    return datetime.now(timezone.utc).timestamp()


def iso(seconds: float) -> str:
    """Return a time, in seconds since the epoch, as ISO 8601 in UTC."""
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="milliseconds")


def _stored(form: StoredForm | Withdrawn) -> tuple[str, bytes | None]:
    """The sort of a word, and what is kept of it: a document, or of a withdrawal the digest of one, if it has one."""
    if isinstance(form, Withdrawn):
        return WITHDRAWN, form.content or None
    return "sessions" if form.matches else "labelled", form.payload


def _same(was: str, known: bytes | None, sort: str, said: bytes | None) -> bool:
    """Whether two words say the same. The order of tags is no difference."""
    if WITHDRAWN in (was, sort) or known is None or said is None:
        return (was, known) == (sort, said)
    return known == said or canonical(DocProto.FromString(known)) == canonical(DocProto.FromString(said))


def canonical(document: DocProto) -> bytes:
    """Return what a document says: equal bytes for equal words, whatever ids its matches were given on the way."""
    for match in document.data["matches"].doc_array.docs:
        match.data.pop("id", None)
    said: bytes = document.SerializeToString(deterministic=True)
    return said
