"""Read a document's image as H×W×3 uint8 RGB, from the places that the operator allows.

reading.py   the image of a document, from its uri, its bytes or its array
policy.py    which files and addresses may be read, and how large an image may be
uris.py      read the bytes behind a path, `file://`, `http(s)://` or `data:`
remote.py    fetch over http(s), but never from the private network
object_store.py  read objects such as s3://… through fsspec, below the prefixes that are allowed
decoding.py  decode JPEG, PNG, WebP, GIF, BMP and TIFF
arrays.py    turn arrays of the usual shapes and types into images

May import only errors.
"""
