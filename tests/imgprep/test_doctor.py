"""Stage doctor: rows in the order of the manifest, pairs, boxes, receipts; the same for any number of workers."""

from __future__ import annotations

import io
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from imgprep import decoder_process
from imgprep.annotations import annotations
from imgprep.catalog import catalog
from imgprep.contact_sheet import Tile, draw_sheet
from imgprep.diagnosis import Diagnosis
from imgprep.doctor import SHEET, DoctorSpec, _compose, _Seen, compare_box, doctor
from imgprep.errors import DamagedError, MissingInputError, SpecError
from imgprep.executors import ThreadExecutor
from imgprep.fetch import fetch
from imgprep.findings import COLUMNS, read_doctor
from imgprep.records import SPLITS
from imgprep.testing.toy import ToyListing
from imgprep.workspace import Workspace


def picture(seed: int, width: int = 120, height: int = 90) -> Image.Image:
    rng = np.random.Generator(np.random.PCG64(seed))
    small = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


def jpeg(image: Image.Image, quality: int = 92) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


PAIRS = {
    "train/cat/a.jpg": jpeg(picture(1)),
    "train/cat/b.jpg": jpeg(picture(2)),
    "train/cat/c.jpg": jpeg(picture(1), quality=60),  # looks like a, and like d, a dog
    "train/dog/d.jpg": jpeg(picture(1)),  # is a, a cat
    "train/dog/e.jpg": jpeg(picture(3)),  # is in val
    "train/dog/f.jpg": jpeg(picture(4).resize((60, 45))),  # looks like a cat in val
    "train/dog/g.jpg": jpeg(picture(3)),  # is e, and in val
    "train/dog/h.jpg": jpeg(Image.new("RGB", (60, 40))),
    "train/dog/i.jpg": jpeg(Image.new("RGB", (60, 41))),  # as plain as h, which is no likeness
    "train/dog/j.jpg": b"",
    "train/dog/k.jpg": b"",  # as empty as j, which is no copy
    "train/dog/q.jpg": jpeg(picture(5)),  # is in test
    "val/cat/m.jpg": jpeg(picture(4)),
    "val/cat/n.jpg": jpeg(picture(4)),  # is m
    "val/cat/o.jpg": jpeg(picture(6)),  # looks like one in test, which has no class
    "val/dog/l.jpg": jpeg(picture(3)),  # is nobody's leak: train is before val
    "test/p.jpg": jpeg(picture(6), quality=60),
    "test/r.jpg": jpeg(picture(5)),
    "test/s.jpg": jpeg(picture(6), quality=50),  # looks like p
}


def folder_workspace(root: Path, files: dict[str, bytes]) -> Workspace:
    for name, content in files.items():
        path = root / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    workspace = Workspace(root / "imgprep-data")
    workspace.root.mkdir()
    fetch(workspace, root / "tree")
    catalog(workspace)
    return workspace


@pytest.fixture
def cataloged(fetched: Workspace) -> Workspace:
    """The toy archive with catalog and annotations."""
    catalog(fetched)
    annotations(fetched)
    return fetched


def test_the_odd_files_of_the_toy_are_found_and_no_others(cataloged: Workspace, toy: tuple[Path, ToyListing]) -> None:
    table = doctor(cataloged).table
    expected = {
        "JPEG cut at 60 % of its bytes": "undecodable truncated",
        "file of zero bytes": "not-an-image",
        "CMYK JPEG": "cmyk",
        "PNG named .JPEG": "wrong-extension",
        "JPEG with EXIF orientation 6": "rotated",
    }
    odd = {key: expected[kind] for key, kind in toy[1].odd.items() if kind in expected}
    progressive = [key for key, kind in toy[1].odd.items() if kind == "progressive JPEG"]

    assert table[table["findings"] != ""].set_index("key")["findings"].to_dict() == odd
    assert table.loc[table["progressive"] == "yes", "key"].tolist() == progressive
    assert set(table.loc[table["split"] == "val", "wnid"]) == set(toy[1].wnids)


def test_rows_stand_as_in_the_manifest_and_are_read_back(cataloged: Workspace) -> None:
    result = doctor(cataloged)
    manifest = pd.read_csv(cataloged.catalog / "manifest.csv")

    assert list(result.table.columns) == list(COLUMNS)
    assert result.table["key"].tolist() == manifest["key"].tolist()
    pd.testing.assert_frame_equal(read_doctor(cataloged.catalog / "doctor.csv"), result.table)
    with Image.open(cataloged.catalog / SHEET) as sheet:
        assert (sheet.format, sheet.width > 100) == ("PNG", True)


