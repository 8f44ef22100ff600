"""Turn documents into batches of model input.

datasets.py      datasets with class labels, with sessions, or without labels
hard_negatives.py further negatives for sessions, from what the model takes for similar
samplers.py      choose the items of each batch
content.py       load the content of an item from its document
fetches.py       fetch remote images in threads of their own
augmentation.py  augment images by albumentations, with a seed
cache.py         keep decoded images and features on disk
batches.py       turn contents into a batch, and a batch into model input
loader.py        make the batches of an epoch ahead of time
forward.py       compute the embeddings of a batch

May import models and the packages below it. `datasets.py` imports no torch, because the service uses it.
"""
