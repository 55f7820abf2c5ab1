"""Secrets are planted wherever a job may hold one; then all that is written, by every command, is searched for them."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import quote

from tests.e2e.command import call
from tests.e2e.conftest import Bench

SECRETS = {
    "LOGIN_TOKEN": "planted-hunter+secret",
    "SIG": "planted-signature%2Fvalue",
    "CLUSTER_TOKEN": "planted-cluster-word",
    "AWS_SECRET_ACCESS_KEY": "planted-aws-secret",
    "HF_TOKEN": "hf_planted-hub-token",
}


class Ranges(SimpleHTTPRequestHandler):
    """A folder, by whole files and by ranges of bytes; what the folder lacks is refused with the address in the answer."""

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404, f"nothing at {self.path}")
            return
        data = path.read_bytes()
        begin, end = 0, len(data) - 1
        if wanted := self.headers.get("Range"):
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            begin, end = int(first), min(int(last or end), end)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {begin}-{end}/{len(data)}")
        else:
            self.send_response(200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(end + 1 - begin))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data[begin : end + 1])

    do_HEAD = do_GET

    def log_message(self, *words: Any) -> None:
        """Say nothing."""


@contextmanager
def serve(folder: Path) -> Iterator[int]:
    def handle(*words: Any) -> Ranges:
        return Ranges(*words, directory=str(folder))

    with ThreadingHTTPServer(("127.0.0.1", 0), handle) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server.server_port
        finally:
            server.shutdown()


def spellings(secret: str) -> set[bytes]:
    return {text.encode() for text in (secret, quote(secret), quote(secret, safe=""), json.dumps(secret)[1:-1])}


def find_secrets(data: bytes) -> set[str]:
    """Return the names of the secrets in these bytes, or in what they are the compressed form of."""
    if data[:2] == b"\x1f\x8b":
        with suppress(EOFError, zlib.error, gzip.BadGzipFile):
            data += gzip.decompress(data)
    return {name for name, secret in SECRETS.items() if any(spelled in data for spelled in spellings(secret))}


def search(*folders: Path) -> dict[str, set[str]]:
    """Return the files that hold secrets."""
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 20
    found = {str(path): find_secrets(path.read_bytes()) | find_secrets(str(path).encode()) for path in files}
    return {path: names for path, names in found.items() if names}


def write_recipe(bench: Bench, port: int, **changes: Any) -> None:
    recipe = json.loads(bench.write_recipe(**changes).read_text())
    recipe["input"]["url"] = f"http://ann:${{LOGIN_TOKEN}}@127.0.0.1:{port}/in.jsonl?sig=${{SIG}}&page=1"
    recipe["input"]["format"] = "jsonl"
    recipe["errors"] = {"max_rows": 5}
    (bench.folder / "recipe.yaml").write_text(json.dumps(recipe))


def test_no_secret_is_written(bench: Bench, scheduler: str) -> None:
    data, home = bench.folder / "served", bench.folder / "home"
    data.mkdir()
    home.mkdir()
    rows = (bench.folder / "in.jsonl").read_text().splitlines()
    # Bad rows name their file in the quarantine.
    (data / "in.jsonl").write_text("\n".join([*rows[:100], "{", '{"text": null}', *rows[100:]]))
    env = {**SECRETS, "HOME": str(home), "DASKINFER_CACHE": str(bench.folder / "cache")}
    said: list[str] = []

    def type_in(*words: str, code: int) -> None:
        ended = call(*words, cwd=bench.folder, env=env)
        assert ended.code == code, ended.err
        said.extend((ended.out, ended.err))

    log = ("--log-file", "log.jsonl")
    with serve(data) as port:
        write_recipe(bench, port, cluster__address=scheduler, placement__requires={"TWO": 1})
        type_in("validate", "recipe.yaml", code=0)
        type_in("run", "recipe.yaml", *log, code=0)
        type_in("run", "recipe.yaml", "--json", *log, code=0)
        job = json.loads(said[-2])["job"]
        for words in (["jobs"], ["status", job], ["report", job], ["report", job, "--json"], ["verify", job]):
            type_in(*words, code=0)
        # Mistakes and refusals show addresses, too.
        change = ["run", "recipe.yaml", "--set", "output.url=other.zarr", "--set"]
        lost = f"input.url=http://ann:${{LOGIN_TOKEN}}@127.0.0.1:{port}/lost.jsonl?sig=${{SIG}}"
        type_in(*change, lost, code=2)
        type_in(*change, "cluster.address=tcp://u:${CLUSTER_TOKEN}@127.0.0.1:1", code=2)
        type_in(*change, "name=${HF_TOKEN}", code=2)
        assert "HF_TOKEN looks like a secret" in said[-1]
        type_in(*change, "pipeline.stages=${AWS_SECRET_ACCESS_KEY}", code=2)
    assert search(bench.folder) == {}
    assert find_secrets("".join(said).encode()) == set()
    assert "${LOGIN_TOKEN}" in (bench.folder / f"work/jobs/{job}/job.json").read_text()


def test_the_search_finds_what_is_planted(tmp_path: Path) -> None:
    for number in range(21):
        (tmp_path / f"{number}.txt").touch()
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(b'"planted-aws-secret"'))
    (tmp_path / "b.txt").write_text(quote(SECRETS["LOGIN_TOKEN"], safe=""))
    assert search(tmp_path) == {
        str(tmp_path / "a.json.gz"): {"AWS_SECRET_ACCESS_KEY"},
        str(tmp_path / "b.txt"): {"LOGIN_TOKEN"},
    }
