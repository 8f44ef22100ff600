"""Forms of pictures that are not read here, known by their first bytes, so that their sender is told which it is."""

CURE = "of a form that is not read here; convert it, to JPEG for instance"
_AVIF = (b"avif", b"avis")
_HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


def unread_form(data: bytes) -> str | None:
    """Return `HEIC` or `AVIF` if a file is one of these, else None. Both begin with a list of brands (ISO 23008-12)."""
    if data[4:8] != b"ftyp":
        return None
    end = min(int.from_bytes(data[:4], "big"), 256)
    brands = [bytes(data[8:12]), *(bytes(data[start : start + 4]) for start in range(16, end, 4))]
    if any(brand in _AVIF for brand in brands):
        return "AVIF"
    return "HEIC" if any(brand in _HEIC for brand in brands) else None
