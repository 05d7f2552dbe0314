"""Counts of right answers: exact integers, whatever the batch size."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch.nn import functional

from imgprep.errors import ContradictionError, DamagedError, MissingInputError
from imgprep.index import ShardIndex, read_index
from training.augment import evaluation_batch
from training.checkpoint import Checkpoint, load
from training.config import differences
from training.devices import DeviceName, choose_device, describe_device
from training.figures import draw_confusion, draw_photos
from training.loader import PixelSource, choose_mode, decode_samples, open_source
from training.metrics import count_top_k, wilson_interval
from training.models import build_model, channels_last
from training.order import permutation, split_steps
from training.reader import ShardReader
from training.runs import Run, RunRecord, index_of, read_evaluation, read_record, write_json

if TYPE_CHECKING:
    from torch import Tensor, nn

    from training.console import Console

TOP: Final = 5
SHOWN: Final = 20
"""Pictures in the grid of predictions."""

VIEWS: Final = "centre square, one view, no test-time augmentation"


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What a model did on a split.

    Attributes:
        total: Samples.
        top1: Of them right at first guess.
        top5: Of them with the right class among the first five (or among all, when there are fewer).
        loss: Mean cross-entropy.
        confusion: Shape ``(classes, classes)``, int64: row is the true class, column the predicted one.
        predictions: First guess for every sample, shape ``(total,)``, int64.
    """

    total: int
    top1: int
    top5: int
    loss: float
    confusion: np.ndarray[Any, np.dtype[np.int64]]
    predictions: np.ndarray[Any, np.dtype[np.int64]]


@torch.no_grad()
def count_correct(
    model: nn.Module, source: PixelSource, *, num_samples: int, num_classes: int, eval_size: int, batch_size: int
) -> Counts:
    """Run a model in evaluation mode, in full precision, over a whole split, each sample once.

    Args:
        model: On the device of the source's batches; its mode is restored afterwards.
        source: The split's pixels.
        num_samples: Samples in the split.
        num_classes: Classes in the index.
        eval_size: Side of the centre crop, pixels.
        batch_size: Largest batch; changes the time, not the counts.
    """
    was_training = model.training
    model.eval()
    losses: list[Tensor] = []
    tops: list[Tensor] = []
    confusion: Tensor | None = None
    predictions: list[Tensor] = []
    for batch in source.batches(split_steps(np.arange(num_samples), batch_size)):
        images = evaluation_batch(batch.pixels, eval_size).contiguous(memory_format=torch.channels_last)
        logits = model(images).float()
        losses.append(functional.cross_entropy(logits, batch.labels, reduction="none").double().sum())
        tops.append(torch.stack([count_top_k(logits, batch.labels, k) for k in (1, TOP)]))
        guesses = logits.argmax(dim=1)
        predictions.append(guesses)
        cells = torch.bincount(batch.labels * num_classes + guesses, minlength=num_classes**2)
        confusion = cells if confusion is None else confusion + cells
    model.train(was_training)
    if confusion is None:
        raise MissingInputError("the split to evaluate on is empty")
    top1, top5 = torch.stack(tops).sum(dim=0).tolist()
    return Counts(
        total=num_samples,
        top1=top1,
        top5=top5,
        loss=float(torch.stack(losses).sum()) / num_samples,
        confusion=confusion.reshape(num_classes, num_classes).cpu().numpy(),
        predictions=torch.cat(predictions).cpu().numpy(),
    )


def evaluation_file(run: Run, checkpoint: str, split: str, val_split: str = "val") -> Path:
    """Where the numbers of a checkpoint on a split are kept: ``eval.json`` for the last one on the validation split."""
    if checkpoint == "last" and split == val_split:
        return run.folder / "eval.json"
    return run.folder / f"eval-{checkpoint}-{split}.json"


