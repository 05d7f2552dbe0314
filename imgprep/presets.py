"""Lists of classes: those with a name of their own, and those that people write on the command line or in files.

A list, once it has a name, never changes: a subset that was cited by it stays the same.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from imgprep.errors import SpecError

Superclasses = tuple[tuple[str, tuple[str, ...]], ...]
"""Labels, each with the wnids or names of the classes that become one under it."""

_QUOTED: Final = r'\s*"(?:[^"\\]|\\.)*"\s*'
_ITEM: Final = re.compile(rf'({_QUOTED}|[^",]*)(,|\Z)')
_LABEL: Final = re.compile(rf'({_QUOTED}|[^":]*):')
# Neither a number nor anything that has a meaning of its own in a list, a line or a shell.
_BARE: Final = re.compile(r"(?:[^\W\d]|[./])[\w./#-]*")


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A list of classes with a name.

    Attributes:
        source: Who made the list.
        classes: Its wnids, where each is a class of its own.
        superclasses: Its labels with their wnids, where several are one class.
    """

    source: str
    classes: tuple[str, ...] = ()
    superclasses: Superclasses = ()


_IMAGENETTE: Final = (
    "n01440764",  # tench
    "n02102040",  # English springer
    "n02979186",  # cassette player
    "n03000684",  # chain saw
    "n03028079",  # church
    "n03394916",  # French horn
    "n03417042",  # garbage truck
    "n03425413",  # gas pump
    "n03445777",  # golf ball
    "n03888257",  # parachute
)
_IMAGEWOOF: Final = (
    "n02086240",  # Shih-Tzu
    "n02087394",  # Rhodesian ridgeback
    "n02088364",  # beagle
    "n02089973",  # English foxhound
    "n02093754",  # Border terrier
    "n02096294",  # Australian terrier
    "n02099601",  # golden retriever
    "n02105641",  # Old English sheepdog
    "n02111889",  # Samoyed
    "n02115641",  # dingo
)
_BIKES: Final = (
    "n02835271",  # bicycle-built-for-two
    "n03792782",  # mountain bike
)
_SHIPS: Final = (
    "n02687172",  # aircraft carrier
    "n03095699",  # container ship
    "n03673027",  # liner
    "n03947888",  # pirate ship
    "n04147183",  # schooner
)
_IMAGENET_100: Final = """
    n01558993 n01692333 n01729322 n01735189 n01749939 n01773797 n01820546 n01855672 n01978455 n01980166
    n01983481 n02009229 n02018207 n02085620 n02086240 n02086910 n02087046 n02089867 n02089973 n02090622
    n02091831 n02093428 n02099849 n02100583 n02104029 n02105505 n02106550 n02107142 n02108089 n02109047
    n02113799 n02113978 n02114855 n02116738 n02119022 n02123045 n02138441 n02172182 n02231487 n02259212
    n02326432 n02396427 n02483362 n02488291 n02701002 n02788148 n02804414 n02859443 n02869837 n02877765
    n02974003 n03017168 n03032252 n03062245 n03085013 n03259280 n03379051 n03424325 n03492542 n03494278
    n03530642 n03584829 n03594734 n03637318 n03642806 n03764736 n03775546 n03777754 n03785016 n03787032
    n03794056 n03837869 n03891251 n03903868 n03930630 n03947888 n04026417 n04067472 n04099969 n04111531
    n04127249 n04136333 n04229816 n04238763 n04336792 n04418357 n04429376 n04435653 n04485082 n04493381
    n04517823 n04589890 n04592741 n07714571 n07715103 n07753275 n07831146 n07836838 n13037406 n13040303
"""
_DOGS: Final = """
    n02085620 n02085782 n02085936 n02086079 n02086240 n02086646 n02086910 n02087046 n02087394 n02088094
    n02088238 n02088364 n02088466 n02088632 n02089078 n02089867 n02089973 n02090379 n02090622 n02090721
    n02091032 n02091134 n02091244 n02091467 n02091635 n02091831 n02092002 n02092339 n02093256 n02093428
    n02093647 n02093754 n02093859 n02093991 n02094114 n02094258 n02094433 n02095314 n02095570 n02095889
    n02096051 n02096177 n02096294 n02096437 n02096585 n02097047 n02097130 n02097209 n02097298 n02097474
    n02097658 n02098105 n02098286 n02098413 n02099267 n02099429 n02099601 n02099712 n02099849 n02100236
    n02100583 n02100735 n02100877 n02101006 n02101388 n02101556 n02102040 n02102177 n02102318 n02102480
    n02102973 n02104029 n02104365 n02105056 n02105162 n02105251 n02105412 n02105505 n02105641 n02105855
    n02106030 n02106166 n02106382 n02106550 n02106662 n02107142 n02107312 n02107574 n02107683 n02107908
    n02108000 n02108089 n02108422 n02108551 n02108915 n02109047 n02109525 n02109961 n02110063 n02110185
    n02110341 n02110627 n02110806 n02110958 n02111129 n02111277 n02111500 n02111889 n02112018 n02112137
    n02112350 n02112706 n02113023 n02113186 n02113624 n02113712 n02113799 n02113978
"""
_VEHICLES: Final = """
    n02701002 n02814533 n02835271 n02917067 n02930766 n03100240 n03272562 n03345487 n03384352 n03393912
    n03417042 n03444034 n03445924 n03478589 n03594945 n03599486 n03670208 n03769881 n03770679 n03777568
    n03785016 n03791053 n03792782 n03796401 n03895866 n03930630 n03977966 n04037443 n04065272 n04146614
    n04252077 n04252225 n04285008 n04310018 n04335435 n04389033 n04461696 n04465501 n04467665 n04482393
    n04487081
"""
_FOOD: Final = """
    n07583066 n07584110 n07590611 n07613480 n07614500 n07615774 n07684084 n07693725 n07695742 n07697313
    n07697537 n07711569 n07714571 n07714990 n07715103 n07716358 n07716906 n07717410 n07717556 n07718472
    n07718747 n07720875 n07730033 n07734744 n07742313 n07745940 n07747607 n07749582 n07753113 n07753275
    n07753592 n07754684 n07760859 n07768694 n07831146 n07836838 n07860988 n07871810 n07873807 n07875152
    n07880968 n07892512 n07920052 n07932039
"""

