from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from imgprep.errors import SpecError
from training.config import AugmentConfig, DataConfig, ModelConfig, OptimConfig, TrainConfig, differences, parse_config
from training.recipes import imagenet, tiny


@pytest.mark.parametrize("config", [TrainConfig(), tiny(), imagenet()])
def test_json_and_back(config: TrainConfig) -> None:
    assert parse_config(config.to_json()) == config


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (DataConfig, {"image_size": 4}, "image_size must be 8 to 1024 pixels, got 4"),
        (DataConfig, {"batch_size": 0}, "batch_size must be 1 or more, got 0"),
        (DataConfig, {"input_mode": "disk"}, "input_mode must be one of auto, memory, stream, got 'disk'"),
        (AugmentConfig, {"min_area": 0.0}, "min_area must be above 0"),
        (AugmentConfig, {"mixup": 0.6, "cutmix": 0.6}, "mixup . cutmix must be 1 at most"),
        (AugmentConfig, {"mix_share": 0.7}, "mix_share must be between 0 and 0.5"),
        (AugmentConfig, {"flip": 1.5}, "flip must be between 0 and 1, got 1.5"),
        (ModelConfig, {"architecture": "vgg"}, "architecture must be one of"),
        (ModelConfig, {"dropout": 1.0}, "dropout must be 0 or more, and below 1"),
        (OptimConfig, {"lr": 0.0}, "lr must be above 0"),
        (OptimConfig, {"lr": float("nan")}, "lr must be above 0"),
        (OptimConfig, {"ema": 1.0}, "ema must be 0 or more, and below 1"),
        (
            TrainConfig,
            {"model": ModelConfig(architecture="alexnet-bn"), "augment": AugmentConfig(crop_size=32)},
            "pixels or more, got 32",
        ),
        (TrainConfig, {"epochs": 0}, "epochs must be 1 or more, got 0"),
        (TrainConfig, {"seed": -1}, "seed must be 0"),
        (TrainConfig, {"augment": AugmentConfig(eval_size=96)}, r"eval_size must be at most image_size \(80\), got 96"),
    ],
)
def test_impossible_values_are_refused(kind: Any, values: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        kind(**values)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda d: d.update(colour=1), "unknown key colour"),
        (lambda d: d["optim"].pop("lr"), "missing key optim.lr"),
        (lambda d: d["optim"].update(lr="fast"), "optim.lr must be of type float, got 'fast'"),
        (lambda d: d.update(epochs=True), "epochs must be of type int, got True"),
        (lambda d: d.update(model=3), "model. must be an object, got 3"),
    ],
)
def test_json_is_read_strictly(edit: Any, message: str) -> None:
    document = json.loads(TrainConfig().to_json())
    edit(document)
    with pytest.raises(SpecError, match=message):
        parse_config(json.dumps(document))


def test_differences_are_named() -> None:
    other = replace(tiny(), seed=3, optim=replace(tiny().optim, lr=0.5))
    assert differences(tiny(), other) == ["seed: 0 is not 3", f"optim.lr: {tiny().optim.lr} is not 0.5"]
    assert differences(tiny(), tiny()) == []
