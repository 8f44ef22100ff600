"""Embeddings from the served version.

embedder.py   loads versions, decodes in a pool, embeds in batches
inference.py  how a version computes when it serves: fp32, bf16 or a graph, by measurement

May import training's `precision.py`, loading, models and what lies below; no Jina.
"""