def test_the_bytes_do_not_depend_on_the_number_of_workers(cataloged: Workspace) -> None:
    written = []
    for workers in (1, 3):
        doctor(cataloged, executor=ThreadExecutor(workers))
        names = ("doctor.csv", SHEET)
        written.append([(cataloged.catalog / name).read_bytes() for name in names])
        for name in names:
            (cataloged.catalog / name).unlink()

    assert written[0] == written[1]


def test_pairs_are_found_and_the_graver_twin_is_named(tmp_path: Path) -> None:
    workspace = folder_workspace(tmp_path, PAIRS)
    result = doctor(workspace)
    found = {
        Path(row["path"]).stem: (row["findings"], row["twin"].rpartition("_")[2], row["conflict"].rpartition("_")[2])
        for row in result.table.to_dict("records")
        if row["findings"]
    }

    assert found == {
        "a": ("label-conflict", "", "d"),
        "c": ("label-conflict near-duplicate", "a", "d"),
        "d": ("label-conflict duplicate", "a", "a"),
        "e": ("leak", "l", ""),
        "f": ("leak label-conflict", "m", "m"),
        "g": ("leak duplicate", "l", ""),
        "j": ("not-an-image", "", ""),
        "k": ("not-an-image", "", ""),
        "n": ("duplicate", "m", ""),
        "o": ("leak", "p", ""),
        "q": ("leak", "r", ""),
        "s": ("near-duplicate", "p", ""),
    }
    assert (result.stats["in_pairs"], result.stats["label-conflict"]) == (10, 4)


Drawn = list[tuple[int | None, int | None, int, int]]
"""Digest, hash, split and class of each picture."""


def oracle(drawn: Drawn, near: int) -> list[tuple[str, str, str]]:
    """Codes of pairs, twin and conflict as findings.py words them, by a look at all pairs."""
    answers = []
    for place, (digest, phash, split, label) in enumerate(drawn):
        same, later, against = [], [], []
        for at, (other_digest, other_phash, other_split, other_label) in enumerate(drawn):
            if digest is not None and digest == other_digest:
                rank = (0, 0, at)
            elif phash is not None and other_phash is not None and (phash ^ other_phash).bit_count() <= near:
                rank = (1, (phash ^ other_phash).bit_count(), at)
            else:
                continue
            if other_split == split and at < place:
                same.append(rank)
            if other_split > split:
                later.append(rank)
            if other_split >= split and label and other_label and label != other_label:
                against.append(rank)
        codes = [code for code, ranks in (("leak", later), ("label-conflict", against)) if ranks]
        codes += [("duplicate", "near-duplicate")[min(same)[0]]] if same else []
        twin, conflict = (f"k{min(ranks)[2]}" if ranks else "" for ranks in (later or same, against))
        answers.append((" ".join(codes), twin, conflict))
    return answers


@given(
    st.lists(
        st.tuples(
            st.sampled_from([None, 0, 1, 2]),
            st.sampled_from([None, 0, 1, 3, 0xFF, 0x1FF]),
            st.integers(0, 2),
            st.integers(0, 2),
        ),
        max_size=14,
    ),
    st.integers(0, 3),
)
def test_the_rows_say_of_pairs_what_all_pairs_say(drawn: Drawn, near: int) -> None:
    rows = pd.DataFrame(
        [(f"k{at}", SPLITS[split], "", ("", "cat", "dog")[label]) for at, (_, _, split, label) in enumerate(drawn)],
        columns=["key", "split", "path", "wnid"],
        dtype="str",
    )
    seen = [
        _Seen(Diagnosis(phash=phash), None if digest is None else bytes([7] * 15 + [digest]))
        for digest, phash, _, _ in drawn
    ]
    table, crowded = _compose(rows, seen, {}, DoctorSpec(near_distance=near))

    assert list(zip(table["findings"], table["twin"], table["conflict"], strict=True)) == oracle(drawn, near)
    assert crowded == 0


def test_a_pair_that_contradicts_itself_is_shown_once_and_side_by_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = folder_workspace(tmp_path, {name: PAIRS[name] for name in ("train/cat/a.jpg", "train/dog/d.jpg")})
    drawn: list[list[tuple[str, ...]]] = []

    def remember(rows: list[list[Tile]]) -> Image.Image:
        drawn.extend([tile.caption for tile in row] for row in rows)
        return draw_sheet(rows)

    monkeypatch.setattr("imgprep.doctor.draw_sheet", remember)
    a, d = doctor(workspace).table["key"]

    assert [[caption[:2] for caption in row] for row in drawn] == [
        [("label-conflict", a), (f"twin of {a}", d)],
        [("duplicate", d), (f"twin of {d}", a)],
    ]
    assert [[caption[2] for caption in row] for row in drawn] == [
        ["train cat", "train dog"],
        ["train dog", "train cat"],
    ]


