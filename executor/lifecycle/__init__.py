"""The life of a run: received, queued, trained, judged.

receiving.py   takes documents into a run, and knows when it is complete
sizes.py       what a document takes, in documents and bytes
norms.py       refuses parts of one image where a batch norm needs two
sources.py     copies documents of earlier runs, and feedback, into a run
feedback.py    takes in what users say of documents
retraining.py  starts runs by itself, and undoes promotions that were wrong
deadlines.py   when a run has waited long enough for further documents
supervisor.py  one trainer at a time: start, watch, resume, cancel, judge
watchdog.py    notices a trainer that hangs
promotion.py   whether the model of a run that has succeeded is served, and what the verdict says of that
processes.py   trainer processes, one of them started in advance, or one that has another command train
status.py      what a client is told about a run

May import worker's `command.py`, report, loading's `datasets.py`, store and the layers below; no torch, no Jina.
"""
