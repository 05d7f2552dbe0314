"""voc: the rules by which XML is read, on hostile and odd input; real files are read in test_annotations."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgprep.errors import AnnotationError
from imgprep.records import Annotation, BoundingBox, Catalog, Synset
from imgprep.voc import MAX_XML_BYTES, parse_annotation, read_annotation, straighten, val_label

CATALOG = Catalog([Synset("n01440764", 0, "tench"), Synset("n02092002", 1, "Scottish deerhound, deerhound")])
XML = (
    "<annotation><folder>val</folder><filename>k</filename><size><width>500</width><height>375</height></size>"
    "<object><name>n01440764</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>30</xmax><ymax>40</ymax></bndbox></object>"
    "</annotation>"
)
OBJECT = XML[XML.index("<object>") : XML.index("</annotation>")]


def parse(text: str | bytes) -> Annotation:
    return parse_annotation(text.encode() if isinstance(text, str) else text, key="k", catalog=CATALOG)


def rules(text: str) -> list[str]:
    return [oddity.rule for oddity in read_annotation(text.encode(), key="k", catalog=CATALOG)[1]]


def test_boxes_and_size_are_those_of_the_xml() -> None:
    assert parse(XML) == Annotation("k", 500, 375, (BoundingBox("n01440764", 1, 2, 30, 40),))
    assert rules(XML) == []


def test_several_objects_of_several_classes_keep_their_order() -> None:
    second = OBJECT.replace("n01440764", "n02092002").replace(">1<", ">3<")
    annotation = parse(XML.replace(OBJECT, second + OBJECT + second))

    assert [(box.wnid, box.xmin) for box in annotation.boxes] == [("n02092002", 3), ("n01440764", 1), ("n02092002", 3)]
    assert annotation.classes == ("n02092002", "n01440764")


@pytest.mark.parametrize(
    ("old", "new", "box"),
    [
        ("n01440764", "Scottish_deerhound", BoundingBox("n02092002", 1, 2, 30, 40)),
        ("<xmin>1<", "<xmin> 1.6 <", BoundingBox("n01440764", 2, 2, 30, 40)),
        ("<xmin>1<", "<xmin>-1e1<", BoundingBox("n01440764", -10, 2, 30, 40)),
        ("<xmin>1<", "<xmin>1<!-- not 10 -->7<", BoundingBox("n01440764", 17, 2, 30, 40)),
        ("<xmin>1<", "<xmin><![CDATA[8]]><", BoundingBox("n01440764", 8, 2, 30, 40)),
        ("<annotation>", "\ufeff<annotation>", BoundingBox("n01440764", 1, 2, 30, 40)),
        ("><", ">\r\n<", BoundingBox("n01440764", 1, 2, 30, 40)),
        (">n01440764<", "> n01440764\t<", BoundingBox("n01440764", 1, 2, 30, 40)),
        ("</bndbox>", "</bndbox><part><name>head</name><bndbox/></part>", BoundingBox("n01440764", 1, 2, 30, 40)),
    ],
    ids=["name for wnid", "float", "exponent", "comment", "CDATA", "byte-order mark", "CRLF", "blanks", "VOC part"],
)
def test_ways_to_write_a_box(old: str, new: str, box: BoundingBox) -> None:
    assert parse(XML.replace(old, new)).boxes == (box,)


def test_utf_16_is_read() -> None:
    assert parse(XML.encode("utf-16")).boxes == parse(XML).boxes


@pytest.mark.parametrize(
    ("box", "said", "expected"),
    [
        ((1, 2, 30, 40), [], (1, 2, 30, 40)),
        ((0, 0, 500, 375), [], (0, 0, 500, 375)),
        ((248, 80, 81, 347), ["boxes_sorted"], (81, 80, 248, 347)),
        ((1, 40, 30, 2), ["boxes_sorted"], (1, 2, 30, 40)),
        ((81, 80, 9999, 347), ["boxes_outside"], (81, 80, 9999, 347)),
        ((-1, 2, 30, 40), ["boxes_outside"], (-1, 2, 30, 40)),
        ((1, 2, 30, 376), ["boxes_outside"], (1, 2, 30, 376)),
        ((7, 2, 7, 40), ["boxes_flat"], (7, 2, 7, 40)),
        ((600, 2, 600, 0), ["boxes_sorted", "boxes_flat", "boxes_outside"], (600, 0, 600, 2)),
    ],
)
def test_corners_are_sorted_and_nothing_is_clipped(
    box: tuple[int, int, int, int], said: list[str], expected: tuple[int, int, int, int]
) -> None:
    annotation, odd = straighten(Annotation("k", 500, 375, (BoundingBox("n01440764", *box),)))

    assert annotation.boxes == (BoundingBox("n01440764", *expected),)
    assert [oddity.rule for oddity in odd] == said
    assert all(f"box 1 ({', '.join(map(str, box))})" in oddity.what for oddity in odd)


SIDES = st.integers(-1000, 1000)


@given(
    sides=st.lists(st.tuples(SIDES, SIDES, SIDES, SIDES), max_size=5),
    width=st.none() | st.integers(1, 900),
)
def test_straight_boxes_have_the_same_corners_and_are_straight_again(
    sides: list[tuple[int, int, int, int]], width: int | None
) -> None:
    boxes = tuple(BoundingBox("n01440764", *each) for each in sides)
    annotation, odd = straighten(Annotation("k", width, width and 400, boxes))
    again, still = straighten(annotation)

    assert again == annotation
    assert len(annotation.boxes) == len(boxes)
    for before, after in zip(boxes, annotation.boxes, strict=True):
        assert (after.xmin, after.xmax) == tuple(sorted((before.xmin, before.xmax)))
        assert (after.ymin, after.ymax) == tuple(sorted((before.ymin, before.ymax)))
    assert [each.rule for each in odd if each.rule != "boxes_sorted"] == [each.rule for each in still]


def test_a_size_of_nothing_is_unknown() -> None:
    unknown = XML.replace(">500<", ">0<")
    without = XML[: XML.index("<size>")] + OBJECT + "</annotation>"

    for text in (unknown, without):
        assert (parse(text).width, parse(text).height) == (None, None)
        # What has no size has no outside.
        assert rules(text.replace(">30<", ">9999<")) == []


@pytest.mark.parametrize(
    ("filename", "said"),
    [
        ("k", []),
        ("k.JPEG", []),
        ("images/k.png", []),
        ("", []),
        ("%s", ["other_filename"]),
        ("other", ["other_filename"]),
        ("k2.JPEG", ["other_filename"]),
    ],
)
def test_another_file_name_is_odd_but_not_trusted(filename: str, said: list[str]) -> None:
    text = XML.replace("<filename>k<", f"<filename>{filename}<")

    assert rules(text) == said
    assert parse(text).key == "k"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "not well-formed"),
        (XML[:100], "not well-formed"),
        ("<html/>", "expected <annotation>"),
        ("<" + "a" * 1000 + "/>", "expected <annotation> at the top, found <a{60}>"),
        (XML.replace("<annotation>", '<annotation xmlns="urn:x">'), "expected <annotation>"),
        (XML.replace("n01440764", "n99999999"), "no class is named 'n99999999'"),
        (XML.replace("<name>n01440764</name>", ""), "no class is named ''"),
        (XML.replace("<ymax>40</ymax>", ""), "<ymax> must be a number"),
        (XML.replace(">30<", ">wide<"), "<xmax> must be a number"),
        (XML.replace(">30<", ">1e400<"), "<xmax> must be a number"),
        (XML.replace(">30<", ">3_0<"), "<xmax> must be a number"),
        (XML.replace(">30<", ">\u0663<"), "<xmax> must be a number"),
        (XML.replace(">30<", f">{'9' * 5000}<"), "<xmax> must be a number"),
        (XML.replace(">500<", ">nan<"), "<width> must be a number"),
        (XML.replace("bndbox", "box"), "no <bndbox>"),
        ('<!DOCTYPE a [<!ENTITY e "x">]>' + XML.replace("val", "&e;"), "document type"),
        ('<!DOCTYPE a SYSTEM "http://127.0.0.1:9/a.dtd">' + XML, "document type"),
        ('<?xml version="1.0" encoding="no-such"?>' + XML, "not well-formed"),
        ("<a>" * 300 + "</a>" * 300, "not well-formed"),
        (" " * MAX_XML_BYTES + XML, "more than the limit"),
        (b"\x00\x01\x02", "not well-formed"),
    ],
)
def test_unusable_xml_is_refused_with_its_reason(content: str | bytes, said: str) -> None:
    with pytest.raises(AnnotationError, match=said):
        parse(content)


def test_a_name_of_two_classes_is_refused() -> None:
    cranes = Catalog([Synset("n02012849", 0, "crane"), Synset("n03126707", 1, "crane")])
    with pytest.raises(AnnotationError, match="2 classes are named 'crane'"):
        parse_annotation(XML.replace("n01440764", "crane").encode(), key="k", catalog=cranes)


@pytest.mark.parametrize(
    ("encoding", "said"), [("utf-8", "document type"), ("utf-16", "not well-formed|document type")]
)
@pytest.mark.parametrize("place", ["<annotation>&l9;</annotation>", '<annotation a="&l9;"/>'])
def test_an_entity_bomb_is_refused_without_being_expanded(place: str, encoding: str, said: str) -> None:
    levels = "".join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 10}">' for i in range(1, 10))
    with pytest.raises(AnnotationError, match=said):
        parse(f'<!DOCTYPE a [<!ENTITY l0 "lol">{levels}]>{place}'.encode(encoding))


# In UTF-16 it is the parser that comes upon the document type.
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
@pytest.mark.parametrize(
    "doctype",
    [
        '<!DOCTYPE annotation SYSTEM "{}">',
        '<!DOCTYPE annotation [<!ENTITY % outside SYSTEM "{}"> %outside;]>',
        '<!DOCTYPE annotation [<!ENTITY outside SYSTEM "{}">]>',
    ],
)
def test_no_file_that_the_xml_names_is_read(doctype: str, encoding: str, tmp_path: Path) -> None:
    named = tmp_path / "named.dtd"
    # Whoever reads it, trips over it: the message would be another.
    named.write_text("<!ENTITY % broken")
    text = XML if "% " in doctype else XML.replace("val", "&outside;")
    with pytest.raises(AnnotationError, match="it declares a document type"):
        parse((doctype.format(named.as_uri()) + text).encode(encoding))


@given(st.binary(max_size=300))
def test_any_bytes_are_an_annotation_or_refused(content: bytes) -> None:
    with pytest.raises(AnnotationError):
        parse(content)


@given(st.data())
def test_a_damaged_file_is_an_annotation_or_refused(draw: st.DataObject) -> None:
    content = bytearray(XML.encode())
    for place in draw.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=4)):
        content[place] = draw.draw(st.integers(0, 255))
    try:
        annotation = parse(bytes(content))
    except AnnotationError:
        return
    assert all(box.xmin <= box.xmax for box in annotation.boxes)


def test_xml_without_object_has_no_box() -> None:
    assert parse("<annotation><filename>k</filename></annotation>").boxes == ()


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
