"""What happens to a batch of pictures on the device: crops, flips, colour, erasing, mixing, normalisation.

Every function is batched, and takes its randomness as an argument: row ``i`` of ``draws`` holds the numbers of sample
``i``, made by :func:`training.order.uniforms`. Evaluation uses :func:`evaluation_batch` and draws nothing.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from torch import Tensor

    from training.config import AugmentConfig

MEAN: Final = (0.485, 0.456, 0.406)
STD: Final = (0.229, 0.224, 0.225)
"""Mean and standard deviation of ImageNet's red, green and blue, in units of full scale."""

NUM_DRAWS: Final = 17
"""Columns of ``draws``: 0-4 crop and flip, 5-7 colour, 8-12 erasing, 13-16 mixing."""


def normalise(images: Tensor) -> Tensor:
    """Bring values in 0..255 to zero mean and unit variance per channel.

    Args:
        images: Shape ``(n, 3, height, width)``, floating point.
    """
    mean = torch.tensor(MEAN, dtype=images.dtype, device=images.device).view(1, 3, 1, 1) * 255
    std = torch.tensor(STD, dtype=images.dtype, device=images.device).view(1, 3, 1, 1) * 255
    return (images - mean) / std


def denormalise(images: Tensor) -> Tensor:
    """Undo :func:`normalise`, for pictures meant to be looked at; uint8, clipped."""
    mean = torch.tensor(MEAN, dtype=images.dtype, device=images.device).view(1, 3, 1, 1) * 255
    std = torch.tensor(STD, dtype=images.dtype, device=images.device).view(1, 3, 1, 1) * 255
    return (images * std + mean).round().clamp(0, 255).to(torch.uint8)


def evaluation_batch(pixels: Tensor, size: int) -> Tensor:
    """Cut the centre and normalise; nothing random.

    Args:
        pixels: Shape ``(n, side, side, 3)``, uint8.
        size: Side of the centre crop, at most ``side``.

    Returns:
        Shape ``(n, 3, size, size)``, float32.
    """
    margin = (pixels.shape[1] - size) // 2
    centre = pixels[:, margin : margin + size, margin : margin + size]
    return normalise(centre.permute(0, 3, 1, 2).to(torch.float32))


def training_batch(pixels: Tensor, draws: Tensor, config: AugmentConfig, *, size: int, erase: bool = True) -> Tensor:
    """Random crop and flip, colour, normalisation and erasing, each sample with its own draws.

    Args:
        pixels: Shape ``(n, side, side, 3)``, uint8.
        draws: Shape ``(n, NUM_DRAWS)``, float32 in [0, 1).
        config: Strength of each.
        size: Side of the result.
        erase: False leaves erasing out.

    Returns:
        Shape ``(n, 3, size, size)``, float32.
    """
    images = pixels.permute(0, 3, 1, 2).to(torch.float32)
    images = functional.grid_sample(
        images, crop_grid(draws[:, :5], config, size), mode="bilinear", padding_mode="reflection", align_corners=False
    )
    if config.jitter:
        images = jitter_colours(images, draws[:, 5:8], config.jitter)
    images = normalise(images)
    if erase and config.erase:
        images = erase_rectangles(images, draws[:, 8:13], config.erase)
    return images


def crop_grid(draws: Tensor, config: AugmentConfig, size: int) -> Tensor:
    """Sampling grid of random-resized crops with flips.

    Args:
        draws: Shape ``(n, 5)``: area, aspect, horizontal place, vertical place, flip.
        config: ``min_area``, ``max_aspect`` and ``flip`` are used.
        size: Side of the result.

    Returns:
        Shape ``(n, size, size, 2)`` with x, y in [-1, 1].
    """
    area = config.min_area + (1 - config.min_area) * draws[:, 0]
    log_aspect = (2 * draws[:, 1] - 1) * math.log(config.max_aspect)
    # An elongated crop of nearly full area would leave the picture: its longer side is cut to fit.
    width = (area * log_aspect.exp()).sqrt().clamp(max=1)
    height = (area * (-log_aspect).exp()).sqrt().clamp(max=1)
    centre_x = (2 * draws[:, 2] - 1) * (1 - width)
    centre_y = (2 * draws[:, 3] - 1) * (1 - height)
    direction = 1 - 2 * (draws[:, 4] < config.flip).to(draws.dtype)
    ticks = (torch.arange(size, dtype=draws.dtype, device=draws.device) + 0.5) * (2 / size) - 1
    xs = centre_x[:, None] + (width * direction)[:, None] * ticks
    ys = centre_y[:, None] + height[:, None] * ticks
    return torch.stack([xs[:, None, :].expand(-1, size, -1), ys[:, :, None].expand(-1, -1, size)], dim=-1)


