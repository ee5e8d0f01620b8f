"""Copying, drawn vectorised on the device that trains on it.

B batch, N sequence length, V vocabulary. A task is a frozen config with a `sample` method; every
random number comes from the generator that it is given.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from replib.checks import check_numbers

MAX_SEQ_LEN = 2**17  # twice the paper's longest sequence; more is a slip of the keyboard
NOT_IN_LOSS = -100  # a target that does not count


@dataclass(frozen=True)
class Batch:
    """What a model is given and what it should answer.

    Attributes:
        inputs: token tensors, the positional arguments of the model.
        targets: (B, N) the token expected at each output position.
        in_loss: (B, N) bool, positions that count in the loss.
        in_accuracy: (B, N) bool, positions that count in the accuracy.
    """

    inputs: tuple[Tensor, ...]
    targets: Tensor
    in_loss: Tensor
    in_accuracy: Tensor


def drawn(low: int, high: int, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Whole numbers of low to high - 1, on the generator's device."""
    return torch.randint(low, high, shape, generator=generator, device=generator.device)


class TokenTask:
    """What training asks of a task whose model puts out a logit for each token, (B, N, V)."""

    experiment: ClassVar[str]
    """What trainings on it are stored under."""
    VERSION: ClassVar[int] = 1
    """Raised when what is drawn or counted changes: its recorded runs are then old."""
    FIGURES: ClassVar[tuple[str, ...]] = ()
    """What `figures_of` tells, in every row of a run that ended."""

    def missing_data(self, batch_size: int = 1) -> str | None:
        """Why its data cannot be read, or are less than a batch; None where they will do, or are
        drawn as here."""
        return None

    @property
    def model_sizes(self) -> dict[str, int]:
        """What a model is built with besides its config."""
        return {"vocab_size": self.vocab_size, "max_len": self.seq_len}

    def held_out(
        self, batch_size: int, n_batches: int, generator: torch.Generator
    ) -> Iterator[Batch]:
        """Batches to evaluate on: freshly drawn ones."""
        for _ in range(n_batches):
            yield self.sample(batch_size, generator)

    def loss(self, logits: Tensor, batch: Batch, label_smoothing: float = 0.0) -> Tensor:
        """Mean cross-entropy over the positions in the loss, nats a token."""
        targets = batch.targets.masked_fill(~batch.in_loss, NOT_IN_LOSS).flatten()
        options = {"ignore_index": NOT_IN_LOSS, "label_smoothing": label_smoothing}
        return cross_entropy(logits.flatten(0, 1).float(), targets, **options)

    def figures_of(self, loss: float | None) -> dict[str, float | None]:
        """What else is told of a run that ends with a loss (nats a token), None before the first
        evaluation."""
        return {}

    def most_likely(self, logits: Tensor) -> Tensor:
        """The tokens (B, N) that logits hold for the likeliest."""
        return logits.argmax(-1)


@dataclass(frozen=True, kw_only=True)
class CausalCopy(TokenTask):
    """Repeat a sequence after a separator (Katharopoulos et al. 2020, section 4.1).

    n symbols (n drawn uniformly from N//4 to (N-1)//2 - 1, each of 10), the separator 0, the
    same symbols, zeros up to N. With N = 16 and n = 4:

        inputs   7 3 9 1 0 7 3 9 1 0 0 0 0 0 0 0
        targets  . . . 0 7 3 9 1 . . . . . . . .      in the loss: positions n-1 .. 2n-1

    The accuracy leaves out the separator: its loss can be zero by always expecting it before
    it came, which is no copying.
    """

    experiment: ClassVar[str] = "convergence"

    seq_len: int = 128
    n_symbols: int = 10

    def __post_init__(self):
        _check(self, least_len=5)

    @property
    def vocab_size(self) -> int:
        return self.n_symbols + 1

    @property
    def lengths(self) -> range:
        """The numbers of symbols n that `sample` draws from."""
        return range(self.seq_len // 4, (self.seq_len - 1) // 2)

    def sample(self, batch_size: int, generator: torch.Generator) -> Batch:
        """Draw a batch on the generator's device."""
        first, end = self.lengths.start, self.lengths.stop
        n = drawn(first, end, (batch_size, 1), generator)
        return self.batch(drawn(1, self.n_symbols + 1, (batch_size, end), generator), n)

    def batch(self, symbols: Tensor, n: Tensor) -> Batch:
        """The task of copying the first n (B, 1) of some symbols (B, at least max n)."""
        position = torch.arange(self.seq_len + 1, device=symbols.device).expand(len(symbols), -1)
        copied = torch.where(position < n, position, position - n - 1)
        tokens = symbols.gather(1, copied.clamp(0, symbols.shape[1] - 1))
        tokens = tokens.masked_fill((position == n) | (position > 2 * n), 0)
        position = position[:, :-1]
        in_accuracy = (position >= n) & (position < 2 * n)
        return Batch(
            inputs=(tokens[:, :-1],),
            targets=tokens[:, 1:],
            in_loss=in_accuracy | (position == n - 1),
            in_accuracy=in_accuracy,
        )


@dataclass(frozen=True, kw_only=True)
class SequenceCopy(TokenTask):
    """Copy a source with an encoder and a decoder (Do & Bergner 2022).

    N - 2 symbols between a start (11) and an end token (12); 13 classes, of which 0 never occurs.
    The decoder is given the target shifted by one (teacher forcing). With N = 6:

        source         11 7 3 9 1 12
        decoder input  11 7 3 9 1
        targets         7 3 9 1 12
    """

    experiment: ClassVar[str] = "sequence_copy"

    seq_len: int = 64
    n_symbols: int = 10

    def __post_init__(self):
        _check(self, least_len=3)

    @property
    def start(self) -> int:
        return self.n_symbols + 1

    @property
    def end(self) -> int:
        return self.n_symbols + 2

    @property
    def vocab_size(self) -> int:
        return self.n_symbols + 3

    def sample(self, batch_size: int, generator: torch.Generator) -> Batch:
        """Draw a batch on the generator's device."""
        shape = batch_size, self.seq_len - 2
        return self.batch(drawn(1, self.n_symbols + 1, shape, generator))

    def batch(self, symbols: Tensor) -> Batch:
        """The task of copying given symbols (B, N - 2)."""
        edge = symbols.new_ones(len(symbols), 1)
        source = torch.cat([edge * self.start, symbols, edge * self.end], dim=1)
        targets = source[:, 1:]
        everywhere = torch.ones_like(targets, dtype=torch.bool)
        return Batch((source, source[:, :-1]), targets, everywhere, everywhere)


Task = CausalCopy | SequenceCopy


def _check(task: Task, least_len: int) -> None:
    """Of whose sizes one that is shorter holds no symbol."""
    if not least_len <= task.seq_len <= MAX_SEQ_LEN:
        raise ValueError(
            f"seq_len {task.seq_len} holds no copy task: use {least_len} (one symbol) to "
            f"{MAX_SEQ_LEN}"
        )
    check_numbers(task, n_symbols=(2, 1000))
