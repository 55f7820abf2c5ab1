"""Names that come from outside: whatever gets through the check stays inside its folder."""

from pathlib import Path, PurePosixPath

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from daskinfer.spec.names import check_path

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
