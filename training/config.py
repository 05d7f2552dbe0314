"""What a run is asked to do: frozen configurations that refuse impossible values, as JSON and back.

Imports nothing beyond the standard library and :mod:`imgprep.errors`, so that ``imgprep train --help`` stays quick.
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeVar

from imgprep.errors import SpecError

InputMode = Literal["auto", "memory", "stream"]
Architecture = Literal["alexnet-64", "alexnet-bn", "alexnet"]
OptimizerName = Literal["sgd", "adamw"]
ScheduleName = Literal["one-cycle", "cosine", "linear"]

C = TypeVar("C")


def _require(rule: str, value: object, *, holds: bool) -> None:
    if not holds:
        raise SpecError(f"{rule}, got {value!r}")


def _require_share(name: str, value: float) -> None:
    _require(f"{name} must be between 0 and 1", value, holds=0 <= value <= 1)


def _require_choice(name: str, value: str, choices: object) -> None:
    known = typing.get_args(choices)
    _require(f"{name} must be one of {', '.join(known)}", value, holds=value in known)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """How pictures become arrays.

    Attributes:
        image_size: Side in pixels of the centre square every picture is decoded to.
        input_mode: ``memory`` decodes all pictures once, ``stream`` decodes ahead of the steps, ``auto``
            chooses by size.
        batch_size: Largest batch.
        train_split: Name of the split to learn from.
        val_split: Name of the split to measure on.
    """

    image_size: int = 80
    input_mode: InputMode = "auto"
    batch_size: int = 64
    train_split: str = "train"
    val_split: str = "val"

    def __post_init__(self) -> None:
        _require("image_size must be 8 to 1024 pixels", self.image_size, holds=8 <= self.image_size <= 1024)
        _require("batch_size must be 1 or more", self.batch_size, holds=self.batch_size >= 1)
        _require_choice("input_mode", self.input_mode, InputMode)


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """What training does to pictures; evaluation does none of it.

    Attributes:
        crop_size: Side in pixels of the training crop.
        eval_size: Side in pixels of the centre crop that evaluation sees.
        min_area: Smallest share of the square's area that a crop covers.
        max_aspect: Largest ratio of a crop's sides.
        flip: Probability of a horizontal flip.
        jitter: Brightness, contrast and saturation are scaled by up to this share, up or down.
        erase: Probability that a rectangle is blanked.
        mixup: Probability that a sample is blended with another.
        cutmix: Probability that a rectangle of a sample comes from another.
        mix_share: Largest share of the other sample.
        clean_epochs: The last epochs, which do without mixup, cutmix and erasing.
    """

    crop_size: int = 64
    eval_size: int = 80
    min_area: float = 0.35
    max_aspect: float = 4 / 3
    flip: float = 0.5
    jitter: float = 0.0
    erase: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    mix_share: float = 0.5
    clean_epochs: int = 0

    def __post_init__(self) -> None:
        _require("crop_size must be 8 or more pixels", self.crop_size, holds=self.crop_size >= 8)
        _require("eval_size must be 8 or more pixels", self.eval_size, holds=self.eval_size >= 8)
        _require("min_area must be above 0, and 1 at most", self.min_area, holds=0 < self.min_area <= 1)
        _require("max_aspect must be between 1 and 4", self.max_aspect, holds=1 <= self.max_aspect <= 4)
        for name in ("flip", "erase", "mixup", "cutmix"):
            _require_share(name, getattr(self, name))
        _require("jitter must be 0 or more, and below 1", self.jitter, holds=0 <= self.jitter < 1)
        _require("mixup + cutmix must be 1 at most", self.mixup + self.cutmix, holds=self.mixup + self.cutmix <= 1)
        _require("mix_share must be between 0 and 0.5", self.mix_share, holds=0 <= self.mix_share <= 0.5)
        _require("clean_epochs must be 0 or more", self.clean_epochs, holds=self.clean_epochs >= 0)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which network; its head has as many outputs as the index has classes.

    Attributes:
        architecture: ``alexnet-64`` (batch norm, small crops), ``alexnet-bn`` (batch norm, 224 px) or ``alexnet``
            (torchvision's).
        width: Scales the channels of ``alexnet-64``.
        dropout: Probability in front of each fully connected layer.
    """

    architecture: Architecture = "alexnet-64"
    width: float = 1.0
    dropout: float = 0.3

    def __post_init__(self) -> None:
        _require_choice("architecture", self.architecture, Architecture)
        _require("width must be above 0, and 4 at most", self.width, holds=0 < self.width <= 4)
        _require("dropout must be 0 or more, and below 1", self.dropout, holds=0 <= self.dropout < 1)


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """How weights move.

    Attributes:
        optimizer: ``sgd`` (Nesterov momentum) or ``adamw``.
        lr: Peak learning rate.
        momentum: Momentum of SGD, or the first beta of AdamW.
        weight_decay: For weight matrices and kernels; never for normalisation or biases.
        schedule: Shape of the learning rate after the warm-up: ``one-cycle`` and ``cosine`` fall along a cosine, to a
            thousandth of the peak and to zero; ``linear`` falls to zero.
        warmup: Share of all steps over which the learning rate rises to its peak.
        label_smoothing: Share of the target spread over all classes.
        ema: Decay per step of the averaged weights that are evaluated; 0 for none.
    """

    optimizer: OptimizerName = "sgd"
    lr: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: ScheduleName = "one-cycle"
    warmup: float = 0.2
    label_smoothing: float = 0.1
    ema: float = 0.0

    def __post_init__(self) -> None:
        _require_choice("optimizer", self.optimizer, OptimizerName)
        _require_choice("schedule", self.schedule, ScheduleName)
        _require("lr must be above 0", self.lr, holds=self.lr > 0 and math.isfinite(self.lr))
        _require("momentum must be 0 or more, and below 1", self.momentum, holds=0 <= self.momentum < 1)
        _require("weight_decay must be 0 or more", self.weight_decay, holds=0 <= self.weight_decay < math.inf)
        _require("warmup must be 0 or more, and below 1", self.warmup, holds=0 <= self.warmup < 1)
        _require(
            "label_smoothing must be 0 or more, and below 1", self.label_smoothing, holds=0 <= self.label_smoothing < 1
        )
        _require("ema must be 0 or more, and below 1", self.ema, holds=0 <= self.ema < 1)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A whole run.

    Attributes:
        recipe: Name of the recipe it started from.
        epochs: Passes over the training split.
        seed: Decides weights, order and every draw.
        log_every: Steps between two lines in ``metrics.jsonl`` inside an epoch.
        checkpoint_seconds: Longest time inside an epoch without a checkpoint.
    """

    recipe: str = "tiny"
    epochs: int = 40
    seed: int = 0
    log_every: int = 50
    checkpoint_seconds: float = 60.0
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)

    def __post_init__(self) -> None:
        _require("epochs must be 1 or more", self.epochs, holds=self.epochs >= 1)
        _require("seed must be 0 to 2**63 - 1", self.seed, holds=0 <= self.seed < 2**63)
        _require("log_every must be 1 or more", self.log_every, holds=self.log_every >= 1)
        _require("checkpoint_seconds must be above 0", self.checkpoint_seconds, holds=self.checkpoint_seconds > 0)
        size, eval_size = self.data.image_size, self.augment.eval_size
        if self.model.architecture != "alexnet-64":
            smallest = min(self.augment.crop_size, eval_size)
            _require(f"{self.model.architecture} needs crops of 64 pixels or more", smallest, holds=smallest >= 64)
        _require(f"eval_size must be at most image_size ({size})", eval_size, holds=eval_size <= size)

    def to_json(self) -> str:
        """Serialise, indented; ends in a line feed. :func:`parse_config` is its inverse."""
        return json.dumps(asdict(self), indent=1) + "\n"


def parse_config(text: str) -> TrainConfig:
    """Read the JSON of a :class:`TrainConfig`.

    Raises:
        SpecError: Not JSON, an unknown or missing key, a value of another type, or one that breaks its rule.
    """
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SpecError(f"the configuration is not valid JSON ({error})") from None
    return config_from(document)


def require_shape(value: object, shape: object, where: str = "the document") -> None:
    """Check JSON values that a person may have edited.

    Args:
        value: What was read.
        shape: What it must be: a type (``float`` takes whole numbers, too), a dict with the keys that must be there and
            their shapes, or a list of one shape, which all items must have.
        where: What to call the value in errors.

    Raises:
        SpecError: It is something else; says where.
    """
    if isinstance(shape, dict):
        require_shape(value, dict, where)
        assert isinstance(value, dict)
        for key, inner in shape.items():
            if key not in value:
                raise SpecError(f"{where} has no {key!r}")
            require_shape(value[key], inner, repr(key))
    elif isinstance(shape, list):
        require_shape(value, list, where)
        assert isinstance(value, list)
        for item in value:
            require_shape(item, shape[0], f"an item of {where}")
    else:
        assert isinstance(shape, type)
        fits = type(value) is shape or (shape is float and type(value) is int)
        # Numbers beyond 64 bits overflow where they are written out.
        if not fits or (isinstance(value, int) and abs(value) >= 2**63):
            raise SpecError(f"{where} is not of type {shape.__name__}")


def config_from(document: object) -> TrainConfig:
    """Build a :class:`TrainConfig` from JSON values; see :func:`parse_config`."""
    return _build(TrainConfig, document, "")


def _build(kind: type[C], document: object, where: str) -> C:
    if not isinstance(document, dict):
        raise SpecError(f"the configuration's {where or 'document'} must be an object, got {document!r}")
    hints = typing.get_type_hints(kind)
    unknown, missing = sorted(document.keys() - hints.keys()), sorted(hints.keys() - document.keys())
    if unknown or missing:
        named = [f"unknown key {where}{key}" for key in unknown] + [f"missing key {where}{key}" for key in missing]
        raise SpecError(f"the configuration has {', '.join(named)}")
    values: dict[str, Any] = {}
    for name, hint in hints.items():
        values[name] = (
            _build(hint, document[name], f"{where}{name}.")
            if dataclasses.is_dataclass(hint) and isinstance(hint, type)
            else _check_type(hint, document[name], f"{where}{name}")
        )
    return kind(**values)


def _check_type(hint: object, value: object, where: str) -> object:
    wanted: object = str if typing.get_origin(hint) is Literal else hint
    if wanted is float and type(value) is int:
        return float(value)
    if not isinstance(wanted, type | types.UnionType) or type(value) is not wanted:
        raise SpecError(
            f"the configuration's {where} must be of type {getattr(wanted, '__name__', wanted)}, got {value!r}"
        )
    return value


def differences(one: object, other: object, prefix: str = "") -> list[str]:
    """Name the settings in which two configurations differ, e.g. ``optim.lr: 0.05 is not 0.1``.

    Args:
        one: A configuration dataclass.
        other: Another of the same type.
        prefix: Put in front of each name.
    """
    found: list[str] = []
    for entry in dataclasses.fields(one):  # type: ignore[arg-type]
        left, right = getattr(one, entry.name), getattr(other, entry.name)
        if dataclasses.is_dataclass(left):
            found += differences(left, right, f"{prefix}{entry.name}.")
        elif left != right:
            found.append(f"{prefix}{entry.name}: {left!r} is not {right!r}")
    return found
