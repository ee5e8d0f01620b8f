"""What the code can use of a recorded row: configs that it can build, figures that it can draw.

Rows come from other versions, other machines and other hands. Here is the one border where they are
checked: `checker` gives what `lab.store` lets every line of an experiment through. A config is
built again from its fields, so that a field which was added later has its default in older rows (a
new field's default must be what was done before), and a field that is not known, a value of the
wrong kind or an impossible one is refused. Behind this border nobody checks a row again.
"""

import dataclasses
import math
import re
import types
import typing
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any

from benchmarks.comparison import EXPERIMENT as BENCH
from benchmarks.comparison import Setting
from replib.attention import ATTENTION, Attention
from replib.claims.experiments import EXPERIMENTS, Experiment
from replib.lab import provenance, store
from replib.lab.run import (
    CostJob,
    RetrievalJob,
    TrainingJob,
    configs_of,
    is_generation,
    versions_of,
)

Check = Callable[[store.Row], tuple[store.Row, bool]]
LABEL = re.compile(r"[A-Za-z0-9_]{1,40}")  # of a scale
MAX_NAME = 200  # letters of a device's name
MAX_THREADS = 4096


def checker(experiment: str) -> Check:
    """What returns a row of an experiment with its whole config, and whether the present code
    computes it, and raises ValueError, in some words, where the code cannot use it. Rows of other
    experiments than `EXPERIMENTS` and the bench are not looked at."""
    if experiment == BENCH:
        return lambda row: (_check_bench(row), True)
    if experiment not in EXPERIMENTS:
        return lambda row: (row, True)
    kinds = _kinds(EXPERIMENTS[experiment])

    def check(row: store.Row) -> tuple[store.Row, bool]:
        kind, config = _first_that_fits(kinds, row["config"])
        kind.check(row)
        current = store.of_versions(row, versions_of(config, cost=kind.cost))
        config = store.plain(config)
        return row | {"config": config, "provenance": _origin(row)}, current

    return check


@dataclasses.dataclass(frozen=True)
class _Kind:
    """Rows of one kind: their config, its task if it has one, whether they are costs, and what
    checks their figures."""

    config: type
    task: type | None
    cost: bool
    check: Callable[[store.Row], None]


@lru_cache
def _kinds(experiment: Experiment) -> tuple[_Kind, ...]:
    """The kinds of rows that the jobs of an experiment make."""
    kinds = {}
    for job in experiment.jobs("smoke"):
        check = _check_cost
        if isinstance(job, TrainingJob):
            check = _check_training
        elif isinstance(job, RetrievalJob):
            check = _check_retrieval
        elif isinstance(job, CostJob) and is_generation(job):
            check = _check_generation
        for config in configs_of(job):
            task = type(config.task) if hasattr(config, "task") else None
            kinds[_Kind(type(config), task, isinstance(job, CostJob), check)] = None
    return tuple(kinds)


def _first_that_fits(kinds: tuple[_Kind, ...], plain: Any) -> tuple[_Kind, Any]:
    problem = None
    for kind in kinds:
        try:
            config = config_from(kind.config, plain, {"task": kind.task} if kind.task else {})
            if kind.task and type(config.task) is not kind.task:
                raise ValueError("its config has no task")
            return kind, config
        except ValueError as error:
            problem = problem or error
    raise problem or ValueError("no run of this experiment is known")


def config_from(kind: type, plain: Any, parts: Mapping[str, type] | None = None) -> Any:
    """The config of a row's plain fields; a field that is missing has its default.

    Args:
        parts: the dataclass of a field, where its annotation leaves it open.

    Raises:
        ValueError: a field is unknown, of another kind, or has an impossible value.
    """
    if not isinstance(plain, dict):
        raise ValueError(f"the config of a {kind.__name__} is {plain!r}")
    hints, known = _hints(kind), {one.name: one for one in dataclasses.fields(kind)}
    if plain.get("options") is not None and "attention" in known:
        attention = plain.get("attention", known["attention"].default)
        mechanism = ATTENTION.get(attention, Attention) if isinstance(attention, str) else Attention
        parts = {**(parts or {}), "options": mechanism.Options}
    for name in plain:
        if name not in known:
            raise ValueError(f"config field {name!r} is not known: it is of a newer version")
    values = {
        name: _value(name, (parts or {}).get(name, hints[name]), value)
        for name, value in plain.items()
        if known[name].init
    }
    try:
        config = kind(**values)
    except TypeError as error:  # a field without a default is missing, or values do not compare
        raise ValueError(f"config: {error}") from error
    for name, value in plain.items():
        if not known[name].init and value != getattr(config, name):
            raise ValueError(f"config field {name!r} is {value!r}, not {getattr(config, name)!r}")
    return config


