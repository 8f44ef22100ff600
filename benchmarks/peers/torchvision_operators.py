"""Lets torchvision be imported beside another build of torch than its own, such as torch's CPU build.

Its compiled part does not load there, and then its import fails because two operators are not known. They are
declared here without an implementation; nothing that is measured calls them. Import this before torchvision.
"""

from torch import library, ops


def declare() -> None:
    """Declare the operators that are missing."""
    for name in ("nms", "qnms"):
        if not hasattr(ops.torchvision, name):
            library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


try:
    import torchvision  # noqa: F401
except RuntimeError:
    declare()
