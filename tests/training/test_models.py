from __future__ import annotations

import sys
import types

import pytest
import torch
from torch import nn

from imgprep.errors import MissingExtraError
from training import extras
from training.config import ModelConfig
from training.models import build_model


@pytest.mark.parametrize(
    ("architecture", "sizes"), [("alexnet-64", (16, 64, 80)), ("alexnet-bn", (64, 224)), ("alexnet", (224,))]
)
def test_the_head_fits_the_classes(architecture: str, sizes: tuple[int, ...]) -> None:
    model = build_model(ModelConfig(architecture=architecture), 7).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        for size in sizes:
            assert model(torch.zeros(2, 3, size, size)).shape == (2, 7)


def test_logits_are_not_probabilities() -> None:
    # A softmax in the model under a cross-entropy could not bring the loss of ten classes below 1.46.
    torch.manual_seed(0)
    model = build_model(ModelConfig(width=0.125, dropout=0.0), 10)
    images, labels = torch.randn(10, 3, 16, 16), torch.arange(10)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(40):
        loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.5


def test_weights_follow_the_seed() -> None:
    def weights(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return next(build_model(ModelConfig(width=0.125), 3).parameters())

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_width_scales_the_network() -> None:
    def size(width: float) -> int:
        return sum(p.numel() for p in build_model(ModelConfig(width=width), 10).parameters())

    assert size(0.25) < size(0.5) / 3 < size(1.0) / 9


def test_mismatched_builds_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> types.ModuleType:
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(extras.importlib, "import_module", fail)
    with pytest.raises(MissingExtraError, match="torchvision and PyTorch are of different builds"):
        extras.import_torchvision_models()


def test_a_missing_torch_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> types.ModuleType:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(extras.importlib, "import_module", fail)
    with pytest.raises(MissingExtraError) as caught:
        extras.require_torch()
    assert str(caught.value) == "training needs PyTorch, which is not installed - pip install 'imgprep[train]'"
    assert caught.value.exit_code == 2
    assert "torch" in sys.modules
