"""``report.md``: what was trained on what, the numbers, the pictures. Needs no torch."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any, Final

import numpy as np

from imgprep.errors import MissingInputError
from imgprep.index import ShardIndex, read_index
from training.atomic import publish
from training.config import TrainConfig
from training.console import printable
from training.decode import decode_square
from training.figures import draw_curves, draw_photos
from training.metrics import read_metrics
from training.order import permutation
from training.reader import ShardReader
from training.recipes import describe
from training.runs import Run, RunRecord, index_of, read_evaluation, read_finished, read_record

REPORT_VERSION: Final = 1
"""Raised when the same run would be written up otherwise."""

SHOWN: Final = 20
"""Photos in the grid of samples."""


def report(run: Run, *, index_path: Path | None = None) -> tuple[Path, bool]:
    """Write ``report.md`` and its pictures beside a run; the numbers are those measured so far.

    Args:
        run: The run; it need not be finished or evaluated, and the report says when it is not.
        index_path: The shards, for sample photos; where the run found them when not given.

    Returns:
        The report, and whether it was written now; it is not when nothing has changed since the last time.

    Raises:
        MissingInputError: No such run.
        DamagedError: Something that is read is damaged.
        MissingExtraError: matplotlib is not installed.
    """
    record = read_record(run)
    index_path = index_of(run, record, index_path)
    index = _find_shards(record, index_path)
    mark = _mark(run, with_shards=index is not None)
    if _is_current(run, mark):
        return run.report, False
    metrics = read_metrics(run.metrics)
    epochs = [line for line in metrics if line.get("kind") == "epoch"]
    draw_curves(metrics, run.curves, title=f"run {run.name}")
    sections = [f"# Run {run.name}", _summary(run, record, epochs)]
    sections.append(_dataset_section(run, record, index))
    if index is not None:
        _draw_samples(index, index_path, record.config, run.folder / "samples.png")
        sections.append("![Photos of the training split with their classes](samples.png)")
    sections += ["## Training", _training_table(record.config), "![Learning curves](curves.png)"]
    for file in sorted(run.folder.glob("eval*.json")):
        sections.append(_evaluation_section(read_evaluation(run, file), file))
    if not (run.folder / "eval.json").exists():
        sections.append("Not evaluated yet: `imgprep evaluate` adds accuracy per class and the confusion matrix.")
    sections += ["## Versions", _table(["package", "version"], [[k, str(v)] for k, v in record.versions.items()])]
    sections.append(mark)
    publish(run.report, ("\n\n".join(sections) + "\n").encode(errors="replace"))
    return run.report, True


def _mark(run: Run, *, with_shards: bool) -> str:
    """A comment that stands for everything a report is made from."""
    digest = hashlib.sha256(f"{REPORT_VERSION} {with_shards}".encode())
    for file in (run.config, run.metrics, run.finished, *sorted(run.folder.glob("eval*.json"))):
        content = file.read_bytes() if file.exists() else b""
        digest.update(f"\0{file.name}\0{len(content)}\0".encode() + content)
    return f"<!-- made from {digest.hexdigest()} -->"


def _is_current(run: Run, mark: str) -> bool:
    """Whether the report with this mark is there, with every picture it shows."""
    try:
        text = run.report.read_text(encoding="utf-8")
    except (FileNotFoundError, UnicodeDecodeError):
        return False
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text)
    return text.rstrip().endswith(mark) and all((run.folder / picture).exists() for picture in pictures)


def _find_shards(record: RunRecord, index_path: Path) -> ShardIndex | None:
    """The index, when the shards are still there and still the same; a report can do without."""
    try:
        index = read_index(index_path)
    except MissingInputError:
        return None
    return index if index.dataset_digest == record.dataset_digest else None


def _summary(run: Run, record: RunRecord, epochs: list[dict[str, Any]]) -> str:
    if run.finished.exists():
        finished = read_finished(run)
        return (
            f"Top-1 {_share(finished['top1'])}, top-{finished['top5']['k']} {_share(finished['top5'])} on the"
            f" validation split, measured with the final weights after {finished['epochs']} epochs and"
            f" {finished['seconds']:,.0f} s of training on {record.device}. In brackets: 95 % confidence"
            " intervals (Wilson)."
        )
    state = f"after {epochs[-1]['epoch']} of {record.config.epochs} epochs" if epochs else "before its first full epoch"
    return f"This run is not finished: it stands {state}."


def _share(measured: dict[str, Any]) -> str:
    low, high = 100 * measured["low"], 100 * measured["high"]
    return (
        f"{100 * measured['share']:.1f} % ({measured['correct']:,} of {measured['total']:,}; {low:.1f} to {high:.1f} %)"
    )


def _dataset_section(run: Run, record: RunRecord, index: ShardIndex | None) -> str:
    lines = ["## Dataset", f"- dataset digest: `{record.dataset_digest}`"]
    if index is None:
        lines.append(f"- the shards are no longer where run {run.name} found them")
    else:
        lines += [
            f"- split {name}: {split.num_samples:,} samples in {len(split.shards)} {_plural(len(split.shards))},"
            f" {split.num_bytes / 1e6:,.1f} MB"
            for name, split in index.splits.items()
        ]
        names = ", ".join(printable(f"{info.short_name} ({info.wnid})") for info in index.classes[:20])
        more = f" and {len(index.classes) - 20} more" if len(index.classes) > 20 else ""
        lines.append(f"- {len(index.classes)} classes: {names}{more}")
    return lines[0] + "\n\n" + "\n".join(lines[1:])


def _plural(count: int) -> str:
    return "shard" if count == 1 else "shards"


def _draw_samples(index: ShardIndex, index_path: Path, config: TrainConfig, path: Path) -> None:
    with ShardReader(index_path, index, config.data.train_split) as reader:
        samples = permutation(0, 0, len(reader))[:SHOWN]
        size = config.data.image_size
        pixels = np.empty((len(samples), size, size, 3), dtype=np.uint8)
        for row, sample in enumerate(samples):
            decode_square(reader.read(int(sample)), pixels[row])
        titles = [index.classes[int(reader.labels[sample])].short_name for sample in samples]
    draw_photos(pixels, titles, path, heading="Photos of the training split, as the network gets them")


def _training_table(config: TrainConfig) -> str:
    data, augment, optim = config.data, config.augment, config.optim
    rows = [
        ["network", f"{config.model.architecture}, width {config.model.width:g}, dropout {config.model.dropout:g}"],
        ["pictures", f"centre square at {data.image_size} px; evaluation sees the central {augment.eval_size} px"],
        ["crops", f"{augment.crop_size} px of {100 * augment.min_area:g} to 100 % of the area; flips {augment.flip:g}"],
        [
            "mixing",
            f"mixup {augment.mixup:g}, cutmix {augment.cutmix:g}; not in the last {augment.clean_epochs} epochs",
        ],
        ["other", f"erasing {augment.erase:g}, colour jitter {augment.jitter:g}, smoothing {optim.label_smoothing:g}"],
        ["optimiser", f"{optim.optimizer}, lr {optim.lr:g} ({optim.schedule}), weight decay {optim.weight_decay:g}"],
        ["averaged weights", f"decay {optim.ema:g}" if optim.ema else "none"],
        ["epochs", f"{config.epochs} of batches up to {data.batch_size}; seed {config.seed}"],
    ]
    return (
        describe(config, 0, chosen=True).split(";")[0].replace("recipe", "Recipe", 1)
        + ".\n\n"
        + _table(["setting", "value"], rows)
    )


def _evaluation_section(document: dict[str, Any], file: Path) -> str:
    rows = [
        [info["name"].split(",")[0], info["wnid"], str(info["correct"]), str(info["num_samples"]), _percent(info)]
        for info in sorted(document["classes"], key=lambda info: info["label"])
    ]
    stem = file.name.removesuffix(".json")
    fewer = " (there are no more classes)" if document["top5"]["k"] < 5 else ""
    return "\n\n".join(
        [
            f"## Evaluation: {document['checkpoint']} checkpoint on split {document['split']}",
            f"- top-1: {_share(document['top1'])}\n"
            f"- top-{document['top5']['k']}{fewer}: {_share(document['top5'])}\n"
            f"- loss: {document['loss']:.4f}\n"
            f"- {document['views']}; weights: {document['weights']}",
            _table(["class", "wnid", "right", "of", "%"], rows),
            f"![Confusion matrix]({stem}.confusion.png)",
            f"![First guesses]({stem}.predictions.png)",
        ]
    )


def _percent(info: dict[str, Any]) -> str:
    return f"{100 * info['correct'] / info['num_samples']:.1f}" if info["num_samples"] else "-"


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(printable(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
