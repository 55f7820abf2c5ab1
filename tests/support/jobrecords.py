"""Records of jobs for tests."""

from __future__ import annotations

from daskinfer.spec.job.record import JobRecord, OutputField
from daskinfer.spec.outline import Outline
from daskinfer.spec.plan import Numerics, Plan, StagePlan
from daskinfer.spec.recipe.schema import Input, Model, Output, Recipe
from daskinfer.spec.snapshot import Resolution


def make_record(job: str, created: str = "2026-01-02T03:04:05+00:00") -> JobRecord:
    return JobRecord(
        keep={},
        job=job,
        request="sha256:" + "12" * 32,
        recipe=Recipe(
            daskinfer=1,
            name="news",
            model=Model(checkpoint="minilm@prod"),
            input=Input(url="data/*.jsonl", partition_rows=100),
            output=Output(url="results/news.zarr"),
        ),
        resolution=Resolution(
            reference="minilm@prod", name="minilm", snapshot="sha256:" + "ab" * 32, version=3, alias="prod", sequence=7
        ),
        registry="/work/registry",
        inputs="sha256:" + "34" * 32,
        code="sha256:" + "56" * 32,
        plan=Plan(
            stages=(StagePlan(index=0, first=0, last=6, parameter_bytes=10, share=1.0),),
            replicas=(1,),
            edges=(),
            transports=(),
            microbatch_tokens=2048,
            max_length=256,
            window=4,
            numerics=Numerics(
                dtype="float32", attention="eager", threads=1, torch="2", transformers="5", tokenizers="0"
            ),
        ),
        outline=Outline(
            architecture="BertModel",
            task="embed",
            dtype="float32",
            inputs=(),
            events=(),
            layers=(),
            shared=(),
            outputs={},
        ),
        slots=100,
        fields=(OutputField(name="embedding", kind="float32", shape=(384,)),),
        output="/results/news.zarr",
        rows=250,
        partitions=3,
        created=created,
    )
