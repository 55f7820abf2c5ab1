"""Names that come from outside: whatever gets through the check stays inside its folder."""

from pathlib import Path, PurePosixPath

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from daskinfer.spec.names import check_count, check_hex, check_path

PARTS = st.one_of(
    st.sampled_from(["..", ".", "", "/", "\\", "\0", "\x1b[2J", "file://", "s3://", "C:", "~", "a"]),
    st.text(max_size=8),
)


@given(st.lists(PARTS, max_size=6).map("/".join))
@example("../../victim.pth")
@example("/etc/passwd")
@example("a/../../b")
def test_what_passes_stays_inside(path: str) -> None:
    try:
        checked = check_path(path)
    except ValueError:
        return
    joined = PurePosixPath("/registry") / checked
    assert ".." not in joined.parts
    assert joined.is_relative_to("/registry")
    assert Path(checked).as_posix() == checked
    assert not any(ord(character) < 32 for character in checked)


@pytest.mark.parametrize("path", ["blobs/ab/0123.ff", "config.json", "1_Pooling/config.json", "..name", "a..b/c"])
def test_ordinary_paths_pass(path: str) -> None:
    assert check_path(path) == path


@pytest.mark.parametrize(
    "path", ["a\\b", "..\\victim", "s3://bucket/a", "file:///etc/passwd", "a\x7f", "a" * 1025, "", "/a", "a//b", "a/"]
)
def test_what_leaves_its_folder_elsewhere_does_not(path: str) -> None:
    """A backslash separates on Windows, a URL leads to another store, and no store takes a name of any length."""
    with pytest.raises(ValueError, match="is not a path inside a folder"):
        check_path(path)


@pytest.mark.parametrize("digits", ["", "0" * 63, "0" * 65, "G" * 64, "0" * 64 + "\n", "../" + "0" * 61])
def test_a_digest_is_64_hex_digits(digits: str) -> None:
    with pytest.raises(ValueError, match="is not a digest"):
        check_hex(digits)
    assert check_hex("0" * 64) == "0" * 64


def test_no_length_is_negative() -> None:
    with pytest.raises(ValueError, match="is not a number of bytes"):
        check_count(-1)
    assert check_count(0) == 0
