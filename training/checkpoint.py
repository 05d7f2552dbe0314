"""Checkpoints: written atomically, read without unpickling, refused when they belong to another run."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch

from imgprep.errors import DamagedError, MissingInputError, OutputExistsError, SpecError
from training.config import TrainConfig, differences, parse_config

if TYPE_CHECKING:
    from torch import Tensor

FORMAT: Final = "imgprep-checkpoint"
VERSION: Final = 1


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Everything a run needs to go on, or to be evaluated.

    Attributes:
        config: What the run was asked to do.
        dataset_digest: Of the shards it learns from.
        epoch: The epoch in progress, from 0; equals ``config.epochs`` when all are done.
        step: Steps done in that epoch.
        global_step: Steps done in all.
        model: Parameters and buffers as trained.
        average: Their moving average, when the run keeps one.
        optimizer: State of the optimiser.
        tallies: Running sums of the epoch in progress, as tensors.
        best_correct: Most correct samples of the validation split so far; -1 before the first validation.
        seconds: Time spent training so far.
    """

    config: TrainConfig
    dataset_digest: str
    epoch: int
    step: int
    global_step: int
    model: dict[str, Tensor]
    average: dict[str, Tensor] | None
    optimizer: dict[str, Any]
    tallies: dict[str, Tensor]
    best_correct: int
    seconds: float

    @property
    def evaluated_weights(self) -> dict[str, Tensor]:
        """What evaluation uses: the average when there is one."""
        return self.model if self.average is None else self.average

    def require_same(self, config: TrainConfig, dataset_digest: str, *, where: str) -> None:
        """Check that this checkpoint belongs to a run.

        Args:
            config: The run's configuration.
            dataset_digest: The run's shards.
            where: What to call the checkpoint in errors.

        Raises:
            OutputExistsError: Configuration or shards differ; says in what.
        """
        found = differences(self.config, config)
        if self.dataset_digest != dataset_digest:
            found.append(f"dataset digest: {self.dataset_digest[:12]} is not {dataset_digest[:12]}")
        if found:
            raise OutputExistsError(
                f"{where} was made otherwise ({'; '.join(found)})", "use the same options, or --name for a new run"
            )


def to_bytes(checkpoint: Checkpoint) -> bytes:
    """Serialise; the tensors are copied out, so later training steps cannot change the result."""
    stream = io.BytesIO()
    fields = {name: getattr(checkpoint, name) for name in Checkpoint.__dataclass_fields__}
    torch.save({"format": FORMAT, "version": VERSION} | fields | {"config": checkpoint.config.to_json()}, stream)
    return stream.getvalue()


def sha256_of(content: bytes) -> str:
    """SHA-256 in hex."""
    return hashlib.sha256(content).hexdigest()


def load(path: Path) -> tuple[Checkpoint, str]:
    """Read a checkpoint into host memory; nothing in it is executed.

    Args:
        path: The file.

    Returns:
        The checkpoint, and the SHA-256 of its bytes in hex.

    Raises:
        MissingInputError: It is not there.
        DamagedError: It is not a checkpoint of this format and version, or is cut short.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise MissingInputError(f"{path} does not exist", "run `imgprep train` first") from None
    remedy = "train anew with --overwrite"
    try:
        document = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - torch raises a dozen kinds for broken bytes
        raise DamagedError(f"{path} is not a readable checkpoint ({type(error).__name__})", remedy) from None
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise DamagedError(f"{path} is not an {FORMAT} file", remedy)
    if document.get("version") != VERSION:
        raise DamagedError(f"{path} has version {document.get('version')!r}, this imgprep reads {VERSION}", remedy)
    try:
        values = {name: document[name] for name in Checkpoint.__dataclass_fields__}
        values["config"] = parse_config(values["config"])
    except (KeyError, SpecError, TypeError) as error:
        raise DamagedError(f"{path} is incomplete ({error})", remedy) from None
    return Checkpoint(**values), sha256_of(content)
