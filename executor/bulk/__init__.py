"""Embedding a whole corpus into a parquet file, in parts that survive an interruption.

embedding.py rows in, finished parts out: the pipeline, and the class that embeds with a version of a workspace
parts.py     the parts of an output, and how they become one file
on_ray.py    the same on Ray Data, with a pool of actors

May import serving and the layers below it.
"""
