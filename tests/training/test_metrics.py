from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from imgprep.errors import DamagedError, SpecError
from training.metrics import MetricsLog, count_top_k, keep_until, read_metrics, wilson_interval

LINE = {"kind": "step", "epoch": 1, "step": 3, "global_step": 3, "loss": 0.5}


def test_lines_come_back(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for part in range(2):
        log = MetricsLog(path)
        log.append(LINE | {"global_step": part, "bad": float("nan"), "worse": float("inf")})
        log.close()
    assert read_metrics(path) == [LINE | {"global_step": part, "bad": None, "worse": None} for part in range(2)]


def test_a_line_cut_short_by_a_kill_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps(LINE) + '\n{"global_st')
    assert read_metrics(path) == [LINE]


@pytest.mark.parametrize(
    "line",
    [
        b"nonsense",
        b"{}",
        b"[]",
        b"\xff",
        b"[" * 200_000,
        b'{"kind": "epoch"}',
        b'{"kind": "epoch", "epoch": "1", "global_step": 1}',
        b'{"kind": "epoch", "epoch": 1, "global_step": 1, "loss": "high"}',
        b'{"kind": ["step"], "epoch": 1, "global_step": 1}',
    ],
    ids=lambda line: line[:60].decode(errors="replace"),
)
def test_a_line_that_training_did_not_write_is_damage(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(json.dumps(LINE).encode() + b"\n" + line + b"\n")
    with pytest.raises(DamagedError, match=r"line 2 of .* is not a line of metrics - remove the line"):
        read_metrics(path)


def test_lines_past_a_checkpoint_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    records = [
        {"kind": kind, "epoch": 1, "global_step": step} for kind, step in [("step", 3), ("step", 6), ("epoch", 6)]
    ]
    records.append({"kind": "step", "epoch": 2, "global_step": 9})
    path.write_text("".join(json.dumps(record) + "\n" for record in records) + '{"global')
    keep_until(path, global_step=6, epochs=1)
    assert read_metrics(path) == records[:3]
    keep_until(path, global_step=6, epochs=0)
    assert read_metrics(path) == records[:2]
    keep_until(path, global_step=0, epochs=0)
    assert path.read_text() == ""
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), classes=st.integers(1, 9), k=st.integers(1, 7))
def test_top_k_agrees_with_sorting(seed: int, classes: int, k: int) -> None:
    random = np.random.default_rng(seed)
    # Few distinct values, so that ties are common.
    logits, labels = random.integers(0, 5, (30, classes)).astype(np.float32), random.integers(0, classes, 30)
    expected = sum(
        int(label) in sorted(range(classes), key=lambda c, row=row: (-row[c], c))[:k]
        for row, label in zip(logits, labels, strict=True)
    )
    assert int(count_top_k(torch.from_numpy(logits), torch.from_numpy(labels), k)) == expected


def test_what_is_not_a_number_is_never_right() -> None:
    labels = torch.zeros(4, dtype=torch.int64)
    # As many places as classes, and more: being among the first of them must not be enough.
    for k in (1, 3, 5):
        assert int(count_top_k(torch.full((4, 3), float("nan")), labels, k)) == 0
        assert int(count_top_k(torch.tensor([[2.0, 1.0, float("nan")]]).expand(4, 3), labels, k)) == 0
        assert int(count_top_k(torch.tensor([[2.0, 1.0, 0.0]]).expand(4, 3), labels, k)) == 4


def test_intervals_agree_with_published_values() -> None:
    # Newcombe (1998), table I, method 3 (score without continuity correction).
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson_interval(15, 148) == pytest.approx((0.0624, 0.1605), abs=1e-4)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)
    assert wilson_interval(29, 29) == pytest.approx((0.8830, 1.0), abs=1e-4)


def test_intervals_of_nothing_and_of_nonsense() -> None:
    assert wilson_interval(0, 0) == (0.0, 1.0)
    with pytest.raises(SpecError, match="correct must be 0 to 3, got 4"):
        wilson_interval(4, 3)
