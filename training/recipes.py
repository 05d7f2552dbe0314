"""Named training configurations, and which of them fits a split."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from imgprep.errors import SpecError
from training.config import AugmentConfig, DataConfig, ModelConfig, OptimConfig, TrainConfig

SMALL_SPLIT: Final = 20_000
"""Training splits of fewer samples get the recipe ``tiny`` unless told otherwise."""


def tiny() -> TrainConfig:
    """AlexNet-BN at 64 px from scratch, for small splits.

    With about a hundred pictures a class the network could learn them by heart: strong crops, mixup and cutmix, label
    smoothing and averaged weights keep it from doing so. Evaluation sees 72 px of the centre, more than the training
    crops, because crops make things look larger than they are in whole pictures.
    """
    return TrainConfig(
        recipe="tiny",
        epochs=60,
        data=DataConfig(image_size=80, batch_size=50),
        augment=AugmentConfig(crop_size=64, eval_size=72, min_area=0.35, mixup=0.5, cutmix=0.3, clean_epochs=6),
        model=ModelConfig(architecture="alexnet-64", width=0.75, dropout=0.3),
        optim=OptimConfig(optimizer="adamw", lr=2e-3, weight_decay=0.05, ema=0.99),
    )


def imagenet() -> TrainConfig:
    """AlexNet-BN at 224 px, for 20,000 samples and more; not tuned on the full ImageNet.

    AlexNet underfits large sets: augmentation is light and the learning rate falls linearly to zero.
    """
    return TrainConfig(
        recipe="imagenet",
        epochs=40,
        data=DataConfig(image_size=256, batch_size=512),
        augment=AugmentConfig(crop_size=224, eval_size=224, min_area=0.25),
        model=ModelConfig(architecture="alexnet-bn", dropout=0.2),
        optim=OptimConfig(optimizer="sgd", lr=0.2, weight_decay=1e-4, schedule="linear", warmup=0.08, ema=0.9995),
    )


OPTIMIZERS: Final = {"sgd": "SGD", "adamw": "AdamW"}

RECIPES: Final[dict[str, Callable[[], TrainConfig]]] = {"tiny": tiny, "imagenet": imagenet}
"""Recipes by name."""


def recipe(name: str) -> TrainConfig:
    """Make the configuration of a recipe.

    Raises:
        SpecError: No recipe has this name.
    """
    if name not in RECIPES:
        raise SpecError(f"recipe must be one of {', '.join(RECIPES)}, got {name!r}")
    return RECIPES[name]()


def default_recipe(num_train_samples: int) -> str:
    """Name of the recipe for a training split of this many samples."""
    return "tiny" if num_train_samples < SMALL_SPLIT else "imagenet"


def describe(config: TrainConfig, num_train_samples: int, *, chosen: bool) -> str:
    """One line that says what a configuration is and why it is used.

    Args:
        config: The configuration as it will run.
        num_train_samples: Samples in the training split.
        chosen: True when the user named the recipe.
    """
    names = {"alexnet-64": "AlexNet-BN", "alexnet-bn": "AlexNet-BN", "alexnet": "AlexNet (torchvision)"}
    side = "under" if num_train_samples < SMALL_SPLIT else "at least"
    reason = (
        "as asked for"
        if chosen
        else f"because the training split has {num_train_samples:,} samples ({side} {SMALL_SPLIT:,})"
    )
    augment, optim = config.augment, config.optim
    extras = [name for name in ("mixup", "cutmix", "erase", "jitter") if getattr(augment, name)]
    extras += ["averaged weights"] if optim.ema else []
    return (
        f"recipe {config.recipe}: {names[config.model.architecture]} at {augment.crop_size} px, {config.epochs} epochs "
        f"of {OPTIMIZERS[optim.optimizer]} with a {optim.schedule} learning rate up to {optim.lr:g}, random crops and"
        f" flips{''.join(f', {name}' for name in extras)}; {reason}"
    )
