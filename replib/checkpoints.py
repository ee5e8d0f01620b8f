"""Checkpoints: a state of plain values and tensors in a file that carries its own digest.

A file is MAGIC, the SHA-256 of what follows in hexadecimal digits, and what `torch.save` writes.
"""

import hashlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch

from replib import files

MAGIC = b"replib checkpoint\n"
DIGEST_BYTES = 64


def save(state: dict[str, Any], path: Path | str) -> None:
    """Write a checkpoint whole; a killed process leaves the old one.

    Raises:
        FileError: the disk is full or the folder cannot be written; the file is as before.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    payload = buffer.getvalue()
    files.replace_file(Path(path), MAGIC + _digest(payload) + payload)


def load(path: Path | str) -> dict[str, Any]:
    """The state of a checkpoint, its tensors on the CPU.

    Raises:
        FileNotFoundError, NotADirectoryError: there is none.
        ValueError: the file cannot be read, is damaged, or is none of this program's.
    """
    with _or_damaged(path):
        content = files.read_whole(Path(path))
        head, payload = content[: len(MAGIC) + DIGEST_BYTES], content[len(MAGIC) + DIGEST_BYTES :]
        if head != MAGIC + _digest(payload):
            raise ValueError("its digest is another")
        return torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)


def restore_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Set the moments of each parameter; rates and other settings stay those of the run.

    Raises:
        ValueError: the moments are those of other parameters.
    """
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state["state"]})
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    moments = [optimizer.state[p] for p in parameters if p in optimizer.state]
    if moments and len(moments) != len(parameters):
        raise ValueError("some parameters have no moments")
    for parameter, own in zip(parameters, moments, strict=False):
        shapes = {name: tuple(value.shape) for name, value in own.items()}
        each = tuple(parameter.shape)
        if shapes != {"step": (), "exp_avg": each, "exp_avg_sq": each}:
            raise ValueError("the moments have other shapes")


def checked_step(step: Any, n_steps: int) -> int:
    """The step of a state, if it is one of a run of so many steps."""
    if type(step) is not int or not 0 <= step <= n_steps:
        raise ValueError(f"its step is {step!r}")
    return step


@contextmanager
def _or_damaged(path: Path | str) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        raise
    except Exception as error:  # torch raises many kinds for what it cannot read
        raise ValueError(
            f"{path} is damaged, or no checkpoint of this version: delete it"
        ) from error


def _digest(payload: bytes) -> bytes:
    return hashlib.sha256(payload).hexdigest().encode()


class Checkpointed:
    """A training that is saved and goes on: it has `_state()`, and `_restore(state)` that takes it
    back. The values of a state named in `same_run` tell whether a checkpoint is of the same run."""

    same_run: ClassVar[tuple[str, ...]] = ("config", "seed")

    def save(self, path: Path | str) -> None:
        """Write a checkpoint from which `load` continues bit for bit, on the same machine with the
        same torch and number of threads; a killed process leaves the old one.

        Raises:
            FileError: it cannot be written; the file is as before.
        """
        save(self._state(), path)

    def load(self, path: Path | str) -> None:
        """Continue from a checkpoint of the same config and seeds.

        Raises:
            FileNotFoundError: there is none.
            ValueError: the file is damaged, or is one of another config, seeds or version; this
                object may be half restored then.
        """
        state, own = load(path), self._state()
        with _or_damaged(path):
            if state.keys() != own.keys():
                raise ValueError("it has other fields")
            same = all(state[name] == own[name] for name in self.same_run)
        if not same:
            raise ValueError(
                f"{path} belongs to another config or seeds: use another path, or delete it"
            )
        with _or_damaged(path):
            self._restore(state)
