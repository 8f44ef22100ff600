"""Compute embeddings with the served version.

embedder.py   load versions, let callers in
pipeline.py   fetch, decode, embed in batches, callers in turn
stages.py     the stages of a call, for its trace
publishing.py keep what is published for readers equal to what is served
following.py  bring, load and serve what a writer publishes
comparing.py  compare two versions on later feedback
comparisons.py  two versions on the same documents, measured in the background and kept
gallery.py    which places may be galleries
galleries.py  galleries page by page: folders, parquet files, documents of runs
gallery_places.py where galleries may be
neighbours.py the embeddings of galleries, computed once and kept, and the nearest pictures
thumbnails.py small pictures, made once and kept
content_keys.py what tells the content of one document from that of another
suggesting.py which documents to label next
inference.py  measure whether a version is served in fp32, in bf16 or by a graph
stored.py     map a parquet file of stored vectors into the space of another version
spaces.py     convert embeddings: into the space of another version, shortened, encoded

May import training's `precision.py`, evaluation, loading, models and the packages below them, but not Jina.
"""
