"""What we add to Jina's servers and gateway: the token, refusals in one sentence, a graceful end.

token.py         the bearer token
origins.py       which pages may call
refusals.py      errors on the wire
answering.py     how a server of HTTP ends, without Jina
quiet.py         a refusal is one line of the log
limits.py        how much a client may send at a time, and how long it may take
ending.py        answers the requests under way when a process is told to end
siblings.py      a gateway ends when an executor of its Flow could not start
jina_private.py  every private part of Jina that we patch or read

May import errors, parameters and Jina.
"""