@lru_cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _value(name: str, hint: Any, value: Any) -> Any:
    """A field's value as its annotation has it."""
    if isinstance(hint, types.UnionType):
        options = [one for one in typing.get_args(hint) if one is not types.NoneType]
        if value is None and len(options) < len(typing.get_args(hint)):
            return None
        hint = options[0]
    if dataclasses.is_dataclass(hint):
        return config_from(hint, value)
    if typing.get_origin(hint) is tuple:
        of = typing.get_args(hint)[0]
        if isinstance(value, list):
            return tuple(_value(name, of, one) for one in value)
    elif type(value) is hint or (hint is float and type(value) is int):
        return value
    raise ValueError(f"config field {name!r} is {value!r}")


# Of a figure: whether a value is one. None is handled by who asks.
def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _is_amount(value: Any) -> bool:
    return _is_number(value) and value >= 0


def _is_positive(value: Any) -> bool:
    return _is_number(value) and value > 0


def _is_share(value: Any) -> bool:
    return _is_amount(value) and value <= 1


def _is_flag(value: Any) -> bool:
    return type(value) is bool


def _is_text(value: Any) -> bool:
    return type(value) is str


def _is_times(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_positive, value))


Figures = Mapping[str, Callable[[Any], bool]]
# Of a finished run all of the first group are there; the others may be null or missing.
TRAINING: tuple[Figures, Figures] = (
    {
        "n_steps": _is_count,
        "final_loss": _is_amount,
        "final_accuracy": _is_share,
        "best_loss": _is_amount,
    },
    {
        "steps_to_solved": _is_count,
        "n_spikes": _is_count,
        "steps_per_s": _is_positive,
        "bits_per_dim": _is_amount,
        "histogram_bits_per_dim": _is_amount,
    },
)
COST: tuple[Figures, Figures] = (
    {
        "time_ms": _is_positive,
        "time_ms_q25": _is_positive,
        "time_ms_q75": _is_positive,
        "time_ms_samples": _is_times,
        "time_ms_per_sample": _is_positive,
        "memory_bytes": _is_count,
        "memory_bytes_per_sample": _is_amount,
    },
    {"n_repeats": _is_count, "n_repeats_asked": _is_count},
)
WITHOUT_MEMORY = ("memory_bytes", "memory_bytes_per_sample")  # what a whole sequence takes
GENERATION: tuple[Figures, Figures] = (
    {name: check for name, check in COST[0].items() if name not in WITHOUT_MEMORY}
    | {"state_bytes": _is_count},
    {name: COST[0][name] for name in WITHOUT_MEMORY} | dict(COST[1]),
)
RETRIEVAL: tuple[Figures, Figures] = (
    {
        "n_steps": _is_count,
        "final_loss": _is_amount,
        "best_loss": _is_amount,
        "reported_loss": _is_amount,
        "solved": _is_flag,
        "reason": _is_text,
    },
    {"seconds": _is_amount, "seeds_together": _is_positive},
)
MEANS = ("best_all_keys_loss", "best_asked_loss", "best_batches_loss")


def _check_figures(row: store.Row, figures: tuple[Figures, Figures]) -> None:
    summary, ok = row["summary"], row["outcome"] == "ok"
    needed, others = figures
    for name, check in (needed | others).items():
        value = summary.get(name)
        if value is None:
            if ok and name in needed:
                raise ValueError(f"is 'ok' and has no {name}")
        elif not check(value):
            raise ValueError(f"{name} is {_short(value)}")


def _check_curve(row: store.Row, columns: Figures, *, gaps: tuple[str, ...] = ()) -> None:
    """Columns of one length, whose first never falls; a number may be missing where the run
    diverged, and in `gaps`."""
    curve = row["curve"]
    if curve is None:
        if row["outcome"] == "ok":
            raise ValueError("is 'ok' and has no curve")
        return
    first = next(iter(columns))
    lists = [curve.get(name) for name in columns] + [
        x for n, x in curve.items() if n not in columns
    ]
    if not all(isinstance(x, list) for x in lists) or len(set(map(len, lists))) != 1:
        raise ValueError("the columns of its curve differ in length, or lack one")
    if row["outcome"] == "ok" and not curve[first]:
        raise ValueError("is 'ok' and its curve is empty")
    for name, check in columns.items():
        for value in curve[name]:
            missing = value is None and name != first
            if not (check(value) if value is not None else missing) or (
                value is None and row["outcome"] != "diverged" and name not in gaps
            ):
                raise ValueError(f"its curve's {name} is {_short(value)}")
    if any(a > b for a, b in zip(curve[first], curve[first][1:], strict=False)):
        raise ValueError(f"its curve's {first} falls")


