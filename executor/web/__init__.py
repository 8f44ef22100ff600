"""The executor's own HTTP door: one ASGI application over the endpoints, without Jina and docarray on the way.

app.py         the application: its routes, and who may use them
room.py        what is behind the door: a service in this process, or a Flow
routes.py      a route for each endpoint, `/watch`, health and metrics
calls.py       the documents and parameters of a request, from JSON, JSON lines, forms or raw images
pictures.py    documents as this door reads them
answers.py     answers and refusals as JSON
embeddings.py  `/v1/embeddings`
openapi.py     the description of all routes
bounds.py      how much a request may bring, and for how long
server.py      the server: its socket, its bounds, its end
ui/            the page

May import endpoints, `wire/token.py`, `wire/answering.py` and the layers below them, but not Jina.
"""
