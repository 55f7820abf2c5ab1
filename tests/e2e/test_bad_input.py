"""Recipes, inputs, plans, checkpoints and outputs that are refused before anything is begun."""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from typing import Any

import pytest

from daskinfer.testing.servers.servers import environment, serve_s3
from tests.e2e.command import start, start_here
from tests.e2e.conftest import Bench


@dataclass(frozen=True)
class Refusal:
    """A run that must not begin."""

    code: int
    said: tuple[str, ...]
    changes: dict[str, Any]


def refusal(code: int, *said: str, **changes: Any) -> Refusal:
    return Refusal(code, said, changes)


def refuse(bench: Bench, *cases: Refusal) -> None:
    """Check that runs are refused before anything is begun; in this process, as importing takes most of a refusal."""
    for case in cases:
        ended = start_here(bench, **case.changes)
        assert ended.code == case.code, ended.err
        for words in (*case.said, "error: ", "hint: "):
            assert words in ended.err
        assert ended.json["code"] == case.code
        assert ended.json["error"] in ended.err
        validated = start_here(bench, "validate", **case.changes)
        assert (validated.code, validated.json["error"]) == (case.code, ended.json["error"])
    assert not (bench.folder / "work/jobs").exists()
    assert not list(bench.folder.glob("out*"))


@pytest.fixture
def typed(bench: Bench) -> Bench:
    """The bench with its recipe written down; workers would be started here."""
    bench.write_recipe()
    return bench


# The recipe


def test_a_recipe_with_mistakes(typed: Bench) -> None:
    good = "daskinfer: 1\nname: tiny\nmodel: {checkpoint: tiny@prod}\ninput: {url: in.jsonl}\noutput: {url: out.zarr}\n"
    for text, said in (
        (good + "pipelin: {stages: 2}\n", ("recipe.yaml:6:1", "pipelin", "Did you mean 'pipeline'?", "^")),
        (good + "pipeline: {stages: many}\n", ("recipe.yaml:6:20", "pipeline.stages")),
        (good.replace("name: tiny\n", ""), ("name", "missing")),
        (good + "name: again\n", ("recipe.yaml:6:1", "name", "line 2")),
        (good.replace("in.jsonl", '"${NO_SUCH_VARIABLE}"'), ("recipe.yaml:4", "NO_SUCH_VARIABLE")),
    ):
        (typed.folder / "recipe.yaml").write_text(text)
        refuse(typed, refusal(2, *said))
    (typed.folder / "recipe.yaml").rename(typed.folder / "other.yaml")
    refuse(typed, refusal(2, "recipe.yaml: no such file", "other.yaml"))


def test_an_override_with_a_mistake(typed: Bench) -> None:
    refuse(
        typed,
        refusal(2, "--set pipeline.stagse=2", "Did you mean 'stages'?", pipeline__stagse=2),
        refusal(2, "input.url.x", input__url__x="y"),
    )


# The input


def test_an_input_that_is_none(typed: Bench) -> None:
    folder = typed.folder
    (folder / "empty.jsonl").touch()
    (folder / "blank.jsonl").write_text("\n  \n\n")
    (folder / "folder/deeper").mkdir(parents=True)
    (folder / "rows.xyz").write_text("{}\n")
    (folder / "rows.jsonl.gz").write_bytes(gzip.compress(b"{}\n")[:-4])
    (folder / "rows.zip").touch()
    (folder / "wide.jsonl").write_bytes("{}\n".encode("utf-16-le"))
    (folder / "words.jsonl").write_text("not json\nnor this\n")
    cases = (
        ("none-*.jsonl", f"nothing matches {folder}/none-*.jsonl (looked for a glob)"),
        ("empty.jsonl", "no rows in 1 file, 0 bytes"),
        ("blank.jsonl", "no rows in 1 file"),
        ("folder", "has no files of its own"),
        ("rows.xyz", "'.xyz'", "Set input.format"),
        ("rows.jsonl.gz", "rows.jsonl.gz cannot be decompressed"),
        ("rows.zip", "is compressed or packed", "Unpack it"),
        ("wide.jsonl", "holds NUL bytes", "input.encoding: utf-16-le"),
        ("**/*.jsonl", "can match what the job writes", "Choose another output.url"),
        ("words.jsonl", "words.jsonl, line 1", "not valid JSON", "Check input.format"),
        ("in.jsonl/x.jsonl", f"nothing matches {folder}/in.jsonl/x.jsonl"),
    )
    refuse(typed, *(refusal(2, *said, input__url=url) for url, *said in cases))