def _check_training(row: store.Row) -> None:
    _check_figures(row, TRAINING)
    columns = {"step": _is_count, "loss": _is_amount, "accuracy": _is_share}
    # No step was taken between an evaluation and the stop that some rows have one of.
    _check_curve(row, columns | {"train_loss": _is_amount}, gaps=("train_loss",))
    if "images" in row["config"].get("task", {}) and row["outcome"] == "ok":
        for name in ("bits_per_dim", "histogram_bits_per_dim"):
            if row["summary"].get(name) is None:
                raise ValueError(f"is 'ok' and has no {name}")


def _check_cost(row: store.Row) -> None:
    _check_figures(row, COST)
    _check_samples(row)


def _check_generation(row: store.Row) -> None:
    _check_figures(row, GENERATION)
    _check_samples(row)
    if row["config"].get("span") == "stream" and row["outcome"] == "ok" or row["curve"]:
        columns = {"position": _is_positive, "ms_per_token": _is_positive}
        _check_curve(row, columns | {"state_bytes": _is_count, "process_bytes": _is_count})


def _check_samples(row: store.Row) -> None:
    samples = row["summary"].get("time_ms_samples", [])
    if not isinstance(samples, list) or (row["outcome"] == "ok" and not samples):
        raise ValueError("has no time_ms_samples")


def _check_retrieval(row: store.Row) -> None:
    means = {name: _is_amount for name in MEANS if name in row["summary"]}
    _check_figures(row, (RETRIEVAL[0] | means, RETRIEVAL[1]))
    _check_curve(row, {"step": _is_count, "loss": _is_amount})


def _origin(row: store.Row) -> dict[str, Any]:
    """The provenance of a row, whose scale and seed are checked as well."""
    origin = row["provenance"]
    if not LABEL.fullmatch(row["scale"]):
        raise ValueError(f"scale is {_short(row['scale'])}")
    if row["seed"] < 0:
        raise ValueError(f"seed is {row['seed']}")
    device = origin.get("device")
    if not isinstance(device, str) or device.split(":")[0] not in ("cpu", "cuda"):
        raise ValueError(f"its device is {_short(device)}")
    name = origin.get("device_name")
    if not isinstance(name, str) or not 0 < len(provenance.clean_name(name)) <= MAX_NAME:
        raise ValueError(f"its device_name is {_short(name)}")
    threads = origin.get("threads")
    if not _is_count(threads) or not 1 <= threads <= MAX_THREADS:
        raise ValueError(f"threads is {_short(threads)}")
    started = origin.get("started")
    try:
        if started is not None:
            datetime.fromisoformat(started)
    except (TypeError, ValueError) as error:
        raise ValueError(f"started is {_short(started)}") from error
    return origin | {"device_name": provenance.clean_name(name)}


def _is_plain_text(value: Any) -> bool:
    return _is_text(value) and value == provenance.clean_name(value)


FIGURE = {
    "ours": _is_plain_text,
    "against": _is_plain_text,
    "unit": _is_plain_text,
    "detail": _is_plain_text,
    "value": _is_number,
    "low": _is_number,
    "high": _is_number,
    "target": _is_number,
    "met": _is_flag,
}


def _check_bench(row: store.Row) -> store.Row:
    config = store.plain(config_from(Setting, row["config"]))
    figures = row["summary"].get("figures")
    if not isinstance(figures, list):
        raise ValueError("has no figures")
    for figure in figures:
        if not isinstance(figure, dict) or figure.keys() != FIGURE.keys():
            raise ValueError("a figure lacks a field, or has another")
        for name, check in FIGURE.items():
            if not (figure[name] is None or check(figure[name])):
                raise ValueError(f"the {name} of a figure is {_short(figure[name])}")
        if None in (figure["ours"], figure["against"], figure["unit"]):
            raise ValueError("a figure lacks a name")
    operators = row["summary"].get("operators", {})
    if not isinstance(operators, dict) or not all(
        isinstance(shares, dict) and all(map(_is_amount, shares.values()))
        for shares in operators.values()
    ):
        raise ValueError("its operators are no shares")
    return row | {"config": config, "provenance": _origin(row)}


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
