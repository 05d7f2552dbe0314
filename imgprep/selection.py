"""Which classes and pictures a request chooses: by keyed hash, whatever the order of files, platform or Python version.

Every class and every picture has a rank: a hash of its name under the seed. The first N are taken. So 10 x 100 lies
inside 10 x 200, and a part of an archive that holds a choice gives the same choice as the whole. To the byte:
docs/reference/subset-hash.md.
"""

from __future__ import annotations

import hashlib
import heapq
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, get_args

from imgprep.errors import SpecError, UsageError
from imgprep.presets import (
    Superclasses,
    find_preset,
    get_preset,
    join_names,
    parse_names,
    parse_superclass,
    quote_name,
)
from imgprep.records import SPLITS, Catalog, Synset

SELECTION_VERSION: Final = 1
"""Raised when the same spec would choose other rows."""

Operation = Literal["union", "intersect", "difference"]
OPERATIONS: Final[tuple[Operation, ...]] = get_args(Operation)

DROPS: Final = ("odd", "duplicates", "leaks", "conflicts")
"""What ``drop`` may name."""

_MAX_SEED: Final = 1 << 63
_MAX_SHARE: Final = 10_000
_MAX_FOLDS: Final = 100
_RANK_BITS: Final = 128


@dataclass(frozen=True, kw_only=True)
class SubsetSpec:
    """A request for a subset.

    Attributes:
        classes: How many classes, or which: wnids or names. None takes all that have an image.
        per_class: Training images a class. None takes all.
        val_per_class: Validation images a class. None takes all.
        seed: Another seed makes another choice.
        allow_short: Take a named class also when it has fewer training images than asked for.
        superclasses: Labels with the classes that become one under each; ``classes`` then chooses among the labels.
        split: Shares of train and val, or of train, val and test, that the training images are divided into.
        folds: Into how many folds the training images are divided.
        fold: Which of them, from 0, becomes val; the others become train.
        drop: Which findings of ``imgprep doctor`` leave an image out: some of :data:`DROPS`.
        exclude: Subsets, or paths of manifests, whose images are left out.
        parent: The subset to choose from; None for the whole catalog.
    """

    classes: int | tuple[str, ...] | None = None
    per_class: int | None = None
    val_per_class: int | None = None
    seed: int = 0
    allow_short: bool = False
    superclasses: Superclasses = ()
    split: tuple[int, ...] = ()
    folds: int | None = None
    fold: int | None = None
    drop: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    parent: str | None = None

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
        self._check_division()
        strangers = sorted(set(self.drop) - set(DROPS))
        if strangers:
            raise SpecError(f"drop must be some of {', '.join(DROPS)}, got {strangers[0]!r}")
        if not all(map(str.strip, (*self.exclude, "-" if self.parent is None else self.parent))):
            raise SpecError("what is chosen from, or excluded, must have a name")
        _check_superclasses(self.superclasses)
        # One request has one line, however it was put.
        object.__setattr__(self, "drop", tuple(name for name in DROPS if name in self.drop))

    def _check_division(self) -> None:
        if self.split and not (
            2 <= len(self.split) <= len(SPLITS) and all(1 <= share <= _MAX_SHARE for share in self.split)
        ):
            shown = "/".join(map(str, self.split))
            raise SpecError(f"split must be two or three shares from 1 to {_MAX_SHARE}, as in 70/20/10, got {shown}")
        if self.folds is not None and not 2 <= self.folds <= _MAX_FOLDS:
            raise SpecError(f"folds must be from 2 to {_MAX_FOLDS}, got {self.folds}")
        if self.fold is not None and self.folds is None:
            raise SpecError("fold names one of several folds", "say of how many with folds")
        if self.fold is not None and self.folds is not None and not 0 <= self.fold < self.folds:
            raise SpecError(f"fold must be from 0 to {self.folds - 1}, one less than folds, got {self.fold}")
        if self.split and self.folds:
            raise SpecError("split and folds divide the same images", "give one of them")
        if self.shares and self.val_per_class is not None:
            raise SpecError(
                "val_per_class means nothing with split or folds, which make val of the training images",
                "leave one of them out",
            )

    @property
    def names_classes(self) -> bool:
        """Whether it says which classes, not how many."""
        return isinstance(self.classes, tuple) or bool(self.superclasses)

    @property
    def shares(self) -> tuple[int, ...]:
        """How large the parts are that training images are divided into; empty where they are not."""
        return self.split or (1,) * (self.folds or 0)

    def part_splits(self) -> tuple[str, ...]:
        """The split that each part becomes.

        Raises:
            SpecError: There are folds, and none of them was named.
        """
        if self.folds is None:
            return SPLITS[: len(self.split)]
        if self.fold is None:
            raise SpecError(f"which of the {self.folds} folds is to be val?", "give --fold, or take each in turn")
        return tuple("val" if number == self.fold else "train" for number in range(self.folds))

    def each_fold(self) -> list[SubsetSpec]:
        """A spec for each fold as val."""
        return [replace(self, fold=number) for number in range(self.folds or 0)]

    def to_options(self) -> dict[str, Any]:
        """The spec as JSON values; fields that came with later versions only where they are set."""
        options: dict[str, Any] = {
            "classes": list(self.classes) if isinstance(self.classes, tuple) else self.classes,
            "per_class": self.per_class,
            "val_per_class": self.val_per_class,
            "seed": self.seed,
            "allow_short": self.allow_short,
        }
        more = {
            "superclasses": [[label, list(names)] for label, names in self.superclasses],
            "split": list(self.split),
            "folds": self.folds,
            "fold": self.fold,
            "drop": list(self.drop),
            "exclude": list(self.exclude),
        }
        return options | {name: value for name, value in more.items() if value not in ([], None)}

    @property
    def line(self) -> str:
        """The spec on one line, for citing; :func:`parse_line` reads it."""
        return " ".join(f"{name}={value}" for name, value in self._words())

    def _words(self) -> Iterator[tuple[str, str]]:
        preset = find_preset(self.classes, self.superclasses)
        if self.superclasses or not preset:
            yield "classes", join_names(self.classes) if isinstance(self.classes, tuple) else str(self.classes or "all")
        if preset:
            yield "preset", preset
        yield "per-class", str(self.per_class or "all")
        yield "val-per-class", "all" if self.val_per_class is None else str(self.val_per_class)
        yield "seed", str(self.seed)
        if self.allow_short:
            yield "allow-short", "yes"
        for label, names in () if preset else self.superclasses:
            yield "superclass", f"{quote_name(label)}:{join_names(names)}"
        for name, value in (
            ("split", "/".join(map(str, self.split))),
            ("folds", str(self.folds or "")),
            ("fold", "" if self.fold is None else str(self.fold)),
            ("drop", ",".join(self.drop)),
            ("exclude", join_names(self.exclude)),
            ("from", quote_name(self.parent) if self.parent else ""),
        ):
            if value:
                yield name, value


