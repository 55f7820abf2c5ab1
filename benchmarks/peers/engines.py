"""ONNX Runtime and OpenVINO: the fastest engines on CPUs that exist for such models, fed by the loop's own batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.peers.peer import Peer
from benchmarks.peers.plain import Computation, build_module
from benchmarks.work import Work


def _exported(work: Work) -> Path:
    return Path(work.folder).parent / "onnx/model.onnx"


def export(work: Work) -> None:
    """Write the model with any number of rows and tokens, once for both engines."""
    import torch

    if _exported(work).exists():
        return
    module = build_module(work)
    batch = next(iter(Computation(work, lambda *arrays: arrays).batches(work.read_rows()[:8])))[1]
    rows, tokens = torch.export.Dim("rows", min=1, max=1 << 16), torch.export.Dim("tokens", min=2, max=work.max_length)
    shapes = ({0: rows},) if work.task == "classify" else ({0: rows, 1: tokens},) * 2
    _exported(work).parent.mkdir(exist_ok=True)
    names = ["pixels"] if work.task == "classify" else ["ids", "mask"]
    with torch.no_grad():
        torch.onnx.export(
            module,
            tuple(map(torch.from_numpy, batch)),
            str(_exported(work)),
            dynamo=True,
            dynamic_shapes=shapes,
            input_names=names,
            output_names=["result"],
            verbose=False,
        )


def run_onnxruntime(work: Work) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = work.cores
    session = onnxruntime.InferenceSession(str(_exported(work)), options, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]
    computation = Computation(work, lambda *arrays: session.run(None, dict(zip(names, arrays, strict=True)))[0])
    work.mark_ready()
    return computation(work.read_rows())


def run_openvino(work: Work) -> Any:
    import openvino

    settings = {"INFERENCE_NUM_THREADS": work.cores, "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    core = openvino.Core()
    model = core.compile_model(core.read_model(str(_exported(work))), "CPU", settings)
    computation = Computation(work, lambda *arrays: model(list(arrays))[0])
    work.mark_ready()
    return computation(work.read_rows())


PEERS = (
    Peer(
        "onnxruntime",
        "the loop with ONNX Runtime",
        run_onnxruntime,
        prepare=export,
        packages=("onnxruntime", "onnx", "onnxscript"),
    ),
    Peer(
        "openvino", "the loop with OpenVINO", run_openvino, prepare=export, packages=("openvino", "onnx", "onnxscript")
    ),
)
