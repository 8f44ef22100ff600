"""The model `small`: a small residual network with random weights, for pictures of few pixels and for tests."""

from torch import Tensor, nn

from .backbones import Backbone
from .preprocessing import Preprocessing


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions beside a shortcut (He et al. 2016, arXiv:1512.03385, figure 2)."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.last_norm = nn.BatchNorm2d(channels)
        self.residual = nn.Sequential(
            nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, 1, 1, bias=False),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.relu(self.shortcut(images) + self.last_norm(self.residual(images)), inplace=True)


class ResidualNetwork(nn.Sequential):
    """The backbone of `small`: (B, 3, H, W) float32, H and W at least 16 -> (B, 256) float32.

    A ResNet-18 of half the width with 2.8 million parameters. The first kernel is 3×3 because the images are small. The
    stem shrinks smaller images less, so that at least 2×2 positions remain at the end: in bf16 on a CPU, torch 2.13
    computes a wrong gradient for a convolution of stride 2 over a single position.
    Each block starts with its residual at half weight. Zero is usual, but then the untrained network sees little and
    learns more slowly. With one, the trained network separates unseen classes less well (0.23 instead of 0.32 mAP@R
    on generated textures of 64 pixels).

    Args: size: side of the images in pixels.
    """

    def __init__(self, size: int) -> None:
        widths = (32, 64, 128, 256)
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, widths[0], 3, 2 if size >= 32 else 1, 1, bias=False),
            nn.BatchNorm2d(widths[0]),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, 1) if size >= 64 else nn.Identity(),
        )
        for index, (before, width) in enumerate(zip(widths[:1] + widths, widths, strict=False)):
            stage = nn.Sequential(ResidualBlock(before, width, 2 if index else 1), ResidualBlock(width, width, 1))
            self.add_module(f"stage{index + 1}", stage)
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if isinstance(module, ResidualBlock):
                nn.init.constant_(module.last_norm.weight, 0.5)


def small_backbone(input_size: int | None) -> Backbone:
    """Return the small network with random weights, drawn from torch's generator."""
    preprocessing = Preprocessing().at(input_size)
    return Backbone(module=ResidualNetwork(preprocessing.size), preprocessing=preprocessing)
