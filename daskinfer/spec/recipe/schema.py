"""The recipe: what a user writes, as frozen models with every default filled in.

Reading YAML, pointing at mistakes and applying overrides live in `daskinfer.spec.recipe.loader`; this file says only
what a recipe may contain.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from daskinfer.ids import digest_of
from daskinfer.redaction import protect
from daskinfer.spec.recipe.dialect import AUTO, Csv, check_encoding
from daskinfer.spec.recipe.gate import Gate
from daskinfer.spec.section import DescribedSection

Auto = Literal["auto"]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Amount = Annotated[float, Field(gt=0)]
Url = Annotated[str, AfterValidator(protect)]
"""Its password and the values of its query are known in memory only, and named in what is written."""
Place = Annotated[Url, Field(min_length=1)]


class ModelOptions(DescribedSection):
    """What the task does around the model's own layers."""

    pooling: Literal["auto", "mean", "cls", "max", "mean_sqrt_len", "weightedmean", "lasttoken"] = "auto"
    """`embed`: how tokens make one vector; `auto` does as the checkpoint says, `mean` where it says nothing."""
    normalize: Auto | bool = "auto"
    """`embed`: scale every embedding to length 1; `auto`: as the checkpoint says, and true where it says nothing."""
    prompt: str | None = None
    """Text put before every row's; without it the checkpoint's own default prompt, where it has one."""
    prompt_name: str | None = None
    """Name of one of the checkpoint's own prompts."""
    max_length: Annotated[int, Field(ge=1)] = 256
    """Longest input in tokens, special tokens included; longer texts are truncated."""
    max_characters: Annotated[int, Field(ge=1)] = 2_000_000
    """Longer texts are quarantined before they are tokenised, which costs memory and time for their whole length."""
    max_pixels: Annotated[int, Field(ge=1)] = 50_000_000
    """Images of more pixels are quarantined before they are decoded."""
    per_token: bool = False
    """`score`: also write every token's id and log-probability."""


class Model(DescribedSection):
    """Which checkpoint runs, and what it is asked to do."""

    checkpoint: Url
    """`NAME@alias`, `NAME@v3`, `NAME@sha256:...`, or a local directory (published on first use)."""
    registry: Url | None = None
    """URL of the registry; the default is `registry/` under the workspace."""
    entry: str | None = None
    """`package.module:function` that builds a model of your own; its source is hashed into the snapshot."""
    trust_code: bool = False
    """Run model code that comes with the checkpoint; it is hashed into the snapshot."""
    signed_by: tuple[str, ...] = ()
    """Files of public keys; each of them must have signed the snapshot, or nothing runs."""
    task: Literal["embed", "classify", "score", "forward"] = "embed"
    """`embed` writes one vector a row, `classify` a label with its scores, `score` the log-probability of a text,
    `forward` whatever arrays the model returns."""
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = "float32"
    """Precision of weights and activations."""
    kernels: Literal["auto", "torch", "onednn"] = "auto"
    """What computes linear layers in float32 on a CPU: `auto` takes the fastest, as measured on the workers."""
    options: ModelOptions = ModelOptions()
    """Pooling, normalisation, truncation."""


class Input(DescribedSection):
    """Where the rows come from."""

    url: Place | Annotated[tuple[Place, ...], Field(min_length=1)]
    """Any fsspec URL or glob, or a list of them, which are read in this order."""
    format: Literal["auto", "jsonl", "csv", "text", "parquet", "images", "zarr"] = "auto"
    """File format; `auto` goes by the suffix. `images`: every file is a row."""
    encoding: str = AUTO
    """Of jsonl, csv and text: any text encoding that Python knows; `auto` goes by the mark at a file's beginning, and
    takes UTF-8 where there is none."""
    csv: Csv = Csv()
    """How csv files are written."""
    columns: dict[str, str] = {}
    """What the task reads, and the column it comes from: `text`, `image`, or for `forward` the names of the model's
    inputs. What is not named comes from the column of the same name."""
    types: dict[str, str] = {}
    """Column -> type of kept columns, such as `int64`, `string`, `"decimal128(10, 2)"`, `date32` or
    `"timestamp[us, tz=UTC]"`; a row whose value does not fit is quarantined."""
    partition_rows: Annotated[int, Field(ge=1, le=1_000_000)] = 2048
    """Rows of a partition, the unit of commit and retry."""

    @field_validator("encoding")
    @classmethod
    def _check_encoding(cls, value: str) -> str:
        return check_encoding(value)

    @property
    def urls(self) -> tuple[str, ...]:
        """All of `url`."""
        return (self.url,) if isinstance(self.url, str) else self.url


