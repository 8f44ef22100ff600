"""Read a document's image as H×W×3 uint8 RGB, from the places that the operator allows.

reading.py      the image of a document, from its uri, its bytes or its array
policy.py       which files and addresses may be read, and how large an image may be
uris.py         read the bytes behind a path, `file://`, `http(s)://` or `data:`
files.py        read a file below an allowed root, and never one outside
data_uris.py    decode `data:` uris and base64
remote.py       fetch over http(s), but never from the private network
object_store.py read objects such as s3://… through fsspec, below the prefixes that are allowed
decoding.py     decode JPEG, PNG, WebP, GIF, BMP and TIFF
formats/        what the pixels of a file need, and what they will cost
orientation.py  which way up a picture is
budget.py       what decoding may cost: memory over all threads, time for each picture
libtiff.py      keep it from writing to standard error
thumbnails.py   small pictures of pictures
arrays.py       turn arrays of the usual shapes and types into images

May import only errors.
"""
