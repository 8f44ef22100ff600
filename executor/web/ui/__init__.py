"""The page at `/ui/`: to watch, compare, label and decide. A client of the endpoints, as any other.

app.py      the application: its routes, and what every one of them needs
page.py     what the pages share: the room, the templates, calls, forms
guard.py    who may see it: sessions, the guard of every change, the headers of every answer
static.py   its stylesheet and scripts
words.py    what is meant, in plain words
live.py     the runs as they change, for all open pages together
runs.py     what is served, trains, waits and has ended
compare.py  two versions on the same pictures, and which to serve
run.py      one run: how it stands, its report, its history, its labels
actions.py  starting, cancelling, deleting and promoting, each after a question
start.py    a run on documents that are there already
enter.py    the token
label.py    which neighbours of a picture fit, and what it shows
suggest.py  which pictures to label next
train.py    a run on what was said, and what that can prove
pictures.py how an address names a picture, its thumbnail, the document behind it
sayings.py  what a person says of pictures, and how it is kept

Each page is a module with `routes(page)`, which `app.py` collects. `templates/` has a file for each page over
`base.html.jinja`; `static/` one stylesheet and small scripts. There is no inline script or style: the content security
policy allows none. May import what `web` may.
"""
