"""The report of a run: one file that shows what the run learned.

contents.py           collect the contents: the trainer's part, and what the service adds when it has decided
report.py             what a report says, and how it is kept as JSON
parts.py              the small values in it, such as an interval or a picture with its caption
page.py               make the HTML page
gallery.py            choose the queries that are shown
classes.py            tell which classes got better or worse, and which are confused
advice.py             what to try when the model was not better
naming.py             what a document is called
charts.py             lay out the line charts
card.py               make the model card of an exported model
pictures.py           make the small pictures in the file
saving.py             write both files
report.html.jinja     the template of the page
macros.html.jinja     the parts of it that occur often
proof.html.jinja      its sections: the deciding metric,
measured.html.jinja   all metrics,
index.html.jinja      what to do with an index, and small vectors,
documents.html.jinja  classes,
labels.html.jinja     labels that may be wrong,
copies.html.jinja     copies,
training.html.jinja   the epochs,
found.html.jinja      and what queries find
style.css.jinja       its style

May import evaluation, store and the packages below them, but not torch: the service reads and completes reports.
"""