class Output(DescribedSection):
    """Where the results go."""

    url: Place
    """fsspec URL of a directory; the suffix .zarr, .parquet or .jsonl names the format."""
    format: Literal["auto", "zarr", "parquet", "jsonl"] = "auto"
    """Output format; `auto` goes by the suffix."""
    keep: tuple[str, ...] = ()
    """Input columns copied to the output, in this order."""

    @field_validator("keep")
    @classmethod
    def _refuse_repetition(cls, keep: tuple[str, ...]) -> tuple[str, ...]:
        twice = sorted({name for name in keep if keep.count(name) > 1})
        if twice:
            raise ValueError(f"{', '.join(map(repr, twice))} more than once: name every column once")
        return keep


class Activations(DescribedSection):
    """How activations move between stages."""

    transport: Literal["auto", "zarr", "direct"] = "auto"
    """`zarr`: chunks at rest; `direct`: Dask's own transfer; `auto` lets the plan choose for each edge."""
    codec: Literal["none"] = "none"
    """Compression of activation chunks."""


class Pipeline(DescribedSection):
    """How the model is cut and how much is in flight."""

    stages: Auto | Annotated[int, Field(ge=1, le=10_000)] | tuple[Annotated[int, Field(ge=1)] | str, ...] = "auto"
    """`auto`, a number, or the first layer of every stage after the first, by number or by name (`[2, 4]` cuts six
    layers in three)."""
    microbatch_tokens: Auto | Annotated[int, Field(ge=1)] = "auto"
    """Padded tokens of a microbatch."""
    window: Auto | Annotated[int, Field(ge=1)] = "auto"
    """Microbatches in flight."""
    activations: Activations = Activations()
    """Transport and codec of the edges between stages."""


class Placement(DescribedSection):
    """Which workers may hold a shard."""

    requires: dict[str, Amount] = {"GPU": 1}
    """Dask resources that a worker must declare."""
    offload: Literal["none", "cpu", "disk"] = "none"
    """Where a shard that is larger than its device may keep what does not fit."""
    standby: Annotated[int, Field(ge=0, le=4096)] = 0
    """Workers that keep shards in memory and compute nothing until a stage loses its worker."""


class Trial(DescribedSection):
    """A candidate that is compared with the job's checkpoint on a share of the partitions."""

    checkpoint: Url
    """`NAME@alias`, `NAME@v3`, `NAME@sha256:...`, in the job's registry."""
    fraction: Annotated[float, Field(gt=0, le=1)] = 0.05
    """Share of the partitions; at least one is taken, always the same ones."""
    salt: str = ""
    """Change it to sample other partitions."""
    gate: Gate = Gate()
    """When the candidate passes."""


