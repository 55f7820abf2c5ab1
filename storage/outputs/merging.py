"""A part, its record and the manifest once the rows that a retry recovered are in: pure functions of what was before."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from daskinfer.errors import IntegrityError
from daskinfer.spec.job.commit import CommitRecord
from daskinfer.storage.columns.json_text import to_json_texts
from daskinfer.storage.columns.types import JSON
from daskinfer.storage.outputs.row_digest import add_digests
from daskinfer.storage.outputs.sink import OutputPart


def merge_part(before: OutputPart, retried: OutputPart) -> OutputPart:
    """Return a part with the rows that were recovered, in input order; the rest of those retried are its rejects.

    Parameters
    ----------
    before
        The part as it was committed, its rejects included.
    retried
        The results of the rows that it refused, and only of these.

    Raises
    ------
    IntegrityError
        Where the rows retried are not the rows refused.

    Examples
    --------
    >>> from dataclasses import replace
    >>> from daskinfer.testing.fixtures.jobs import make_job, make_results
    >>> record = make_job("labels.jsonl")
    >>> before, retried = make_results(record, 0, refused=[1]), make_results(record, 0, refused=[0])
    >>> merge_part(before, replace(retried, rejects=())).arrays["label"]
    array(['class-0', 'class-1'], dtype=object)
    """
    wanted = [reject.row for reject in before.rejects]
    found = sorted([*retried.rows.tolist(), *(reject.row for reject in retried.rejects)])
    if wanted != found:
        number = before.partition.number
        raise IntegrityError(f"partition {number}: rows {wanted} were refused, but rows {found} were retried")
    positions = np.concatenate([before.positions, retried.positions])
    order = np.argsort(positions, kind="stable")
    return OutputPart(
        partition=before.partition,
        positions=positions[order],
        arrays={name: np.concatenate([values, retried.arrays[name]])[order] for name, values in before.arrays.items()},
        kept=_merge_tables(before.kept, retried.kept, order) if before.kept.num_columns else before.kept,
        rejects=retried.rejects,
    )


def merge_records(before: CommitRecord, retried: CommitRecord) -> CommitRecord:
    """Return the record of a merged part: both counts of tokens, all microbatches, and where the run's time went.

    Examples
    --------
    >>> from daskinfer.storage.outputs.sink import Written
    >>> from daskinfer.testing.fixtures.jobs import make_commit, make_job, make_results
    >>> job, written = make_job("labels.jsonl"), Written("part-00000000.jsonl", "00", 90)
    >>> before = make_commit(job, make_results(job, 0, refused=[1]), written)
    >>> merged = merge_records(before, make_commit(job, make_results(job, 0), written, round=1))
    >>> merged.round, merged.rows_out, merged.tokens
    (1, 2, 4)
    """
    return before.model_copy(
        update={
            "round": retried.round,
            "rows_out": retried.rows_out,
            "rows_quarantined": retried.rows_quarantined,
            "rows_not_finite": before.rows_not_finite + retried.rows_not_finite,
            "rows_truncated": before.rows_truncated + retried.rows_truncated,
            "tokens": before.tokens + retried.tokens,
            "padded_tokens": before.padded_tokens + retried.padded_tokens,
            "microbatches": (*before.microbatches, *retried.microbatches),
            "digest": retried.digest,
            "path": retried.path,
            "size": retried.size,
            "rows_digest": add_digests(before.rows_digest, retried.rows_digest),
        }
    )


def merge_manifest(
    manifest: Mapping[str, Any], records: Iterable[CommitRecord], round: int, inputs: str
) -> dict[str, Any]:
    """Return the manifest of an output with the parts of a retry.

    Parameters
    ----------
    manifest
        As it was.
    records
        Of every part that had quarantined rows.
    round
        Number of the retry.
    inputs
        Digest of the input files as the retry read them.

    Examples
    --------
    >>> from daskinfer.storage.outputs.sink import Written
    >>> from daskinfer.testing.fixtures.jobs import make_commit, make_job, make_results
    >>> job, part = make_job("labels.jsonl"), {"partition": 0, "rows_out": 1, "rows_quarantined": 1}
    >>> record = make_commit(job, make_results(job, 0), Written("part-00000000.jsonl", "00", 90), round=1)
    >>> merge_manifest({"parts": [part]}, [record], 1, "sha256:0")["retries"]
    [{'round': 1, 'rows_retried': 1, 'rows_recovered': 1, 'inputs': 'sha256:0'}]
    """
    merged = {record.partition: record for record in records}
    parts = []
    for part in manifest["parts"]:
        record = merged.get(part["partition"])
        parts.append(part if record is None else part | record.model_dump(include=set(part)))
    retried = sum(part["rows_quarantined"] for part in manifest["parts"] if part["partition"] in merged)
    left = sum(record.rows_quarantined for record in merged.values())
    told = {"round": round, "rows_retried": retried, "rows_recovered": retried - left, "inputs": inputs}
    return {
        **manifest,
        "rows_out": sum(part["rows_out"] for part in parts),
        "rows_quarantined": sum(part["rows_quarantined"] for part in parts),
        "parts": parts,
        "retries": [*manifest.get("retries", []), told],
    }


def _merge_tables(before: pa.Table, retried: pa.Table, order: np.ndarray[Any, Any]) -> pa.Table:
    retried = retried.replace_schema_metadata(None)
    for index, field in enumerate(before.schema):
        # What was read back of jsonl is JSON texts.
        if field.type == JSON and retried.schema.field(index).type != JSON:
            texts = to_json_texts(retried.column(index))
            column = pa.ExtensionArray.from_storage(JSON, pa.array(texts, pa.string()))
            retried = retried.set_column(index, field.name, column)
    fitting = retried.cast(before.schema)
    return pa.concat_tables([before, fitting]).combine_chunks().take(order)
