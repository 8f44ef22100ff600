"""Make it possible to import torchvision with another build of torch than its own, such as torch's CPU build.

With such a build torchvision's compiled part does not load, and the import fails because two operators are unknown. We
declare them here without an implementation; the benchmarks never call them. Import this module before torchvision.
"""

from torch import library, ops


def declare() -> None:
    """Declare the missing operators."""
    for name in ("nms", "qnms"):
        if not hasattr(ops.torchvision, name):
            library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


try:
    import torchvision  # noqa: F401
except RuntimeError:
    declare()
