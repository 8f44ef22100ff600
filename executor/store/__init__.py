"""What is kept on the disk of a workspace, and how it gets there.

workspace.py   where things lie in a workspace folder, and what is removed when
run.py         a run: its states with the one table of legal moves, its options, its progress
runs.py        the runs of a workspace: states, progress, quarantine, events, which version is served
database.py    the SQLite file of the runs: schema, transactions, errors in words
spool.py       `DocumentArrayMemmap`: documents on disk, appended to while they are read
spool_file.py  the SQLite file below it: connections that survive threads and forks
sqlite.py      the one way to open a SQLite file
files.py       the one way to publish a file or a folder
lock.py        one service a workspace

May import documents, parameters and what lies below them; no torch, no Jina. Single writers: the service appends
documents and moves states; the trainer writes progress, events and its run's folder.
"""
