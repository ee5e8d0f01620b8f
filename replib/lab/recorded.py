"""What the code can use of a recorded row: configs that it can build, figures that it can draw.

Rows come from other versions, other machines and other hands. Here is the one border where they are
checked: a row passes `checked` or is skipped and said. Its config is built again from its fields,
so that a field which was added later has its default in older rows (a new field's default must be
what was done before), and a field that is not known, a value of the wrong kind or an impossible one
is refused; its figures and curve are those of its kind's schema. Behind this border nobody checks a
row again.
"""

import dataclasses
import json
import warnings
from collections.abc import Sequence
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from replib.files import FileError, data_folder
from replib.lab import store
from replib.lab.configs import config_from, short
from replib.lab.provenance import clean_name
from replib.lab.run import BASES, CONFIGS, Config, versions_of

Count = Annotated[int, Meta(ge=0)]
Amount = Annotated[float, Meta(ge=0)]
Positive = Annotated[float, Meta(gt=0)]
Share = Annotated[float, Meta(ge=0, le=1)]


class LengthFigures(Struct):
    """Of the test sentences with so many words in the source; `words` is the most, None for all
    longer ones."""

    words: Count | None
    n: Count
    perplexity: Positive
    bleu: Amount | None = None
    exact: Share | None = None


class PositionFigures(Struct):
    """Of the tokens of a text at positions up to this one in what the model was given, from half of
    it on; nats a token."""

    position: Count
    nats: Amount


class TrainingFigures(Struct):
    """Of a run that ended; a field without a default is there."""

    n_steps: Count
    final_loss: Amount
    final_accuracy: Share
    best_loss: Amount
    steps_to_solved: Count | None = None
    n_spikes: Count | None = None
    steps_per_s: Positive | None = None
    bits_per_dim: Amount | None = None
    histogram_bits_per_dim: Amount | None = None
    perplexity: Positive | None = None
    perplexity_per_char: Positive | None = None
    n_test: Count | None = None
    n_parameters: Count | None = None
    exact: Share | None = None
    bleu: Amount | None = None
    bleu_beam: Amount | None = None
    bleu_signature: str | None = None
    chrf: Amount | None = None
    chrf_signature: str | None = None
    by_length: list[LengthFigures] | None = None
    text_digest: str | None = None
    bits_per_byte: Positive | None = None
    bits_per_character: Positive | None = None
    perplexity_sliding: Positive | None = None
    perplexity_of_batch_means: Positive | None = None
    by_position: list[PositionFigures] | None = None
    by_segment: list[Amount] | None = None
    state_bytes: Count | None = None


class CostFigures(Struct):
    time_ms: Positive
    time_ms_q25: Positive
    time_ms_q75: Positive
    time_ms_samples: list[Positive]
    time_ms_per_sample: Positive
    memory_bytes: Count
    memory_bytes_per_sample: Amount
    n_repeats: Count | None = None
    n_repeats_asked: Count | None = None
    page_faults_samples: list[Amount] | None = None
    page_faults_own: Amount | None = None
    n_disturbed: Count | None = None


class GenerationFigures(CostFigures, kw_only=True):
    """A whole sequence's memory is not measured."""

    memory_bytes: Count | None = None
    memory_bytes_per_sample: Amount | None = None
    state_bytes: Count


class RetrievalFigures(Struct):
    n_steps: Count
    final_loss: Amount
    best_loss: Amount
    reported_loss: Amount
    solved: bool
    reason: str
    seconds: Amount | None = None
    seeds_together: Positive | None = None
    best_all_keys_loss: Amount | None = None
    best_asked_loss: Amount | None = None
    best_batches_loss: Amount | None = None


class TrainingCurve(Struct):
    """A point that is no number is one at which the run diverged. No step was taken between an
    evaluation and the stop that some rows have one of: it has no `train_loss`."""

    step: list[Count]
    loss: list[Amount | None]
    accuracy: list[Share | None]
    train_loss: list[Amount | None]


class RetrievalCurve(Struct):
    step: list[Count]
    loss: list[Amount | None]


