"""A folder of checkpoint files on any store: names, sizes, ranges, and what tells that a file has changed."""

from __future__ import annotations

from pathlib import Path

from daskinfer.storage.objects.filesystem import list_names, open_filesystem, read_bytes
from daskinfer.storage.objects.store_errors import explain_errors
from daskinfer.storage.objects.urls import absolute_url, is_local, join_url

_STAMPS = ("ETag", "etag", "md5Hash", "content_md5", "LastModified", "updated", "last_modified", "created")
_DEPTH = 2  # modules of sentence-transformers lie one folder down


class Folder:
    """A folder that checkpoint files are read from.

    Parameters
    ----------
    url
        A path, relative or not, or any fsspec URL.

    Examples
    --------
    >>> _ = Path("config.json").write_text("{}")
    >>> folder = Folder(".")
    >>> folder.names(), folder.size("config.json"), folder.size("absent"), folder.read("config.json")
    (['config.json'], 2, None, b'{}')
    """

    def __init__(self, url: str) -> None:
        self.url = absolute_url(url)

    def names(self) -> list[str]:
        """Return the names of the direct children, sorted; none where there is no such folder."""
        return list_names(self.url)

    def locate(self, name: str) -> str:
        """Return the URL of a file; of one that is named by its URL, that."""
        return name if "://" in name or name.startswith("/") else join_url(self.url, name)

    def size(self, name: str) -> int | None:
        """Return a file's length in bytes; None where there is no such file."""
        url = self.locate(name)
        with explain_errors(url, "look for"):
            filesystem, path = open_filesystem(url)
            try:
                found = filesystem.info(path)
            except FileNotFoundError:
                return None
        return int(found["size"]) if found["type"] == "file" else None

    def read(self, name: str, begin: int | None = None, end: int | None = None) -> bytes:
        """Return a file's bytes, or a range of them."""
        return read_bytes(self.locate(name), begin, end)

    def stamps(self) -> list[list[str | int]] | None:
        """Return name, length and a mark of the content of every file; None where the store gives no such mark."""
        if is_local(self.url):
            root = Path(self.url)
            files = sorted(path for pattern in ("*", "*/*") for path in root.glob(pattern) if path.is_file())
            return [[str(path.relative_to(root)), path.stat().st_size, path.stat().st_mtime_ns] for path in files]
        with explain_errors(self.url, "list"):
            filesystem, root_path = open_filesystem(self.url)
            entries = filesystem.find(root_path, maxdepth=_DEPTH, detail=True)
        found: list[list[str | int]] = []
        for path, entry in sorted(entries.items()):
            stamp = next((str(entry[key]) for key in _STAMPS if entry.get(key)), None)
            if stamp is None:
                return None
            found.append([path.removeprefix(root_path), int(entry["size"]), stamp])
        return found
