"""Plots can be drawn of any summary, and say what is missing where they cannot."""

import importlib.abc
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imgprep.errors import MissingExtraError
from imgprep.plots import draw_summary, shortened
from imgprep.records import Synset
from imgprep.summary import Boxes, ClassSummary, Sizes, SplitSummary, Summary


def drawn(
    classes: int, pictures: int, *, name: str = "a class", boxes: bool = True, side: float | None = None
) -> Summary:
    rng = np.random.default_rng(0)
    width = np.full(pictures, side) if side else np.round(rng.lognormal(6, 0.5, pictures)) + 1
    height = width if side else np.round(width * rng.uniform(0.4, 2, pictures)) + 1
    synsets = (Synset(f"n{place:08d}", place, f"{name} {place}") for place in range(classes))
    return Summary(
        what="catalog",
        classes=tuple(ClassSummary(synset=s, pictures={"train": 9 + s.index}, num_bytes=1) for s in synsets),
        splits={"train": SplitSummary(pictures=pictures, labelled=pictures, classes=classes, num_bytes=1)},
        num_bytes=width * 100,
        sizes=Sizes(basis="doctor", width=width, height=height),
        boxes=Boxes(per_picture=np.ones(3), share=np.array([0.0, 0.5, 1.0])) if boxes else None,
    )


@pytest.mark.parametrize(
    "summary",
    [
        drawn(1, 1),
        drawn(10, 50, name="\u86c7 $x$ \n and a name that goes on and on"),
        drawn(1000, 4000),
        drawn(41, 4000, side=64.0, boxes=False),
        drawn(0, 0, boxes=False),
    ],
    ids=["one", "ten", "thousand", "one size", "nothing"],
)
def test_any_summary_can_be_drawn(summary: Summary, tmp_path: Path) -> None:
    draw_summary(summary, tmp_path / "a.png")

    with Image.open(tmp_path / "a.png") as image:
        image.load()
        assert 1000 < image.width < 2000
        assert 600 < image.height < 2000


def test_equal_summaries_have_equal_bytes(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "c.png"):
        draw_summary(drawn(2 + (name == "c.png"), 5), tmp_path / name)

    first, second, third = ((tmp_path / name).read_bytes() for name in ("a.png", "b.png", "c.png"))
    assert first == second != third


def test_without_matplotlib_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Hidden(), *sys.meta_path])

    with pytest.raises(MissingExtraError, match=r"plots need matplotlib, .* pip install 'imgprep\[train\]'"):
        draw_summary(drawn(2, 5), tmp_path / "a.png")

    assert not any(tmp_path.iterdir())


class Hidden(importlib.abc.MetaPathFinder):
    """Makes matplotlib look as if it was not installed."""

    def find_spec(self, fullname: str, path: object, target: object = None) -> None:
        del path, target
        if fullname.partition(".")[0] == "matplotlib":
            message = f"No module named {fullname!r}"
            raise ModuleNotFoundError(message, name=fullname)


def test_names_are_short_and_printable() -> None:
    assert shortened("tench") == "tench"
    assert shortened("a\nb") == "a b"
    assert len(shortened("x" * 100)) == 22
