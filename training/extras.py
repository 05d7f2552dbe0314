"""The packages of the ``train`` extra, and what to say when they are missing or do not fit each other."""

from __future__ import annotations

import importlib
from types import ModuleType

from imgprep.errors import MissingExtraError

_INSTALL = "pip install 'imgprep[train]'"


def require_torch() -> None:
    """Import torch now, so that later imports cannot fail on it.

    Raises:
        MissingExtraError: It is not installed or does not load.
    """
    try:
        importlib.import_module("torch")
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise MissingExtraError("training needs PyTorch, which is not installed", _INSTALL) from None
    except (ImportError, OSError) as error:
        raise MissingExtraError(f"PyTorch is installed but does not load ({error})", _INSTALL) from None


def require_matplotlib() -> None:
    """Import matplotlib now.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        importlib.import_module("matplotlib")
    except ModuleNotFoundError:
        raise MissingExtraError("pictures need matplotlib, which is not installed", _INSTALL) from None


def import_torchvision_models() -> ModuleType:
    """Return ``torchvision.models``.

    Raises:
        MissingExtraError: It is not installed, or was built for another torch.
    """
    try:
        return importlib.import_module("torchvision.models")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != "torchvision":
            raise
        raise MissingExtraError("this model needs torchvision, which is not installed", _INSTALL) from None
    except RuntimeError as error:
        # torchvision's compiled operators fail to register against a torch of another build.
        if "torchvision::" not in str(error):
            raise
        raise MissingExtraError(
            "torchvision and PyTorch are of different builds", f"install both from one index: {_INSTALL}"
        ) from None
