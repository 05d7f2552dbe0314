"""Plans: every record once, in an order that nothing but the key and the seed decides, read row by row."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgprep.errors import ContradictionError, DamagedError, LockedError, SpecError, UsageError
from imgprep.records import Catalog, Record, Synset
from imgprep.shard_plan import Boxes, ShardPlans, ShardSpec, TableRows, ToldBox, plan_shards, read_plan_input
from imgprep.tables import hash_keys, manifest_table, write_table

CLASSES = Catalog([Synset("n00000001", 0, "one"), Synset("n00000002", 1, "two")])


def record(number: int, *, split: str = "train", num_bytes: int = 100_000) -> Record:
    wnid = CLASSES[number % 2].wnid
    return Record(
        f"k{number}", split, f"p/k {number}, ä.JPEG", wnid, number % 2, num_bytes, number if number % 5 else None
    )


def plan(folder: Path, records: Sequence[Record], spec: ShardSpec, *, boxes: str | None = None) -> ShardPlans:
    path = folder / "manifest.csv"
    write_table(path, manifest_table(records))
    given_rows = read_plan_input(path, CLASSES, spec.seed, made_by="imgprep subset")
    found = None
    if boxes is not None:
        (folder / "boxes.csv").write_text("ImageId,split,wnid,xmin,ymin,xmax,ymax,width,height\n" + boxes)
        found = Boxes(folder / "boxes.csv", given_rows.hashes)
    return plan_shards(path, given_rows, spec, found)


def straightforward(records: Sequence[Record], spec: ShardSpec) -> list[tuple[str, tuple[Record, ...]]]:
    """The same by sorting records, as the documentation says it."""
    made = []
    secret = spec.seed.to_bytes(8, "big")
    for split in sorted({entry.split for entry in records}):
        chosen = [entry for entry in records if entry.split == split]
        chosen.sort(key=lambda entry: hashlib.blake2b(entry.key.encode(), digest_size=16, key=secret).digest())
        number = spec.samples_per_shard or len(chosen)
        parts = [tuple(chosen[start : start + number]) for start in range(0, len(chosen), number)]
        made += [(f"imgprep-{split}-{place:06d}.tar", part) for place, part in enumerate(parts)]
    return made


@given(
    numbers=st.sets(st.integers(0, 500), min_size=1, max_size=60),
    samples_per_shard=st.integers(1, 20),
    seed=st.integers(0, 3),
)
def test_a_plan_is_what_sorting_by_the_keyed_hash_gives(
    tmp_path_factory: pytest.TempPathFactory, numbers: set[int], samples_per_shard: int, seed: int
) -> None:
    folder = tmp_path_factory.mktemp("plan")
    records = [record(number, split="train" if number % 3 else "val") for number in numbers]
    spec = ShardSpec(samples_per_shard=samples_per_shard, seed=seed)
    plans = list(plan(folder, records, spec))

    assert [(one.filename, one.records) for one in plans] == straightforward(records, spec)
    backwards = plan(folder, records[::-1], spec)
    assert list(backwards) == plans
    assert backwards.num_records == len(records)


@given(numbers=st.sets(st.integers(0, 500), min_size=1, max_size=60), num_bytes=st.integers(1, 10**7))
def test_cuts_by_size_hold_every_record_once(
    tmp_path_factory: pytest.TempPathFactory, numbers: set[int], num_bytes: int
) -> None:
    records = [record(number) for number in numbers]
    plans = plan(tmp_path_factory.mktemp("plan"), records, ShardSpec(images="original", bytes_per_shard=num_bytes))
    packed = [entry for one in plans for entry in one.records]

    assert Counter(packed) == Counter(records)
    assert all(one.records for one in plans)
    sizes = [len(one.records) for one in plans]
    assert max(sizes) - min(sizes) <= 1
    # No tar is much larger than asked for: by one sample at most.
    assert max(cut.num_bytes for cut in plans.cuts) <= num_bytes + 110_000


@pytest.mark.parametrize(
    ("samples", "num_bytes", "options", "shards"),
    [
        (1, 10**5, {}, 1),
        (16, 10**5, {}, 2),
        (1000, 10**5, {}, 8),
        (20_000, 10**5, {"images": "original"}, 8),
        (4096, 1 << 20, {"images": "original"}, 17),
        (20_000, 10**5, {"bytes_per_shard": 10**8}, 8),
        (20_000, 10**5, {"bytes_per_shard": 10**8, "crop": "center"}, 6),
        (20_000, 10**5, {"bytes_per_shard": 10**8, "images": "original"}, 21),
    ],
)
def test_the_number_of_shards(
    tmp_path: Path, samples: int, num_bytes: int, options: dict[str, object], shards: int
) -> None:
    records = [record(number, num_bytes=num_bytes) for number in range(samples)]
    cuts = plan(tmp_path, records, ShardSpec(**options)).cuts  # type: ignore[arg-type]
    sizes = [cut.num_samples for cut in cuts]

    assert len(sizes) == shards
    assert max(sizes) - min(sizes) <= 1
    assert cuts[-1].stop == samples


def test_samples_all_over_the_order_are_spread(tmp_path: Path) -> None:
    records = [record(number) for number in range(100)]
    plans = plan(tmp_path, records, ShardSpec(samples_per_shard=10))

    assert plans.spread(1000) == [entry for one in plans for entry in one.records]
    assert plans.spread(10) == [one.records[0] for one in plans]


def test_boxes_go_with_their_samples_and_others_do_not_matter(tmp_path: Path) -> None:
    rows = "k1,train,n00000002,1,2,30,40,50,60\nother,train,n00000001,0,0,1,1,9,9\nk1,train,n00000001,5,6,7,8,50,60\n"
    records = [record(1), record(2)]
    plans = plan(tmp_path, records, ShardSpec(), boxes=rows)
    digest = Boxes(tmp_path / "boxes.csv", hash_keys(manifest_table(records)["key"])).digest()
    boxes = plans[0].boxes

    assert boxes == {
        "k1": (ToldBox("n00000002", 1, 2, 30, 40, 50, 60), ToldBox("n00000001", 5, 6, 7, 8, 50, 60)),
    }
    more = "zzz,train,n00000001,0,0,1,1,,\n"
    assert plan(tmp_path, records, ShardSpec(), boxes=more + rows + more)[0].boxes == boxes
    assert Boxes(tmp_path / "boxes.csv", hash_keys(manifest_table(records)["key"])).digest() == digest
    without_size = plan(tmp_path, records, ShardSpec(), boxes="k2,train,n00000001,0,0,1,1,,\n")
    assert without_size[0].boxes == {"k2": (ToldBox("n00000001", 0, 0, 1, 1, 0, 0),)}


def test_two_keys_with_one_hash_have_their_own_boxes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imgprep.shard_plan.hash_keys", lambda keys: np.zeros(len(keys), np.uint64))
    rows = "k1,train,n00000002,1,2,30,40,50,60\nk2,train,n00000001,0,0,1,1,9,9\n"
    boxes = plan(tmp_path, [record(1), record(2), record(3)], ShardSpec(), boxes=rows)[0].boxes

    assert {key: [box.wnid for box in some] for key, some in boxes.items()} == {
        "k1": ["n00000002"],
        "k2": ["n00000001"],
    }


def test_what_does_not_fit_the_classes_or_is_empty_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is empty"):
        plan(tmp_path, [], ShardSpec())
    with pytest.raises(ContradictionError, match="k7 has class n00000009 and label 1"):
        plan(tmp_path, [record(2), Record("k7", "train", "p", "n00000009", 1, 9, None)], ShardSpec())


def test_a_key_that_stands_twice_is_named_with_both_paths(tmp_path: Path) -> None:
    one = record(1)
    other = Record(one.key, "val", "q/other.JPEG", one.wnid, one.label, 9, None)
    with pytest.raises(DamagedError, match=r"key k1 stands twice, for p/k 1, ä\.JPEG and q/other\.JPEG"):
        plan(tmp_path, [one, record(2), other], ShardSpec())


def test_a_manifest_that_changes_meanwhile_is_noticed(tmp_path: Path) -> None:
    plans = plan(tmp_path, [record(number) for number in range(9)], ShardSpec())
    write_table(tmp_path / "manifest.csv", manifest_table([record(number) for number in range(100, 104)]))
    with pytest.raises(LockedError, match="changed"):
        _ = plans[0]


def test_line_breaks_in_fields_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DamagedError, match="line breaks"):
        plan(tmp_path, [Record("k", "train", "a\nb", "n00000001", 0, 1, None)], ShardSpec())


def test_rows_take_few_bytes(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("a,b\n" + "".join(f"{number},x\n" for number in range(1000)))
    rows = TableRows(path)

    assert len(rows) == 1000
    assert list(rows.read([999, 0, 7])) == [["999", "x"], ["0", "x"], ["7", "x"]]
    assert rows._ends.nbytes == 8 * 1001


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"images": "raw"}, "one of resize, original, got 'raw'"),
        ({"size": 7}, "size must be from 8"),
        ({"quality": 0}, "quality must be from 1 to 100, got 0"),
        ({"quality": 101}, "got 101"),
        ({"crop": "left"}, "crop must be one of none, center, got 'left'"),
        ({"samples_per_shard": 0}, "samples_per_shard must be 1 or more, got 0"),
        ({"bytes_per_shard": 0}, "bytes_per_shard must be 1 or more, got 0"),
        ({"bytes_per_shard": 9, "samples_per_shard": 9}, "both say where to cut"),
        ({"seed": -1}, "seed must be"),
        ({"max_rejects": -1}, "max_rejects must be 0 or more, got -1"),
    ],
)
def test_illegal_specs_cannot_be_built(options: dict[str, object], said: str) -> None:
    with pytest.raises(SpecError, match=said):
        ShardSpec(**options)  # type: ignore[arg-type]  # the values are wrong on purpose