class Consistency(DescribedSection):
    """Which snapshot a partition is computed on, when the checkpoint's alias moves while the job runs."""

    mode: Literal["strong", "bounded", "eventual"] = "strong"
    """`strong`: one snapshot for the whole job. `bounded`: no partition starts on a snapshot further behind the alias
    than `max_lag` and `max_age` allow. `eventual`: the newest snapshot that every worker has loaded."""
    upgrade: bool = False
    """`strong`: when the alias moves, load its snapshot beside the job's, then compute all partitions that are not
    committed by then on the new one."""
    max_lag: Annotated[int, Field(ge=0)] | None = None
    """`bounded`: moves of the alias that a partition's snapshot may be behind when it starts; 0 where `max_age` is not
    given either."""
    max_age: Annotated[float, Field(ge=0)] | None = None
    """`bounded`: seconds that a snapshot may still be used after the driver has seen the alias move away from it."""
    refresh: Annotated[float, Field(ge=0.1)] = 10.0
    """How many seconds old the driver's knowledge of the alias may be when a partition starts."""
    converge: bool = False
    """`eventual`: at the end, compute again what is not on the alias's snapshot."""
    canary: Trial | None = None
    """`strong`: compute some partitions on this candidate too, first; where it passes, the job is computed on it."""
    shadow: Trial | None = None
    """`strong`: compute some partitions on this candidate too and compare; the output stays on the checkpoint."""

    @model_validator(mode="after")
    def _check_mode(self) -> Consistency:
        wrong = {
            "upgrade": self.upgrade and self.mode != "strong",
            "max_lag": self.max_lag is not None and self.mode != "bounded",
            "max_age": self.max_age is not None and self.mode != "bounded",
            "converge": self.converge and self.mode != "eventual",
        }
        is_moving = self.mode != "strong" or self.upgrade
        wrong |= {"canary": self.canary is not None and is_moving, "shadow": self.shadow is not None and is_moving}
        if self.canary and self.shadow:
            raise ValueError("give either canary or shadow, not both")
        if key := next((key for key, is_wrong in wrong.items() if is_wrong), None):
            raise ValueError(f"{key} means nothing in mode {self.mode}{' with upgrade' if self.upgrade else ''}")
        return self

    @property
    def follows(self) -> bool:
        """Whether the job watches the alias, and may compute on more than one snapshot."""
        return self.mode != "strong" or self.upgrade

    @property
    def copies(self) -> int:
        """Snapshots that a worker may have to hold: one that takes over, or is compared, is loaded beside the other."""
        return 2 if self.follows or self.trial else 1

    @property
    def trial(self) -> Trial | None:
        """The candidate that is compared, if any."""
        return self.canary or self.shadow

    @property
    def may_change(self) -> bool:
        """Whether the output may come to be on another snapshot than the one that the job was born with."""
        return self.follows or self.canary is not None

    @property
    def lag(self) -> int | None:
        """Moves that a starting partition may be behind; None for any number."""
        if self.mode != "bounded":
            return None
        return 0 if self.max_lag is None and self.max_age is None else self.max_lag


class Errors(DescribedSection):
    """How many rows may fail."""

    max_rows: Annotated[int, Field(ge=0)] | Fraction = 0.01
    """A number of rows, or a fraction of all rows; beyond it the job stops."""
    microbatch_seconds: Auto | Amount | None = "auto"
    """Seconds that a microbatch may take in a stage before its worker is restarted and its rows are looked into. `auto`:
    20 times what is usual, at least 60 s; `null`: no limit."""

    nan: Literal["auto", "quarantine", "keep", "stop"] = "auto"
    """What is done with rows for which the model returns NaN or infinity; `auto`: `keep` for `forward`, which may mean
    them, and `quarantine` for the other tasks."""

    @field_validator("max_rows", mode="before")
    @classmethod
    def _refuse_booleans(cls, value: Any) -> Any:
        if isinstance(value, bool):
            raise ValueError("must be a number of rows, or a fraction below 1")
        return value

    def limit(self, rows: int) -> int:
        """Return how many of `rows` rows may be quarantined."""
        return int(self.max_rows * rows) if isinstance(self.max_rows, float) else self.max_rows


class Recovery(DescribedSection):
    """What is done after a failure, and how many seconds it may last before that."""

    missing: Literal["wait", "stop"] = "wait"
    """Where a stage has no worker and no other can take it on: wait for one without end, or stop after `patience`."""
    patience: Amount = 60.0
    """`missing: stop`: how long the job waits."""
    frozen: Amount = 15.0
    """A worker that has not been heard of for so long is taken for lost."""
    paused: Amount = 60.0
    """A worker whose memory has been too full for so long to take on work is restarted."""
    storage: Amount = 300.0
    """A store that refuses for so long ends the run."""