@dataclass(frozen=True, kw_only=True)
class CombineSpec:
    """A request for what two subsets have together, in common, or what only the first has.

    Attributes:
        operation: One of :data:`OPERATIONS`.
        first: Name of a subset.
        second: Name of the other one.
    """

    operation: Operation
    first: str
    second: str

    def __post_init__(self) -> None:
        if self.operation not in OPERATIONS:
            raise SpecError(f"subsets are combined by {', '.join(OPERATIONS)}, not by {self.operation!r}")

    def to_options(self) -> dict[str, Any]:
        """The spec as JSON values."""
        return {"operation": self.operation, "of": [self.first, self.second]}

    @property
    def line(self) -> str:
        """The spec on one line, for citing; :func:`parse_line` reads it."""
        return f"{self.operation}={join_names([self.first, self.second])}"


def _check_superclasses(superclasses: Superclasses) -> None:
    slugs: dict[str, str] = {}
    for label, names in superclasses:
        name = slug(label)
        if not name or "," in label or not label.isprintable():
            raise SpecError(f"a label of superclasses needs a letter or digit and no comma, got {label[:100]!r}")
        if name in slugs:
            raise SpecError(f"two superclasses would be called {name!r}: {slugs[name]!r} and {label!r}")
        if not all(map(str.strip, names or ("",))):
            raise SpecError(f"the superclass {label!r} names no class, or an empty one")
        slugs[name] = label


