"""Side files: what other readers want to find beside the tars of a folder of shards.

WebDataset, plain tar and imgprep itself need none of them. All are made of the index and of the headers in the tars,
and hold no time, no user and no path: equal shards have equal side files. No reader needs those of another.
"""

from __future__ import annotations

import json
import os
import re
import struct
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from imgprep.errors import DamagedError
from imgprep.files import sha256_file, write_bytes
from imgprep.index import INDEX_FILENAME, ShardIndex, ShardInfo, SplitInfo

SUMS: Final = "SHA256SUMS"
CARD: Final = "README.md"
CROISSANT: Final = "croissant.json"
TIMM: Final = "_info.json"
ENERGON: Final = ".nv-meta"

_ENERGON_FILES: Final = (".info.json", "dataset.yaml", "split.yaml")
_LONG_NAMES: Final = {"val": "validation"}
"""Splits as Hugging Face and timm call them."""
_IMAGENET: Final = frozenset({"ilsvrc", "devkit"})
"""Layouts whose pictures are ImageNet's."""

_BLOCK: Final = 512
_NAME: Final = slice(0, 100)
_SIZE: Final = slice(124, 136)
"""Fields ``name`` and ``size`` of a header (POSIX 1003.1, ustar)."""
_END_BYTES: Final = 2 * _BLOCK

_SIZE_CATEGORIES: Final = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"))
"""How dataset cards on Hugging Face say the number of samples, by the first number that is too large."""


def side_names(index: ShardIndex) -> list[str]:
    """Names of the side files, ``SHA256SUMS`` aside, relative to the folder of the shards, in the order of writing."""
    names = [f"{ENERGON}/{name}" for name in _ENERGON_FILES]
    for split, info in index.splits.items():
        for shard in info.shards:
            names += [_dali_name(shard), _energon_name(shard)]
        names.append(_wids_name(split))
    return [*names, TIMM, CROISSANT, CARD]


def write_side_files(folder: Path, index: ShardIndex) -> list[str]:
    """Write the side files, ``SHA256SUMS`` aside, each atomically, in place of what bears their names.

    Args:
        folder: Folder of the shards, which must be whole.
        index: What ``index.json`` says.

    Returns:
        Names of the files, relative to the folder, as in :func:`side_names`.

    Raises:
        DamagedError: A shard is not as the index says.
    """
    (folder / ENERGON).mkdir(exist_ok=True)
    written = []
    for name, content in side_files(folder, index):
        write_bytes(folder / name, content)
        written.append(name)
    return written


def write_sums(folder: Path, names: Iterable[str], *, hashes: Mapping[str, str] | None = None) -> None:
    """Write ``SHA256SUMS``, which ``sha256sum --check`` reads.

    Args:
        folder: Where the files lie.
        names: The files to cover, relative to the folder.
        hashes: SHA-256 of those that were hashed before.
    """
    known = hashes or {}
    # GNU coreutils: two blanks, of which the second stands for text mode.
    lines = [f"{known[name] if name in known else sha256_file(folder / name)}  {name}\n" for name in sorted(names)]
    write_bytes(folder / SUMS, "".join(lines).encode())


def side_files(folder: Path, index: ShardIndex) -> Iterator[tuple[str, bytes]]:
    """Make the side files one after another, ``SHA256SUMS`` aside; writes nothing.

    Args:
        folder: Folder of the shards; the headers in its tars are read.
        index: What ``index.json`` says.

    Yields:
        Name relative to the folder, and content.

    Raises:
        DamagedError: A shard is not as the index says.
    """
    for name, text in zip(_ENERGON_FILES, _energon_texts(index), strict=True):
        yield f"{ENERGON}/{name}", text.encode()
    for split, info in index.splits.items():
        for shard in info.shards:
            samples = _samples(folder / shard.filename, shard)
            yield _dali_name(shard), _dali_index(samples)
            yield _energon_name(shard), _energon_index(samples, shard)
        yield _wids_name(split), _json(_wids(split, info))
    yield TIMM, _json(_timm(index))
    yield CROISSANT, _json(_croissant(index))
    yield CARD, _card(index).encode()


