"""The error tree: exit codes, one-line messages, operating-system errors."""

from __future__ import annotations

import errno

import pytest

from imgprep import errors
from imgprep.errors import ImgprepError, as_imgprep_error

EXIT_CODES = {
    "ImgprepError": 1,
    "LockedError": 1,
    "WorkerDiedError": 1,
    "UsageError": 2,
    "SpecError": 2,
    "UnknownClassError": 2,
    "MissingInputError": 2,
    "OutputExistsError": 2,
    "MissingExtraError": 2,
    "DamagedError": 3,
    "SourceError": 3,
    "ChangedError": 3,
    "MemberError": 3,
    "AnnotationError": 3,
    "ImageError": 3,
    "ContradictionError": 3,
    "TooManyRejectsError": 3,
    "AccessError": 4,
    "NetworkError": 5,
    "NoSpaceError": 6,
}


def test_every_error_has_its_documented_exit_code() -> None:
    found = {
        name: value.exit_code
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, ImgprepError)
    }

    assert found == EXIT_CODES


def test_the_tree_in_the_docstring_names_every_error() -> None:
    assert [name for name in EXIT_CODES if name not in (errors.__doc__ or "")] == []


def test_a_message_is_one_printable_line_whatever_a_hostile_name_holds() -> None:
    text = str(ImgprepError("member a\nb\x1b[31m is damaged", "copy\tagain"))

    assert text == "member a b [31m is damaged - copy again"


@pytest.mark.parametrize(
    ("number", "code"), [(errno.ENOSPC, 6), (errno.EDQUOT, 6), (errno.EACCES, 4), (errno.EROFS, 4), (errno.EIO, 1)]
)
def test_operating_system_errors_find_their_place(number: int, code: int) -> None:
    error = as_imgprep_error(OSError(number, "strerror", "some/file"))

    assert (error.exit_code, "some/file" in str(error)) == (code, True)
