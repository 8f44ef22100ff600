"""The report of a run: one file that shows what the run learned.

contents.py           collect the contents: the trainer's part, and what the service adds when it has decided
report.py             the parts of a report, and how they are kept as JSON
page.py               make the HTML page
gallery.py            choose the queries that are shown
charts.py             lay out the line charts
pictures.py           make the small pictures in the file
saving.py             write both files
report.html.jinja     the template of the page

May import evaluation, store and the packages below them, but not torch: the service reads and completes reports.
"""
