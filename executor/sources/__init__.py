"""Where pictures come from: folders, tables, datasets and lists, each read row by row and never as a whole.

opening.py     from what a user names to its reader
rows.py        a row: a document, or why there is none; and the columns of a table
folders.py     a folder of class folders, or of pictures
tables.py      CSV, TSV and parquet files
datasets.py    datasets of Hugging Face, as `save_to_disk` leaves them
lists.py       a text file with a uri in each line

A reader opens no picture. It yields the rows in the same order each time.

May import docarray_private, documents, errors.
"""

from .opening import column_names, documents, rows
from .rows import Columns, Row

__all__ = ["Columns", "Row", "column_names", "documents", "rows"]
