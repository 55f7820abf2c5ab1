from __future__ import annotations

import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from daskinfer.errors import InputError
from daskinfer.spec.job.record import digest_files
from daskinfer.spec.recipe.schema import Input
from daskinfer.spec.rows import PartitionTable
from daskinfer.storage.inputs.files import find_input
from daskinfer.storage.inputs.partition_table import index_input
from daskinfer.storage.inputs.reading import partition_source, read_partition
from daskinfer.storage.inputs.row_batch import RowBatch
from daskinfer.storage.objects.filesystem import delete, replace_bytes
from daskinfer.storage.objects.urls import join_url


def encode(shade: int, format: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((4, 5, 3), shade, np.uint8)).save(stream, format)
    return stream.getvalue()


def shade_of(data: bytes) -> int:
    return int(np.asarray(Image.open(io.BytesIO(data)))[0, 0, 0])


def index(url: Path | str, rows: int = 3, keep: tuple[str, ...] = ("path",), format: str = "auto") -> PartitionTable:
    section = Input.model_validate({"url": str(url), "partition_rows": rows, "format": format})
    return index_input(section, {"image": "image"}, keep)


def read_all(table: PartitionTable) -> list[RowBatch]:
    return [read_partition(partition_source(table, partition.number)) for partition in table.partitions]


def fill(place: str, count: int) -> None:
    for number in range(count):
        replace_bytes(join_url(place, f"{number:03d}.png"), encode(number * 10))


def test_every_file_is_a_row_in_the_order_of_paths(any_store: str) -> None:
    fill(any_store, 5)
    replace_bytes(join_url(any_store, "_SUCCESS"), b"x")
    table = index(any_store, rows=2)
    assert (table.format, table.rows, len(table.files)) == ("images", 5, 5)
    assert (table.columns, table.reads, table.arrays) == ({"image": "binary", "path": "string"}, ("image",), {})
    assert [len(partition.segments) for partition in table.partitions] == [1, 1, 1]
    assert PartitionTable.model_validate_json(table.model_dump_json()) == table
    section = Input(url=any_store)
    assert digest_files(find_input(section).files) == digest_files(table.files)
    batches = read_all(table)
    assert [shade_of(data) for batch in batches for data in batch.values("image")] == [0, 10, 20, 30, 40]
    assert [path[-7:] for batch in batches for path in batch.values("path")] == [f"{n:03d}.png" for n in range(5)]
    assert batches[1].sources == tuple(batches[1].values("path"))


@pytest.mark.parametrize("change", ["content", "gone"])
def test_an_image_that_changed_is_not_read(any_store: str, change: str) -> None:
    fill(any_store, 4)
    table = index(any_store, rows=2)
    place = join_url(any_store, "003.png")
    if change == "gone":
        delete(place)
    else:
        replace_bytes(place, encode(31))
    assert len(read_partition(partition_source(table, 0))) == 2
    with pytest.raises(InputError, match=r"003\.png changed while the job ran"):
        read_partition(partition_source(table, 1))


def test_suffixes_may_be_mixed_and_other_files_are_left_out_on_request(tmp_path: Path) -> None:
    (tmp_path / "a.JPG").write_bytes(encode(1, "JPEG"))
    (tmp_path / "b.webp").write_bytes(encode(2, "WEBP"))
    assert index(tmp_path).rows == 2
    (tmp_path / "labels.csv").write_text("x\n")
    with pytest.raises(InputError, match="auto cannot tell one format"):
        index(tmp_path)
    assert index(tmp_path, format="images").rows == 2
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "c.png").write_bytes(encode(3))
    assert [Path(file.url).name for file in index(f"{tmp_path}/**/*.[pw]*").files] == ["b.webp", "c.png"]
    with pytest.raises(InputError, match=r"contains no images: no file ends in \.jpg"):
        index(tmp_path / "labels.csv", format="images")


def test_an_empty_file_is_a_refused_row(tmp_path: Path) -> None:
    fill(str(tmp_path), 5)
    (tmp_path / "001.png").write_bytes(b"")
    first, second = read_all(index(tmp_path))
    assert first.positions.tolist() == [0, 2] and len(second) == 2
    (reject,) = first.rejects
    assert (reject.row, reject.line, reject.error) == (1, 1, "the file is empty")
    assert reject.source == str(tmp_path / "001.png")


def test_a_refused_image_is_named_and_not_shown(tmp_path: Path) -> None:
    fill(str(tmp_path), 5)
    (_, second) = read_all(index(tmp_path))
    rest = second.without({1: "cannot be decoded"})
    (reject,) = rest.rejects
    assert (reject.row, reject.source) == (4, str(tmp_path / "004.png"))
    assert json.loads(reject.excerpt) == {"image": f"{len(encode(40))} bytes", "path": str(tmp_path / "004.png")}
    assert [Path(source).name for source in rest.sources] == ["003.png"]


def test_a_link_to_nothing_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.png").symlink_to(tmp_path / "b.png")
    with pytest.raises(InputError, match=r"a\.png was listed but does not exist"):
        index(tmp_path)


def test_nothing_is_opened_to_index(tmp_path: Path) -> None:
    fill(str(tmp_path), 3)
    (tmp_path / "001.png").write_bytes(b"no image")
    assert index(tmp_path).rows == 3


def test_a_pipe_is_refused_by_name(tmp_path: Path) -> None:
    fill(str(tmp_path), 3)
    os.mkfifo(tmp_path / "pipe.png")  # opening it would wait for ever
    with pytest.raises(InputError, match=r"pipe\.png is a named pipe"):
        index(tmp_path)


@pytest.mark.parametrize(
    ("wants", "keep", "message"),
    [
        ({"pixels": "image"}, (), r"input\.columns\.pixels: .* has no column 'pixels'; it has image, path"),
        ({"image": "array"}, (), "column 'image' of image files cannot be read as array"),
        ({"image": "image"}, ("label",), r"output\.keep: .* has no column 'label'"),
    ],
)
def test_only_what_image_files_have_can_be_read(
    tmp_path: Path, wants: dict[str, str], keep: tuple[str, ...], message: str
) -> None:
    fill(str(tmp_path), 1)
    with pytest.raises(InputError, match=message):
        index_input(Input(url=str(tmp_path)), wants, keep)  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "content"), [("a.jsonl", '{"image": "x.png"}\n'), ("a.csv", "image\nx.png\n")])
def test_lines_of_text_carry_no_images(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match="holds no images\nRead image files, binary columns of parquet"):
        index(tmp_path / name, keep=())
