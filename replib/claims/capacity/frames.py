"""Rows of associative retrieval as a tidy polars frame, for `charts.memory`."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from replib.claims.capacity.memories import (
    MEMORIES,
    SOLVED_LOSS,
    label,
    published_losses,
)
from replib.fast_weights import MemoryConfig, RetrievalConfig
from replib.lab.run import config_of
from replib.lab.store import Row

RETRIEVAL_COLUMNS = dict(
    setting=int,
    series=str,
    mechanism=str,
    attention=str,
    implementation=str,
    update_rule=str,
    n_features=int,
    n_keys=int,
    value=float,
    low=float,
    high=float,
    n_seeds=int,
    n_solved=int,
    device=str,
    source=str,
)
PUBLISHED = "published"
HEAD_DIM = MemoryConfig().head_dim


def retrieval_frame(rows: Sequence[Row], published: Mapping[str, Any]) -> pl.DataFrame:
    """One line a memory, S, device and source, and the published ones: RETRIEVAL_COLUMNS.

    `value`, `low` and `high` are the median, least and largest loss over seeds, each run's best
    unless its config says last; null where there is none. Recorded runs that are evaluated on half
    the length are for tables alone. Of runs whose settings differ otherwise, such as their steps,
    the later ones count. `setting` is 1 (every key once) or 2 (keys come back). `mechanism` is what
    a series is coloured by.

    Args:
        published: `published()["fastweights_logs"]`.
    """
    runs: dict[tuple, dict[RetrievalConfig, dict[int, float]]] = {}
    for row in rows:
        config, live = config_of(row), row["scale"] == "live"
        if row["outcome"] not in ("ok", "diverged") or (config.eval_half_length and not live):
            continue
        key = (
            2 if config.task.with_replacement else 1,
            config_of(row).model,
            config.task.n_keys,
            row["provenance"]["device_name"],
            "live" if live else "recorded",
        )
        loss = row["summary"].get("reported_loss")
        same = runs.setdefault(key, {}).setdefault(config, {})
        same[row["seed"]] = math.inf if loss is None else loss
    found = {key: list(list(by_config.values())[-1].values()) for key, by_config in runs.items()}
    for setting in (1, 2):
        for name, losses in published_losses(published, f"setting{setting}").items():
            for n_keys, loss in losses.items():
                found[setting, MEMORIES[name], n_keys, None, PUBLISHED] = [loss]
    lines = [_line(*key, losses) for key, losses in found.items()]
    return pl.DataFrame(lines, schema=RETRIEVAL_COLUMNS).sort(
        "setting", "n_keys", maintain_order=True
    )


def _line(
    setting: int,
    memory: MemoryConfig,
    n_keys: int,
    device: str | None,
    source: str,
    losses: list[float],
) -> dict[str, Any]:
    series = label(memory, rule=setting == 2 or memory.update_rule != "sum")
    if memory.head_dim != HEAD_DIM:
        series += f", D = {memory.head_dim}"
    middle = statistics.median(losses), min(losses), max(losses)
    value, low, high = (loss if math.isfinite(loss) else None for loss in middle)
    return {
        "setting": setting,
        "series": series,
        "mechanism": memory.attention if memory.update_rule == "sum" else memory.update_rule,
        "attention": memory.attention,
        "implementation": memory.variant[1],
        "update_rule": memory.update_rule,
        "n_features": memory.n_features,
        "n_keys": n_keys,
        "value": value,
        "low": low,
        "high": high,
        "n_seeds": len(losses),
        "n_solved": sum(loss <= SOLVED_LOSS for loss in losses),
        "device": device,
        "source": source,
    }
