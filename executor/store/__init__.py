"""What a workspace keeps on disk, and how it is written.

workspace.py   where each file of a workspace is, and when it is removed
run.py         a run: its states, the one table of legal moves, its options, its progress
moves.py       the trace of a run: a span of each state that it was in
runs.py        the runs of a workspace: states, progress, quarantine, events, which version is served
database.py    a SQLite file of a workspace: schema, transactions, readable errors
feedback.py    what users said of documents: sessions and labels, the latest word of each id
cache.py       thumbnails and other bytes that can be made again, bounded
chunks.py      things in lists that are neither long nor large
spool.py       `DocumentArrayMemmap`: documents on disk, readable while more are appended
proof_documents.py  the documents that prove the model of a run
lineage.py     what a version has seen: what it was trained on, what proved it
budget.py      the automatic runs, and what each has taken of their shared budget of false promotions
spool_rows.py  one document as a row of it, and what makes two documents the same
spool_file.py  the SQLite file under it
connections.py its connections, which survive threads and forks and are few
sqlite.py      the one way to open a SQLite file
job.py         the folder of a run that another command trains: plain files, no SQLite file that is shared
exchange.py    such a folder on an object store, with a copy on the disk of each side
job_store.py   the store of a process that trains in such a folder
published.py   where the served version is published for readers, complete and with digests
files.py       the one way to publish a file or a folder
lock.py        one service per workspace

May import documents, parameters and the layers below them; no torch, no Jina. Only the service appends documents and
changes states; only the trainer reports progress and saves models. Both append events.
"""
