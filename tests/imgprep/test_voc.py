"""voc: the label of a validation picture; parsing is tested with the stage, in test_annotations.py."""

from __future__ import annotations

import pytest

from imgprep.voc import val_label


@pytest.mark.parametrize(
    ("listed", "classes", "label"),
    [
        ("n00000001", ["n00000001"], "n00000001"),
        ("n00000001", ["n00000002"], "n00000001"),
        ("n00000001", [], "n00000001"),
        (None, ["n00000002"], "n00000002"),
        (None, ["n00000002", "n00000003"], None),
        (None, [], None),
    ],
)
def test_the_list_goes_first_then_the_one_class_of_the_boxes(
    listed: str | None, classes: list[str], label: str | None
) -> None:
    assert val_label(listed, classes) == label
