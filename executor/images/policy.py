"""Which files and addresses may be read, and how large an image may be."""

import functools
import os
from dataclasses import dataclass

from ..errors import BadDocument

EMPTY = "The file is empty: it has 0 bytes"


@dataclass(frozen=True, kw_only=True)
class ImagePolicy:
    """Which files and addresses may be read, and how large an image may be.

    Attributes:
        allowed_roots: Directories whose files may be read; None allows every path.
        allow_remote_uris: Whether http and https uris are fetched (from public addresses only).
        remote_prefixes: What lies below them is fetched through fsspec, such as `s3://bucket/folder/`.
        max_image_bytes: Limit for an encoded image.
        max_image_pixels: Limit for a decoded image, width × height.
        max_decoding_bytes: Memory that all decoding in this process may take at one time, half of it for images that
            take more than 64 MiB each. Of images that need more than that half, one is decoded at a time.
        remote_timeout: Seconds that a whole fetch may take.
    """

    allowed_roots: tuple[str, ...] | None = None
    allow_remote_uris: bool = True
    remote_prefixes: tuple[str, ...] = ()
    max_image_bytes: int = 32 * 1024 * 1024
    max_image_pixels: int = 64_000_000
    max_decoding_bytes: int = 512 * 1024 * 1024
    remote_timeout: float = 10.0

    @functools.cached_property
    def resolved_roots(self) -> tuple[str, ...] | None:
        """The allowed roots with symbolic links resolved; resolved once, at the first use."""
        return None if self.allowed_roots is None else tuple(map(os.path.realpath, self.allowed_roots))


DEFAULT_POLICY = ImagePolicy()


def check_bytes(size: int, policy: ImagePolicy) -> None:
    if size > policy.max_image_bytes:
        raise BadDocument(
            f"The image has {size} bytes, max_image_bytes allows {policy.max_image_bytes}; "
            "send a smaller file or raise the option max_image_bytes"
        )


def check_pixels(width: int, height: int, policy: ImagePolicy) -> None:
    if width * height > policy.max_image_pixels:
        raise BadDocument(
            f"The image has {width}×{height} pixels, max_image_pixels allows {policy.max_image_pixels}; "
            "send a smaller image or raise the option max_image_pixels"
        )
