"""The only reader and writer of `data/` and of the run cache.

A row is one line of strict JSON in `<folder>/<experiment>.jsonl`: self-contained, appended, never
changed. Behind its columns a line has a digest of them; lines written before there was one lack
it. What is read is checked: a line that the code could not use is skipped, and said. The run cache
is the same functions with `folder=cache_folder()`. Locks are files in `.locks`, of a file that is
being appended to and of a run that a process is at; torch brings `filelock` with it.
"""

import dataclasses
import errno
import hashlib
import json
import math
import os
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from replib.files import FileError, check_regular, data_folder, read_whole, remedy
from replib.lab.provenance import provenance

Row = dict[str, Any]
OUTCOMES = ("ok", "out_of_memory", "diverged", "interrupted")
# The columns of a row, in order, and what each may hold; one that may hold None may be left out.
COLUMNS: dict[str, tuple[type, ...]] = {
    "run_id": (str,),
    "experiment": (str,),
    "scale": (str,),
    "kind": (str, type(None)),
    "config": (dict,),
    "seed": (int,),
    "versions": (dict, type(None)),
    "former_id": (str, type(None)),
    "provenance": (dict,),
    "outcome": (str,),
    "detail": (str, type(None)),
    "summary": (dict,),
    "curve": (dict, type(None)),
}
NOT_TOLD = {name: None for name, types in COLUMNS.items() if type(None) in types}
CLASS = "class"  # names the class of a part of a config that is not its default's
DIGEST = "digest"  # of a line: SHA-256 of the canonical JSON of its columns
EXPERIMENT_NAME = re.compile(r"[a-z0-9_]+")  # a file name on every system, and no path
HASH_DIGITS = 16  # 64 bits: no collision among the thousands of runs of a data folder
MAX_CURVE_POINTS = 400  # more than a chart shows, and 5 MB still hold every recorded run
MAX_NAMED_LINES = 10  # a warning names this many lines, then counts
MAX_INT, MAX_FLOAT = 2**63 - 1, 1e39  # of 64 bits; beyond what float32 holds
MAX_DEPTH = 12  # of lists and dicts in each other; rows have 5
# Who holds the lock of a file is said after so long, and again; then it is given up.
LOCK_SAID_AFTER_S, LOCK_SAID_EVERY_S, LOCK_GIVEN_UP_S = 3.0, 15.0, 120.0
LOCK_ASKED_EVERY_S = 0.02
WHOLE_LINE_S = 1.0  # a reader waits so long for the end of a line, which may be being written


def _path(experiment: str, folder: str | os.PathLike[str] | None) -> Path:
    if not isinstance(experiment, str) or not EXPERIMENT_NAME.fullmatch(experiment):
        raise ValueError(f"experiment {experiment!r}: use lower-case letters, digits and _ only")
    return Path(folder or data_folder()).absolute() / f"{experiment}.jsonl"


def append(experiment: str, row: Mapping[str, Any], folder: Path | None = None) -> None:
    """Append one row, as `append_rows` does."""
    append_rows(experiment, [row], folder)


def append_rows(
    experiment: str, rows: Sequence[Mapping[str, Any]], folder: Path | None = None
) -> None:
    """Append rows: under a lock, in one write, flushed to the disk; all of it or nothing.

    JSON has no NaN or infinity: such numbers are stored as null and read back as None; the outcome
    (`diverged`) says why. A torn last line, left by a killed process, stays as it is; the new row
    starts on a line of its own.

    Raises:
        ValueError: a row lacks a column, has an unknown one, or a value of the wrong kind.
        FileError: the disk is full, the folder cannot be written, or another process keeps the
            file locked for LOCK_GIVEN_UP_S; the file is as before.
    """
    path = _path(experiment, folder)
    lines = b"".join(_line(experiment, row) for row in rows)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0)
        descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0), 0o666)
        try:
            check_regular(descriptor)
            with locked(path):
                _write_whole(descriptor, lines)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise FileError(remedy(path, error)) from error


def make_row(
    experiment: str,
    scale: str,
    config: Any,
    seed: int,
    outcome: str,
    summary: Mapping[str, Any],
    curve: Mapping[str, Sequence[Any]] | None = None,
    detail: str | None = None,
    device: str = "cpu",
    *,
    kind: str | None = None,
    versions: Mapping[str, int] | None = None,
    started: datetime | None = None,
) -> Row:
    """A self-contained row: identity, provenance, outcome, figures and the thinned curve.

    Args:
        config: the frozen dataclass (may nest) or dict of the run.
        kind, versions: of the run, as `run_id` takes them; the config's own if left out.
        started: when the run began (with a time zone); now if left out.

    Raises:
        ValueError: a value that a row cannot hold.
    """
    kind = kind or getattr(config, "kind", "")
    versions = dict(getattr(config, "versions", {}) if versions is None else versions)
    row = {
        "run_id": run_id(kind, config, seed, versions),
        "experiment": experiment,
        "scale": scale,
        "kind": kind,
        "config": config,
        "seed": seed,
        "versions": versions,
        "provenance": provenance(device, started=started),
        "outcome": outcome,
        "detail": detail,
        "summary": summary,
        "curve": None if curve is None else thin(curve),
    }
    made = json.loads(_line(experiment, row))
    del made[DIGEST]
    return made


