"""Replacing and deleting an object of an object store only while it is the one that was seen.

S3 compares the object's ETag, Google its generation. The store compares and acts in one step, so a process that slept
between its look and its request changes nothing that came in the meantime. Two objects with equal bytes may have equal
ETags: for S3 they are one and the same.
"""

from __future__ import annotations

import errno
from typing import Any
from urllib.parse import quote

from fsspec import AbstractFileSystem

from daskinfer.storage.objects.backoff import is_transient

_GOOGLE = frozenset({"gs", "gcs"})
_CHANGED = {"412", "PreconditionFailed", "409", "ConditionalRequestConflict"}
_UNKNOWN = {"501", "NotImplemented", "405", "MethodNotAllowed"}


def mark_of(filesystem: AbstractFileSystem, path: str) -> str | None:
    """Return what tells this object from another one under its name; None where there is no object.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> mark_of(SimpleNamespace(protocol="s3", info=lambda path: {"type": "file", "ETag": "a1"}), "bucket/record")
    'a1'
    """
    try:
        found = filesystem.info(path)
    except FileNotFoundError:
        return None
    return mark_in(filesystem, found) if found["type"] == "file" else None


def mark_in(filesystem: AbstractFileSystem, entry: dict[str, Any]) -> str:
    """Return the mark of an object, of what a listing says of it.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> mark_in(SimpleNamespace(protocol=("gs", "gcs")), {"generation": 17, "etag": "a1"})
    '17'
    """
    return str(entry["generation" if _is_google(filesystem) else "ETag"])


def put_marked(filesystem: AbstractFileSystem, path: str, data: bytes, mark: str) -> bool:
    """Replace the object with this mark; False where it is another one by now, or gone.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> def refuse(path, data, **options):
    ...     raise FileExistsError(f"{path} is not {options['IfMatch']} any more")
    >>> put_marked(SimpleNamespace(protocol="s3", pipe_file=refuse), "bucket/record", b"{}", mark="a1")
    False
    """
    try:
        if _is_google(filesystem):
            bucket, key, _ = filesystem.split_path(path)
            place = f"{filesystem._location}/upload/storage/v1/b/{quote(bucket)}/o"
            filesystem.call(
                "POST", place, uploadType="media", name=key, ifGenerationMatch=mark, data=data, json_out=True
            )
        else:
            # In one request, however large: only the last one of several takes a condition, and s3fs sends it none.
            filesystem.pipe_file(path, data, chunksize=max(len(data), 1), IfMatch=mark)
    except Exception as error:
        if isinstance(error, FileNotFoundError | FileExistsError) or _answer(error) & _CHANGED:
            return False
        raise
    return True


def delete_marked(filesystem: AbstractFileSystem, path: str, mark: str) -> None:
    """Delete the object with this mark; another one by that name stays.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> asked = lambda operation, **options: print(operation, options)
    >>> split = lambda path: (*path.split("/"), None)
    >>> delete_marked(SimpleNamespace(protocol="s3", split_path=split, call_s3=asked), "bucket/record", mark="a1")
    delete_object {'Bucket': 'bucket', 'Key': 'record', 'IfMatch': 'a1'}
    """
    try:
        if _is_google(filesystem):
            bucket, key, _ = filesystem.split_path(path)
            filesystem.call("DELETE", "b/{}/o/{}", bucket, key, ifGenerationMatch=mark)
        else:
            bucket, key, _ = filesystem.split_path(path)
            filesystem.call_s3("delete_object", Bucket=bucket, Key=key, IfMatch=mark)
    except Exception as error:
        if isinstance(error, FileNotFoundError | FileExistsError) or _answer(error) & _CHANGED:
            return
        if is_transient(error) or not (_answer(error) & _UNKNOWN or getattr(error, "errno", None) == errno.ENOSYS):
            raise
        filesystem.rm_file(path)  # a store without conditional deletes


def _is_google(filesystem: AbstractFileSystem) -> bool:
    protocols = {filesystem.protocol} if isinstance(filesystem.protocol, str) else {*filesystem.protocol}
    return not protocols.isdisjoint(_GOOGLE)


def _answer(error: BaseException) -> set[str]:
    """Return how a store refused: the status and the code, where its client tells."""
    found = {str(getattr(error, "code", ""))}
    for each in (error, error.__cause__, error.__context__):
        response = getattr(each, "response", None)
        if isinstance(response, dict):
            found |= {
                str(response.get("ResponseMetadata", {}).get("HTTPStatusCode", "")),
                str(response.get("Error", {}).get("Code", "")),
            }
    return found
