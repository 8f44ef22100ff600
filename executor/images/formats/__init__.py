"""What the pixels of a file need, and what they will cost, found before a codec sees the file.

Each format has a function that walks through the structure of a file in Python, over headers and not over pixels. It
leaves out comments, texts, colour profiles, thumbnails and further frames, so that these can neither spoil a picture
nor cost anything. And it refuses what would keep a codec busy for minutes.

stored.py  what is found: the file without its metadata, its size, which way up it is, the memory it takes
jpeg.py    segments and scans
png.py     chunks
webp.py    chunks, and the first frame
gif.py     blocks before the first frame
bmp.py     the header
tiff.py    the first directory, strips and tiles
unread.py  forms that are not read, by their first bytes

May import only errors.
"""