def _json(document: Any) -> bytes:
    return (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode()


_Sample = list[tuple[str, int, int]]
"""Name, offset of the content and size of each member of a sample."""


def _samples(path: Path, shard: ShardInfo) -> list[_Sample]:
    """The samples of a tar that imgprep wrote, in order, by its headers."""
    samples: dict[str, _Sample] = {}
    with path.open("rb", buffering=0) as file:
        position, end = 0, shard.num_bytes - _END_BYTES
        while position < end:
            header = os.pread(file.fileno(), _BLOCK, position)
            try:
                name, size = header[_NAME].rstrip(b"\0").decode("ascii"), int(header[_SIZE].rstrip(b"\0 "), 8)
            except ValueError:
                name, size = "", -1
            if not name or not 0 <= size <= end - position:
                raise DamagedError(f"{path}: the header at byte {position:,} is none", "run `imgprep verify`")
            position += _BLOCK
            samples.setdefault(name.partition(".")[0], []).append((name, position, size))
            position += size + -size % _BLOCK
    if len(samples) != shard.num_samples:
        raise DamagedError(f"{path}: {shard.num_samples} samples expected, got {len(samples)}", "run `imgprep verify`")
    return list(samples.values())


def _dali_name(shard: ShardInfo) -> str:
    return f"{shard.filename.removesuffix('.tar')}.idx"


def _dali_index(samples: Sequence[_Sample]) -> bytes:
    """The index that DALI's ``wds2idx`` writes, version 1.2: a line a sample, four words a member."""
    members = (
        " ".join(f"{name.partition('.')[2]} {offset} {size} {name}" for name, offset, size in sample)
        for sample in samples
    )
    return "".join(f"{line}\n" for line in (f"v1.2 {len(samples)}", *members)).encode()


def _energon_name(shard: ShardInfo) -> str:
    return f"{shard.filename}.idx"


def _energon_index(samples: Sequence[_Sample], shard: ShardInfo) -> bytes:
    """Where each sample starts, and where the last one ends, as ``energon prepare`` writes it."""
    starts = [sample[0][1] - _BLOCK for sample in samples]
    return struct.pack(f"<{len(starts) + 1}Q", *starts, shard.num_bytes - _END_BYTES)


def _energon_texts(index: ShardIndex) -> tuple[str, str, str]:
    """``.info.json``, ``dataset.yaml`` and ``split.yaml``.

    Parts that are empty are named too: ``energon lint`` fails where one of the three is missing.
    """
    shards = {name: info.shards for name, info in sorted(index.splits.items())}
    counts = {shard.filename: shard.num_samples for part in shards.values() for shard in part}
    sample_type = (
        "sample_type:\n  __module__: megatron.energon\n  __class__: ImageClassificationSample\n"
        "field_map:\n  image: jpg\n  label: cls\n"
    )
    parts = ["split_parts:\n"]
    for name in dict.fromkeys(("train", "val", "test", *shards)):
        listed = "".join(f"  - {shard.filename}\n" for shard in shards.get(name, ()))
        parts.append(f"  {name}:\n{listed}" if listed else f"  {name}: []\n")
    return _json({"shard_counts": counts}).decode(), sample_type, "".join(parts) + "exclude: []\n"


def _wids_name(split: str) -> str:
    return f"{split}.wids.json"


def _wids(split: str, info: SplitInfo) -> dict[str, Any]:
    """An index of ``wids``; its addresses are relative to the file."""
    shards = [{"url": s.filename, "nsamples": s.num_samples, "filesize": s.num_bytes} for s in info.shards]
    return {"__kind__": "wids-shard-index-v1", "wids_version": 1, "name": split, "shardlist": shards}


def _timm(index: ShardIndex) -> dict[str, Any]:
    """What timm's ``wds`` reader looks for in a folder."""
    splits = {}
    for split, info in index.splits.items():
        name = _LONG_NAMES.get(split, split)
        splits[name] = {
            "name": name,
            "num_samples": info.num_samples,
            "filenames": [shard.filename for shard in info.shards],
            "shard_lengths": [shard.num_samples for shard in info.shards],
        }
    return {"splits": splits}


def class_names(index: ShardIndex) -> list[str]:
    """One name a class, in label order, no two alike: the short one, with more where others share it."""
    short = [info.short_name or info.wnid for info in index.classes]
    shared = Counter(short)
    names = [
        name if shared[name] == 1 else f"{name} ({info.wnid})" for name, info in zip(short, index.classes, strict=True)
    ]
    if len(set(names)) < len(names):
        names = [f"{label} {name}" for label, name in enumerate(names)]
    return names


_CONTEXT: Final = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
"""The terms of Croissant 1.0: <https://docs.mlcommons.org/croissant/docs/croissant-spec.html>."""


def _croissant(index: ShardIndex) -> dict[str, Any]:
    """A description in Croissant 1.0: the tars, the pictures and texts in them, and what a sample is made of."""
    document: dict[str, Any] = {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": "imgprep-shards",
        "description": _description(index),
        "version": "1.0.0",
        "identifier": index.dataset_digest,
    }
    if _is_imagenet(index):
        document |= {"url": _IMAGENET_URL, "license": _IMAGENET_TERMS, "citeAs": _IMAGENET_CITATION}
    document["distribution"] = [
        {
            "@type": "cr:FileObject",
            "@id": shard.filename,
            "name": shard.filename,
            "contentUrl": shard.filename,
            "contentSize": f"{shard.num_bytes} B",
            "encodingFormat": "application/x-tar",
            "sha256": shard.sha256,
        }
        for info in index.splits.values()
        for shard in info.shards
    ]
    document["recordSet"] = [_class_records(index)]
    for split, info in index.splits.items():
        for extension, (media_type, name, kind) in _CROISSANT_FIELDS.items():
            document["distribution"].append(
                {
                    "@type": "cr:FileSet",
                    "@id": f"{split}-{extension}",
                    "name": f"{split}-{extension}",
                    "containedIn": [{"@id": shard.filename} for shard in info.shards],
                    "encodingFormat": media_type,
                    "includes": f"*.{extension}",
                }
            )
            document["recordSet"].append(_sample_records(split, extension, name, kind))
    return document


_CROISSANT_FIELDS: Final = {
    "jpg": ("image/jpeg", "image", "sc:ImageObject"),
    "cls": ("text/plain", "label", "sc:Integer"),
}
"""Members of a sample by extension: media type, and name and type of the field they are."""


def _sample_records(split: str, extension: str, name: str, kind: str) -> dict[str, Any]:
    """The members of one extension, each under the key of its sample.

    Pictures and labels are two sets of records with one key: readers of Croissant join no files inside of tars.
    """
    files = f"{split}-{extension}"
    records = f"{split}-{name}s"
    key = {"extract": {"fileProperty": "filename"}, "transform": {"regex": rf"^(.+)\.{extension}$"}}
    return {
        "@type": "cr:RecordSet",
        "@id": records,
        "name": records,
        "key": {"@id": f"{records}/key"},
        "field": [
            _croissant_field(records, "key", "sc:Text", {"fileSet": {"@id": files}, **key}),
            _croissant_field(records, name, kind, {"fileSet": {"@id": files}, "extract": {"fileProperty": "content"}}),
        ],
    }


def _class_records(index: ShardIndex) -> dict[str, Any]:
    """The classes, as records inside of the document."""
    kinds = {"label": "sc:Integer", "wnid": "sc:Text", "name": "sc:Text"}
    return {
        "@type": "cr:RecordSet",
        "@id": "classes",
        "name": "classes",
        "key": {"@id": "classes/label"},
        "field": [_croissant_field("classes", name, kind) for name, kind in kinds.items()],
        "data": [{f"classes/{name}": getattr(info, name) for name in kinds} for info in index.classes],
    }


def _croissant_field(records: str, name: str, kind: str, source: dict[str, Any] | None = None) -> dict[str, Any]:
    field = {"@type": "cr:Field", "@id": f"{records}/{name}", "name": name, "dataType": kind}
    return field if source is None else {**field, "source": source}


_IMAGENET_URL: Final = "https://image-net.org"
_IMAGENET_TERMS: Final = "https://image-net.org/download"
_IMAGENET_CITATION: Final = (
    "Olga Russakovsky et al. ImageNet Large Scale Visual Recognition Challenge."
    " International Journal of Computer Vision 115(3):211-252, 2015. doi:10.1007/s11263-015-0816-y"
)
_SHOWN_CLASSES: Final = 20


def _is_imagenet(index: ShardIndex) -> bool:
    source = index.provenance.get("source")
    return isinstance(source, dict) and source.get("layout") in _IMAGENET


def _description(index: ShardIndex) -> str:
    splits = ", ".join(f"{info.num_samples:,} {name}" for name, info in index.splits.items())
    return f"Pictures of {len(index.classes):,} classes with their labels, in WebDataset tars: {splits}."


def _card(index: ShardIndex) -> str:
    """The dataset card: front matter that Hugging Face ``datasets`` reads, then text for people."""
    total = sum(info.num_samples for info in index.splits.values())
    category = next((name for limit, name in _SIZE_CATEGORIES if total < limit), "n>1M")
    parts = [
        f"---\nlicense: other\ntask_categories:\n- image-classification\nsize_categories:\n- {category}\n",
        _card_configs(index),
        f"---\n\n# Shards written by imgprep\n\n{_description(index)}\n\n",
        _card_contents(index),
        _CARD_READERS.format(**_card_examples(index)),
    ]
    if _is_imagenet(index):
        parts.append(_CARD_TERMS)
    return "".join(parts)


def _card_configs(index: ShardIndex) -> str:
    """Which tars are which split, and the types of all members.

    Without the types they are guessed from a few samples, and a list that is empty there spoils the guess.
    """
    files = "".join(
        f"  - split: {_LONG_NAMES.get(name, name)}\n    path:\n" + "".join(f"    - {s.filename}\n" for s in info.shards)
        for name, info in index.splits.items()
    )
    names = "".join(f"          '{label}': {_yaml_string(name)}\n" for label, name in enumerate(class_names(index)))
    return f"configs:\n- config_name: default\n  data_files:\n{files}{_CARD_FEATURES.format(names=names)}"


_NOT_IN_YAML = re.compile("[\x7f-\x9f\u2028\u2029\ufeff]")
"""What YAML wants to be escaped, and JSON does not (YAML 1.2.2, 5.1 and 5.4)."""


def _yaml_string(text: str) -> str:
    """A text between quotation marks. JSON's are YAML's, but for its pairs of surrogates."""
    quoted = json.dumps(text, ensure_ascii=False)
    return _NOT_IN_YAML.sub(lambda found: f"\\u{ord(found[0]):04x}", quoted)


_CARD_FEATURES: Final = """\
dataset_info:
  features:
  - name: jpg
    dtype: image
  - name: cls
    dtype:
      class_label:
        names:
{names}\
  - name: json
    struct:
    - name: key
      dtype: string
    - name: split
      dtype: string
    - name: wnid
      dtype: string
    - name: label
      dtype: int64
    - name: path
      dtype: string
    - name: width
      dtype: int64
    - name: height
      dtype: int64
    - name: boxes
      list:
      - name: wnid
        dtype: string
      - name: xmin
        dtype: float64
      - name: ymin
        dtype: float64
      - name: xmax
        dtype: float64
      - name: ymax
        dtype: float64
  - name: __key__
    dtype: string
  - name: __url__
    dtype: string
"""


def _card_contents(index: ShardIndex) -> str:
    rows = "".join(
        f"| {name} | {info.num_samples:,} | {len(info.shards):,} | {info.num_bytes:,} |\n"
        for name, info in index.splits.items()
    )
    shown = [f"| {info.label} | {_cell(info.wnid)} | {_cell(info.name)} |\n" for info in index.classes[:_SHOWN_CLASSES]]
    more = len(index.classes) - len(shown)
    rest = f"\nThe other {more:,} classes are in `{INDEX_FILENAME}`.\n" if more else ""
    options = "".join(f"| {_cell(name)} | {_cell(value)} |\n" for name, value in sorted(index.spec.items()))
    origin = "".join(
        f"| {_cell(part)}: {_cell(name)} | {_cell(value)} |\n"
        for part, values in sorted(index.provenance.items())
        for name, value in sorted(values.items() if isinstance(values, dict) else [("value", values)])
    )
    return (
        "## Contents\n\nEach sample has three members: `KEY.jpg`, the picture; `KEY.cls`, its label in ASCII digits;"
        " `KEY.json`, what is known of it.\n\n"
        f"| split | samples | tars | bytes |\n| --- | --- | --- | --- |\n{rows}\n"
        f"| label | wnid | name |\n| --- | --- | --- |\n{''.join(shown)}{rest}\n"
        f"## Origin\n\nDataset digest: `{index.dataset_digest}`\n\n"
        f"| option of `imgprep shard` | value |\n| --- | --- |\n{options}\n"
        f"| made of | |\n| --- | --- |\n{origin}\n"
    )


def _cell(value: Any) -> str:
    """A value as text in a table: names come from archives."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return "".join(f"\\{c}" if c in "\\|<`*_[" else c if c.isprintable() else " " for c in text)


def _card_examples(index: ShardIndex) -> dict[str, str]:
    """What the examples call a split and its tars."""
    split = next(iter(index.splits), "train")
    shards = index.splits[split].shards if index.splits else ()
    first, last = (shards[0].filename, shards[-1].filename) if shards else ("", "")
    if first == last:
        return {"split": split, "long": _LONG_NAMES.get(split, split), "tars": first}
    numbers = [name.removesuffix(".tar").rpartition("-")[2] for name in (first, last)]
    tars = f"{first.removesuffix('.tar').rpartition('-')[0]}-{{{numbers[0]}..{numbers[1]}}}.tar"
    return {"split": split, "long": _LONG_NAMES.get(split, split), "tars": tars}


_CARD_READERS: Final = """\
## Reading it

`FOLDER` stands for this folder. `sha256sum -c SHA256SUMS` checks every file.

```python
import webdataset

dataset = webdataset.WebDataset("FOLDER/{tars}", shardshuffle=False).decode("pil").to_tuple("jpg", "cls")
```

```python
import datasets

dataset = datasets.load_dataset("FOLDER", split="{long}")
```

```python
import timm.data

dataset = timm.data.create_dataset("wds/", root="FOLDER", split="{long}")
```

```python
import wids

dataset = wids.ShardListDataset("FOLDER/{split}.wids.json", localname=str, keep=True)
```

```python
from megatron.energon import WorkerConfig, get_train_dataset

dataset = get_train_dataset(
    "FOLDER", batch_size=32, shuffle_buffer_size=100, max_samples_per_sequence=100,
    worker_config=WorkerConfig.default_worker_config(),
)
```

The tars also have indexes for DALI (`*.idx`), and `croissant.json` describes all of it.
"""

_CARD_TERMS: Final = f"""
## Terms

The pictures are ImageNet's, or were packed as if they were. ImageNet is offered for non-commercial research and
education under terms that everyone accepts for themselves ({_IMAGENET_TERMS}); the copyright of each picture stays with
its owner. Do not pass these files on.

> {_IMAGENET_CITATION}
"""
