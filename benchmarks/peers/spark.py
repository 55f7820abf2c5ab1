"""Spark's predict_batch_udf on local executors, with the loop's function."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from benchmarks.peers.peer import Peer
from benchmarks.peers.plain import load_here
from benchmarks.work import Work


def run(work: Work) -> Any:
    import pandas
    from pyspark.ml.functions import predict_batch_udf
    from pyspark.sql import SparkSession
    from pyspark.sql.types import ArrayType, FloatType

    os.environ["PYSPARK_PYTHON"] = sys.executable
    session = (
        SparkSession.builder.master(f"local[{work.cores}]")
        .config("spark.ui.enabled", "false")
        .config("spark.driver.host", "127.0.0.1")
        .config("spark.sql.execution.arrow.pyspark.enabled", "true")
        .config("spark.sql.execution.arrow.maxRecordsPerBatch", work.partition_rows)
        .getOrCreate()
    )
    rows = pandas.DataFrame({"row": work.read_rows()})
    rows["number"] = range(len(rows))
    kind = FloatType() if work.task == "score" else ArrayType(FloatType())
    predict = predict_batch_udf(partial(_make_predict, work), return_type=kind, batch_size=work.partition_rows)
    frame = session.createDataFrame(rows).repartition(-(-len(rows) // work.partition_rows))
    found = frame.select("number", predict("row").alias("result")).toPandas().sort_values("number")
    results = np.stack(found["result"].to_list()).astype(np.float32)
    session.stop()
    return results


def _make_predict(work: Work) -> Callable[[Any], Any]:
    computation = load_here(work)
    return lambda rows: computation([str(row) for row in rows])


PEERS = (
    Peer("spark", "predict_batch_udf on a local master", run, packages=("pyspark",), processes=2, programs=("java",)),
)
