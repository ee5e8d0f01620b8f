"""Stored rows as tidy polars frames: what charts, tables and verdicts are made of.

Every function takes rows as `lab.recorded` reads them (`latest` ones where one row a config is
wanted) and returns a frame with the same columns for no rows as for many.
`series` names a mechanism with its implementation, such as "linear (torch)", where the run asked
for one; `source` tells runs of this session ("live") from committed ones ("recorded"). Losses are
nats a token, accuracies shares.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import polars as pl

from replib.lab.run import config_of, variant_of
from replib.lab.store import Row
from replib.lab.timing import CostConfig
from replib.training import TrainingConfig


def _columns(texts: Sequence[str] = (), counts=(), numbers=()) -> dict[str, Any]:
    kinds = (dict.fromkeys(texts, str), dict.fromkeys(counts, int), dict.fromkeys(numbers, float))
    return kinds[0] | kinds[1] | kinds[2]


ORIGIN = _columns(("device", "run_id", "source"))
_MECHANISM = _columns(("attention", "implementation", "series"))
_SIZES = ("batch_size", "n_layers", "n_heads", "d_model", "n_steps")
_RUN = _MECHANISM | _columns((), ("seq_len", "seed", *_SIZES), ("lr",)) | ORIGIN
_POINT = _columns(numbers=("train_loss", "loss", "accuracy"))
CURVE_COLUMNS = _RUN | {"step": int} | _POINT
_RESULTS = ("final_loss", "final_accuracy", "best_loss", "steps_per_s")
SUMMARY_COLUMNS = _RUN | _columns(
    ("outcome", "detail"), ("steps_to_solved", "n_spikes"), numbers=_RESULTS
)
_COSTS = ("time_ms", "time_ms_per_sample", "memory_bytes_per_sample")
COST_COLUMNS = (
    _MECHANISM
    | _columns((), ("seq_len", "batch_size", "n_heads", "head_dim", "n_steps", "memory_bytes"))
    | _columns(("work", "outcome", "detail"), (), ("q25", "q75", *_COSTS))
    | {"time_ms_samples": pl.List(pl.Float64)}
    | ORIGIN
)


def training_curves(rows: Iterable[Row]) -> pl.DataFrame:
    """One line an evaluation of a training run: CURVE_COLUMNS."""
    parts = []
    for row in rows:
        curve = row["curve"] or {"step": []}
        n_points = len(curve["step"])
        empty = [None] * n_points
        columns = {name: [value] * n_points for name, value in _run(row).items()}
        columns |= {name: curve.get(name, empty) for name in ("step", *_POINT)}
        parts.append(frame_of(columns, CURVE_COLUMNS))
    return pl.concat(parts) if parts else frame_of([], CURVE_COLUMNS)


def training_summaries(rows: Iterable[Row]) -> pl.DataFrame:
    """One line a training run: SUMMARY_COLUMNS."""
    figures = (*_RESULTS, "steps_to_solved", "n_spikes")
    return frame_of(
        [
            _run(row)
            | {"outcome": row["outcome"], "detail": row["detail"]}
            | {name: row["summary"].get(name) for name in figures}
            for row in rows
        ],
        SUMMARY_COLUMNS,
    )


def costs(rows: Iterable[Row]) -> pl.DataFrame:
    """One line a measured point, of attention alone or of a training step: COST_COLUMNS.

    `work` is "forward", "forward_backward" or "training_step"; `n_steps` belongs to the last alone.
    """
    return frame_of([_cost(row) for row in rows], COST_COLUMNS)


def pooled(costs: pl.DataFrame) -> pl.DataFrame:
    """The recordings of each point of `costs` as one line: median and quartiles of the samples of
    all, the rest as in the last."""
    point = ["series", "seq_len", "batch_size", "work", "device", "source"]
    samples = pl.col("time_ms_samples").explode()
    found = costs.group_by(point, maintain_order=True).agg(
        pl.exclude(*point, "time_ms_samples").last(),
        time_ms_samples=samples.drop_nulls(),
        median=samples.median(),
        low=samples.quantile(0.25, "linear"),
        high=samples.quantile(0.75, "linear"),
    )
    return found.with_columns(
        time_ms="median",
        q25="low",
        q75="high",
        time_ms_per_sample=pl.col("median") / pl.col("batch_size"),
    ).select(list(COST_COLUMNS))


def steps_alike(rows: Sequence[Row]) -> list[Row]:
    """Of rows of training steps those that differ in mechanism, N and device alone: those of the
    setting that most are of, as a chart has one value for each."""

    def setting(row: Row) -> str:
        config = config_of(row)
        model = replace(config.model, attention="softmax", options=None, kernel=None)
        return repr(replace(config, model=model, task=replace(config.task, seq_len=8)))

    most = Counter(map(setting, rows)).most_common(1)
    return [row for row in rows if setting(row) == most[0][0]]


def _cost(row: Row) -> dict[str, Any]:
    summary = row["summary"]
    figures = (*_COSTS, "time_ms_samples", "memory_bytes")
    return (
        _cost_config(config_of(row))
        | mechanism(*variant_of(row))
        | {name: summary.get(name) for name in figures}
        | {"q25": summary.get("time_ms_q25"), "q75": summary.get("time_ms_q75")}
        | {"outcome": row["outcome"], "detail": row["detail"]}
        | origin(row)
    )


def _cost_config(config: CostConfig | TrainingConfig) -> dict[str, Any]:
    kept = ("seq_len", "batch_size", "n_heads", "head_dim", "work")
    if not hasattr(config, "task"):
        return {name: getattr(config, name) for name in kept}
    model = config.model
    values = config.task.seq_len, config.batch_size, model.n_heads, model.head_dim, "training_step"
    return dict(zip(kept, values, strict=True)) | {"n_steps": config.n_steps}


def _run(row: Row) -> dict[str, Any]:
    config, model = config_of(row), config_of(row).model
    return (
        mechanism(*variant_of(row))
        | {"seq_len": config.task.seq_len, "seed": row["seed"]}
        | {name: getattr(config, name) for name in ("batch_size", "n_steps", "lr")}
        | {name: getattr(model, name, None) for name in ("n_layers", "n_heads", "d_model")}
        | origin(row)
    )


def mechanism(attention: str, implementation: str | None) -> dict[str, Any]:
    series = f"{attention} ({implementation})" if implementation else attention
    return {"attention": attention, "implementation": implementation, "series": series}


def origin(row: Row) -> dict[str, Any]:
    provenance = row["provenance"]
    device, threads = provenance.get("device_name") or "unknown device", provenance.get("threads")
    if threads and str(provenance.get("device")).startswith("cpu"):
        device = f"{device}, {threads} thread{'s' if threads > 1 else ''}"
    return {
        "device": device,
        "run_id": row["run_id"],
        "source": row["scale"] if row["scale"] in ("live", "predicted") else "recorded",
    }


def frame_of(data: list[dict] | dict[str, list], columns: dict[str, Any]) -> pl.DataFrame:
    """The data under these columns alone; a column that is missing and a number that is not finite
    are null."""
    if isinstance(data, list):
        data = {name: [row.get(name) for row in data] for name in columns}
    return pl.DataFrame(
        {name: [_finite_or_none(value) for value in data[name]] for name in columns},
        schema=columns,
        strict=False,
    )


def finite(numbers: pl.Expr) -> pl.Expr:
    """Numbers, null where they are not finite."""
    return pl.when(numbers.is_finite()).then(numbers)


def _finite_or_none(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
