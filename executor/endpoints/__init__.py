"""Each endpoint once, for every door: a function of the service, documents and typed parameters.

table.py     every endpoint with its parameters
service.py   what every door serves: a workspace and all that works on it
runs.py      `/fit` `/status` `/watch` `/cancel` `/delete` `/promote` `/events` `/report`
embed.py     `/embed`
evaluate.py  `/evaluate`

May import lifecycle, serving and what lies below them; no Jina: a door decodes, calls and encodes.
"""