class StreamCurve(Struct):
    position: list[Positive]
    ms_per_token: list[Positive]
    state_bytes: list[Count]
    process_bytes: list[Count]


MAY_BE_MISSING = "train_loss"


SCHEMAS: dict[str, tuple[type[Struct], type[Struct] | None]] = {
    "training": (TrainingFigures, TrainingCurve),
    "cost": (CostFigures, None),
    "step": (CostFigures, None),
    "generation": (GenerationFigures, StreamCurve),
    "retrieval": (RetrievalFigures, RetrievalCurve),
}
"""Of the figures and the curve of each kind of run, and of the special ones of it."""


@dataclasses.dataclass(frozen=True)
class Recorded:
    """The rows of an experiment by what the code makes of them: those that it computes, those that
    an earlier version of a part computed, and what is skipped."""

    content: store.Content
    rows: tuple[store.Row, ...]
    old: tuple[store.Row, ...]
    skipped: str | None


_READ: dict[tuple[str, Path | None], Recorded] = {}


def read(experiment: str, folder: Path | None = None) -> Recorded:
    """
    Raises:
        FileError: the file is there and cannot be read.
    """
    content = store.read(experiment, folder)
    key = experiment, folder or data_folder()
    if key not in _READ or _READ[key].content is not content:
        _READ[key] = _sorted(experiment, content)
    return _READ[key]


def _sorted(experiment: str, content: store.Content) -> Recorded:
    rows, old, problems = [], [], list(content.problems)
    for number, row in content.rows:
        try:
            row, current = checked(row)
            (rows if current else old).append(row)
        except Exception as error:  # what other hands write is without end
            problems.append((number, str(error)))
    n_rows = len(rows) + len(old)
    told = store.skipped_text(experiment, sorted(problems), n_rows) if problems else None
    return Recorded(content, tuple(rows), tuple(old), told)


def read_rows(experiment: str, folder: Path | None = None) -> list[store.Row]:
    """The rows of an experiment that the present code computes (of the present versions of their
    parts), oldest first; none if the file is missing. The others are `old_rows`.

    The list is the caller's own; its rows are shared between calls, so do not change them. A field
    of a config that a row lacks, as it was added later, has its default. What is skipped is said by
    one warning, and by `skipped`.

    Raises:
        FileError: the file is there and cannot be read.
    """
    found = read(experiment, folder)
    if found.skipped:
        warnings.warn(found.skipped, stacklevel=2)
    return list(found.rows)


def old_rows(experiment: str) -> list[store.Row]:
    """The rows of an experiment by earlier versions of a part that computes them, oldest first:
    they are kept, and neither judged nor shown as present ones."""
    return list(read(experiment).old)


def left_out(experiment: str) -> str | None:
    """How many runs are left out, as only an earlier version of what computes them recorded them;
    None where there are none."""
    try:
        found = read(experiment)
    except FileError:
        return None  # `skipped` says so
    n = len(set(map(_run_of, found.old)) - set(map(_run_of, found.rows)))
    if not n:
        return None
    runs = f"{n} {'run' if n == 1 else 'runs'}"
    return (
        f"{experiment}: {runs} of earlier code are left out; all that is shown and judged is of "
        f"the present code. To repeat those of a scale: python -m replib record {experiment}"
    )


def skipped(experiment: str) -> str | None:
    """Which lines of a file are skipped, and why; why it cannot be read; None where all is read."""
    try:
        return read(experiment).skipped
    except FileError as error:
        return str(error)


def recorded_rows(name: str) -> list[store.Row]:
    """The rows of `data/` to judge and show: the last of each run, "smoke" runs only where there
    are no others, as they are too short to say anything; none, with a warning, where the file
    cannot be read."""
    try:
        rows = latest(read_rows(name))
    except FileError as error:
        warnings.warn(str(error), stacklevel=2)
        return []
    return [row for row in rows if row["scale"] != "smoke"] or rows