def slug(label: str) -> str:
    """The id of a superclass: its label in lower case, with ``-`` for everything that is no letter or digit."""
    return re.sub(r"[\W_]+", "-", label.casefold()).strip("-")


# A spec on one line.

_QUOTED: Final = r'"(?:[^"\\]|\\.)*"'
_WORD: Final = re.compile(rf'\s*([a-z-]+)=((?:{_QUOTED}|[^\s"])*)(?=\s|\Z)')
_CITED: Final = re.compile(r"\s\(digest ([0-9a-f]{8,64})\)\s*\Z")
_PIN: Final = re.compile(r"(.+)#([0-9a-f]{16})", re.DOTALL)


def split_citation(text: str) -> tuple[str, str]:
    """Take ``(digest ...)`` off the end of a cited line: the line, and the digest or nothing."""
    match = _CITED.search(text)
    return (text[: match.start()], match[1]) if match else (text, "")


def split_pin(name: str) -> tuple[str, str]:
    """Take the digest off a name as lines have it, ``main#044297a76f04b872``: the name, and the digest or nothing."""
    match = _PIN.fullmatch(name)
    return (match[1], match[2]) if match else (name, "")


def parse_line(line: str) -> SubsetSpec | CombineSpec:
    """Read a spec from its line; what is missing has its default.

    Raises:
        SpecError: It is no such line, or names values that cannot be.
    """
    words: dict[str, list[str]] = {}
    line, place = line.strip(), 0
    while place < len(line):
        match = _WORD.match(line, place)
        if match is None:
            raise SpecError(f"a spec is words such as per-class=100 between blanks, got {line[place:][:100].strip()!r}")
        words.setdefault(match[1], []).append(match[2])
        place = match.end()
    if not words:
        raise SpecError("the spec is empty", "`imgprep subset` prints it after `cite as:`")
    twice = [name for name, values in words.items() if len(values) > 1 and name != "superclass"]
    if twice:
        raise SpecError(f"{twice[0]} stands twice in the spec")
    operation = next((name for name in OPERATIONS if name in words), None)
    if operation is None:
        return _parse_words(words)
    operands = parse_names(words[operation][0])
    if len(words) > 1 or len(operands) != 2:
        raise SpecError(f"{operation} takes two subsets and nothing else, got {line[:100]!r}")
    return CombineSpec(operation=operation, first=operands[0], second=operands[1])


def _parse_words(words: Mapping[str, Sequence[str]]) -> SubsetSpec:
    readers: dict[str, Callable[[str], Any]] = {
        "classes": parse_classes,
        "per-class": _count_or_all,
        "val-per-class": _count_or_all,
        "seed": _whole,
        "allow-short": _is_yes,
        "split": parse_shares,
        "folds": _whole,
        "fold": _whole,
        "drop": parse_names,
        "exclude": parse_names,
        "from": _one_name,
    }
    unknown = sorted(words.keys() - readers.keys() - {"superclass", "preset"})
    if unknown:
        raise SpecError(f"a spec has no {unknown[0]!r}", f"known words: {', '.join(readers)}, preset, superclass")
    options: dict[str, Any] = {}
    for word, values in words.items():
        if word in readers:
            options["parent" if word == "from" else word.replace("-", "_")] = readers[word](values[0])
    if "superclass" in words:
        options["superclasses"] = tuple(map(parse_superclass, words["superclass"]))
    return SubsetSpec(**with_preset(options, words["preset"][0])) if "preset" in words else SubsetSpec(**options)


