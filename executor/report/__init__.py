"""The report of a run: what it learned, in one file.

contents.py           what goes into it, by the trainer, and what the service adds when it has decided
report.py             its parts, and how they are kept as JSON
page.py               the HTML page
gallery.py            which queries are shown
charts.py             line charts
pictures.py           pictures, small and within the file
saving.py             both files
report.html.jinja     the template of the page

May import evaluation, store and what lies below them; no torch: the service reads and settles reports.
"""