def test_a_column_that_is_not_there(typed: Bench) -> None:
    refuse(
        typed,
        refusal(2, "input.columns.text", "it has id, text", "Did you mean 'text'?", input__columns__text="txt"),
        refusal(2, "output.keep", "no column 'idd'", "Did you mean 'id'?", output__keep=["idd"]),
    )


# The plan


def test_a_plan_that_no_workers_fit(typed: Bench) -> None:
    refuse(
        typed,
        refusal(3, "{TPU: 1}", "declared: GPU: 1", placement__requires={"TPU": 1}),
        refusal(3, "3 stages need 3 workers", "there are 2", pipeline__stages=3),
        refusal(3, "only 4 layers", pipeline__stages=9),
        refusal(3, "[3, 2]", "between 1 and 3", pipeline__stages=[3, 2]),
        refusal(3, "[4]", "between 1 and 3", pipeline__stages=[4]),
    )


def test_a_plan_that_a_running_cluster_does_not_fit(warm: Bench) -> None:
    refuse(
        warm,
        refusal(3, "{TPU: 1}", "none of the 6 workers", "GPU: 1", placement__requires={"TPU": 1}),
        refusal(3, "3 stages need 3 workers", "there are 2", pipeline__stages=3),
    )


def test_no_scheduler_at_the_address(typed: Bench) -> None:
    refuse(
        typed,
        refusal(2, "cluster.address: here is not a usable address", cluster__address="here"),
    )
    ended = start(typed, cluster__address="tcp://127.0.0.1:9")
    assert ended.code == 1
    assert "no Dask scheduler answers at tcp://127.0.0.1:9" in ended.err
    assert "hint: " in ended.err
    assert "committed" not in ended.err
    assert ended.json["resume"].endswith("""--set 'cluster.address="tcp://127.0.0.1:9"' --json""")
    assert not (typed.folder / "out.zarr").exists()


# The checkpoint


def test_a_checkpoint_that_is_none(typed: Bench) -> None:
    (typed.folder / "folder").mkdir()
    (typed.folder / "folder/notes.txt").touch()
    cases = (
        ("tinny@prod", "no checkpoint is named 'tinny'", "Did you mean tiny?"),
        ("tiny@prd", "tiny has no alias 'prd'", "Did you mean prod?"),
        ("tiny@v9", "tiny has no version v9", "It has v1"),
        ("tiny@sha256:0123456789", "0123456789"),
        ("./folder", "folder: no config.json"),
        ("./nowhere", "nowhere: no such directory"),
    )
    refuse(
        typed,
        refusal(2, "empty/registry", "The registry is empty: daskinfer checkpoint publish", workspace="empty"),
        *(refusal(2, *said, model__checkpoint=reference) for reference, *said in cases),
    )


def test_what_the_model_cannot_do(typed: Bench) -> None:
    refuse(
        typed,
        refusal(2, "BertModel cannot classify", "ForSequenceClassification", model__task="classify"),
        refusal(2, "max_length is 2", "2 special tokens", "at least 3", model__options__max_length=2),
    )


# The output


def test_an_output_that_cannot_be(typed: Bench) -> None:
    file = typed.folder / "file"
    file.touch()
    (typed.folder / "keep.jsonl").write_text('{"text": "the cat", "embedding": 1}')
    refuse(
        typed,
        refusal(2, "'.tiff'", "End output.url with .zarr", output__url="out.tiff"),
        refusal(2, f"{file} is a file, not a folder", output__url="file/out.zarr"),
        refusal(2, f"{file} is a file, not a folder", output__url="file", output__format="zarr"),
        refusal(2, f"{file} is a file, not a folder", workspace="file", model__registry="work/registry"),
        refusal(2, "output.keep", "'embedding'", input__url="keep.jsonl", output__keep=["embedding"]),
    )


@pytest.mark.s3
def test_a_store_that_is_not_safe(typed: Bench, s3_url: str) -> None:
    with serve_s3("--ignore-if-match") as variables, environment(variables):
        refuse(
            typed,
            refusal(
                1,
                "s3://daskinfer-test/out is not safe to use: a writer replaced an object",
                output__url="s3://daskinfer-test/out",
                output__format="zarr",
            ),
        )


def test_an_output_of_strangers(typed: Bench) -> None:
    (typed.folder / "mine.zarr").mkdir()
    (typed.folder / "mine.zarr/thesis.txt").touch()
    refuse(
        typed,
        refusal(2, "files that daskinfer did not write: thesis.txt", output__url="mine.zarr"),
    )
