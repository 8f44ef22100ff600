"""Compute embeddings with the served version.

embedder.py   load versions, let callers in
pipeline.py   fetch, decode, embed in batches, callers in turn
publishing.py keep what is published for readers equal to what is served
following.py  bring, load and serve what a writer publishes
inference.py  measure whether a version is served in fp32, in bf16 or by a graph

May import training's `precision.py`, loading, models and the packages below them, but not Jina.
"""
