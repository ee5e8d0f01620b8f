"""Drawing with a trained pixel model: its weights kept as text, images completed pixel by pixel.

B images, N = h·w·c positions, of which n are given. Levels are (B, N), int64.

A kept model is a file of `data/models/`: one line "# " and JSON (run_id, commit, config, seed, the
SHA-256 of the weights), then the weights in the order of `model.parameters()`, float16 with the low
byte first, in base 85, a line at a time.
"""

import base64
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from replib import files
from replib.generation import Decoder
from replib.lab import store
from replib.lab.configs import config_from
from replib.models import TransformerConfig
from replib.tasks.images import Pixels, sample_levels
from replib.training import Training, TrainingConfig

LINE = 100  # characters of base 85
HEADER = {"run_id": str, "experiment": str, "seed": int}  # what it tells of a run
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.01, 10.0  # colder is one image, hotter is noise
REMEDY = "make it again with 'python -m replib record images --scale laptop', some minutes"


@dataclass(frozen=True)
class Kept:
    """A trained model from a file, and where it comes from: `header`, which is the file's."""

    training: Training
    header: dict[str, Any]

    @property
    def task(self) -> Pixels:
        return self.training.config.task


def model_path(model: TransformerConfig | str) -> Path:
    """The file of the model that is kept of a mechanism, beside the recorded rows; where there is
    none, as with rows of one's own, that of the repository."""
    name = file_name(model)
    paths = [folder / "models" / name for folder in (files.data_folder(), files.ROOT / "data")]
    return next((path for path in paths if path.exists()), paths[0])


def file_name(model: TransformerConfig | str) -> str:
    """That of the model that is kept of a mechanism."""
    return f"images_{model if isinstance(model, str) else model.attention}.txt"


def keep_model(training: Training, row: store.Row) -> Path:
    """Write the weights of a trained pixel model; `row` is its recorded one.

    Raises:
        FileError: it cannot be written; the file is as before.
    """
    return write_model(*model_text(training, row))


def model_text(training: Training, row: store.Row) -> tuple[str, str]:
    """The name and the content of the file of a trained pixel model."""
    weights = parameters_to_vector(training.model.parameters()).detach().cpu().numpy()
    content = weights.astype("<f2").tobytes()
    header = {name: row[name] for name in ("run_id", "experiment", "config", "seed")}
    header |= {name: row["provenance"][name] for name in ("commit", "device_name")}
    header |= {"bits_per_dim": row["summary"]["bits_per_dim"], "n_parameters": len(weights)}
    header["sha256"] = hashlib.sha256(content).hexdigest()
    text = base64.b85encode(content).decode()
    lines = [text[i : i + LINE] for i in range(0, len(text), LINE)]
    name = model_path(training.config.model).name
    return name, "\n".join([f"# {json.dumps(header)}", *lines, ""])


def write_model(name: str, text: str) -> Path:
    """Write the file of a kept model beside the recorded rows.

    Raises:
        FileError: it cannot be written; the file is as before.
    """
    path = files.data_folder() / "models" / name
    files.replace_file(path, text)
    return path


def kept_run(model: TransformerConfig) -> str | None:
    """The run_id of the model that is kept of a mechanism beside the recorded rows, if any is."""
    path = model_path(model)
    if path.parent.parent != files.data_folder():
        return None
    try:
        return load_model(model).header["run_id"]
    except ValueError:
        return None


def load_model(model: TransformerConfig | str) -> Kept:
    """The kept model of a mechanism, by its name or a config with it.

    Example:
        >>> load_model("linear").header["run_id"]

    Raises:
        ValueError: the file is missing, torn, or of a model that this program does not build; the
            message names the file and how to make it again.
    """
    return read_model(model_path(model))


def read_model(path: Path) -> Kept:
    """The kept model of a file.

    Raises:
        ValueError: as `load_model`.
    """
    try:
        first, *lines = files.read_whole(path).split(b"\n")
        header = json.loads(first.removeprefix(b"# "))
        for name, kind in HEADER.items():
            if type(header[name]) is not kind:
                raise ValueError(f"the {name} of its header is no {kind.__name__}")
        content = base64.b85decode(b"".join(lines))
        if hashlib.sha256(content).hexdigest() != header["sha256"]:
            raise ValueError("its weights are not those of its header")
        config = config_from(TrainingConfig, header["config"])
        training = Training(config, seed=header["seed"], device="cpu")
        n_parameters = sum(p.numel() for p in training.model.parameters())
        weights = torch.from_numpy(np.frombuffer(content, dtype="<f2").astype(np.float32))
        if len(weights) != n_parameters:
            raise ValueError(f"it has {len(weights)} weights, the model {n_parameters}")
        vector_to_parameters(weights, training.model.parameters())
    except FileNotFoundError as error:
        raise ValueError(f"{path} is missing: {REMEDY}") from error
    except Exception as error:  # what other hands write is without end
        raise ValueError(f"{path} is damaged ({error}): {REMEDY}") from error
    training.model.eval()
    return Kept(training, header)


@torch.inference_mode()
def complete(
    kept: Kept, given: Tensor, *, temperature: float = 1.0, generator: torch.Generator
) -> Iterator[Tensor]:
    """Draw the rest of images of which the first n levels are given, (B, n) with 0 <= n <= N, one
    position at a time; yields the levels so far, (B, n) to (B, N).

    Raises:
        ValueError: more is given than an image has, a level is none, or the temperature is out of
            range.
    """
    task = kept.task
    _check(task, given, temperature)
    # The first step decides about the first level that is not given.
    decoder = Decoder(kept.training.model, len(given), max_len=task.seq_len)
    *before, last = task.inputs(given.long()).unbind(1)
    levels = given.long()
    for token in before:
        decoder.step(token)
    yield levels
    while levels.shape[1] < task.seq_len:
        last = sample_levels(decoder.step(last), task.n_levels, generator, temperature)
        levels = torch.cat([levels, last[:, None]], dim=1)
        yield levels


def _check(task: Pixels, given: Tensor, temperature: float) -> None:
    if given.ndim != 2 or given.shape[1] > task.seq_len:
        raise ValueError(
            f"given levels have the shape {tuple(given.shape)}: use (B, n), n at most "
            f"{task.seq_len}"
        )
    if given.numel() and not 0 <= given.min() <= given.max() < task.n_levels:
        worst = max((given.min().item(), given.max().item()), key=abs)
        raise ValueError(f"a given level is {worst}: use 0 to {task.n_levels - 1}")
    if not MIN_TEMPERATURE <= temperature <= MAX_TEMPERATURE:
        raise ValueError(
            f"temperature {temperature}: use {MIN_TEMPERATURE:g} to {MAX_TEMPERATURE:g}"
        )
