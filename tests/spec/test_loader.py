from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml

from daskinfer.errors import RecipeError
from daskinfer.spec.loader import load_recipe, recipe_schema, validate_recipe

GOOD = """\
daskinfer: 1
name: embed-news
model:
  checkpoint: minilm@prod
input:
  url: data/*.jsonl
output:
  url: results/news.zarr
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def explain(folder: Path, text: str, *overrides: str, environment: dict[str, str] | None = None) -> list[str]:
    """Return every problem as text, the folder's name taken out."""
    problems = validate_recipe(write(folder, text), overrides, environment or {})
    return [str(problem).replace(f"{folder}{os.sep}", "") for problem in problems]


def test_good_recipe_loads_with_its_defaults(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, GOOD))
    assert recipe.name == "embed-news"
    assert recipe.input.url == "data/*.jsonl"
    assert recipe.output.url == "results/news.zarr"
    assert recipe.registry_url == "./work/registry"
    assert recipe.pipeline.stages == "auto"


def test_every_kind_of_stages(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    for text, wanted in {"auto": "auto", "3": 3, "[2, 4]": (2, 4)}.items():
        assert load_recipe(path, [f"pipeline.stages={text}"]).pipeline.stages == wanted


# (what is put into the good recipe, what the whole message must be)
BAD = {
    "unknown key": (
        ("output:\n", "pipeline:\n  stagse: 2\noutput:\n"),
        "recipe.yaml:8:3: pipeline.stagse: unknown key. Did you mean 'stages'?\n    8 |   stagse: 2\n      |   ^^^^^^",
    ),
    "right key in the wrong section": (
        ("output:\n", "dtype: float16\noutput:\n"),
        "recipe.yaml:7:1: dtype: unknown key. Did you mean 'model.dtype'?\n    7 | dtype: float16\n      | ^^^^^",
    ),
    "misspelt required key is one mistake": (
        ("checkpoint", "checkpont"),
        (
            "recipe.yaml:4:3: model.checkpont: unknown key. Did you mean 'checkpoint'?\n"
            "    4 |   checkpont: minilm@prod\n"
            "      |   ^^^^^^^^^"
        ),
    ),
    "missing key": (
        ("  checkpoint: minilm@prod", "  task: embed"),
        "recipe.yaml:3:1: model.checkpoint: missing, and it has no default\n    3 | model:\n      | ^^^^^",
    ),
    "missing key at the top": (
        ("name: embed-news\n", ""),
        "recipe.yaml:1:1: name: missing, and it has no default\n    1 | daskinfer: 1\n      | ^",
    ),
    "choice": (
        ("  checkpoint", "  task: embd\n  checkpoint"),
        (
            "recipe.yaml:4:9: model.task: must be 'embed', 'classify', 'score', or 'forward', not 'embd'. Did you mean 'embed'?\n"
            "    4 |   task: embd\n"
            "      |         ^^^^"
        ),
    ),
    "a union is one sentence": (
        ("output:\n", "pipeline: {stages: [0, x]}\noutput:\n"),
        (
            "recipe.yaml:7:20: pipeline.stages: must be 'auto', a whole number of at least 1 and at most 10,000, "
            "or a list of whole numbers of at least 1 or text, not [0, 'x']\n"
            "    7 | pipeline: {stages: [0, x]}\n"
            "      |                    ^^^^^^"
        ),
    ),
    "bounds": (
        ("output:\n", "  partition_rows: 0\noutput:\n"),
        (
            "recipe.yaml:7:19: input.partition_rows: must be a whole number of at least 1 and at most 1,000,000, not 0\n"
            "    7 |   partition_rows: 0\n"
            "      |                   ^"
        ),
    ),
    "a number where text is meant": (
        ("embed-news", "2026"),
        "recipe.yaml:2:7: name: must be text, not 2026; put it in quotes\n    2 | name: 2026\n      |       ^^^^",
    ),
    "a name that cannot be one": (
        ("embed-news", "embed news"),
        (
            "recipe.yaml:2:7: name: 'embed news' is not allowed: Short name of the job; "
            "letters, digits, dot, dash and underscore\n"
            "    2 | name: embed news\n"
            "      |       ^^^^^^^^^^"
        ),
    ),
    "an empty section": (
        ("output:\n", "errors:\noutput:\n"),
        (
            "recipe.yaml:7:8: errors: must be a mapping, not empty; leave the key out for its default\n"
            "    7 | errors:\n"
            "      |        ^"
        ),
    ),
    "a section that is a value": (
        ("output:\n", "placement: GPU\noutput:\n"),
        "recipe.yaml:7:12: placement: must be a mapping, not 'GPU'\n    7 | placement: GPU\n      |            ^^^",
    ),
    "a value inside a free mapping": (
        ("output:\n", "placement: {requires: {GPU: no}}\noutput:\n"),
        (
            "recipe.yaml:7:29: placement.requires.GPU: must be a number above 0, not 'no'\n"
            "    7 | placement: {requires: {GPU: no}}\n"
            "      |                             ^^"
        ),
    ),
    "what a validator says": (
        ("output:\n", "cluster:\n  local: {workers: 2}\n  address: tcp://host\noutput:\n"),
        "recipe.yaml:7:1: cluster: give either local or address, not both\n    7 | cluster:\n      | ^^^^^^^",
    ),
    "another format": (
        ("daskinfer: 1", "daskinfer: 2"),
        "recipe.yaml:1:12: daskinfer: must be 1, not 2\n    1 | daskinfer: 2\n      |            ^",
    ),
    "duplicate key": (
        ("output:\n", "  url: other\noutput:\n"),
        "recipe.yaml:7:3: input.url: duplicate key; the first one is on line 6\n    7 |   url: other\n      |   ^^^",
    ),
    "missing variable": (
        ("results/", "${OUT}/"),
        (
            "recipe.yaml:8:8: output.url: the environment variable OUT is not set; "
            "${OUT:-default} would give it a default\n"
            "    8 |   url: ${OUT}/news.zarr\n"
            "      |        ^^^^^^"
        ),
    ),
    "malformed variable": (
        ("results/", "out/${1}/"),
        (
            "recipe.yaml:8:12: output.url: not a variable: write ${NAME} or ${NAME:-default}, or $${ for a literal ${\n"
            "    8 |   url: out/${1}/news.zarr\n"
            "      |            ^^"
        ),
    ),
    "syntax": (
        ("name: embed-news", "name: [embed"),
        (
            "recipe.yaml:3:6: not YAML: expected ',' or ']', but got ':' "
            "while parsing a flow sequence that begins on line 2\n"
            "    3 | model:\n"
            "      |      ^"
        ),
    ),
    "tab": (
        ("  checkpoint", "\tcheckpoint"),
        "recipe.yaml:4:1: not YAML: a tab cannot indent; use spaces\n    4 | \tcheckpoint: minilm@prod\n      | ^",
    ),
    "control character": (
        ("embed-news", "embed\x07"),
        (
            "recipe.yaml:2:12: not YAML: the character U+0007 is not allowed\n"
            "    2 | name: embed\x07\n"
            "      |            ^"
        ),
    ),
    "python object": (
        ("embed-news", "!!python/name:os.system x"),
        (
            "recipe.yaml:2:7: name: the tag !!python/name:os.system is not allowed\n"
            "    2 | name: !!python/name:os.system x\n"
            "      |       ^^^^^^^^^^^^^^^^^^^^^^^^^"
        ),
    ),
    "a loop": (
        ("output:\n", "placement: &p {requires: *p}\noutput:\n"),
        (
            "recipe.yaml:7:12: placement.requires: refers to itself\n"
            "    7 | placement: &p {requires: *p}\n"
            "      |            ^^^^^^^^^^^^^^^^^"
        ),
    ),
    "key that is not text": (
        ("output:\n", "placement: {requires: {true: 1}}\noutput:\n"),
        (
            "recipe.yaml:7:24: placement.requires: keys must be text; put this one in quotes\n"
            "    7 | placement: {requires: {true: 1}}\n"
            "      |                        ^^^^"
        ),
    ),
    "two documents": (
        ("output:\n", "---\noutput:\n"),
        (
            "recipe.yaml:7:1: not YAML: but found another document expected a single document in the stream "
            "that begins on line 1\n"
            "    7 | ---\n"
            "      | ^"
        ),
    ),
    "wide characters keep the caret in place": (
        ("output:\n", "placement: {日本: 1}\noutput:\n"),
        "recipe.yaml:7:13: placement.日本: unknown key\n    7 | placement: {日本: 1}\n      |             ^^",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_mistake_is_shown_where_it_was_typed(tmp_path: Path, name: str) -> None:
    (old, new), wanted = BAD[name]
    assert old in GOOD
    assert explain(tmp_path, GOOD.replace(old, new, 1)) == [wanted]


def test_a_long_line_is_cut_around_the_mistake(tmp_path: Path) -> None:
    keep = ", ".join(f"column_{i}" for i in range(60))
    (text,) = explain(tmp_path, GOOD.replace("output:", f"output:\n  keep: [{keep}, [x]]"))
    excerpt, caret = text.splitlines()[1:]
    assert len(excerpt) < 140
    assert excerpt[caret.index("^") :].startswith("[x]]")


def test_all_problems_are_told_at_once_in_order(tmp_path: Path) -> None:
    text = GOOD.replace("minilm@prod", "[1]").replace("name: embed-news\n", "name: embed-news\nnam: x\n")
    path = write(tmp_path, text.replace("data/", "${NOWHERE}/"))
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, ["output.format=xml"], {})
    lines = caught.value.message.splitlines()
    assert lines[0] == f"4 problems in {path}"
    heads = [line for line in lines if line.startswith((f"{path}:", "--set"))]
    assert [head.removeprefix(f"{path}:").split(":")[0] for head in heads] == ["3", "5", "7", "--set output.format=xml"]
    assert caught.value.exit_code == 2


def test_overrides_win_and_create_sections(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD + "cluster:\n  local: {workers: 2}\n")
    overrides = [
        "pipeline.activations.transport=direct",
        "placement.requires.GPU=2",
        "input.partition_rows=1e3",
        "output.keep=[id, title]",
        "output.keep.1=date",
        "cluster.local=null",
        "cluster.address=tcp://h:8786",
        "workspace=${HOME}/w",
        "name=first",
        "name=second=2",
    ]
    with pytest.raises(RecipeError, match="name: 'second=2' is not allowed"):
        load_recipe(path, overrides, {"HOME": "/home/me"})
    recipe = load_recipe(path, [*overrides, "name=third"], {"HOME": "/home/me"})
    assert recipe.pipeline.activations.transport == "direct"
    assert recipe.placement.requires == {"GPU": 2}
    assert recipe.input.partition_rows == 1000
    assert recipe.output.keep == ("id", "date")
    assert recipe.cluster.address == "tcp://h:8786"
    assert recipe.workspace == "/home/me/w"
    assert recipe.name == "third"


OVERRIDES = {
    "pipeline.stagse=2": (
        "pipeline.stagse: unknown key. Did you mean 'stages'?\n      | pipeline.stagse=2\n      |          ^^^^^^"
    ),
    "model.task=embd": (
        "model.task: must be 'embed', 'classify', 'score', or 'forward', not 'embd'. Did you mean 'embed'?\n"
        "      | model.task=embd\n"
        "      |            ^^^^"
    ),
    "workspac.x=1": ("workspac: unknown key. Did you mean 'workspace'?\n      | workspac.x=1\n      | ^^^^^^^^"),
    "model.task.x=1": (
        "model.task.x: model.task is 'embed', which has no 'x'\n      | model.task.x=1\n      |            ^"
    ),
    "output.keep.5=x": (
        "output.keep.5: output.keep is a list of 1, which has no '5'\n      | output.keep.5=x\n      |             ^"
    ),
    "name": "an override reads key.path=value\n      | name\n      | ^^^^",
    "a..b=1": "an override reads key.path=value\n      | a..b=1\n      | ^^^^^^",
    "pipeline.stages=[1": (
        "pipeline.stages: not YAML: expected ',' or ']', but got '<stream end>' while parsing a flow sequence\n"
        "      | pipeline.stages=[1\n"
        "      |                   ^"
    ),
}


@pytest.mark.parametrize("override", OVERRIDES)
def test_a_bad_override_is_named(tmp_path: Path, override: str) -> None:
    text = GOOD.replace("model:\n", "model:\n  task: embed\n") + "  keep: [id]\n"
    assert explain(tmp_path, text, override) == [f"--set {override}: {OVERRIDES[override]}"]


def test_an_override_of_a_shared_anchor_changes_one_place(tmp_path: Path) -> None:
    text = GOOD + "placement: {requires: &tags {GPU: 1}}\ncluster: {local: {resources: *tags}}\n"
    recipe = load_recipe(write(tmp_path, text), ["placement.requires.GPU=4"])
    assert recipe.placement.requires == {"GPU": 4}
    assert recipe.cluster.workers.resources == {"GPU": 1}


def test_yaml_means_what_version_1_2_says(tmp_path: Path) -> None:
    text = GOOD.replace("embed-news", "on").replace("minilm@prod", "1:30")
    text += "  keep: [yes, off, 2026-01-01, ~x]\npipeline: {window: 012, microbatch_tokens: 1e3}\n"
    text += "cluster: {local: {workers: 0x2, threads: 0o2}}\n"
    recipe = load_recipe(write(tmp_path, text))
    assert recipe.name == "on"
    assert recipe.model.checkpoint == "1:30"
    assert recipe.output.keep == ("yes", "off", "2026-01-01", "~x")
    assert recipe.pipeline.window == 12
    assert recipe.pipeline.microbatch_tokens == 1000
    assert recipe.cluster.workers.workers == 2
    assert recipe.cluster.workers.threads == 2


def test_variables_expand_inside_text_and_nowhere_else(tmp_path: Path) -> None:
    text = GOOD.replace("data/", "${A}/${B:-b}/${C:-}/$${D}/").replace("output:", "  partition_rows: ${N}\noutput:")
    recipe = load_recipe(write(tmp_path, text), environment={"A": "x: [y]", "B": "", "N": "64"})
    assert recipe.input.url == "x: [y]/b//${D}/*.jsonl"
    assert recipe.input.partition_rows == 64


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (b"", "recipe.yaml:1:1: the recipe is empty"),
        (b"# nothing\n", "recipe.yaml:1:1: the recipe is empty"),
        (b"- a\n", "recipe.yaml:1:1: the recipe must be a mapping of keys"),
        (b"daskinfer: 1\nname: \xff\n", "recipe.yaml:2: not UTF-8: byte 0xff at offset 19"),
        (b"x" * 1_000_001, "recipe.yaml: 1.0 MB is no recipe"),
        (b"[" * 20_000, "recipe.yaml:1:1: not YAML: nested too deeply"),
    ],
)
def test_a_file_that_is_no_recipe(tmp_path: Path, content: bytes, wanted: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert caught.value.message.replace(f"{tmp_path}{os.sep}", "").startswith(wanted)


def test_a_path_that_is_no_file(tmp_path: Path) -> None:
    write(tmp_path, GOOD)
    with pytest.raises(RecipeError, match=r"nosuch.yaml: no such file\nthere is .*recipe.yaml"):
        load_recipe(tmp_path / "nosuch.yaml")
    with pytest.raises(RecipeError, match="is a directory, not a recipe"):
        load_recipe(tmp_path)
    with pytest.raises(RecipeError, match="there is no directory"):
        load_recipe(tmp_path / "nowhere" / "recipe.yaml")
    with pytest.raises(RecipeError, match="cannot be read: Not a directory"):
        load_recipe(tmp_path / "recipe.yaml" / "x")


def test_a_byte_order_mark_is_no_mistake(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(GOOD, encoding="utf-8-sig")
    assert load_recipe(path).name == "embed-news"


def test_the_schema_is_valid_and_tells_good_from_bad(tmp_path: Path) -> None:
    schema = recipe_schema()
    path = tmp_path / "recipe.schema.json"
    path.write_text(json.dumps(schema))
    command = [sys.executable, "-m", "check_jsonschema"]
    for arguments in (("--check-metaschema", str(path)), ("--schemafile", str(path), str(write(tmp_path, GOOD)))):
        subprocess.run([*command, *arguments], capture_output=True, check=True)
    validator = jsonschema.Draft202012Validator(schema)
    good = yaml.safe_load(GOOD)
    assert list(validator.iter_errors(good)) == []
    for bad in ({**good, "nam": 1}, {**good, "model": {}}, {**good, "pipeline": {"stages": "three"}}):
        assert list(validator.iter_errors(bad))


def test_every_key_of_the_schema_is_described() -> None:
    schema = recipe_schema()
    for section in [schema, *schema["$defs"].values()]:
        assert section["additionalProperties"] is False
        for name, field in section["properties"].items():
            target = schema["$defs"].get(field.get("$ref", "").rpartition("/")[2], {})
            assert field.get("description") or target.get("description"), f"{section['title']}.{name}"