def jitter_colours(images: Tensor, draws: Tensor, strength: float) -> Tensor:
    """Scale brightness, contrast and saturation, each by a factor of ``1 ± strength``.

    Args:
        images: Shape ``(n, 3, height, width)``, values in 0..255.
        draws: Shape ``(n, 3)``.
        strength: Largest change, as a share.
    """
    factors = (1 + strength * (2 * draws - 1))[:, :, None, None, None]
    brightness, contrast, saturation = factors[:, 0], factors[:, 1], factors[:, 2]
    images = images * brightness
    luma = torch.tensor([0.299, 0.587, 0.114], dtype=images.dtype, device=images.device).view(1, 3, 1, 1)
    grey = (images * luma).sum(dim=1, keepdim=True)
    images = grey + saturation * (images - grey)
    mean = grey.mean(dim=(2, 3), keepdim=True)
    return (mean + contrast * (images - mean)).clamp(0, 255)


def rectangles(shares: Tensor, aspects: Tensor, places: Tensor, *, height: int, width: int) -> Tensor:
    """Masks of one rectangle a sample that lies wholly inside the picture.

    Args:
        shares: Shape ``(n,)``: share of the picture's area.
        aspects: Shape ``(n,)``: ratio of the sides, as a factor on the width.
        places: Shape ``(n, 2)`` in [0, 1): where between the borders.
        height: Of the picture, pixels.
        width: Of the picture, pixels.

    Returns:
        Shape ``(n, 1, height, width)``, bool.
    """
    wide = ((shares * aspects).sqrt().clamp(max=1) * width).round()
    high = ((shares / aspects).sqrt().clamp(max=1) * height).round()
    left = (places[:, 0] * (width - wide + 1)).floor()
    top = (places[:, 1] * (height - high + 1)).floor()
    xs = torch.arange(width, dtype=shares.dtype, device=shares.device)
    ys = torch.arange(height, dtype=shares.dtype, device=shares.device)
    across = (xs >= left[:, None]) & (xs < (left + wide)[:, None])
    down = (ys >= top[:, None]) & (ys < (top + high)[:, None])
    return (down[:, :, None] & across[:, None, :])[:, None]


def erase_rectangles(images: Tensor, draws: Tensor, probability: float) -> Tensor:
    """Set a rectangle of 2 to 25 % of the picture to the mean colour, which is 0 after normalisation.

    Args:
        images: Shape ``(n, 3, height, width)``, normalised.
        draws: Shape ``(n, 5)``: whether, share, aspect, horizontal place, vertical place.
        probability: How often.
    """
    aspects = ((2 * draws[:, 2] - 1) * math.log(2)).exp()
    mask = rectangles(0.02 + 0.23 * draws[:, 1], aspects, draws[:, 3:5], height=images.shape[2], width=images.shape[3])
    chosen = (draws[:, 0] < probability)[:, None, None, None]
    return images.masked_fill(mask & chosen, 0)


def mix(images: Tensor, labels: Tensor, draws: Tensor, config: AugmentConfig) -> tuple[Tensor, Tensor, Tensor]:
    """Mixup and cutmix with the next sample of the batch.

    The other sample's share is uniform in ``0 .. mix_share``; with 0.5 that is mixup's Beta(1, 1), folded.

    Args:
        images: Shape ``(n, 3, height, width)``.
        labels: Shape ``(n,)``, int64.
        draws: Shape ``(n, 4)``: which kind, share, horizontal place, vertical place.
        config: ``mixup``, ``cutmix`` and ``mix_share`` are used.

    Returns:
        The mixed images, the labels of the other samples, and those samples' exact share, shape ``(n,)``.
    """
    other_images, other_labels = images.roll(1, dims=0), labels.roll(1, dims=0)
    shares = config.mix_share * draws[:, 1]
    blended = draws[:, 0] < config.mixup
    pasted = ~blended & (draws[:, 0] < config.mixup + config.cutmix)
    mask = rectangles(shares, torch.ones_like(shares), draws[:, 2:4], height=images.shape[2], width=images.shape[3])
    weights = torch.where(
        blended[:, None, None, None], shares[:, None, None, None], (mask & pasted[:, None, None, None])
    )
    # A pasted rectangle has whole pixels: its share is counted, not assumed.
    exact = torch.where(pasted, mask.to(shares.dtype).mean(dim=(1, 2, 3)), torch.where(blended, shares, 0.0))
    return torch.lerp(images, other_images, weights.to(images.dtype).expand_as(images)), other_labels, exact
