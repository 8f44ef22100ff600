"""From documents to batches of a model's input.

datasets.py      class, session and unlabeled data
samplers.py      which items make which batch
content.py       how a document becomes the content of an item
augmentation.py  albumentations, seeded
cache.py         decoded images and features that are kept
batches.py       contents to a batch, a batch to a model's input
loader.py        the batches of an epoch, made ahead
forward.py       from a batch through a model to embeddings

May import models and what lies below it. `datasets.py` is used by the service and imports no torch.
"""
