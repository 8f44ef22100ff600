"""What Jina's servers and gateway must be taught: the token, refusals in a sentence, a graceful end.

token.py         the bearer token
refusals.py      errors on the wire
ending.py        requests under way are answered when a process is told to end
jina_private.py  every private part of Jina that is patched or read

May import errors, parameters and Jina.
"""
