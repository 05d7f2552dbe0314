from __future__ import annotations

import pytest

from imgprep.errors import SpecError
from training.recipes import RECIPES, default_recipe, describe, recipe, tiny


def test_small_splits_get_the_tiny_recipe() -> None:
    assert [default_recipe(n) for n in (1, 19_999, 20_000)] == ["tiny", "tiny", "imagenet"]


def test_every_recipe_bears_its_name_and_says_what_it_is() -> None:
    for name, make in RECIPES.items():
        assert recipe(name).recipe == name
        assert make.__doc__


def test_the_choice_gives_its_reason() -> None:
    line = describe(tiny(), 1000, chosen=False)
    assert line.startswith("recipe tiny: AlexNet-BN at 64 px, ")
    assert line.endswith("because the training split has 1,000 samples (under 20,000)")
    assert describe(tiny(), 1000, chosen=True).endswith("as asked for")


def test_unknown_recipes_are_refused() -> None:
    with pytest.raises(SpecError, match="got 'huge'"):
        recipe("huge")