PRESETS: Final = {
    "imagenette": Preset(
        source="fast.ai, https://github.com/fastai/imagenette: ten classes that are easy to tell apart",
        classes=_IMAGENETTE,
    ),
    "imagewoof": Preset(
        source="fast.ai, https://github.com/fastai/imagenette: ten dogs that are not",
        classes=_IMAGEWOOF,
    ),
    "imagenet-100": Preset(
        source="Tian, Krishnan and Isola, Contrastive Multiview Coding, ECCV 2020: imagenet100.txt of its code",
        classes=tuple(_IMAGENET_100.split()),
    ),
    "dogs-vehicles-food": Preset(
        source="of imgprep: all 118 breeds of dogs, vehicles on land, and what is eaten or drunk",
        superclasses=(
            ("dogs", tuple(_DOGS.split())),
            ("vehicles", tuple(_VEHICLES.split())),
            ("food", tuple(_FOOD.split())),
        ),
    ),
    "bike-ship": Preset(
        source="of imgprep: bicycles, and ships of any time",
        superclasses=(("bike", _BIKES), ("ship", _SHIPS)),
    ),
}
"""Name to list."""


def get_preset(name: str) -> Preset:
    """A list by its name.

    Raises:
        SpecError: There is none of that name.
    """
    if name not in PRESETS:
        raise SpecError(f"there is no preset {name!r}", f"known presets: {', '.join(PRESETS)}")
    return PRESETS[name]


def find_preset(classes: object, superclasses: Superclasses) -> str:
    """The name of the list that these classes, or these superclasses, are; empty where they are none."""
    for name, preset in PRESETS.items():
        if (preset.superclasses, preset.classes or classes) == (superclasses, classes):
            return name
    return ""


# Writing and reading names.


def quote_name(name: str) -> str:
    """The name as it stands in a list between commas: bare where nobody could misread it, else a JSON string."""
    if _BARE.fullmatch(name) and name.lower() != "all":
        return name
    return json.dumps(name, ensure_ascii=not name.isprintable())


def join_names(names: Iterable[str]) -> str:
    """Names between commas, so that :func:`parse_names` gives them back."""
    return ",".join(map(quote_name, names))


def parse_names(text: str) -> tuple[str, ...]:
    """Read names between commas; blanks around a name do not count, one with a comma stands between ``"``.

    Raises:
        SpecError: A name is empty, or a quotation does not end.
    """
    names = []
    place, following = 0, ","
    while following:
        match = _ITEM.match(text, place)
        if match is None:
            raise SpecError(f'names between commas, those with a comma between ", were expected, got {text[:100]!r}')
        names.append(_unquoted(match[1]))
        place, following = match.end(), match[2]
    if not all(map(str.strip, names)):
        raise SpecError(f"{text[:100]!r} holds an empty name")
    return tuple(names)


def _unquoted(text: str) -> str:
    text = text.strip()
    if not text.startswith('"'):
        return text
    try:
        return str(json.loads(text))
    except ValueError:
        raise SpecError(f"what stands between quotation marks is no JSON string: {text[:100]}") from None


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Number and content of the lines that say something, whatever line ends and blanks an editor left."""
    for number, line in enumerate(text.removeprefix("\ufeff").splitlines(), start=1):
        content = line.strip()
        if content and not content.startswith("#"):
            yield number, content


def parse_class_list(text: str) -> tuple[str, ...]:
    """Read a list with one class a line: a wnid, a name, or a wnid and its name as in ``LOC_synset_mapping.txt``.

    Empty lines and those that begin with ``#`` do not count; a name in quotation marks may begin so.

    Raises:
        SpecError: It names no class.
    """
    names = tuple(re.sub(r"(n\d{8})\s.*", r"\1", _unquoted(line)) for _, line in _lines(text))
    if not all(names or ("",)):
        raise SpecError("the list names no class", "write one wnid or name a line")
    return names


def parse_superclass(text: str) -> tuple[str, tuple[str, ...]]:
    """Read ``label: name, name, ...``.

    Raises:
        SpecError: It has another form.
    """
    match = _LABEL.match(text)
    if match is None or not match[1].strip():
        raise SpecError(f"expected `label: class, class, ...`, got {text[:100]!r}")
    return _unquoted(match[1]), parse_names(text[match.end() :])


def parse_superclasses(text: str) -> Superclasses:
    """Read a list with one superclass a line; their order is that of the labels.

    Raises:
        SpecError: A line has another form, or there is none. The message gives its number.
    """
    found = []
    for number, line in _lines(text):
        try:
            found.append(parse_superclass(line))
        except SpecError as error:
            raise SpecError(f"line {number}: {error.what}") from None
    if not found:
        raise SpecError("the list names no superclass", "write `label: class, class, ...` a line")
    return tuple(found)
