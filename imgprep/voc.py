"""PASCAL VOC annotations: XML to boxes by rule, and the label they give a validation picture."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Final, NamedTuple

from lxml import etree

from imgprep.errors import AnnotationError
from imgprep.records import Annotation, BoundingBox, Catalog

MAX_XML_BYTES: Final = 1 << 20
"""Bytes one XML file may have; the largest of ILSVRC has about 20 objects in 5 KB."""

_DOCTYPE: Final = "it declares a document type, which annotations have no need of"


class Oddity(NamedTuple):
    """Something about an annotation that a rule settled; the annotation is used.

    Attributes:
        rule: Name of the counter that counts it, e.g. ``boxes_sorted``.
        what: What it is, for people.
    """

    rule: str
    what: str


class _Local(threading.local):
    """One parser a thread: lxml parsers are not to be shared, and making one takes as long as parsing a file."""

    def __init__(self) -> None:
        # Comments are dropped while parsing: they would cut the text of an element in two.
        # Not collect_ids=False, which would save time: with it libxml2 reads the file that a document type names.
        self.parser = etree.XMLParser(
            resolve_entities=False,
            no_network=True,
            load_dtd=False,
            huge_tree=False,
            remove_comments=True,
            remove_pis=True,
        )


_LOCAL: Final = _Local()


def read_annotation(content: bytes, *, key: str, catalog: Catalog) -> tuple[Annotation, Sequence[Oddity]]:
    """Read one PASCAL VOC XML file. Entities are not expanded, nothing is loaded, and the size is bounded.

    Args:
        content: The bytes of the file.
        key: Key of the picture; the ``<filename>`` in the XML is not trusted (it is ``%s`` in some real files).
        catalog: Resolves the objects' names, which in some real files are names such as ``Scottish_deerhound``.

    Returns:
        The annotation, which may hold no box, and what is odd about it: another file name, and what
        :func:`straighten` says.

    Raises:
        AnnotationError: Not XML, not VOC, an unknown class, or a coordinate that is no number.
    """
    root = _root(content)
    boxes = tuple(_box(item, catalog) for item in root.iterchildren("object"))
    width, height = _size(root)
    annotation, odd = straighten(Annotation(key, width, height, boxes))
    filename = _text(_child(root, "filename")).rpartition("/")[2]
    if filename not in ("", key) and filename.rpartition(".")[0] != key:
        odd = (*odd, Oddity("other_filename", f"its <filename> is {filename[:60]!r}"))
    return annotation, odd


def parse_annotation(content: bytes, *, key: str, catalog: Catalog) -> Annotation:
    """The annotation of :func:`read_annotation` alone."""
    return read_annotation(content, key=key, catalog=catalog)[0]


def straighten(annotation: Annotation) -> tuple[Annotation, Sequence[Oddity]]:
    """Sort the corners of boxes, and tell which boxes are odd. No box is clipped, moved or left out.

    Returns:
        The annotation with ``xmin <= xmax`` and ``ymin <= ymax``, and an oddity for each box that had them the other
        way round (``boxes_sorted``), is a line or a point (``boxes_flat``), or reaches out of the size that the
        annotation itself says (``boxes_outside``).
    """
    width, height = annotation.width, annotation.height
    odd: list[Oddity] = []
    boxes = []
    for number, box in enumerate(annotation.boxes, start=1):
        straight = box
        if box.xmin > box.xmax or box.ymin > box.ymax:
            (xmin, xmax), (ymin, ymax) = sorted((box.xmin, box.xmax)), sorted((box.ymin, box.ymax))
            straight = BoundingBox(box.wnid, xmin, ymin, xmax, ymax)
            odd.append(Oddity("boxes_sorted", f"{_place(number, box)} has a minimum above its maximum: sorted"))
        if straight.xmin == straight.xmax or straight.ymin == straight.ymax:
            odd.append(Oddity("boxes_flat", f"{_place(number, box)} is a line or a point"))
        if width is not None and height is not None and not _inside(straight, width, height):
            odd.append(Oddity("boxes_outside", f"{_place(number, box)} reaches out of its <size> {width} x {height}"))
        boxes.append(straight)
    return Annotation(annotation.key, width, height, tuple(boxes)), odd


def _place(number: int, box: BoundingBox) -> str:
    return f"box {number} ({box.xmin}, {box.ymin}, {box.xmax}, {box.ymax})"


def _inside(box: BoundingBox, width: int, height: int) -> bool:
    # Real files count pixels from 0 or from 1, and say the width itself for the last column: all are inside.
    return box.xmin >= 0 and box.ymin >= 0 and box.xmax <= width and box.ymax <= height


def _root(content: bytes) -> etree._Element:
    if len(content) > MAX_XML_BYTES:
        raise AnnotationError(f"{len(content):,} bytes, more than the limit of {MAX_XML_BYTES:,}")
    # Before the parser goes through it, and once more after, for encodings that are no ASCII.
    if b"<!DOCTYPE" in content:
        raise AnnotationError(_DOCTYPE)
    try:
        root = etree.fromstring(content, _LOCAL.parser)
    except etree.XMLSyntaxError as error:
        raise AnnotationError(f"not well-formed XML ({error.msg or 'empty'})") from None
    if root.getroottree().docinfo.doctype:
        raise AnnotationError(_DOCTYPE)
    if root.tag != "annotation":
        raise AnnotationError(f"expected <annotation> at the top, found <{root.tag!s:.60}>")
    return root


def _box(item: etree._Element, catalog: Catalog) -> BoundingBox:
    name = _text(_child(item, "name"))
    found = catalog.find(name)
    if len(found) != 1:
        raise AnnotationError(f"{len(found) or 'no'} class{'es are' if found else ' is'} named {name[:60]!r}")
    box = _child(item, "bndbox")
    if box is None:
        raise AnnotationError(f"an object {name} has no <bndbox>")
    return BoundingBox(found[0].wnid, *_pixels(box, "xmin", "ymin", "xmax", "ymax"))


def _size(root: etree._Element) -> tuple[int | None, int | None]:
    size = _child(root, "size")
    if size is None:
        return None, None
    width, height = _pixels(size, "width", "height")
    # Some writers say 0 x 0 where they do not know.
    return (width, height) if width > 0 and height > 0 else (None, None)


def _child(element: etree._Element, name: str) -> etree._Element | None:
    return next(element.iterchildren(name), None)


def _text(element: etree._Element | None) -> str:
    return ((element is not None and element.text) or "").strip()


def _pixels(element: etree._Element, *names: str) -> list[int]:
    said = {child.tag: child.text or "" for child in element}
    return [_pixel(name, said.get(name, "")) for name in names]


def _pixel(name: str, text: str) -> int:
    if text.isascii():
        if text.isdigit() and len(text) < 9:
            return int(text)
        try:
            # Python's own numbers may have underscores.
            value = float(text.replace("_", "?"))
            if abs(value) < 1e9:  # also refuses inf and nan
                return round(value)
        except ValueError:
            pass
    raise AnnotationError(f"<{name}> must be a number of pixels, got {text.strip()[:40]!r}")


def val_label(listed: str | None, classes: Sequence[str]) -> str | None:
    """The class of a validation picture: what the list says, else the one class of its objects.

    Args:
        listed: Its wnid in ``LOC_val_solution.csv``, if it is there.
        classes: Wnids of the objects in its XML, each once.
    """
    return listed or (classes[0] if len(classes) == 1 else None)
