"""A small server of Google Cloud Storage's JSON API for tests: objects with generations, and conditions on them.

::

    python -m daskinfer.testing.servers.gcsserver PORT [--ignore-conditions] [--drop RATE] [--seed N]

It knows what gcsfs asks: buckets and objects, listings with prefixes, ranges, uploads in one request and resumable
ones. `ifGenerationMatch` is checked at the moment an object appears, as Google does. Any bucket exists.
`--ignore-conditions` accepts the condition and ignores it; `--drop` does what was asked and breaks the connection.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import random
import re
import socket
import threading
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from daskinfer.ids import make_nonce

_OBJECT = re.compile(r"(?:/download)?/storage/v1/b/([^/]+)/o/([^/]+)")
_BUCKET = re.compile(r"/storage/v1/b/([^/]+)")
_LISTING = re.compile(r"/storage/v1/b/([^/]+)/o")
_UPLOAD = re.compile(r"/upload/storage/v1/b/([^/]+)/o")
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")
_CHUNK = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


class Refusal(Exception):
    """A request that is answered with an error.

    Parameters
    ----------
    status
        Of HTTP.
    reason
        As Google calls it.
    """

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


@dataclass
class Upload:
    """A resumable upload that is under way."""

    bucket: str
    """Bucket."""
    name: str
    """Object."""
    condition: str | None
    """Generation that the object must have when the upload ends; 0: it must not exist."""
    data: bytearray = field(default_factory=bytearray)
    """What has come."""


class ObjectStore:
    """The objects, and what it takes to change them.

    Parameters
    ----------
    ignore_conditions
        Whether conditions are accepted and ignored.
    """

    def __init__(self, ignore_conditions: bool = False) -> None:
        self._ignore_conditions = ignore_conditions
        self._objects: dict[tuple[str, str], tuple[dict[str, Any], bytes]] = {}
        self._generation = 1_000
        self._lock = threading.Lock()
        self.uploads: dict[str, Upload] = {}

    def insert(self, bucket: str, name: str, data: bytes, condition: str | None) -> dict[str, Any]:
        """Store an object, if its generation is the expected one."""
        with self._lock:
            there = self._objects.get((bucket, name))
            generation = "0" if there is None else there[0]["generation"]
            if condition not in (None, generation) and not self._ignore_conditions:
                raise Refusal(412, "conditionNotMet")
            self._generation += 1
            now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
            record = {
                "kind": "storage#object",
                "bucket": bucket,
                "name": name,
                "size": str(len(data)),
                "generation": str(self._generation),
                "metageneration": "1",
                "md5Hash": base64.b64encode(hashlib.md5(data).digest()).decode(),
                "timeCreated": now,
                "updated": now,
            }
            self._objects[bucket, name] = record, data
            return record

    def get(self, bucket: str, name: str) -> tuple[dict[str, Any], bytes]:
        """Return the record and the bytes of an object."""
        with self._lock:
            if (bucket, name) not in self._objects:
                raise Refusal(404, "No such object")
            return self._objects[bucket, name]

    def delete(self, bucket: str, name: str, condition: str | None) -> None:
        """Delete an object, if its generation is the expected one."""
        with self._lock:
            there = self._objects.get((bucket, name))
            if there is not None and condition not in (None, there[0]["generation"]) and not self._ignore_conditions:
                raise Refusal(412, "conditionNotMet")
            if self._objects.pop((bucket, name), None) is None:
                raise Refusal(404, "No such object")

    def list(self, bucket: str, prefix: str, delimiter: str | None) -> dict[str, Any]:
        """Return the objects and folders whose names begin with `prefix`."""
        with self._lock:
            found = sorted(name for where, name in self._objects if where == bucket and name.startswith(prefix))
            items, folders = [], set()
            for name in found:
                head, cut, _ = name.removeprefix(prefix).partition(delimiter) if delimiter else (name, "", "")
                if cut:
                    folders.add(prefix + head + cut)
                else:
                    items.append(self._objects[bucket, name][0])
        return {"kind": "storage#objects", "items": items, "prefixes": sorted(folders)}


class Handler(BaseHTTPRequestHandler):
    """Answers one connection."""

    protocol_version = "HTTP/1.1"
    store: ObjectStore
    drop: float
    schedule: random.Random

    def do_GET(self) -> None:
        """Answer for a bucket, a listing, an object's record or its bytes."""
        self._answer(self._get)

    def do_POST(self) -> None:
        """Take an upload, or a part of one."""
        self._answer(self._post)

    def do_DELETE(self) -> None:
        """Delete an object, or give an upload up."""
        self._answer(self._delete)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Say nothing."""

    def _answer(self, act: Any) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        address = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(address.query).items()}
        try:
            status, headers, data = act(address.path, query, body)
        except Refusal as refusal:
            error = {"code": refusal.status, "message": str(refusal)}
            status, headers, data = refusal.status, {}, json.dumps({"error": error}).encode()
        if self.command != "GET" and self.schedule.random() < self.drop:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def _get(self, path: str, query: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        if match := _LISTING.fullmatch(path):
            return _as_json(self.store.list(match[1], query.get("prefix", ""), query.get("delimiter")))
        if match := _OBJECT.fullmatch(path):
            record, data = self.store.get(match[1], unquote(match[2]))
            return self._read(data) if query.get("alt") == "media" else _as_json(record)
        if match := _BUCKET.fullmatch(path):
            return _as_json({"kind": "storage#bucket", "name": match[1]})
        return _as_json({})

    def _read(self, data: bytes) -> tuple[int, dict[str, str], bytes]:
        match = _RANGE.fullmatch(self.headers.get("Range", ""))
        if match is None:
            return 200, {}, data
        begin, end = int(match[1]), int(match[2] or len(data) - 1)
        if begin >= len(data):
            raise Refusal(416, "Requested range not satisfiable")
        part = data[begin : end + 1]
        return 206, {"Content-Range": f"bytes {begin}-{begin + len(part) - 1}/{len(data)}"}, part

    def _post(self, path: str, query: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        match = _UPLOAD.fullmatch(path)
        if match is None:
            raise Refusal(404, "Not Found")
        condition = query.get("ifGenerationMatch")
        if query.get("uploadType") == "media":
            return _as_json(self.store.insert(match[1], query["name"], body, condition))
        if query.get("uploadType") == "multipart":
            boundary = self.headers["Content-Type"].partition('boundary="')[2].rstrip('"').encode()
            _, about, content = body.removesuffix(b"\n--" + boundary + b"--").split(b"--" + boundary + b"\n", 2)
            name = json.loads(about.partition(b"\n\n")[2])["name"]
            return _as_json(self.store.insert(match[1], name, content.partition(b"\n\n")[2], condition))
        if "upload_id" not in query:
            identity = make_nonce()
            self.store.uploads[identity] = Upload(match[1], json.loads(body)["name"], condition)
            place = f"http://{self.headers['Host']}{path}?uploadType=resumable&upload_id={identity}"
            return 200, {"Location": place}, b""
        return self._take_chunk(query["upload_id"], body)

    def _take_chunk(self, identity: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        upload = self.store.uploads.get(identity)
        match = _CHUNK.fullmatch(self.headers.get("Content-Range", ""))
        if upload is None or match is None:
            raise Refusal(404, "No such upload")
        begin, total = int(match[1]), int(match[3])
        upload.data[begin:] = body  # a chunk that is sent again replaces itself
        if len(upload.data) < total:
            return 308, {"Range": f"bytes=0-{len(upload.data) - 1}"}, b""
        return _as_json(self.store.insert(upload.bucket, upload.name, bytes(upload.data), upload.condition))

    def _delete(self, path: str, query: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        if _UPLOAD.fullmatch(path):
            self.store.uploads.pop(query.get("upload_id", ""), None)
            return 499, {}, b""
        match = _OBJECT.fullmatch(path)
        if match is None:
            raise Refusal(404, "Not Found")
        self.store.delete(match[1], unquote(match[2]), query.get("ifGenerationMatch"))
        return 204, {}, b""


def _as_json(value: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
    return 200, {"Content-Type": "application/json"}, json.dumps(value).encode()


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("--ignore-conditions", action="store_true")
    parser.add_argument("--drop", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    Handler.store = ObjectStore(options.ignore_conditions)
    Handler.drop, Handler.schedule = options.drop, random.Random(options.seed)
    ThreadingHTTPServer(("127.0.0.1", options.port), Handler).serve_forever()


if __name__ == "__main__":
    main()