def test_a_split_that_is_none_is_refused(tmp_path: Path) -> None:
    workspace = folder_workspace(tmp_path, {name: PAIRS[name] for name in ("train/cat/a.jpg", "train/dog/d.jpg")})
    manifest = workspace.catalog / "manifest.csv"
    manifest.write_text(manifest.read_text().replace(",train,", ",trial,"))
    with pytest.raises(DamagedError, match=r"manifest.csv: 'trial' is no split - run `imgprep catalog` again"):
        doctor(workspace)


def test_a_distance_of_zero_keeps_only_equal_hashes(tmp_path: Path) -> None:
    files = {"train/x/a.jpg": jpeg(picture(1)), "train/y/b.jpg": jpeg(picture(1).crop((1, 1, 119, 89)))}
    workspace = folder_workspace(tmp_path, files)
    strict, loose = (doctor(workspace, DoctorSpec(near_distance=bits)).table for bits in (0, 8))

    assert strict["findings"].tolist() == ["", ""]
    assert loose["findings"].tolist() == ["label-conflict", "label-conflict near-duplicate"]


def test_it_is_done_once_and_again_when_an_option_or_an_input_changed(cataloged: Workspace) -> None:
    first = doctor(cataloged)
    again = doctor(cataloged)
    other = doctor(cataloged, DoctorSpec(max_pixels=100))
    boxes = cataloged.catalog / "boxes.csv"
    boxes.write_text(boxes.read_text() + "n90000001_1,train,n90000001,1,1,9,9,10,10\n")
    changed = doctor(cataloged, DoctorSpec(max_pixels=100))

    assert [result.action for result in (first, again, other, changed)] == ["run", "skip", "run", "run"]
    assert again.stats == first.stats
    assert again.examples() == first.examples()
    pd.testing.assert_frame_equal(again.table, first.table)
    assert set(other.examples()) == {"not-an-image", "too-large", "truncated", "wrong-extension", "cmyk", "rotated"}
    assert (other.stats["pictures"], other.stats["too-large"]) == (69, 68)


def test_a_table_that_was_edited_is_made_anew(cataloged: Workspace) -> None:
    doctor(cataloged)
    path = cataloged.catalog / "doctor.csv"
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"cmyk", b"deep"))

    assert (doctor(cataloged).action, path.read_bytes()) == ("run", whole)


def test_nothing_odd_leaves_no_sheet(tmp_path: Path) -> None:
    workspace = folder_workspace(tmp_path, {"train/x/a.jpg": jpeg(picture(1)), "train/y/b.jpg": b""})
    doctor(workspace)
    assert (workspace.catalog / SHEET).is_file()
    shutil.rmtree(tmp_path / "imgprep-data")
    (tmp_path / "tree/train/y/b.jpg").write_bytes(jpeg(picture(2)))
    workspace = folder_workspace(tmp_path, {})
    result = doctor(workspace)

    assert (result.stats.to_dict(), (workspace.catalog / SHEET).exists()) == ({"pictures": 2}, False)


def test_without_annotations_boxes_are_not_compared(tmp_path: Path) -> None:
    workspace = folder_workspace(tmp_path, {"train/x/a.jpg": jpeg(picture(1)), "train/y/b.jpg": jpeg(picture(2))})
    assert doctor(workspace).with_boxes is False
    annotations(workspace)
    assert doctor(workspace).with_boxes is True


def test_without_a_catalog_the_command_is_named(fetched: Workspace) -> None:
    with pytest.raises(MissingInputError, match="run `imgprep catalog` first"):
        doctor(fetched)


def test_boxes_and_sizes_of_the_xml_are_compared(cataloged: Workspace) -> None:
    boxes = pd.read_csv(cataloged.catalog / "boxes.csv")
    first, second = boxes["ImageId"].unique()[:2]
    boxes.loc[boxes["ImageId"] == first, "xmax"] = 5000
    boxes.loc[boxes["ImageId"] == second, ["width", "xmax", "xmin"]] = [4999, 20, 1]
    boxes.to_csv(cataloged.catalog / "boxes.csv", index=False)
    found = doctor(cataloged).table.set_index("key")["findings"]

    assert "box-outside" in found[first]
    assert "size-differs" in found[second]
    assert found.str.contains("box-outside|size-differs").sum() == 2


