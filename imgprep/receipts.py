"""Receipts: what a stage wrote, from which inputs, with which options. They decide whether there is work to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from imgprep.errors import DamagedError, MissingInputError, OutputExistsError
from imgprep.files import read_json, sha256_file, write_json

RECEIPT_VERSION: Final = 1

Action = Literal["run", "skip"]

_PARTS: Final = ("inputs", "options", "outputs", "counts")


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """The request one output folder answers.

    Attributes:
        stage: Name of the stage, e.g. ``subset``.
        inputs: Digests of everything read, by name.
        options: The spec as JSON values.
    """

    stage: str
    inputs: Mapping[str, str]
    options: Mapping[str, Any]

    def path(self, folder: Path) -> Path:
        """Where the receipt of this stage lies in its output folder."""
        return folder / f"{self.stage}.receipt.json"

    def differences(self, folder: Path, *, check_bytes: bool = False) -> list[str] | None:
        """Compare with the receipt found in ``folder``.

        Args:
            folder: The output folder.
            check_bytes: Compare the SHA-256 of every output, not only its size.

        Returns:
            None when there is none, or it cannot be read, or it is about this request and an output it names is not
            there as it says; else what differs, a phrase each: an empty list means the same request was already met.
        """
        try:
            found = read_json(self.path(folder))
        except (FileNotFoundError, DamagedError):
            return None
        if found.get("version") != RECEIPT_VERSION:
            return [f"receipt version {found.get('version')} instead of {RECEIPT_VERSION}"]
        if not all(isinstance(found.get(part), dict) for part in _PARTS):
            return None
        options, inputs = found["options"], found["inputs"]
        changed = [
            f"{name} was {_shown(options.get(name))}, now {_shown(self.options.get(name))}"
            for name in sorted({*options, *self.options})
            if options.get(name) != self.options.get(name)
        ]
        replaced = [n for n in sorted({*inputs, *self.inputs}) if inputs.get(n) != self.inputs.get(n)]
        differences = changed + [
            f"the {name} {'are others' if name.endswith('s') else 'is another one'}" for name in replaced
        ]
        # Outputs that are damaged are made anew, but not by another request than theirs.
        if not differences and not _outputs_are_there(folder, found["outputs"], check_bytes=check_bytes):
            return None
        return differences

    def decide(self, folder: Path, *, overwrite: bool = False) -> Action:
        """Decide what to do about ``folder``.

        Args:
            folder: The output folder.
            overwrite: Replace an output that answers another request, or whose bytes were changed since.

        Returns:
            ``skip`` when the output is there and answers this very request, else ``run``.

        Raises:
            OutputExistsError: It answers another request and may not be replaced. The message says what differs.
        """
        differences = self.differences(folder, check_bytes=overwrite)
        if differences == []:
            return "skip"
        if differences and not overwrite:
            raise OutputExistsError(
                f"{folder} was made with other options: {'; '.join(differences)}",
                "use --overwrite to replace it, or --name for another one beside it",
            )
        return "run"

    def refuse_strangers(self, folder: Path) -> None:
        """Check that what stands at a place was written by this stage, before it is replaced without being asked.

        Raises:
            OutputExistsError: It has no receipt.
        """
        if folder.exists() and not self.path(folder).exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise OutputExistsError(
                f"{folder} holds what `imgprep {self.stage}` did not write",
                "choose another --name, or replace it with --overwrite",
            )

    def only_inputs_changed(self, folder: Path, *names: str) -> bool:
        """Whether ``folder`` was made with these very options, and only inputs changed since.

        What was chosen from a source that grew meanwhile may still be what would be chosen now.

        Args:
            folder: The output folder.
            *names: Inputs that may have changed; all when none is named.
        """
        try:
            found = read_receipt(folder, self.stage)
        except (MissingInputError, DamagedError):
            return False
        changed = {n for n in {*found["inputs"], *self.inputs} if found["inputs"].get(n) != self.inputs.get(n)}
        whole = _outputs_are_there(folder, found["outputs"], check_bytes=False)
        return bool(changed) and changed <= set(names or changed) and found["options"] == dict(self.options) and whole

    def renew(self, folder: Path) -> None:
        """Put the inputs of now into the receipt of an output that is what they would give."""
        found = read_receipt(folder, self.stage)
        write_json(self.path(folder), self._document(found["outputs"], found["counts"]))

    def write(
        self,
        folder: Path,
        outputs: list[str],
        counts: Mapping[str, Any],
        *,
        hashes: Mapping[str, str] | None = None,
    ) -> None:
        """Write the receipt, as the last file of a stage: with it the output counts as done.

        Args:
            folder: The output folder.
            outputs: Names of the files in it that the stage wrote.
            counts: Anything worth keeping for people: how many were read, written, rejected.
            hashes: SHA-256 of those outputs that were hashed while they were written.
        """
        write_json(self.path(folder), self.document(folder, outputs, counts, hashes=hashes))

    def document(
        self,
        folder: Path,
        outputs: list[str],
        counts: Mapping[str, Any],
        *,
        hashes: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        """What :meth:`write` writes, as JSON values."""
        known = hashes or {}
        hashed = {
            name: {
                "num_bytes": (folder / name).stat().st_size,
                "sha256": known[name] if name in known else sha256_file(folder / name),
            }
            for name in outputs
        }
        return self._document(hashed, counts)

    def _document(self, outputs: Mapping[str, Any], counts: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "stage": self.stage,
            "version": RECEIPT_VERSION,
            "inputs": dict(self.inputs),
            "options": dict(self.options),
            "outputs": dict(outputs),
            "counts": dict(counts),
        }


def read_receipt(folder: Path, stage: str) -> dict[str, Any]:
    """What the receipt of a stage says: ``inputs``, ``options``, ``outputs`` and ``counts``, each a dictionary.

    Raises:
        MissingInputError: There is none: the stage has not run here.
        DamagedError: It is no such JSON object.
    """
    path = Receipt(stage=stage, inputs={}, options={}).path(folder)
    try:
        document = read_json(path)
    except FileNotFoundError:
        raise MissingInputError(f"{path} does not exist", f"run `imgprep {stage}` first") from None
    if not all(isinstance(document.get(part), dict) for part in _PARTS) or not _are_plain(document):
        raise DamagedError(f"{path} is incomplete or damaged", f"run `imgprep {stage} --overwrite`")
    return {part: document[part] for part in _PARTS}


def _are_plain(document: Mapping[str, Any]) -> bool:
    """Whether outputs and counts are what a receipt has there."""
    counts = document["counts"].values()
    return all(isinstance(output, dict) for output in document["outputs"].values()) and all(
        isinstance(count, int | str) for count in counts
    )


def was_made_of(folder: Path, stage: str, inputs: Mapping[str, str]) -> bool:
    """Whether the outputs of a stage are there, to the byte, and were made of these inputs, among others."""
    try:
        found = read_receipt(folder, stage)
    except (MissingInputError, DamagedError):
        return False
    same = all(found["inputs"].get(name) == digest for name, digest in inputs.items())
    return same and _outputs_are_there(folder, found["outputs"], check_bytes=True)


def _outputs_are_there(folder: Path, outputs: dict[str, Any], *, check_bytes: bool) -> bool:
    for name, output in outputs.items():
        file = folder / name
        if not isinstance(output, dict) or not file.is_file() or file.stat().st_size != output.get("num_bytes"):
            return False
        if check_bytes and sha256_file(file) != output.get("sha256"):
            return False
    return True


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(str, value)) if len(value) <= 4 else f"{len(value)} values ({value[0]}, ...)"
    return "not set" if value is None else str(value)