def evaluate(
    run: Run,
    *,
    console: Console,
    split: str | None = None,
    checkpoint: str = "last",
    device: DeviceName = "auto",
    threads: int | None = None,
    index_path: Path | None = None,
) -> tuple[dict[str, Any], bool]:
    """Measure a checkpoint on a split and write ``eval.json`` and pictures beside it.

    Args:
        run: The run.
        console: Where progress goes.
        split: Name of the split; the run's validation split when not given.
        checkpoint: ``last`` or ``best``.
        device: Where to compute.
        threads: For decoding and arithmetic; all usable cores when not given.
        index_path: The shards; those the run was trained on when not given.

    Returns:
        The content of ``eval.json``, and whether it was measured now (or found done for the same checkpoint).

    Raises:
        MissingInputError: No such run, checkpoint, shards or split.
        ContradictionError: The shards are not those the run was trained on.
        DamagedError: Something that is read is damaged.
    """
    record = read_record(run)
    config = record.config
    split = split or config.data.val_split
    file = evaluation_file(run, checkpoint, split, config.data.val_split)
    state, sha256 = load(run.checkpoint(checkpoint))
    index_path = index_of(run, record, index_path)
    index = read_index(index_path)
    if index.dataset_digest != state.dataset_digest:
        raise ContradictionError(
            f"the shards at {index_path} are not those of run {run.name}: dataset digest {state.dataset_digest[:12]}"
            f" expected, got {index.dataset_digest[:12]}",
            "give the right ones with --index",
        )
    _require_agreement(run, record, state, index)
    pictures = {kind: file.with_suffix(f".{kind}.png") for kind in ("confusion", "predictions")}
    known = _known(run, file) if all(picture.exists() for picture in pictures.values()) else None
    if known is not None and (known["checkpoint_sha256"], known["split"]) == (sha256, split):
        return known, False

    where = choose_device(device)
    if threads is not None:
        torch.set_num_threads(threads)
    model = build_model(config.model, record.num_classes)
    model.load_state_dict(state.evaluated_weights)
    model = channels_last(model.to(where))
    with ShardReader(index_path, index, split) as reader:
        size = config.data.image_size
        mode, _ = choose_mode(config.data.input_mode, num_bytes=len(reader) * size * size * 3, device=where)
        with console.task("decode", len(reader), "images") as advance:
            source = open_source(
                reader, size, mode=mode, device=where, threads=torch.get_num_threads(), progress=advance
            )
        try:
            counts = count_correct(
                model,
                source,
                num_samples=len(reader),
                num_classes=record.num_classes,
                eval_size=config.augment.eval_size,
                batch_size=config.data.batch_size,
            )
        finally:
            source.close()
        document = _describe(run, index, counts, split=split, checkpoint=checkpoint) | {
            "epochs_done": state.epoch,
            "weights": "average" if state.average is not None else "as trained",
            "checkpoint_sha256": sha256,
            "dataset_digest": state.dataset_digest,
            "eval_size": config.augment.eval_size,
            "device": describe_device(where),
        }
        draw_confusion(counts.confusion, [info.short_name for info in index.classes], pictures["confusion"])
        _draw_predictions(reader, index, counts, size, pictures["predictions"])
    # The numbers are written last: where they are, the pictures are.
    write_json(file, document)
    return document, True


def _require_agreement(run: Run, record: RunRecord, state: Checkpoint, index: ShardIndex) -> None:
    """Refuse a record that was edited: weights would not fit the network it describes."""
    found = differences(record.config, state.config)
    if record.num_classes != len(index.classes):
        found.append(f"num_classes: {record.num_classes} is not {len(index.classes)}")
    if found:
        raise DamagedError(
            f"{run.config} was edited: its checkpoint says otherwise ({'; '.join(found)})",
            f"undo that, or train anew with --name {run.name} --overwrite",
        )


def _known(run: Run, file: Path) -> dict[str, Any] | None:
    """What was measured before; what cannot be read is measured again."""
    try:
        return read_evaluation(run, file)
    except (DamagedError, MissingInputError):
        return None


def _describe(run: Run, index: ShardIndex, counts: Counts, *, split: str, checkpoint: str) -> dict[str, Any]:
    rows = counts.confusion.sum(axis=1)
    return {
        "run": run.name,
        "checkpoint": checkpoint,
        "split": split,
        "num_samples": counts.total,
        "num_classes": len(index.classes),
        "views": VIEWS,
        "top1": measured(counts.top1, counts.total, k=1),
        "top5": measured(counts.top5, counts.total, k=min(TOP, len(index.classes))),
        "loss": counts.loss,
        "classes": [
            {
                "label": info.label,
                "wnid": info.wnid,
                "name": info.name,
                "correct": int(counts.confusion[info.label, info.label]),
                "num_samples": int(rows[info.label]),
            }
            for info in index.classes
        ],
        "confusion": counts.confusion.tolist(),
    }


def measured(correct: int, total: int, *, k: int) -> dict[str, Any]:
    """A count as JSON values: with its share and 95 % interval."""
    low, high = wilson_interval(correct, total)
    return {"k": k, "correct": correct, "total": total, "share": correct / total, "low": low, "high": high}


def _draw_predictions(reader: ShardReader, index: ShardIndex, counts: Counts, size: int, path: Path) -> None:
    samples = permutation(0, 0, len(reader))[:SHOWN]
    pixels = np.empty((len(samples), size, size, 3), dtype=np.uint8)
    decode_samples(reader, samples, pixels)
    titles, right = [], []
    for sample in samples:
        guess, label = int(counts.predictions[sample]), int(reader.labels[sample])
        right.append(guess == label)
        name = index.classes[guess].short_name
        titles.append(name if guess == label else f"{name}\n(is {index.classes[label].short_name})")
    draw_photos(pixels, titles, path, right=right, heading="First guesses; wrong ones have a frame")
