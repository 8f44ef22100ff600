"""What runs in the trainer process, `python -m executor train`.

trainer.py        one run, from its spool to its model
run_documents.py  its documents, as they arrive, and the datasets that they become
decoding.py       each document tried once; what does not decode is quarantined
progress.py       what a trainer says of its run
checkpoints.py    a training as a folder, and back
command.py        the one way to start a process that trains
other_ranks.py    the processes of a run on several devices

May import training, report and what lies below them; no Jina.
"""
