"""PASCAL VOC annotations: XML to boxes, and the label they give a validation picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from lxml import etree

from imgprep.errors import AnnotationError
from imgprep.records import Annotation, BoundingBox, Catalog

_MAX_XML: Final = 1 << 20
"""Bytes one XML file may have; the largest of ILSVRC has about 20 objects in 5 KB."""


def parse_annotation(content: bytes, *, key: str, catalog: Catalog) -> Annotation:
    """Parse one PASCAL VOC XML file. Entities are not expanded, nothing is loaded, and the size is bounded.

    Args:
        content: The bytes of the file.
        key: Key of the picture; the ``<filename>`` in the XML is not trusted (it is ``%s`` in some real files).
        catalog: Resolves the objects' names, which in some real files are names such as ``Scottish_deerhound``.

    Returns:
        The annotation, with boxes as the XML says them; it may hold no box.

    Raises:
        AnnotationError: Not XML, not VOC, an unknown class, or a coordinate that is no number.
    """
    if len(content) > _MAX_XML:
        raise AnnotationError(f"{len(content):,} bytes, more than the limit of {_MAX_XML:,}")
    # A new parser each time: lxml parsers are not to be shared between threads.
    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False)
    try:
        root = etree.fromstring(content, parser)
    except etree.XMLSyntaxError as error:
        raise AnnotationError(f"not well-formed XML ({error.msg or 'empty'})") from None
    if root.getroottree().docinfo.doctype:
        raise AnnotationError("it declares a document type, which annotations have no need of")
    if root.tag != "annotation":
        raise AnnotationError(f"expected <annotation> at the top, found <{root.tag!s}>")
    boxes = []
    for item in root.iterfind("object"):
        name = (item.findtext("name") or "").strip()
        found = catalog.find(name)
        if len(found) != 1:
            raise AnnotationError(f"{len(found) or 'no'} class{'es are' if found else ' is'} named {name[:60]!r}")
        box = item.find("bndbox")
        if box is None:
            raise AnnotationError(f"an object {name} has no <bndbox>")
        boxes.append(BoundingBox(found[0].wnid, *(_pixel(box, side) for side in ("xmin", "ymin", "xmax", "ymax"))))
    size = root.find("size")
    width = None if size is None else _pixel(size, "width")
    height = None if size is None else _pixel(size, "height")
    return Annotation(key, width, height, tuple(boxes))


def _pixel(element: etree._Element, name: str) -> int:
    text = (element.findtext(name) or "").strip()
    try:
        value = float(text)
        if abs(value) < 1e9:  # also refuses inf and nan
            return round(value)
    except ValueError:
        pass
    raise AnnotationError(f"<{name}> must be a number of pixels, got {text[:40]!r}")


def val_label(listed: str | None, classes: Sequence[str]) -> str | None:
    """The class of a validation picture: what the list says, else the one class of its objects.

    Args:
        listed: Its wnid in ``LOC_val_solution.csv``, if it is there.
        classes: Wnids of the objects in its XML, each once.
    """
    return listed or (classes[0] if len(classes) == 1 else None)
