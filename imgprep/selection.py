"""Which classes and pictures a request chooses: by keyed hash, whatever the order of files, platform or Python version.

Every class and every picture has a rank: a hash of its name under the seed. The first N are taken. So 10 x 100 lies
inside 10 x 200, and a part of an archive that holds a choice gives the same choice as the whole.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from imgprep.errors import SpecError, UsageError
from imgprep.records import Catalog, Synset

SELECTION_VERSION: Final = 1
"""Raised when the same spec would choose other rows."""

_MAX_SEED: Final = 1 << 63


@dataclass(frozen=True, kw_only=True)
class SubsetSpec:
    """A request for a subset.

    Attributes:
        classes: How many classes, or which: wnids or names. None takes all that have an image.
        per_class: Training images a class. None takes all.
        val_per_class: Validation images a class. None takes all.
        seed: Another seed makes another choice.
        allow_short: Take a named class also when it has fewer training images than asked for.
    """

    classes: int | tuple[str, ...] | None = None
    per_class: int | None = None
    val_per_class: int | None = None
    seed: int = 0
    allow_short: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.classes, int) and self.classes < 1:
            raise SpecError(f"classes must be 1 or more, got {self.classes}")
        if isinstance(self.classes, tuple) and not all(name.strip() for name in (self.classes or ("",))):
            raise SpecError("classes must name at least one class, and none may be empty")
        if self.per_class is not None and self.per_class < 1:
            raise SpecError(f"per_class must be 1 or more, got {self.per_class}")
        if self.val_per_class is not None and self.val_per_class < 0:
            raise SpecError(f"val_per_class must be 0 or more, got {self.val_per_class}")
        if not 0 <= self.seed < _MAX_SEED:
            raise SpecError(f"seed must be from 0 to 2^63 - 1, got {self.seed}")

    def to_options(self) -> dict[str, Any]:
        """The spec as JSON values."""
        return {
            "classes": list(self.classes) if isinstance(self.classes, tuple) else self.classes,
            "per_class": self.per_class,
            "val_per_class": self.val_per_class,
            "seed": self.seed,
            "allow_short": self.allow_short,
        }

    @property
    def line(self) -> str:
        """The spec on one line, for citing."""
        classes = ",".join(self.classes) if isinstance(self.classes, tuple) else self.classes or "all"
        return (
            f"classes={classes} per-class={self.per_class or 'all'}"
            f" val-per-class={'all' if self.val_per_class is None else self.val_per_class} seed={self.seed}"
        )


def rank(seed: int, kind: str, name: str) -> bytes:
    """Rank of a class or picture under a seed: BLAKE2b of its name, keyed by the seed, 16 bytes.

    Args:
        seed: The spec's seed.
        kind: ``class`` or ``image``: their ranks are independent.
        name: The wnid or the key.
    """
    return hashlib.blake2b(name.encode(), digest_size=16, key=seed.to_bytes(8, "big"), person=kind.encode()).digest()


@dataclass(frozen=True, kw_only=True)
class ClassChoice:
    """Which classes a spec chooses.

    Attributes:
        catalog: The chosen classes, renumbered in the order of the catalog they come from.
        passed_over: Classes with too few training images to be eligible, with their counts.
        short: Named classes that have fewer training images than asked for, with their counts.
    """

    catalog: Catalog
    passed_over: Sequence[tuple[Synset, int]] = ()
    short: Sequence[tuple[Synset, int]] = ()


def choose_classes(counts: Mapping[str, int], catalog: Catalog, spec: SubsetSpec) -> ClassChoice:
    """Choose classes; pure.

    Args:
        counts: Training images of each wnid that has any.
        catalog: All classes.
        spec: The request.

    Raises:
        UnknownClassError: A named class is not in the catalog.
        UsageError: Too few classes are eligible, or named classes are short or have no image at all.
    """
    wanted = spec.per_class or 1
    if isinstance(spec.classes, tuple):
        named = list({synset.wnid: synset for synset in map(catalog.resolve, spec.classes)}.values())
        short = [(synset, counts.get(synset.wnid, 0)) for synset in named if counts.get(synset.wnid, 0) < wanted]
        _check_named(short, wanted, allow_short=spec.allow_short)
        return ClassChoice(catalog=_renumbered(named), short=short)
    eligible = [synset for synset in catalog if counts.get(synset.wnid, 0) >= wanted]
    passed_over = [(s, counts[s.wnid]) for s in catalog if 0 < counts.get(s.wnid, 0) < wanted]
    number = len(eligible) if spec.classes is None else spec.classes
    if not counts:
        raise UsageError("there is no training image to choose from", "check the source with `imgprep catalog`")
    if spec.classes is None and not eligible:
        raise UsageError(
            f"no class has {wanted} or more training images; the largest has {max(counts.values())}",
            "ask for fewer with --per-class",
        )
    if number > len(eligible):
        more = f" ({len(passed_over)} more have fewer)" if passed_over else ""
        raise UsageError(
            f"{number} classes were asked for, but only {len(eligible)} have {wanted} or more training images{more}",
            "ask for fewer with --classes or --per-class",
        )
    chosen = sorted(eligible, key=lambda synset: rank(spec.seed, "class", synset.wnid))[:number]
    return ClassChoice(catalog=_renumbered(chosen), passed_over=passed_over)


def _check_named(short: Sequence[tuple[Synset, int]], wanted: int, *, allow_short: bool) -> None:
    empty = [synset for synset, n in short if n == 0]
    if empty:
        names = ", ".join(synset.label for synset in empty)
        raise UsageError(f"no training image of {names} is in this source", "leave those classes out")
    if short and not allow_short:
        listed = ", ".join(f"{synset.label} has {n}" for synset, n in short)
        raise UsageError(
            f"named classes with fewer than {wanted} training images: {listed}",
            "ask for fewer with --per-class, or take what there is with --allow-short",
        )


def _renumbered(chosen: Iterable[Synset]) -> Catalog:
    ordered = sorted(chosen, key=lambda synset: synset.index)
    return Catalog(Synset(synset.wnid, label, synset.name) for label, synset in enumerate(ordered))


def choose_keys(keys: Iterable[str], limit: int | None, *, seed: int) -> list[str]:
    """The first ``limit`` keys of one class by rank, lowest rank first; None takes all."""
    return sorted(keys, key=lambda key: rank(seed, "image", key))[:limit]
