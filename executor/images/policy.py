"""What images may be read from where, and how much of them."""

import functools
import os
from dataclasses import dataclass

from ..errors import BadDocument


@dataclass(frozen=True, kw_only=True)
class ImagePolicy:
    """What may be read, and how much of it.

    Attributes:
        allowed_roots: Directories that a path may lie in; None allows every path.
        allow_remote_uris: Whether http and https uris are fetched (from public addresses only).
        max_image_bytes: Largest encoded image.
        max_image_pixels: Largest image once decoded, width × height.
        remote_timeout: Seconds for one whole fetch.
    """

    allowed_roots: tuple[str, ...] | None = None
    allow_remote_uris: bool = True
    max_image_bytes: int = 32 * 1024 * 1024
    max_image_pixels: int = 64_000_000
    remote_timeout: float = 10.0

    @functools.cached_property
    def resolved_roots(self) -> tuple[str, ...] | None:
        """The allowed roots without symbolic links, as they were when first asked for."""
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
