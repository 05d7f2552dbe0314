"""Numbers of a run: ``metrics.jsonl``, top-k counts and confidence intervals. Importing it does not load torch."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imgprep.errors import DamagedError, SpecError
from training.atomic import publish

if TYPE_CHECKING:
    from torch import Tensor


class MetricsLog:
    """Appends lines to ``metrics.jsonl``; a killed process loses no line that :meth:`append` has written.

    Args:
        path: The file; made when it is not there.
    """

    def __init__(self, path: Path) -> None:
        self._stream = path.open("a", encoding="utf-8")

    def append(self, record: dict[str, Any]) -> None:
        """Write one line. Numbers that JSON lacks (NaN, infinity) become null."""
        self._stream.write(json.dumps({key: _plain(value) for key, value in record.items()}) + "\n")
        self._stream.flush()

    def close(self) -> None:
        """Close the file."""
        self._stream.close()


def _plain(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read ``metrics.jsonl``; a last line that a kill cut short is left out.

    Args:
        path: The file; a missing one has no lines.

    Raises:
        DamagedError: Another line is not one that training writes.
    """
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return []
    records = []
    for number, line in enumerate(lines, start=1):
        if number == len(lines) and not line.endswith(b"\n"):
            break
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if not _is_record(record):
            raise DamagedError(
                f"line {number} of {path} is not a line of metrics",
                "remove the line, or train anew with --overwrite",
            )
        records.append(record)
    return records


def _is_record(record: object) -> bool:
    """Whether a line has what resuming and drawing ask of it: its place, and numbers or nulls."""
    return (
        isinstance(record, dict)
        and record.get("kind") in ("step", "epoch")
        and all(type(record.get(key)) is int for key in ("epoch", "global_step"))
        and all(
            value is None or type(value) is float or (type(value) is int and abs(value) < 2**63)
            for key, value in record.items()
            if key != "kind"
        )
    )


def keep_until(path: Path, *, global_step: int, epochs: int) -> None:
    """Drop the lines that are ahead of a checkpoint: a resumed run writes them again.

    Args:
        path: ``metrics.jsonl``; replaced atomically.
        global_step: Steps the checkpoint has done. Lines say after how many steps they were written.
        epochs: Epochs it has closed: it may have done all steps of an epoch and not yet its validation.
    """
    kept = [
        record
        for record in read_metrics(path)
        if record["global_step"] <= global_step and (record["kind"] != "epoch" or record["epoch"] <= epochs)
    ]
    publish(path, "".join(json.dumps(record) + "\n" for record in kept).encode())


def count_top_k(logits: Tensor, labels: Tensor, k: int) -> Tensor:
    """How many samples have their label among the ``k`` highest logits.

    Of equal logits the lower class comes first. A sample with a logit that is not a number is never right.

    Args:
        logits: Shape ``(n, classes)``.
        labels: Shape ``(n,)``, int64.
        k: At least 1.

    Returns:
        A scalar int64 tensor on the same device: nothing is waited for.
    """
    own = logits.gather(1, labels[:, None])
    classes = (labels.new_ones(logits.shape[1]).cumsum(0) - 1)[None, :]
    behind = (logits < own) | ((logits == own) & (classes >= labels[:, None]))
    return (((~behind).sum(dim=1) < k) & ~logits.isnan().any(dim=1)).sum()


def wilson_interval(correct: int, total: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Wilson's score interval of a share, 95 % unless told otherwise.

    Args:
        correct: Successes.
        total: Trials; with none the interval is everything.
        z: Quantile of the normal distribution.

    Returns:
        Lower and upper bound, 0 to 1.

    Raises:
        SpecError: More successes than trials, or negative ones.
    """
    if not 0 <= correct <= total:
        raise SpecError(f"correct must be 0 to {total}, got {correct}")
    if total == 0:
        return 0.0, 1.0
    share = correct / total
    centre = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return max(0.0, centre - half), min(1.0, centre + half)