@pytest.mark.parametrize(
    ("box", "told", "expected"),
    [
        ((0, 0, 40, 30), (40, 30), set()),
        ((1, 1, 30, 40), (30, 40), set()),  # as stored, before it is turned
        ((1, 1, 9, 9), (41, 30), {"size-differs"}),
        ((1, 1, 41, 30), (40, 30), {"box-outside"}),
        ((-1, 1, 40, 30), (40, 30), {"box-outside"}),
        ((9, 1, 9, 30), (40, 30), {"box-outside"}),
        ((9, 20, 20, 10), (40, 30), {"box-outside"}),
        ((1, 1, 400, 300), (400, 300), {"size-differs"}),
        ((1, 1, 41, 9), (0, 0), {"box-outside"}),
        ((1, 1, 40, 30), (0, 0), set()),
    ],
)
def test_a_box_is_compared_with_the_size_beside_it(
    box: tuple[int, int, int, int], told: tuple[int, int], expected: set[str]
) -> None:
    turned = Diagnosis(width=30, height=40, orientation=6)

    assert compare_box(turned, box, told) == expected
    assert compare_box(Diagnosis(), (1, 1, 9, 9), (10, 10)) == set()


def test_damaged_members_are_rows_not_errors(tmp_path: Path) -> None:
    """A byte of a stored picture changed inside the zip: its CRC no longer fits."""
    content = jpeg(picture(1))
    with zipfile.ZipFile(tmp_path / "tree.zip", "w") as archive:
        archive.writestr("train/x/a.jpg", content)
        archive.writestr("train/y/b.jpg", jpeg(picture(2)))
    raw = bytearray((tmp_path / "tree.zip").read_bytes())
    raw[raw.index(content) + 300] ^= 255
    (tmp_path / "tree.zip").write_bytes(raw)
    workspace = Workspace(tmp_path / "imgprep-data")
    workspace.root.mkdir()
    fetch(workspace, tmp_path / "tree.zip")
    catalog(workspace)
    table = doctor(workspace).table

    assert table["findings"].tolist() == ["unreadable", ""]


def test_a_picture_that_breaks_a_decoder_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever process is given the second picture dies; the others are served by new ones."""
    workspace = folder_workspace(tmp_path, {f"train/{name}/{name}.jpg": jpeg(picture(ord(name))) for name in "abc"})
    diagnose = decoder_process.DecoderProcess.diagnose

    def fragile(self: decoder_process.DecoderProcess, content: bytes, name: str) -> Diagnosis | None:
        if name.endswith("b.jpg"):
            self._running.kill()
            self._running.wait()
        return diagnose(self, content, name)

    monkeypatch.setattr(decoder_process.DecoderProcess, "diagnose", fragile)

    assert doctor(workspace).table["findings"].tolist() == ["", "breaks-decoder", ""]


def test_progress_counts_every_picture(cataloged: Workspace) -> None:
    told: list[tuple[str, int]] = []

    class Told:
        def begin(self, what: str, total: int, unit: str) -> None:
            told.append((f"{what} {unit}", total))

        def advance(self, n: int = 1) -> None:
            told.append(("advance", n))

        def note(self, text: str) -> None:
            pass

        def finish(self) -> None:
            told.append(("finish", 0))

    doctor(cataloged, executor=ThreadExecutor(2), progress=Told())

    assert (told[0], told[-1], told.count(("advance", 1))) == (("doctor pictures", 69), ("finish", 0), 69)


@pytest.mark.parametrize("options", [{"max_pixels": 0}, {"max_pixels": 10**9}, {"near_distance": 9}])
def test_options_out_of_range_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(SpecError, match=next(iter(options))):
        DoctorSpec(**options)


def test_the_known_leak_among_real_photographs_is_found(real_data: Path, tmp_path: Path) -> None:
    """One picture of ilsvrc-mini is, byte for byte, in train and in val; its neighbours are not."""
    wanted = ("n07753592_446.JPEG", "n07753592_1", "n01443537_2", "val_000650", "val_00063730")
    workspace = Workspace(tmp_path / "imgprep-data")
    workspace.root.mkdir()
    with zipfile.ZipFile(real_data / "ilsvrc-mini.zip") as source, zipfile.ZipFile(tmp_path / "part.zip", "w") as part:
        for name in source.namelist():
            if any(some in name for some in wanted) or "/Data/" not in name:
                part.writestr(name, source.read(name))
    fetch(workspace, tmp_path / "part.zip")
    catalog(workspace)
    table = doctor(workspace, executor=ThreadExecutor(2)).table
    pairs = table[table["twin"] != ""]

    assert pairs[["key", "findings", "twin"]].to_numpy().tolist() == [
        ["n07753592_446", "leak", "ILSVRC2012_val_00065035"]
    ]
    assert len(table) > 50
