from __future__ import annotations

import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest

from training.figures import draw_confusion, draw_curves, draw_photos

LINES = [
    {
        "kind": "epoch",
        "epoch": e,
        "loss": 2 / e,
        "top1": 0.1 * e,
        "val_loss": 3 / e,
        "val_top1": 0.08 * e,
        "val_top5": 0.5,
    }
    for e in range(1, 6)
]


def picture(path: Path) -> np.ndarray:
    pixels = cv2.imread(str(path))
    assert pixels is not None
    return pixels


def colours(path: Path, blue_green_red: tuple[int, int, int]) -> int:
    return int((abs(picture(path).astype(int) - blue_green_red).max(axis=2) < 12).sum())


def test_curves_show_both_splits(tmp_path: Path) -> None:
    path = tmp_path / "curves.png"
    draw_curves(LINES, path, title="run one")
    height, width = picture(path).shape[:2]
    assert (440 <= height < 480, 1100 <= width < 1140) == (True, True)
    assert colours(path, (0xB2, 0x72, 0x00)) > 300
    assert colours(path, (0x00, 0x5E, 0xD5)) > 300
    assert colours(path, (0x73, 0x9E, 0x00)) > 100
    assert [p.name for p in tmp_path.iterdir()] == ["curves.png"]


def test_curves_of_nothing_one_epoch_and_no_number(tmp_path: Path) -> None:
    draw_curves([], tmp_path / "none.png", title="")
    draw_curves(LINES[:1], tmp_path / "one.png", title="")
    assert colours(tmp_path / "one.png", (0x00, 0x5E, 0xD5)) > 30
    draw_curves([*LINES, LINES[0] | {"epoch": 6, "loss": None}], tmp_path / "gap.png", title="")
    assert picture(tmp_path / "gap.png").size


def test_pictures_are_reproducible(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        draw_curves(LINES, tmp_path / name, title="run one")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_photos_have_their_own_colours_and_wrong_ones_a_frame(tmp_path: Path) -> None:
    pixels = np.zeros((3, 16, 16, 3), dtype=np.uint8)
    pixels[0], pixels[1], pixels[2] = (250, 0, 0), (0, 250, 0), (0, 0, 250)
    draw_photos(pixels, ["$red", "green_{", "blue"], tmp_path / "a.png", heading="h")
    for channel in range(3):
        colour = [0, 0, 0]
        colour[2 - channel] = 250
        assert colours(tmp_path / "a.png", tuple(colour)) > 3000
    assert colours(tmp_path / "a.png", (0x00, 0x5E, 0xD5)) == 0
    draw_photos(pixels, ["a", "b", "c"], tmp_path / "b.png", heading="h", right=[True, False, True])
    assert colours(tmp_path / "b.png", (0x00, 0x5E, 0xD5)) > 300


def test_confusion_is_drawn_for_few_and_for_many_classes(tmp_path: Path) -> None:
    for classes in (2, 10, 60):
        path = tmp_path / f"{classes}.png"
        draw_confusion(np.eye(classes, dtype=np.int64) * 5, [f"class {k}" for k in range(classes)], path)
        assert colours(path, (0x38, 0xE8, 0xFE)) > 300, "the diagonal of a perfect model is bright"


def test_names_in_any_script_and_with_control_characters_are_drawn_in_silence(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    warnings.simplefilter("always")
    names = ["\u732b", "a\x1b[31mb\x07", "\U0001f431\tc", "\ud800"]
    draw_photos(np.zeros((4, 16, 16, 3), dtype=np.uint8), names, tmp_path / "a.png", heading="h")
    draw_confusion(np.eye(4, dtype=np.int64), names, tmp_path / "b.png")
    assert [str(warning.message) for warning in recwarn] == []