def thin(curve: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
    """Thin a curve to at most MAX_CURVE_POINTS evenly spaced points.

    The first point, the last one and those of the lowest and highest finite `loss` are kept.

    Raises:
        ValueError: the columns differ in length.
    """
    lengths = {name: len(column) for name, column in curve.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"columns of a curve must be equally long, these are not: {lengths}")
    n_points = next(iter(lengths.values()), 0)
    if n_points <= MAX_CURVE_POINTS:
        return {name: list(column) for name, column in curve.items()}
    n_even = MAX_CURVE_POINTS - 2  # two places are for the extremes
    kept = {round(i * (n_points - 1) / (n_even - 1)) for i in range(n_even)}
    losses = [
        (loss, i)
        for i, loss in enumerate(curve.get("loss", ()))
        if loss is not None and math.isfinite(loss)
    ]
    if losses:
        kept |= {min(losses)[1], max(losses)[1]}
    return {name: [column[i] for i in sorted(kept)] for name, column in curve.items()}


def _line(experiment: str, row: Mapping[str, Any]) -> bytes:
    """The row as one line of strict JSON, checked."""
    unknown = sorted(set(row) - set(COLUMNS))
    if unknown:
        raise ValueError(f"unknown columns {unknown}: a row holds {list(COLUMNS)}")
    plain = NOT_TOLD | _walk(row, _finite_or_none)
    problem = _problem(experiment, plain)
    if problem:
        raise ValueError(f"row of {experiment}: {problem}")
    ordered = {column: plain[column] for column in COLUMNS}
    ordered[DIGEST] = row_digest(ordered)
    return json.dumps(ordered, allow_nan=False, separators=(",", ":")).encode() + b"\n"


def row_digest(row: Mapping[str, Any]) -> str:
    """SHA-256 of a row's canonical JSON: keys in order, no spaces, ASCII."""
    text = json.dumps(row, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _problem(experiment: str, row: Any) -> str | None:
    """What keeps `row` from being a row of `experiment`; None if nothing does."""
    if not isinstance(row, dict):
        return "not an object"
    for column, types in COLUMNS.items():
        if column not in row and type(None) not in types:
            return f"lacks {column!r}"
        if type(value := row.get(column)) not in types:
            return f"{column} is {value!r}, not {types[0].__name__}"
    if row["experiment"] != experiment:
        return f"experiment is {row['experiment']!r}"
    if row["outcome"] not in OUTCOMES:
        return f"outcome is {row['outcome']!r}, not one of {', '.join(OUTCOMES)}"
    return _unusable(row)


def _unusable(value: Any, depth: int = 0) -> str | None:
    """What no figure, chart or terminal could take of a value of JSON; None if nothing."""
    if isinstance(value, str):
        if not value.replace("\n", "").isprintable():  # control characters, surrogates
            return f"holds the text {ascii(value)[:40]}"
    elif isinstance(value, float):
        if abs(value) > MAX_FLOAT:
            return f"holds the number {value}"
    elif isinstance(value, int):
        if not -MAX_INT <= value <= MAX_INT:
            return f"holds a number of {value.bit_length()} bits"
    elif isinstance(value, dict | list):
        if depth >= MAX_DEPTH:
            return f"is nested more than {MAX_DEPTH} deep"
        for item in [*value, *value.values()] if isinstance(value, dict) else value:
            if type(item) is float and -MAX_FLOAT <= item <= MAX_FLOAT:
                continue  # most of a row, and quick
            if problem := _unusable(item, depth + 1):
                return problem
    return None


def _write_whole(descriptor: int, line: bytes) -> None:
    """Write the whole line at the end of the file, or leave the file as it was."""
    size = os.lseek(descriptor, 0, os.SEEK_END)
    if size:
        os.lseek(descriptor, size - 1, os.SEEK_SET)
        if os.read(descriptor, 1) != b"\n":
            line = b"\n" + line  # a killed process left a torn line
    try:
        if os.write(descriptor, line) < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(descriptor)
    except OSError:
        with suppress(OSError):  # the first error is the one to report; readers skip a torn line
            os.ftruncate(descriptor, size)
        raise


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of a data file. While another process has it, that is said; a reader needs it
    where the last line has no end. The name of no file is that of a lock alone.

    Raises:
        FileError: another process had it for LOCK_GIVEN_UP_S.
        OSError: the folder of locks cannot be written to.
    """
    lock, began, patience = _lock_of(path.parent, path.name), time.monotonic(), LOCK_SAID_AFTER_S
    while True:
        try:
            lock.acquire(timeout=patience, poll_interval=LOCK_ASKED_EVERY_S)
            break
        except Timeout:
            waited, patience = time.monotonic() - began, LOCK_SAID_EVERY_S
        holder = _holder(Path(lock.lock_file))
        if waited > LOCK_GIVEN_UP_S:
            raise FileError(
                f"{path} was locked by {holder} for {waited:.0f} s, and nothing was written: end "
                "that process, then run the same command again"
            )
        since = datetime.now().astimezone() - timedelta(seconds=waited)
        _say(
            f"{path.name} has been locked by {holder} since {since:%H:%M:%S} or earlier: "
            f"waiting, at most {LOCK_GIVEN_UP_S - waited:.0f} s more"
        )
    try:
        yield
    finally:
        lock.release()


@contextmanager
def claimed(work: str) -> Iterator[bool]:
    """Whether some work on the data folder is this process's, True for the first that asks: until
    it is done with it, or is killed, the others get False. Where locks cannot be had all get True.
    The folder counts, by whatever path it is reached."""
    lock = None
    try:
        lock = _lock_of(data_folder(), _digest(work))
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    except OSError:
        pass
    try:
        yield True
    finally:
        if lock is not None:
            lock.release()


def _lock_of(folder: Path, name: str) -> FileLock:
    locks = folder / ".locks"
    locks.mkdir(parents=True, exist_ok=True)
    return FileLock(locks / name, thread_local=False)


def _holder(lock: Path) -> str:
    """Who has a lock, as far as the system tells (Linux)."""
    about = os.stat(lock)
    device = f"{os.major(about.st_dev):02x}:{os.minor(about.st_dev):02x}:{about.st_ino}"
    with suppress(OSError, IndexError):
        for line in Path("/proc/locks").read_text().splitlines():
            parts = line.split()
            if device in parts and "->" not in parts:
                return f"process {parts[parts.index(device) - 1]}"
    return "another process"


def _say(text: str) -> None:
    """A line for whoever waits: a warning would be shown once only."""
    print(f"replib: {text}", file=sys.stderr, flush=True)


@dataclasses.dataclass(frozen=True)
class Content:
    """What a file held when it was read: its rows and what is wrong with other lines, each by the
    number of its line, and how many rows were written before lines had a digest. A line that
    is there twice, as from two merges of one folder at once, counts once."""

    version: tuple[int, int, int] = (0, 0, 0)  # inode, modification time, size
    rows: tuple[tuple[int, Row], ...] = ()
    problems: tuple[tuple[int, str], ...] = ()
    n_without_digest: int = 0


_READ: dict[Path, Content] = {}  # notebooks read far oftener than runs end


def read_rows(experiment: str, folder: Path | None = None) -> list[Row]:
    """All rows of an experiment, oldest first, as they were written; none if the file is missing.
    Lines that are no rows are skipped, with one warning that names them and says why. What is
    judged and shown is read by `lab.recorded`, which looks into them.

    Raises:
        FileError: the file is there and cannot be read.
    """
    content = read(experiment, folder)
    if content.problems:
        told = skipped_text(experiment, content.problems, len(content.rows))
        warnings.warn(told, stacklevel=2)
    return [row for _, row in content.rows]


_NOTHING = Content()


def read(experiment: str, folder: Path | None = None) -> Content:
    """What a file holds; the same object until the file changes.

    Raises:
        FileError: the file is there and cannot be read.
    """
    path = _path(experiment, folder)
    try:
        about = os.stat(path)
        version = (about.st_ino, about.st_mtime_ns, about.st_size)
        if path not in _READ or _READ[path].version != version:
            content = read_whole(path)
            if content and not content.endswith(b"\n"):  # torn, or somebody is writing it
                content = _read_at_rest(path) or content
            _READ[path] = _parse(experiment, content, version)
    except FileNotFoundError:
        return _NOTHING
    except OSError as error:
        raise FileError(remedy(path, error)) from error
    return _READ[path]


def _read_at_rest(path: Path) -> bytes:
    """What a file holds while nobody writes to it; nothing where it cannot be locked."""
    try:
        with _lock_of(path.parent, path.name).acquire(timeout=WHOLE_LINE_S):
            return read_whole(path)
    except OSError:  # a folder that cannot be written, or a Timeout
        return b""


def skipped_text(experiment: str, problems: Sequence[tuple[int, str]], n_rows: int) -> str:
    """Which lines of a file are skipped, and why."""
    named = ", ".join(f"line {number} ({why})" for number, why in problems[:MAX_NAMED_LINES])
    more = f" and {len(problems) - MAX_NAMED_LINES} more" * (len(problems) > MAX_NAMED_LINES)
    n = len(problems)
    return f"{experiment}.jsonl: {n} of {n + n_rows} lines skipped: {named}{more}"


def _parse(experiment: str, content: bytes, version: tuple[int, int, int]) -> Content:
    rows, problems, n_without, known = [], [], 0, set()
    for number, line in enumerate(content.split(b"\n"), start=1):
        if not line.strip() or line in known:
            continue
        try:
            row, has_digest = row_of_line(experiment, line)
            rows.append((number, row))
            known.add(line)
            n_without += not has_digest
        except ValueError as error:
            problems.append((number, str(error)))
    return Content(version, tuple(rows), tuple(problems), n_without)


def row_of_line(experiment: str, line: bytes) -> tuple[Row, bool]:
    """The row of a line, and whether it had a digest.

    Raises:
        ValueError: it is none; the message says why in some words.
    """
    try:
        row = json.loads(
            line.decode(), parse_constant=lambda _: None, object_pairs_hook=_without_twins
        )
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, or nested without end
        twice = isinstance(error, _Twice)
        raise ValueError(str(error) if twice else "torn or no JSON") from error
    digest = row.pop(DIGEST, None) if isinstance(row, dict) else None
    if problem := _problem(experiment, row):
        raise ValueError(problem)
    if unknown := sorted(set(row) - set(COLUMNS)):
        raise ValueError(f"unknown column {unknown[0]!r}")
    if digest is not None and digest != row_digest(row):
        raise ValueError("its digest is another: the line was changed or damaged")
    return NOT_TOLD | row, digest is not None


class _Twice(ValueError):
    """A key that a JSON object has twice."""


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _Twice("has a key twice")
    return found


def run_id(kind: str, config: Any, seed: int, versions: Mapping[str, int]) -> str:
    """The identity of a run, 16 hex digits: a hash of its kind, config, seed and of the versions of
    the parts that compute it.

    Fields that have their default do not count, and neither do versions of 1: a field or a part
    that is added later leaves the runs of before what they were. A whole float counts as the
    integer (`32.0` is `32`) and a tuple as a list; the order of fields does not count.

    Raises:
        ValueError: the config holds something else than numbers, text, lists, dicts and
            dataclasses.
    """
    changed = {name: version for name, version in versions.items() if version != 1}
    identity = _walk([kind, _changed_fields(config), seed, changed], _whole_as_int)
    return _digest(json.dumps(identity, sort_keys=True))


def _changed_fields(config: Any) -> Any:
    """A dataclass as its fields that differ from their defaults; one in it is told by its class
    too, where its class is not the default's."""
    if not dataclasses.is_dataclass(config):
        return config
    found = {}
    for field in dataclasses.fields(config):
        value, default = getattr(config, field.name), default_of(field)
        if not field.init or value == default:
            continue
        found[field.name] = _with_class(value, default, _changed_fields(value))
    return found


def default_of(field: dataclasses.Field) -> Any:
    """The default of a field, MISSING where it has none."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _with_class(value: Any, default: Any, plain: Any) -> Any:
    """A part of a config, where its class is not the default's with its name."""
    if dataclasses.is_dataclass(default) and type(value) is not type(default):
        return {CLASS: type(value).__name__} | plain
    return plain


def of_versions(row: Row, versions: Mapping[str, int]) -> bool:
    """Whether a row was computed by parts of these versions; one that is not named counts as 1."""
    if row.get("versions") is None:
        return False
    names = versions.keys() | row["versions"].keys()
    return all(row["versions"].get(name, 1) == versions.get(name, 1) for name in names)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:HASH_DIGITS]


def _walk(value: Any, number: Callable[[float], Any]) -> Any:
    """A value as plain JSON types, every float passed through `number`."""

    def walk(item: Any) -> Any:
        return _walk(item, number)

    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return number(float(value))
    if isinstance(value, Mapping):
        return {str(key): walk(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [walk(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        found = {}
        for field in dataclasses.fields(value):
            part, default = getattr(value, field.name), default_of(field)
            found[field.name] = _with_class(part, default, walk(part))
        return found
    if hasattr(value, "tolist"):  # numpy and torch
        return walk(value.tolist())
    raise ValueError(f"{value!r} has no JSON form: use numbers, text, lists, dicts or dataclasses")


def plain(config: Any) -> Any:
    """A config as rows hold it."""
    return _walk(config, lambda number: number)


def _finite_or_none(number: float) -> float | None:
    return number if math.isfinite(number) else None


def _whole_as_int(number: float) -> float | int:
    return int(number) if number.is_integer() else number
