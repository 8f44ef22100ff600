"""What runs in the trainer process, `python -m executor train`.

trainer.py        one run, from its spool to its model
run_documents.py  its documents as they arrive, and the datasets made of them
decoding.py       tries each document once and quarantines those that do not decode
progress.py       what a trainer reports about its run
checkpoints.py    saves a training to a folder and loads it again
command.py        the one way to start a process that trains
other_ranks.py    the further processes of a run on several devices

May import training, report and the layers below them; no Jina.
"""
