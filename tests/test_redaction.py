from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, unquote

import pytest

from daskinfer import redaction
from daskinfer.errors import DaskinferError, RecipeError, UsageError
from daskinfer.logs import JsonFormatter, TextFormatter
from daskinfer.redaction import conceal, known_secrets, learn, protect, reveal
from daskinfer.spec.recipe.loader import load_recipe
from daskinfer.spec.recipe.schema import Recipe
from daskinfer.storage.objects.filesystem import reveal_url
from daskinfer.storage.objects.urls import absolute_url

RECIPE = """
daskinfer: 1
name: secret
workspace: "s3://key:${TOKEN}@bucket/work"
model: {checkpoint: "s3://me:literal-password@models/tiny", registry: "https://${TOKEN}@host/registry"}
input: {url: ["http://ann:${TOKEN}@host/in.jsonl?sig=${SIG}&page=2", "http://host/b.jsonl?X-Amz-Signature=abcdef"]}
output: {url: "http://host/out.zarr?${SIG}"}
cluster: {address: "tcp://u:${TOKEN}@host:8786"}
"""
SECRETS = {"TOKEN": "hunter2secret", "SIG": "query/secret+"}


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(redaction, "_known", {})
    yield


def load(tmp_path: Path, environment: dict[str, str] | None = None) -> Recipe:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return load_recipe(path, environment=environment or SECRETS)


def test_a_recipe_holds_no_secret_and_every_url_can_be_opened(tmp_path: Path) -> None:
    recipe = load(tmp_path)
    text = recipe.model_dump_json()
    for secret in (*SECRETS.values(), "literal-password", "abcdef"):
        assert secret not in text
    first, second = recipe.input.urls
    assert first.startswith("http://ann:${TOKEN}@host/in.jsonl?sig=${SIG}&page=${q-page-")
    assert reveal(first) == "http://ann:hunter2secret@host/in.jsonl?sig=query/secret+&page=2"
    assert reveal(second) == "http://host/b.jsonl?X-Amz-Signature=abcdef"
    assert reveal(recipe.model.checkpoint) == "s3://me:literal-password@models/tiny"
    assert reveal(recipe.model.registry or "") == "https://hunter2secret@host/registry"
    assert reveal(recipe.output.url) == "http://host/out.zarr?query/secret+"
    assert reveal(recipe.cluster.address or "") == "tcp://u:hunter2secret@host:8786"


def test_a_token_that_rotates_is_the_same_job(tmp_path: Path) -> None:
    first = load(tmp_path)
    again = load(tmp_path, {"TOKEN": "another-one", "SIG": "other"})
    assert (again.digest, again.input, again.workspace) == (first.digest, first.input, first.workspace)
    assert reveal(again.workspace) == "s3://key:another-one@bucket/work"
    literal = protect("http://a:one-password@h/x?token=one"), protect("http://a:two-password@h/x?token=two")
    assert literal[0] == literal[1]
    assert protect("http://h/x?page=1") != protect("http://h/x?page=2")


@pytest.mark.parametrize(
    "url",
    [
        "data/*.jsonl",
        "s3://bucket/a?.jsonl",
        "s3://bucket/a#1=2.jsonl",
        "s3://bucket/a@b",
        "memory://x",
        "/a/${HOME}/b",
        "tcp://1.2.3.4:8786",
    ],
)
def test_what_holds_no_secret_stays(url: str) -> None:
    assert protect(url) == conceal(url) == reveal(url) == url
    assert known_secrets() == ()


@pytest.mark.parametrize(
    "url",
    [
        "http://user:p@ss/word@host/x".replace("/word", "word"),
        "simplecache::https://user:password1@host/x?token=tokentoken",
        "https://host/x?X-Goog-Credential=tokentoken&X-Goog-Signature=0123456789",
        "s3://bucket/x?X-Amz-Signature=0123456789",
        "http://host/x?tokentoken#part",
        "https://host/x#access_token=tokentoken&part=2",
    ],
)
def test_every_url_comes_back_and_shows_nothing(url: str) -> None:
    hidden = absolute_url(url)
    assert hidden != url
    assert absolute_url(hidden) == hidden
    assert reveal_url(hidden) == url
    for _, value in known_secrets():
        assert value not in hidden


def test_errors_and_logs_name_secrets_only() -> None:
    learn([("TOKEN", "hunter2secret")])
    error = DaskinferError(
        "cannot read http://u:unknown-password@h/x?sig=unknown: hunter2secret", hint="not hunter2secret"
    )
    record = logging.LogRecord(
        "x", logging.WARNING, "", 0, "GET http://u:unknown-password@h/ %s", ("hunter2secret",), None
    )
    lines = TextFormatter().format(record), JsonFormatter().format(record)
    for text in (str(error), repr(error), *lines):
        assert "hunter2secret" not in text
        assert "unknown-password" not in text
    assert "${TOKEN}" in str(error)
    assert "${TOKEN}" in json.loads(lines[1])["message"]


@pytest.mark.parametrize("secret", ["hunter+two/words", "caf\u00e9 secret", "planted%2Fvalue", "with&and=signs"])
def test_a_secret_is_hidden_however_it_is_spelled(secret: str) -> None:
    learn([("TOKEN", secret)])
    for spelled in (secret, quote(secret), quote(secret, safe=""), unquote(secret)):
        assert conceal(f"403 for {spelled}, twice {spelled}") == "403 for ${TOKEN}, twice ${TOKEN}"


@pytest.mark.parametrize("key", ["name", "input.types.x", "model.task"])
def test_a_variable_that_looks_like_a_secret_stands_in_urls_alone(tmp_path: Path, key: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    with pytest.raises(RecipeError, match="HF_TOKEN looks like a secret") as refused:
        load_recipe(path, [f"{key}=${{HF_TOKEN}}"], environment=SECRETS | {"HF_TOKEN": "hf_planted"})
    assert "hf_planted" not in str(refused.value)


def test_a_secret_that_nobody_knows_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_SUCH_TOKEN", raising=False)
    with pytest.raises(UsageError, match="its secret NO_SUCH_TOKEN is not known here"):
        reveal_url("http://u:${NO_SUCH_TOKEN}@h/x")
    monkeypatch.setenv("NO_SUCH_TOKEN", "now")
    assert reveal_url("http://u:${NO_SUCH_TOKEN}@h/x") == "http://u:now@h/x"
