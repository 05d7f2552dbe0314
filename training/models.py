"""The AlexNet family.

Shape suffixes of tensors: n samples, c channels, h and w pixels, k classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from training.extras import import_torchvision_models

if TYPE_CHECKING:
    from training.config import ModelConfig


def build_model(config: ModelConfig, num_classes: int) -> nn.Module:
    """Make an untrained network; its weights come from torch's global generator, so seed that first.

    Args:
        config: Which, how wide, how much dropout.
        num_classes: Outputs of the head.

    Returns:
        A module from ``(N, 3, H, W)`` normalised float images to ``(N, K)`` logits.

    Raises:
        MissingExtraError: The architecture needs torchvision, which is missing or built for another torch.
    """
    if config.architecture == "alexnet":
        torchvision_alexnet = import_torchvision_models().alexnet
        model: nn.Module = torchvision_alexnet(weights=None, num_classes=num_classes, dropout=config.dropout)
        return model
    if config.architecture == "alexnet-bn":
        return AlexNetBN(num_classes, dropout=config.dropout)
    return AlexNet64(num_classes, width=config.width, dropout=config.dropout)


def channels_last(model: nn.Module) -> nn.Module:
    """Lay out weights with the channels last, in which convolutions are faster; returns the same network."""
    # torch before 2.12 leaves the argument out of its own types.
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload,unused-ignore]
    return model


def conv_block(channels_in: int, channels_out: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """Convolution that keeps the size (before its stride), batch norm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, kernel, stride=stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(inplace=True),
    )


class AlexNet64(nn.Module):
    """AlexNet's five convolutions for crops of about 64 pixels, with batch norm and a head on pooled features.

    Args:
        num_classes: Outputs.
        width: Scales all channels; 1 gives 64-192-384-256-256.
        dropout: In front of the linear layer.
    """

    def __init__(self, num_classes: int, *, width: float = 1.0, dropout: float = 0.3) -> None:
        super().__init__()
        c1, c2, c3, c4, c5 = (max(8, round(width * channels / 8) * 8) for channels in (64, 192, 384, 256, 256))
        self.features = nn.Sequential(
            conv_block(3, c1, 5, stride=2),
            nn.MaxPool2d(3, stride=2, padding=1),
            conv_block(c1, c2, 3),
            nn.MaxPool2d(3, stride=2, padding=1),
            conv_block(c2, c3, 3),
            conv_block(c3, c4, 3),
            conv_block(c4, c5, 3),
        )
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(2 * c5, num_classes)
        initialise(self)

    def forward(self, images_nchw: Tensor) -> Tensor:
        """Logits of shape ``(N, K)``; any size from 8 pixels up."""
        features_nchw = self.features(images_nchw)
        pooled_nc = pool_both(features_nchw)
        logits_nk: Tensor = self.head(self.dropout(pooled_nc))
        return logits_nk


class AlexNetBN(nn.Module):
    """AlexNet with batch norm instead of local response normalisation, for 224 pixels.

    Args:
        num_classes: Outputs.
        dropout: In front of the first two linear layers.
    """

    def __init__(self, num_classes: int, *, dropout: float = 0.2) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 64, 11, stride=4, padding=2, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2),
            conv_block(64, 192, 5),
            nn.MaxPool2d(3, stride=2),
            conv_block(192, 384, 3),
            conv_block(384, 256, 3),
            conv_block(256, 256, 3),
            nn.MaxPool2d(3, stride=2),
            nn.AdaptiveAvgPool2d(6),
        )
        self.classifier = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(256 * 6 * 6, 4096, bias=False),
            nn.BatchNorm1d(4096),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(4096, 4096, bias=False),
            nn.BatchNorm1d(4096),
            nn.ReLU(inplace=True),
        )
        self.head = nn.Linear(4096, num_classes)
        initialise(self)

    def forward(self, images_nchw: Tensor) -> Tensor:
        """Logits of shape ``(N, K)``; at least 64 pixels."""
        logits_nk: Tensor = self.head(self.classifier(self.features(images_nchw).flatten(1)))
        return logits_nk


def pool_both(features_nchw: Tensor) -> Tensor:
    """Average and maximum over all places, side by side: ``(N, 2 C)``."""
    return torch.cat([features_nchw.mean(dim=(2, 3)), features_nchw.amax(dim=(2, 3))], dim=1)


def initialise(model: nn.Module) -> None:
    """He's normal initialisation for convolutions and hidden layers, a small one for the head."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            if name == "head":
                nn.init.normal_(module.weight, std=0.01)
            else:
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
