"""Rows that another machine brought home, added to `data/`.

Each line of each file has to be a row as that machine wrote it: whole, with a digest that is its
own, of an experiment that is known, of the present versions of what computes it, and under the
run_id of its config. What is recorded here already is not added a second time. A line that is
refused is told with its reason, and the others are added. So is a kept model, which has to be of a
run that is recorded here then.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from replib import files
from replib.lab import kept_models, recorded, store
from replib.lab.configs import config_from
from replib.lab.run import CONFIGS, config_of

REPEATABLE = ("bench",)  # a setting is measured again and again, and every row is kept


@dataclass(frozen=True)
class Merged:
    """How many rows of each experiment were added, and the files of which kept models; what was
    refused, a line a file's line or model; and how many of these are here already, which is no
    fault."""

    added: Mapping[str, int]
    models: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    n_double: int = 0


class Double(ValueError):
    """A row that is here already."""


def merge(folder: Path, known: Collection[str]) -> Merged:
    """Add the rows of a folder to `data/`, all of an experiment's in one write, and kept models.

    One merge waits for another. A file that cannot be read or added to is among what is refused.

    Args:
        folder: of files such as convergence.jsonl.
        known: the experiments that there are.

    Raises:
        ValueError: there is no such folder, it has no rows, or it is the data folder.
        FileError: another process is at a merge for long, or the data folder cannot be written to.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder: name the one that was brought home")
    if folder.resolve() == files.data_folder().resolve():
        raise ValueError(f"{folder} is the data folder itself: name the one that was brought home")
    paths = sorted(folder.glob("*.jsonl"))
    if not paths:
        raise ValueError(f"{folder} has no files of rows, such as convergence.jsonl")
    here = files.data_folder().absolute() / "merge"
    try:
        with store.locked(here):
            return _merged(folder, paths, known)
    except OSError as error:
        raise files.FileError(files.remedy(here, error)) from error


def _merged(folder: Path, paths: Sequence[Path], known: Collection[str]) -> Merged:
    """What is here, and what is added, must be nobody else's to change meanwhile."""
    added, models, refused, n_double = {}, [], [], 0

    def refuse(what: str, error: Exception) -> None:
        nonlocal n_double
        n_double += isinstance(error, Double)
        refused.append(f"{what}: {error}")

    for path in paths:
        rows = []
        try:
            here = _Here(path.stem) if path.stem in known else None
            for number, line in enumerate(_content(path).split(b"\n"), start=1):
                if not line.strip():
                    continue
                try:
                    rows.append(_row(path.stem, line, here))
                except ValueError as error:
                    refuse(f"{path.name}, line {number}", error)
            if rows:
                store.append_rows(path.stem, rows)
                added[path.stem] = len(rows)
        except (ValueError, files.FileError) as error:
            refuse(path.name, error)
    for path in sorted((folder / "models").glob("*.txt")):
        try:
            content = _content(path)
            _check_model(path, known)
            kept_models.write_model(path.name, content.decode("ascii"))
            models.append(path.name)
        except (ValueError, files.FileError) as error:
            refuse(f"models/{path.name}", error)
    return Merged(added, models, refused, n_double)


def _content(path: Path) -> bytes:
    """
    Raises:
        ValueError: a file cannot be read; the message says why in some words.
    """
    try:
        return files.read_whole(path)
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror or error})") from error


def _check_model(path: Path, known: Collection[str]) -> None:
    """
    Raises:
        ValueError: a kept model is refused; the message says why in some words.
    """
    try:
        kept = kept_models.read_model(path)
    except ValueError as error:
        raise ValueError("is torn, changed, or of a model that is not built here") from error
    config, header = kept.training.config, kept.header
    run = header.get("run_id")
    if path.name != kept_models.file_name(config.model):
        raise ValueError(f"is not named {kept_models.file_name(config.model)}, as its mechanism is")
    experiment = header.get("experiment")
    rows = recorded.read_rows(experiment) if experiment in known else []
    own = [row for row in rows if row["run_id"] == run and row["seed"] == header["seed"]]
    if not any(config_of(row) == config for row in own):
        raise ValueError(f"its run {run} is not recorded here")
    here = kept_models.kept_run(config.model)
    if here == run:
        raise Double("is here already")
    if here is not None:
        raise ValueError(f"the model of another run is kept here, {here}: take that away first")


class _Here:
    """What `data/` has of an experiment, and what has been added to it."""

    def __init__(self, experiment: str):
        self.repeatable = experiment in REPEATABLE
        rows = [row for _, row in store.read(experiment).rows]
        self.digests = {store.row_digest(store.NOT_TOLD | row) for row in rows}
        self.runs = {_run_of(row) for row in rows if row["outcome"] != "interrupted"}

    def take(self, row: store.Row) -> None:
        """
        Raises:
            Double: it is here.
        """
        digest = store.row_digest(row)
        if digest in self.digests:
            raise Double("is here already")
        if not self.repeatable and _run_of(row) in self.runs:
            raise Double(f"its run {row['run_id']} is recorded here already")
        self.digests.add(digest)
        self.runs.add(_run_of(row))


def _run_of(row: store.Row) -> tuple[str, str | None]:
    return row["run_id"], row["provenance"].get("device_name")


def _row(experiment: str, line: bytes, here: _Here | None) -> store.Row:
    """The row of a line.

    Raises:
        ValueError: it is refused; the message says why in some words.
    """
    if here is None:
        raise ValueError("is of no experiment that this program has")
    row, has_digest = store.row_of_line(experiment, line)
    if not has_digest:
        raise ValueError("has no digest, so that it cannot be told whether it is whole")
    if row["outcome"] == "interrupted":
        raise ValueError("is of a run that was stopped: it goes on where its checkpoint is")
    try:
        _, current = recorded.checked(row)
    except Exception as error:  # what other hands write is without end
        raise ValueError(str(error)) from error
    config = config_from(CONFIGS[row["kind"]], row["config"])
    if row["run_id"] != store.run_id(row["kind"], config, row["seed"], row["versions"] or {}):
        raise ValueError("its run_id is not that of its config, seed and versions")
    if not current:
        raise ValueError(f"was computed by other versions than here: {row['versions']}")
    here.take(row)
    return row
