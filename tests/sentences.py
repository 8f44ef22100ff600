"""Checks what a caller is told: short, complete, and in words that a caller knows."""

import re

LEAKS = ("Traceback", 'File "', "site-packages", ".py", "user_module", "object at 0x", "\n")


def assert_plain(message: str, *words: str) -> None:
    """Check that a message is short, whole and a caller's, and that it has all `words`."""
    assert 0 < len(message) < 800, message
    assert len(re.findall(r"[.!?](?= [A-Z])", message)) <= 2, f"more than three sentences: {message}"
    assert not [leak for leak in LEAKS if leak in message], message
    assert not [word for word in words if word not in message], message
