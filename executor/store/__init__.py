"""What a workspace keeps on disk, and how it is written.

workspace.py   where each file of a workspace is, and when it is removed
run.py         a run: its states, the one table of legal moves, its options, its progress
runs.py        the runs of a workspace: states, progress, quarantine, events, which version is served
database.py    the SQLite file of the runs: schema, transactions, readable errors
spool.py       `DocumentArrayMemmap`: documents on disk, readable while more are appended
proof_documents.py  the documents that prove the model of a run
spool_rows.py  one document as a row of it, and what makes two documents the same
spool_file.py  the SQLite file under it
connections.py its connections, which survive threads and forks and are few
sqlite.py      the one way to open a SQLite file
published.py   where the served version is published for readers, complete and with digests
files.py       the one way to publish a file or a folder
lock.py        one service per workspace

May import documents, parameters and the layers below them; no torch, no Jina. Only the service appends documents and
changes states; only the trainer reports progress and saves models. Both append events.
"""
