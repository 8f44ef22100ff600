"""A document's image as H×W×3 uint8 RGB, from wherever it is, and what may be read at all.

reading.py   the image of a document, from its uri, its bytes or its array
policy.py    what may be read from where, and how much of it
uris.py      the bytes behind a path, `file://`, `http(s)://` or `data:`
remote.py    fetching over http(s) without a way into the private network
decoding.py  encoded images: JPEG, PNG, WebP, GIF, BMP, TIFF
arrays.py    arrays of any usual form

May import errors alone.
"""
