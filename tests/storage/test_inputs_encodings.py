"""Text comes in as it was written, in any encoding and compression, or is refused with its reason."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pydantic import ValidationError

from daskinfer.errors import InputError, StorageError
from daskinfer.ids import make_nonce
from daskinfer.knobs import LONGEST_RECORD
from daskinfer.spec.recipe.schema import Input
from daskinfer.spec.rows import PartitionTable
from daskinfer.storage.inputs.partition_table import index_input
from daskinfer.storage.inputs.reading import partition_source, read_partition
from daskinfer.storage.inputs.row_batch import RowBatch
from daskinfer.storage.inputs.text import spool
from daskinfer.storage.objects.filesystem import replace_bytes
from daskinfer.storage.objects.urls import join_url

TEXTS = ["line one", "größer", "ünï — “quoted”", "日本語 😀", "last"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DASKINFER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache/texts"


def index(url: Path | str, rows: int = 2, **more: Any) -> PartitionTable:
    return index_input(Input(url=str(url), partition_rows=rows, **more), {"text": "text"})


def read(table: PartitionTable) -> list[RowBatch]:
    return [read_partition(partition_source(table, partition.number)) for partition in table.partitions]


def read_texts(url: Path | str, **more: Any) -> list[str]:
    return [text for batch in read(index(url, **more)) for text in batch.values("text")]


def zstd(data: bytes) -> bytes:
    return bytes(pa.Codec("zstd").compress(data, asbytes=True))


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize(
    ("encoding", "mark", "declared"),
    [
        ("utf-8", b"", {}),
        ("utf-8-sig", b"", {}),
        ("utf-16", b"", {}),
        ("utf-16-be", b"\xfe\xff", {}),
        ("utf-32", b"", {}),
        ("utf-32-be", b"\x00\x00\xfe\xff", {}),
        ("utf-16-le", b"", {"encoding": "utf-16-le"}),
        ("utf-16-le", b"\xff\xfe", {"encoding": "UTF_16LE"}),
        ("utf-16-be", b"", {"encoding": "utf-16-be"}),
        ("gb18030", b"", {"encoding": "gb18030"}),
        ("utf-7", b"", {"encoding": "utf-7"}),
    ],
)
def test_marks_and_declarations_are_obeyed(
    tmp_path: Path, encoding: str, mark: bytes, declared: dict[str, Any], ending: str
) -> None:
    files = {
        "a.txt": ending.join(TEXTS),
        "a.jsonl": ending.join(json.dumps({"text": text}, ensure_ascii=False) for text in TEXTS) + ending,
        "a.csv": ending.join(["id,text", *(f'{n},"{text}"' for n, text in enumerate(TEXTS)), ""]),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(mark + content.encode(encoding))
        table = index(tmp_path / name, **declared)
        batches = read(table)
        assert [text for batch in batches for text in batch.values("text")] == TEXTS
        assert {source for batch in batches for source in batch.sources} == {str(tmp_path / name)}
        assert batches[1].lines.tolist() == ([4, 5] if name == "a.csv" else [3, 4])


@pytest.mark.parametrize(
    ("encoding", "texts"),
    [
        ("cp1252", ["größer", "5 €"]),
        ("latin-1", ["größer"]),
        ("koi8-r", ["привет"]),
        ("shift_jis", ["日本語"]),
        ("iso2022_jp", ["日本語", "ascii", "日本"]),
        ("hz", ["中文", "ascii"]),
        ("cp037", ["hello"]),
    ],
)
def test_declared_encodings_with_and_without_state(tmp_path: Path, encoding: str, texts: list[str]) -> None:
    lines = [text for number in range(40_000) for text in (*texts, f"{number}")]
    (tmp_path / "a.txt").write_bytes("\n".join(lines).encode(encoding))
    assert read_texts(tmp_path / "a.txt", rows=100_000, encoding=encoding) == lines


@pytest.mark.parametrize(
    "name", ["base64", "hex", "rot13", "zlib", "unicode_escape", "raw_unicode_escape", "idna", "punycode", "nosuch", ""]
)
def test_what_encodes_no_text_files_is_refused(name: str) -> None:
    with pytest.raises(ValidationError, match="encoding"):
        Input(url="a", encoding=name)


@pytest.mark.parametrize(
    ("content", "declared", "message"),
    [
        ("line\n".encode("utf-16-le"), "auto", r"NUL bytes.*\n.*utf-16-le"),
        ("line\n".encode("utf-16-be"), "auto", r"NUL bytes.*\n.*utf-16-be"),
        ("line\n".encode("utf-32-le"), "auto", "NUL bytes"),
        ("line\n".encode("utf-16-le"), "utf-16", "utf-16-le or utf-16-be"),
        ("line\n".encode("utf-16"), "utf-8", "begins with the mark of utf-16-le"),
        ("line\n".encode("utf-16"), "utf-16-be", "begins with the mark"),
        ("line\n".encode("utf-8-sig"), "cp1252", "begins with the mark of utf-8"),
        (gzip.compress(b"line\n", mtime=0), "auto", "is compressed by gzip"),
        (zstd(b"line\n"), "auto", "is compressed by zstd"),
        (b"one\rtwo\rthree\r", "auto", "carriage returns alone"),
        ("one\ntwo\n".encode("cp037").replace(b"\x25", b"\x15"), "cp037", r"U\+0085 alone"),
        ("one\rtwo".encode("utf-16"), "auto", "carriage returns alone"),
    ],
)
def test_what_cannot_be_told_is_refused(tmp_path: Path, content: bytes, declared: str, message: str) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(InputError, match=f"(?s)a.txt.*{message}"):
        index(tmp_path / "a.txt", encoding=declared)


@pytest.mark.parametrize(
    ("encoding", "bad"),
    [("shift_jis", b"\x81"), ("cp1252", b"\x81"), ("ascii", b"\xc3\xa9"), ("utf-16", b"\x00\xd8"), ("utf-7", b"+2AA-")],
)
def test_what_is_no_text_costs_its_row(tmp_path: Path, encoding: str, bad: bytes) -> None:
    mark = b"\xff\xfe" if encoding == "utf-16" else b""
    plain = "utf-16-le" if encoding == "utf-16" else encoding
    lines = ["one\n".encode(plain), "two".encode(plain) + bad + "\n".encode(plain), "three\n".encode(plain)]
    (tmp_path / "a.txt").write_bytes(mark + b"".join(lines))
    (batch,) = read(index(tmp_path / "a.txt", rows=10, encoding=encoding))
    assert batch.values("text") == ["one", "three"]
    assert [(reject.line, reject.error) for reject in batch.rejects] == [(2, f"not valid {encoding}")]


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstd
}  # fmt: skip


@pytest.mark.parametrize("suffix", COMPRESS)
def test_compressed_files_are_read_whole(tmp_path: Path, suffix: str, cache: Path) -> None:
    lines = [json.dumps({"text": f"row {number}"}) + "\n" for number in range(5_000)]
    data, compress = "".join(lines).encode(), COMPRESS[suffix]
    members = b"".join(compress(data[first : first + 50_000]) for first in range(0, len(data), 50_000))
    for name, content in (("one", compress(data)), ("members", members)):
        (tmp_path / f"{name}.jsonl{suffix}").write_bytes(content)
        assert read_texts(tmp_path / f"{name}.jsonl{suffix}", rows=1_000) == [
            f"row {number}" for number in range(5_000)
        ]
    assert read_texts(tmp_path / f"*.jsonl{suffix}", rows=10_000)[5_000] == "row 0"
    assert len([path for path in cache.iterdir() if not path.suffix]) == 2
    if suffix == ".zst":  # what tools put between frames
        skipped = b"\x50\x2a\x4d\x18\x03\x00\x00\x00abc"
        (tmp_path / "frames.txt.zst").write_bytes(skipped + compress(b"one\n") + skipped + compress(b"two\n"))
        assert read_texts(tmp_path / "frames.txt.zst") == ["one", "two"]
    (tmp_path / f"wide.tsv{suffix.upper()}").write_bytes(compress("id\ttext\n1\té\n".encode("utf-16")))
    assert read_texts(tmp_path / f"wide.tsv{suffix.upper()}") == ["é"]


@pytest.mark.parametrize(
    ("suffix", "damage"),
    # Frames of zstd need not have a checksum, and these have none.
    [
        (suffix, damage)
        for suffix in COMPRESS
        for damage in ("cut", "flipped", "other", "empty")
        if suffix + damage != ".zstflipped"
    ],
)
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, suffix: str, damage: str) -> None:
    whole = COMPRESS[suffix](os.urandom(5_000).hex().encode() + b"\n")
    middle = len(whole) // 2
    content = {
        "cut": whole[:-9],
        "flipped": whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :],
        "other": b"plain text\n",
        "empty": b"",
    }[damage]
    (tmp_path / f"a.txt{suffix}").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.txt"):
        index(tmp_path / f"a.txt{suffix}")


def test_compressed_files_on_stores(any_store: str) -> None:
    url = join_url(any_store, make_nonce(), "a.txt.gz")
    replace_bytes(url, gzip.compress("größer\nzwei\n".encode("utf-16")))
    assert read_texts(url) == ["größer", "zwei"]


def test_the_spool_is_bounded_and_comes_back(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "abc":
        (tmp_path / f"{name}.txt.gz").write_bytes(gzip.compress(f"{name * 99}\n".encode()))
    monkeypatch.setenv(spool.LIMIT_VARIABLE, "250")
    tables = {name: index(tmp_path / f"{name}.txt.gz") for name in "abc"}
    for _ in range(2):
        for name, table in tables.items():
            assert read(table)[0].values("text") == [name * 99]
            held = [path for path in cache.iterdir() if not path.suffix]
            assert sum(path.stat().st_size for path in held) <= 250
    assert not list(cache.glob(".*.tmp"))
    monkeypatch.setenv(spool.LIMIT_VARIABLE, "50")
    (tmp_path / "d.txt.gz").write_bytes(gzip.compress(b"d" * 99 + b"\n"))
    with pytest.raises(StorageError, match=r"d\.txt\.gz is longer than 50 bytes"):
        index(tmp_path / "d.txt.gz")


def test_a_changed_file_is_still_told(tmp_path: Path) -> None:
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(b"one\n"))
    table = index(path)
    path.write_bytes(gzip.compress(b"three\n"))
    with pytest.raises(InputError, match=r"a\.txt\.gz changed while the job ran"):
        read(table)


def test_options_that_mean_nothing_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n')
    with pytest.raises(Exception, match=r"input\.csv does not apply"):
        index(tmp_path / "a.jsonl", csv={"delimiter": ";"})
    with pytest.raises(Exception, match=r"input\.encoding does not apply"):
        index(tmp_path / "a.jsonl", format="parquet", encoding="cp1252")


@pytest.mark.parametrize("content", [b"x" * 5000, b"\n" * 5000, b'"' + b"x" * 5000], ids=["line", "lines", "field"])
@pytest.mark.parametrize("suffix", ["jsonl.gz", "csv.bz2", "txt.xz", "jsonl.zst"])
@LONGEST_RECORD.override(1000)
def test_what_expands_without_end_is_not_written_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, content: bytes
) -> None:
    packs: dict[str, Callable[[bytes], bytes]] = {
        "gz": lambda data: gzip.compress(data),
        "bz2": bz2.compress,
        "xz": lambda data: lzma.compress(data),
        "zst": zstd,
    }
    pack = packs[suffix.rpartition(".")[2]]
    (tmp_path / f"a.{suffix}").write_bytes(pack(content))
    monkeypatch.setattr(spool, "_EXPANDED", 1000)
    monkeypatch.setattr(spool, "_EXPANSION", 2)
    with pytest.raises(InputError, match=r"expands to (a line of )?more than 1,000 bytes"):
        index(tmp_path / f"a.{suffix}")


@LONGEST_RECORD.override(1000)
def test_rows_that_compress_well_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "_EXPANDED", 10_000)
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"the same\n" * 1000))
    assert len(read_texts(tmp_path / "a.txt.gz")) == 1000