class LocalCluster(DescribedSection):
    """Worker processes on this machine."""

    workers: Annotated[int, Field(ge=1, le=4096)] = 2
    """Worker processes."""
    threads: Annotated[int, Field(ge=1, le=4096)] = 1
    """Cores that each worker computes with."""
    resources: dict[str, Amount] = {"GPU": 1}
    """Dask resources that each worker declares."""
    tls: bool = True
    """Encrypt what its processes say to each other, so that no other user of the machine can connect. `false` moves large
    activations of `direct` edges up to twice as fast, and lets whoever is logged in run code as you."""


class Cluster(DescribedSection):
    """Where the job runs: `local`, or the `address` of a running Dask scheduler."""

    local: LocalCluster | None = None
    """Start worker processes here."""
    address: Url | None = None
    """Connect to this scheduler instead."""

    @model_validator(mode="after")
    def _choose_one(self) -> Cluster:
        if self.local is not None and self.address is not None:
            raise ValueError("give either local or address, not both")
        return self

    @property
    def workers(self) -> LocalCluster:
        """The local cluster to start; the default one where the recipe is silent."""
        return self.local or LocalCluster()


# What may differ between two runs without changing a byte of their output.
OPERATIONAL: dict[str, Any] = {
    "workspace": True,
    "output": {"url"},
    "cluster": True,
    "placement": True,
    "errors": {"max_rows", "microbatch_seconds"},
    "recovery": True,
    "pipeline": {"window"},
    "model": {"registry", "signed_by"},
}


class Recipe(DescribedSection):
    """A batch-inference job: this model over these rows, written there.

    Examples
    --------
    >>> parts = {"model": {"checkpoint": "minilm@prod"}, "input": {"url": "a.jsonl"}, "output": {"url": "a.zarr"}}
    >>> recipe = Recipe(daskinfer=1, name="demo", **parts)
    >>> recipe.input.partition_rows, recipe.registry_url
    (2048, './work/registry')
    """

    daskinfer: Literal[1]
    """Version of the recipe format."""
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    """Short name of the job; letters, digits, dot, dash and underscore."""
    workspace: Url = "./work"
    """fsspec URL under which registry/, jobs/ and activations/ live."""
    model: Model
    """Which checkpoint runs."""
    input: Input
    """Where the rows come from."""
    output: Output
    """Where the results go."""
    pipeline: Pipeline = Pipeline()
    """How the model is cut."""
    placement: Placement = Placement()
    """Which workers may hold a shard."""
    consistency: Consistency = Consistency()
    """How snapshots may change."""
    errors: Errors = Errors()
    """How many rows may fail."""
    recovery: Recovery = Recovery()
    """How long failures may last."""
    cluster: Cluster = Cluster()
    """Where the job runs."""

    @property
    def digest(self) -> str:
        """Digest of everything in the recipe that can change the output."""
        told = self.model_dump(mode="json", exclude=OPERATIONAL)
        # Later than the first digests: where they say nothing, a recipe is what it was without them.
        silent = Input(url=self.input.url).model_dump(mode="json")
        for key in ("encoding", "csv", "types"):
            if told["input"][key] == silent[key]:
                del told["input"][key]
        if told["errors"]["nan"] == "auto":
            del told["errors"]
        usual = ModelOptions().model_dump(mode="json")
        for key in ("max_characters", "max_pixels"):
            if told["model"]["options"][key] == usual[key]:
                del told["model"]["options"][key]
        return digest_of(told)

    @property
    def registry_url(self) -> str:
        """URL of the registry that the checkpoint is looked up in."""
        return self.model.registry or f"{self.workspace.rstrip('/')}/registry"
