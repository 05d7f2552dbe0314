from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from training.augment import (
    MEAN,
    NUM_DRAWS,
    STD,
    denormalise,
    erase_rectangles,
    evaluation_batch,
    jitter_colours,
    mix,
    normalise,
    rectangles,
    training_batch,
)
from training.config import AugmentConfig
from training.order import uniforms

PLAIN = AugmentConfig(crop_size=16, eval_size=16, min_area=1.0, max_aspect=1.0, flip=0.0)
STRONG = AugmentConfig(
    crop_size=16, eval_size=16, min_area=0.2, jitter=0.4, erase=0.5, mixup=0.3, cutmix=0.3, clean_epochs=0
)


def some_pixels(count: int = 6, size: int = 16) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8))


def some_draws(count: int = 6, epoch: int = 0) -> torch.Tensor:
    return torch.from_numpy(uniforms(0, epoch, np.arange(count), NUM_DRAWS)).float()


def test_normalising_uses_the_known_constants_and_can_be_undone() -> None:
    pixels = some_pixels().permute(0, 3, 1, 2)
    images = normalise(pixels.float())
    expected = (pixels[:, 1].float() / 255 - MEAN[1]) / STD[1]
    assert torch.allclose(images[:, 1], expected, atol=1e-5)
    assert torch.equal(denormalise(images), pixels)


def test_evaluation_cuts_the_centre_and_nothing_else() -> None:
    pixels = some_pixels(size=20)
    expected = normalise(pixels[:, 2:18, 2:18].permute(0, 3, 1, 2).float())
    assert torch.equal(evaluation_batch(pixels, 16), expected)
    assert torch.equal(evaluation_batch(pixels, 16), evaluation_batch(pixels, 16))


def test_a_crop_of_everything_is_the_picture() -> None:
    pixels = some_pixels()
    images = training_batch(pixels, some_draws(), PLAIN, size=16)
    assert torch.allclose(images, evaluation_batch(pixels, 16), atol=1e-3)


def test_flips_mirror_left_and_right() -> None:
    pixels = some_pixels()
    flipped = training_batch(pixels, some_draws(), AugmentConfig(**(vars(PLAIN) | {"flip": 1.0})), size=16)
    assert torch.allclose(flipped, evaluation_batch(pixels, 16).flip(-1), atol=1e-3)


def test_crops_stay_inside_and_cover_the_asked_area() -> None:
    config = AugmentConfig(crop_size=16, eval_size=16, min_area=0.25, max_aspect=4 / 3)
    pixels = torch.zeros(200, 64, 64, 3, dtype=torch.uint8)
    ramp = torch.arange(64, dtype=torch.uint8)
    pixels[..., 0], pixels[..., 1] = ramp[None, None, :], ramp[None, :, None]
    images = denormalise(training_batch(pixels, some_draws(200), config, size=32)).float()
    wide = (images[:, 0].amax((1, 2)) - images[:, 0].amin((1, 2)) + 2) / 64
    high = (images[:, 1].amax((1, 2)) - images[:, 1].amin((1, 2)) + 2) / 64
    assert wide.min() > 0.4
    assert wide.max() <= 1.04
    assert 0.2 < (wide * high).min() < 0.35
    assert (wide / high).max() > 1.15


def test_a_sample_is_augmented_the_same_in_any_company() -> None:
    pixels, draws = some_pixels(), some_draws()
    together = training_batch(pixels, draws, STRONG, size=16)
    alone = training_batch(pixels[3:4], draws[3:4], STRONG, size=16)
    assert torch.allclose(together[3:4], alone, atol=1e-5)
    assert not torch.allclose(together[3:4], training_batch(pixels[3:4], draws[2:3], STRONG, size=16), atol=1e-2)


def test_mixed_shares_are_exact() -> None:
    config = AugmentConfig(crop_size=16, eval_size=16, mixup=0.5, cutmix=0.5)
    # Sample i is the constant i, so a mixed sample's mean tells the other's share.
    images = torch.arange(64.0).view(64, 1, 1, 1).expand(-1, 3, 16, 16)
    labels = torch.arange(64)
    mixed, others, shares = mix(images, labels, some_draws(64)[:, 13:], config)
    assert torch.equal(others, labels.roll(1))
    expected = labels + shares * (others - labels)
    assert torch.allclose(mixed.mean(dim=(1, 2, 3)), expected, atol=1e-3)
    assert shares.max() > 0.3
    assert shares.max() <= 0.55
    constant = mixed.flatten(1).std(dim=1) < 1e-4
    assert 10 < int(constant.sum()) < 54


def test_without_mixing_nothing_is_mixed() -> None:
    images = some_pixels().permute(0, 3, 1, 2).float()
    mixed, _, shares = mix(images, torch.arange(6), some_draws()[:, 13:], PLAIN)
    assert torch.equal(mixed, images)
    assert not shares.any()


def test_rectangles_have_the_asked_area_and_lie_inside() -> None:
    draws = some_draws(300)
    shares = 0.05 + 0.4 * draws[:, 0]
    masks = rectangles(shares, torch.ones(300), draws[:, 1:3], height=40, width=40)
    areas = masks.float().mean(dim=(1, 2, 3))
    assert (areas - shares).abs().max() < 0.04
    for mask in masks[:, 0]:
        # As wide as its widest row and as high as its highest column: a whole rectangle, nothing cut off.
        assert int(mask.sum()) == int(mask.any(0).sum()) * int(mask.any(1).sum())


def test_erasing_blanks_some_samples_to_the_mean() -> None:
    images = torch.ones(100, 3, 16, 16)
    erased = erase_rectangles(images, some_draws(100)[:, 8:13], 0.5)
    touched = (erased == 0).flatten(1).any(dim=1)
    assert 30 < int(touched.sum()) < 70
    assert set(erased.unique().tolist()) == {0.0, 1.0}


def test_jitter_changes_colours_within_bounds() -> None:
    images = torch.full((50, 3, 4, 4), 100.0)
    changed = jitter_colours(images, some_draws(50)[:, 5:8], 0.2)
    assert changed.min() >= 79
    assert changed.max() <= 121
    assert changed.std() > 2
    assert torch.allclose(jitter_colours(images, torch.full((50, 3), 0.5), 0.2), images, atol=1e-4)


def test_the_mixed_loss_is_the_loss_of_the_mixed_target() -> None:
    torch.manual_seed(0)
    logits, labels, others = torch.randn(5, 4), torch.tensor([0, 1, 2, 3, 0]), torch.tensor([3, 0, 1, 2, 3])
    shares = torch.tensor([0.0, 0.1, 0.2, 0.3, 0.5])
    target = (1 - shares)[:, None] * functional.one_hot(labels, 4) + shares[:, None] * functional.one_hot(others, 4)
    expected = functional.cross_entropy(logits, target, label_smoothing=0.1)
    one = functional.cross_entropy(logits, labels, reduction="none", label_smoothing=0.1)
    two = functional.cross_entropy(logits, others, reduction="none", label_smoothing=0.1)
    assert ((1 - shares) * one + shares * two).mean().item() == pytest.approx(expected.item(), abs=1e-6)
