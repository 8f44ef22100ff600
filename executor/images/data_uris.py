"""Decode `data:` uris (RFC 2397) and base64, in no more memory than a few times what comes of it."""

import binascii
from dataclasses import replace
from string import hexdigits

import numpy as np
import pybase64

from ..errors import BadDocument
from .decoding import is_encoded_image
from .policy import ImagePolicy, check_bytes
from .remote import shown

_WHITESPACE = b" \t\n\r\f\v"
_BLOCK = 1 << 20  # bytes that are percent-decoded at a time
_PERCENT = ord("%")
# The values of hexadecimal digits by their codes; 255 for other bytes.
_DIGITS = np.array([int(chr(code), 16) if chr(code) in hexdigits else 255 for code in range(256)], np.uint8)


def read_data_uri(uri: str, policy: ImagePolicy) -> bytes:
    """Decode a `data:` uri, base64 (also with line breaks) or percent-encoded.

    Raises: BadDocument: it is not valid, or has more than `max_image_bytes`, which is found before it is decoded.
    """
    header, comma, payload = uri.partition(",")
    if not comma:
        raise BadDocument(f"{shown(uri)} is not a valid data: uri; write data:image/jpeg;base64,…")
    encoded = payload.encode("utf-8", "surrogatepass")
    if not header.lower().endswith(";base64"):
        return percent_decoded(encoded, policy)
    if b"%" in encoded:
        encoded = percent_decoded(encoded, replace(policy, max_image_bytes=2 * policy.max_image_bytes + 1024))
    try:
        return _from_base64(encoded, policy)
    except binascii.Error as error:
        raise BadDocument(f"{shown(uri)} is not valid base64: {error}") from error


def without_base64(buffer: bytes, policy: ImagePolicy) -> bytes:
    """Decode the base64 that JSON clients send bytes in, also with line breaks; return any other bytes unchanged.

    Raises: BadDocument: it is base64 of more than `max_image_bytes`.
    """
    if is_encoded_image(buffer):
        return buffer
    try:
        return _from_base64(buffer, policy)
    except binascii.Error:
        return buffer  # not base64 either: the image decoder will say what is wrong


def percent_decoded(text: bytes, policy: ImagePolicy) -> bytes:
    """Replace each `%` with two hexadecimal digits by the byte that they stand for; leave others as they are.

    Raises: BadDocument: it has more than `max_image_bytes`.
    """
    check_bytes(len(text) - 2 * text.count(b"%"), policy)  # at least so many
    decoded = bytearray()
    start = 0
    while start < len(text):
        end = start + _BLOCK
        if end < len(text) and (cut := text.rfind(b"%", end - 2, end)) >= 0:
            end = cut  # an escape that the block would cut in two belongs to the next
        decoded += _block_decoded(text[start:end])
        check_bytes(len(decoded), policy)
        start = end
    return bytes(decoded)


def _block_decoded(block: bytes) -> bytes:
    codes = np.frombuffer(block, np.uint8)
    values = np.append(_DIGITS[codes], np.full(2, 255, np.uint8))
    high, low = values[1 : len(codes) + 1], values[2:]
    escapes = np.flatnonzero((codes == _PERCENT) & (high < 16) & (low < 16))
    decoded = codes.copy()
    decoded[escapes] = high[escapes] * 16 + low[escapes]
    kept = np.ones(len(codes), bool)
    kept[escapes + 1] = kept[escapes + 2] = False
    return decoded[kept].tobytes()


def _from_base64(text: bytes, policy: ImagePolicy) -> bytes:
    """Raises: binascii.Error: it is not base64. BadDocument: it is too large."""
    if any(space in text for space in _WHITESPACE):  # to look for it takes a tenth of the time of removing none
        text = text.translate(None, _WHITESPACE)
    digits = text.rstrip(b"=")
    check_bytes(len(digits) * 3 // 4, policy)
    return pybase64.b64decode(digits + b"=" * (-len(digits) % 4), validate=True)
