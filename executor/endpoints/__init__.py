"""Each endpoint, written once for every door: a function of the service, documents and typed parameters.

table.py     every endpoint with its parameters
service.py   what every door serves: a workspace and everything that works on it
reader.py    what embeds with published versions: `role: serve`
runs.py      `/fit` `/status` `/watch` `/cancel` `/delete` `/promote` `/events` `/report`
embed.py     `/embed`
evaluate.py  `/evaluate`
compare.py   `/compare`
health.py    whether the service can answer
measures.py  its figures, for Prometheus
quarantined.py  `/quarantined`
outward.py   messages without the places of the server
feedback.py  `/feedback`
suggest.py   `/suggest`
gallery.py   `/galleries` `/gallery` `/thumbnails` `/neighbours`
words.py     `/words` `/labels`
gathering.py sets of documents that arrive in several requests

May import lifecycle, serving and the layers below them; no Jina, because a door decodes requests and encodes answers.
"""