def latest(rows: Sequence[store.Row]) -> list[store.Row]:
    """The last row of each config, seed and kind of device, oldest first; a later recording takes
    the place of an earlier one, and a finished run that of a stopped one. Later is what stands
    later in the file, as clocks are set back."""
    ordered = sorted(rows, key=lambda row: row["outcome"] != "interrupted")
    kept = {id(row) for row in {_run_of(row): row for row in ordered}.values()}
    return [row for row in rows if id(row) in kept]


def _run_of(row: store.Row) -> tuple[str, int, str]:
    """What two recordings of one thing have in common."""
    config = json.dumps(row["config"], sort_keys=True)
    return config, row["seed"], row["provenance"].get("device_name")


def checked(row: store.Row) -> tuple[store.Row, bool]:
    """A row with its whole config, and whether the present code computes it.

    Raises:
        ValueError: the code cannot use it; the message says why in some words.
    """
    if row["kind"] not in CONFIGS:
        raise ValueError(f"its kind is {short(row['kind'])}")
    config = config_from(CONFIGS[row["kind"]], row["config"])
    try:
        _check(row, config)
        origin = msgspec.convert(row["provenance"], Origin)
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from error
    name = {"device_name": clean_name(origin.device_name)}
    current = store.of_versions(row, versions_of(config, cost=BASES[row["kind"]] == "step"))
    return row | {"config": store.plain(config), "provenance": row["provenance"] | name}, current


def _check(row: store.Row, config: Config) -> None:
    """
    Raises:
        ValueError, msgspec.ValidationError: what the code cannot use.
    """
    msgspec.convert(row, Head)
    figures, curve = SCHEMAS[BASES[row["kind"]]]
    ended = row["outcome"] == "ok"
    msgspec.convert(row["summary"], figures if ended else _unfinished(figures))
    for name in getattr(getattr(config, "task", None), "FIGURES", ()) if ended else ():
        if BASES[row["kind"]] != "step" and row["summary"].get(name) is None:
            raise ValueError(f"is 'ok' and has no {name}")
    if ended and row["summary"].get("time_ms_samples") == []:
        raise ValueError("is 'ok' and has no time_ms_samples")
    if row["curve"] is not None and curve:
        _check_curve(row, msgspec.convert(row["curve"], curve))
    elif ended and curve and getattr(config, "span", "stream") == "stream":
        raise ValueError("is 'ok' and has no curve")


class Head(Struct):
    """What every row has, besides what `store` looks at."""

    scale: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_]{1,40}$")]
    seed: Count
    versions: dict[str, Count] | None


class Origin(Struct):
    """The provenance of a row, as far as pages show it."""

    device: Annotated[str, Meta(pattern=r"^(cpu|cuda)(:\d+)?$")]
    device_name: Annotated[str, Meta(min_length=1, max_length=200, pattern=r"[^\s<>&|*`\[\]\\]")]
    threads: Annotated[int, Meta(ge=1, le=4096)]
    started: str | None = None

    def __post_init__(self):
        if self.started is not None:
            try:
                datetime.fromisoformat(self.started)
            except ValueError as error:
                raise ValueError(f"started is {short(self.started)}") from error


def _check_curve(row: store.Row, curve: Struct) -> None:
    columns = {name: getattr(curve, name) for name in curve.__struct_fields__}
    first = next(iter(columns.values()))
    lengths = {len(x) for x in row["curve"].values() if isinstance(x, list)}
    if lengths != {len(first)} or not all(isinstance(x, list) for x in row["curve"].values()):
        raise ValueError("the columns of its curve differ in length")
    if row["outcome"] == "ok" and not first:
        raise ValueError("is 'ok' and its curve is empty")
    if any(a > b for a, b in zip(first, first[1:], strict=False)):
        raise ValueError(f"its curve's {next(iter(columns))} falls")
    if row["outcome"] != "diverged":
        for name, column in columns.items():
            if None in column and name != MAY_BE_MISSING:
                raise ValueError(f"its curve's {name} is None")


@lru_cache
def _unfinished(figures: type[Struct]) -> type[Struct]:
    """The schema of figures of a run that did not end, all of which may be missing."""
    fields = [(f.name, f.type | None, None) for f in msgspec.structs.fields(figures)]
    return msgspec.defstruct(f"Unfinished{figures.__name__}", fields)
