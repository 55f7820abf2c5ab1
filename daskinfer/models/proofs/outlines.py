"""The outline of a task on a checkpoint: traced in this process, or in one of its own that ends with the answer.

``python -m daskinfer.models.proofs.outlines`` reads a request as JSON and writes the outline as JSON, so that a driver never
pays the seconds and the memory that torch takes.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from dataclasses import replace
from typing import Any

from daskinfer import errors
from daskinfer.errors import DaskinferError, JobFailed
from daskinfer.ids import digest_of, parse_json, sha256_of
from daskinfer.models.entry import check_builds
from daskinfer.models.preprocessing.textconfig import max_positions, pad_id
from daskinfer.models.proofs.probe_lengths import ProbeLengths, choose_lengths
from daskinfer.models.request import TaskRequest
from daskinfer.models.tasks.encode import row_length
from daskinfer.models.tasks.fields import takes_text
from daskinfer.models.versions import versions
from daskinfer.source import digest_source
from daskinfer.spec.outline import InputArray, Outline
from daskinfer.spec.recipe.schema import ModelOptions
from daskinfer.spec.snapshot import EntryPoint

# What says how a model is built; tokenizers and texts do not.
_DECIDING = ("config.json", "modules.json", "processor_config.json", "tokenizer_settings.json", ".py")
# Tables of positions that are learned are seldom longer; the scores of one row's attention would take gigabytes.
_MOST_TRIED = 1024


def outline_key(request: TaskRequest, dtype: str) -> str:
    """Return the digest of everything that an outline follows from.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.tasks import ask_tiny
    >>> request = ask_tiny("embed")
    >>> outline_key(request, "float32") == outline_key(request, "float32")
    True
    >>> outline_key(request, "float32") == outline_key(request, "bfloat16")
    False
    """
    deciding = {
        path: sha256_of(data)
        for path, data in sorted(request.files.items())
        if path.endswith(_DECIDING) and path != "tokenizer_config.json"
    }
    lengths = _lengths_of(request)
    # Else a length only shows where a column has one place for every token.
    silent = {"max_characters", "max_pixels"} | (set() if request.options.per_token else {"max_length"})
    options = request.options.model_dump(mode="json", exclude=silent)
    return digest_of(
        [
            request.task,
            options,
            request.architecture,
            deciding,
            None if request.entry is None else request.entry.model_dump(mode="json"),
            [array.model_dump(mode="json") for array in request.arrays],
            [lengths.short, lengths.middle, lengths.long, lengths.beyond, lengths.longest, *lengths.limits],
            dtype,
            versions(),
            digest_source(),
        ]
    )


def trace_task(request: TaskRequest, dtype: str) -> Outline:
    """Trace a task's model in this process.

    Raises
    ------
    CheckpointError
        Where the checkpoint cannot do the task, or the model cannot be run.

    Examples
    --------
    >>> from daskinfer.testing.fixtures.tasks import ask_tiny
    >>> outline = trace_task(ask_tiny("embed"), "float32")
    >>> len(outline.layers), outline.sharing.is_free, outline.uncut is None
    (4, True, True)
    """
    from daskinfer.models.proofs.row_proof import prove_sharing
    from daskinfer.models.proofs.score_proof import prove_sight
    from daskinfer.models.splitting.outlining import make_outline
    from daskinfer.models.tasks.build import build_task
    from daskinfer.models.tasks.score import ScoreModule

    if request.entry is not None:
        check_builds(request.entry)
    module = build_task(request, dtype)
    outline = make_outline(module, module.inputs, task=request.task, dtype=dtype)
    # Rounding in a lower precision would hide what rows do to each other.
    whole = module if dtype == "float32" else build_task(request, "float32")
    pad = pad_id(request.config)
    if isinstance(whole, ScoreModule):
        prove_sight(whole, outline, row_length(request), pad)
    sharing = prove_sharing(whole, outline, _lengths_of(request), pad)
    return outline.model_copy(update={"sharing": sharing})


def trace_apart(request: TaskRequest, dtype: str) -> Outline:
    """Trace a task's model in another process, unless this one has torch already.

    Examples
    --------
    >>> import torch
    >>> from daskinfer.testing.fixtures.tasks import ask_tiny
    >>> trace_apart(ask_tiny("embed"), "float32").outputs["embedding"].dims
    ((0, 1, 0, 0), (32, 0, 0, 0))
    """
    if "torch" in sys.modules:
        return trace_task(request, dtype)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(
        [sys.executable, "-m", "daskinfer.models.proofs.outlines"],
        input=_encode(request, dtype),
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    if done.returncode:
        raise JobFailed(
            f"tracing {request.architecture} ended with exit code {done.returncode}:\n{done.stderr[-2000:]}"
        )
    answer: dict[str, Any] = parse_json(done.stdout.splitlines()[-1])
    if "error" in answer:
        kind = getattr(errors, answer["error"], DaskinferError)
        raise kind(answer["message"], hint=answer["hint"])
    return Outline.model_validate(answer)


def _lengths_of(request: TaskRequest) -> ProbeLengths:
    """Return the lengths of the rows that a task's model is tried with."""
    if not takes_text(request):
        return choose_lengths(request.config, 1)
    length = row_length(request)
    ends = length == max_positions(request.config) and length <= _MOST_TRIED
    return replace(choose_lengths(request.config, length), longest=length if ends else None)


def _encode(request: TaskRequest, dtype: str) -> str:
    return json.dumps(
        {
            "task": request.task,
            "options": request.options.model_dump(mode="json"),
            "architecture": request.architecture,
            "files": {path: base64.b64encode(data).decode() for path, data in request.files.items()},
            "entry": None if request.entry is None else request.entry.model_dump(mode="json"),
            "arrays": [array.model_dump(mode="json") for array in request.arrays],
            "dtype": dtype,
        }
    )


def _decode(text: str) -> tuple[TaskRequest, str]:
    fields = parse_json(text)
    request = TaskRequest(
        task=fields["task"],
        options=ModelOptions.model_validate(fields["options"]),
        architecture=fields["architecture"],
        files={path: base64.b64decode(data) for path, data in fields["files"].items()},
        entry=None if fields["entry"] is None else EntryPoint.model_validate(fields["entry"]),
        arrays=tuple(InputArray.model_validate(array) for array in fields["arrays"]),
    )
    return request, fields["dtype"]


def _main() -> None:
    try:
        print(trace_task(*_decode(sys.stdin.read())).model_dump_json())
    except DaskinferError as error:
        print(json.dumps({"error": type(error).__name__, "message": error.message, "hint": error.hint}))


if __name__ == "__main__":
    _main()