def with_preset(options: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Fields of a :class:`SubsetSpec`, with the classes of a preset.

    Raises:
        SpecError: There is no such preset, or the fields choose other classes.
    """
    preset = get_preset(name)
    if options.get("superclasses") or (preset.classes and options.get("classes") is not None):
        raise SpecError(f"the preset {name} and other options both say which classes", "give one of them")
    chosen = {"classes": preset.classes} if preset.classes else {"superclasses": preset.superclasses}
    return {**options, **chosen}


def parse_classes(text: str) -> int | tuple[str, ...] | None:
    """Read a number of classes, ``all``, or names between commas.

    Raises:
        SpecError: A name is empty.
    """
    text = text.strip()
    if text.lower() == "all":
        return None
    return int(text) if re.fullmatch(r"[+-]?[0-9]{1,18}", text) else parse_names(text)


def parse_shares(text: str) -> tuple[int, ...]:
    """Read shares such as ``70/20/10``.

    Raises:
        SpecError: They are no whole numbers.
    """
    return tuple(_whole(share) for share in text.split("/"))


def _whole(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,19}", text.strip()):
        raise SpecError(f"a whole number was expected, got {text[:40]!r}")
    return int(text)


def _count_or_all(text: str) -> int | None:
    return None if text == "all" else _whole(text)


def _is_yes(text: str) -> bool:
    if text not in ("yes", "no"):
        raise SpecError(f"yes or no was expected, got {text[:40]!r}")
    return text == "yes"


def _one_name(text: str) -> str:
    names = parse_names(text)
    if len(names) != 1:
        raise SpecError(f"one name was expected, got {text[:100]!r}")
    return names[0]


# Ranks.


def rank(seed: int, kind: str, name: str) -> bytes:
    """Rank of a class or picture under a seed: BLAKE2b of its name, keyed by the seed, 16 bytes.

    Args:
        seed: The spec's seed.
        kind: ``class``, ``image`` or ``split``: their ranks are independent.
        name: The wnid or the key.
    """
    return hashlib.blake2b(name.encode(), digest_size=16, key=seed.to_bytes(8, "big"), person=kind.encode()).digest()


def choose_keys(keys: Iterable[str], limit: int | None, *, seed: int) -> list[str]:
    """The first ``limit`` keys by rank, lowest rank first; None takes all."""
    return sorted(keys, key=lambda key: rank(seed, "image", key))[:limit]


def part_of(key: str, shares: Sequence[int], *, seed: int) -> int:
    """The part that a picture belongs to, whatever other pictures there are.

    Its rank, as a number from 0 to 1, falls into one of the intervals that the shares cut [0, 1) into.

    Args:
        key: The picture.
        shares: Sizes of the parts.
        seed: The spec's seed.
    """
    ticket = int.from_bytes(rank(seed, "split", key), "big") * sum(shares) >> _RANK_BITS
    for part, share in enumerate(shares):
        ticket -= share
        if ticket < 0:
            return part
    raise AssertionError  # the ticket is less than the sum of the shares


def apportion(sizes: Sequence[int], shares: Sequence[int], limit: int | None) -> list[int]:
    """How many of ``limit`` pictures come from each part: places go one by one to the part that is furthest behind.

    A part that has taken t pictures is next at (2t + 1) / share, lowest first, as seats are given by Webster's method;
    a part that is used up is skipped. So the numbers are the exact shares wherever these are whole, a larger limit
    takes no picture back, and the sum is the limit or all there is.

    Args:
        sizes: Pictures in each part.
        shares: The share of each.
        limit: How many to take; None takes all.
    """
    if limit is None or limit >= sum(sizes):
        return list(sizes)
    scale = math.lcm(*shares)
    taken = [0] * len(sizes)
    queue = [(scale // share, part) for part, share in enumerate(shares) if sizes[part]]
    heapq.heapify(queue)
    for _ in range(limit):
        _, part = queue[0]
        taken[part] += 1
        if taken[part] < sizes[part]:
            heapq.heapreplace(queue, ((2 * taken[part] + 1) * (scale // shares[part]), part))
        else:
            heapq.heappop(queue)
    return taken


def share_out(counts: Mapping[str, int], limit: int | None, *, seed: int) -> dict[str, int]:
    """How many of ``limit`` pictures come from each class of a superclass: evenly, as far as each has them.

    Round by round, each class that has one left gives one; within a round by the rank of the class. So a larger limit
    takes no picture back.

    Args:
        counts: Pictures of each class.
        limit: How many to take; None takes all.
        seed: The spec's seed.
    """
    if limit is None or limit >= sum(counts.values()):
        return dict(counts)
    rounds, above = 0, limit  # so many whole rounds can be met, so many cannot
    while rounds < above:
        middle = (rounds + above + 1) // 2
        if sum(min(count, middle) for count in counts.values()) <= limit:
            rounds = middle
        else:
            above = middle - 1
    shared = {wnid: min(count, rounds) for wnid, count in counts.items()}
    more = sorted((wnid for wnid in counts if counts[wnid] > rounds), key=lambda wnid: rank(seed, "class", wnid))
    for wnid in more[: limit - sum(shared.values())]:
        shared[wnid] += 1
    return shared


# Choosing.


@dataclass(frozen=True, kw_only=True)
class ClassChoice:
    """Which classes a spec chooses.

    Attributes:
        catalog: The chosen classes, renumbered in the order of the catalog they come from, or of the superclasses.
        members: Wnid of a chosen class to the wnids its pictures come from: several for a superclass, else itself.
        passed_over: Classes with too few training images to be eligible, with their counts.
        short: Named classes that have fewer training images than asked for, with their counts.
    """

    catalog: Catalog
    members: Mapping[str, Sequence[str]] = field(default_factory=dict)
    passed_over: Sequence[tuple[Synset, int]] = ()
    short: Sequence[tuple[Synset, int]] = ()

    def quotas(self, counts: Mapping[str, int], limit: int | None, *, seed: int) -> dict[str, int]:
        """How many pictures to take of each wnid, for ``limit`` of each chosen class.

        Args:
            counts: Pictures of each wnid.
            limit: Pictures of a class; None takes all.
            seed: The spec's seed.
        """
        found: dict[str, int] = {}
        for wnids in self.members.values():
            found |= share_out({wnid: counts.get(wnid, 0) for wnid in wnids}, limit, seed=seed)
        return found


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
    if not spec.superclasses:
        choice = _choose(counts, catalog, spec)
        return replace(choice, members={synset.wnid: (synset.wnid,) for synset in choice.catalog})
    labels, members = _merged(catalog, spec.superclasses)
    sums = {label: sum(counts.get(wnid, 0) for wnid in wnids) for label, wnids in members.items()}
    choice = _choose({label: count for label, count in sums.items() if count}, labels, spec)
    return replace(choice, members={synset.wnid: members[synset.wnid] for synset in choice.catalog})


def _merged(catalog: Catalog, superclasses: Superclasses) -> tuple[Catalog, dict[str, tuple[str, ...]]]:
    labels = Catalog(Synset(slug(label), place, label) for place, (label, _) in enumerate(superclasses))
    members: dict[str, tuple[str, ...]] = {}
    owner: dict[str, str] = {}
    for label, names in superclasses:
        members[slug(label)] = tuple(dict.fromkeys(catalog.resolve(name).wnid for name in names))
        for wnid in members[slug(label)]:
            if wnid in owner:
                raise UsageError(f"{catalog.by_wnid(wnid).label} is in two superclasses: {owner[wnid]} and {label}")
            owner[wnid] = label
    return labels, members


def _choose(counts: Mapping[str, int], catalog: Catalog, spec: SubsetSpec) -> ClassChoice:
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
        raise UsageError("there is no training image to choose from", "adopt a source that has them")
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


def choose_pictures(
    keys: Mapping[str, Sequence[str]], limit: int | None, *, seed: int, shares: Sequence[int] = (1,)
) -> list[list[str]]:
    """Choose the pictures of one class and divide them into parts.

    Args:
        keys: The pictures of each wnid that the class is made of.
        limit: How many to take over all parts; None takes all.
        seed: The spec's seed.
        shares: Sizes of the parts.

    Returns:
        The keys of each part.
    """
    parts: list[dict[str, list[str]]] = [{wnid: [] for wnid in keys} for _ in shares]
    for wnid, some in keys.items():
        for key in some:
            parts[part_of(key, shares, seed=seed) if len(shares) > 1 else 0][wnid].append(key)
    taken = apportion([sum(map(len, part.values())) for part in parts], shares, limit)
    chosen: list[list[str]] = []
    for part, number in zip(parts, taken, strict=True):
        quotas = share_out({wnid: len(some) for wnid, some in part.items()}, number, seed=seed)
        chosen.append([key for wnid, some in part.items() for key in _first(some, quotas[wnid], seed=seed)])
    return chosen


def _first(keys: list[str], limit: int, *, seed: int) -> list[str]:
    # A class that is taken whole needs no ranks: they are most of the time of a large choice.
    return keys if limit >= len(keys) else choose_keys(keys, limit, seed=seed)
