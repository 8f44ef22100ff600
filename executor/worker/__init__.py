"""What runs in the trainer process, `python -m executor train`.

trainer.py        one run, from its spool to its model
conclusion.py     what follows a training: measuring, judging, saving
run_documents.py  its documents as they arrive, and the datasets made of them
decoding.py       tries each document once and quarantines those that do not decode
inspection.py     what else is seen of the documents: groups, odd tags
seen.py           which documents the version that a run starts from, or the one served, has seen
judgement.py      the proof against the served version, and what to know before trusting it
label_check.py    looks for wrong labels with the untrained and the tuned model
index_learning.py learns what an index needs when the model changes: a map, and how to make vectors small
reporting.py      writes the report, with what the options do not say: what `auto` became, which model it was
progress.py       what a trainer reports about its run
phases.py         its trace: a span of each phase and of each epoch
tracking.py       the history of a run for TensorBoard
time_left.py      how long a run takes after its last step
checkpoints.py    saves a training to a folder and loads it again
job.py            a trainer in the folder of a job
elsewhere.py      the service's trainer process where another command trains
job_folder.py     what the service puts into a job's folder
mirror.py         what the service reads of a job, and takes over in the end
command.py        the one way to start a process that trains
other_ranks.py    the further processes of a run on several devices

May import training, report and the layers below them; no Jina.
"""
