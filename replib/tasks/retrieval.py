"""Recall of the value that a key was given last, drawn vectorised on the device that trains on it.

B batch, N sequence length, L number of queries, S keys.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from replib.checks import check_numbers
from replib.tasks.copy import MAX_SEQ_LEN, drawn

MAX_KEYS = 4096  # several times the paper's most; more is a slip of the keyboard


@dataclass(frozen=True)
class Associations:
    """Sequences of keys with their values, and what is asked of them.

    Attributes:
        keys, values: (B, N), from 0 to the number of keys - 1.
        queries, targets: (B, L), a key and the value that it was given last.
        asked: (B, L) bool, False where the key does not occur and the query does not count.
    """

    keys: Tensor
    values: Tensor
    queries: Tensor
    targets: Tensor
    asked: Tensor


@dataclass(frozen=True, kw_only=True)
class AssociativeRetrieval:
    """Remember which value each key was given last (Schlag et al. 2021, section 6.1).

    Without replacement (setting 1) a sequence has each of the S keys once, with S different values;
    with replacement (setting 2) it is twice as long, keys come back and are given new values. S = 3
    with replacement:

        keys    2 0 2 1 0 2
        values  1 1 0 2 1 2        query 2, target 2

    Attributes:
        n_keys: S, the number of keys, and of values.
        seq_len: N; None is S without replacement and 2·S with.
    """

    VERSION: ClassVar[int] = 1  # as of `TokenTask`

    n_keys: int = 20
    with_replacement: bool = False
    seq_len: int | None = None

    def __post_init__(self):
        check_numbers(self, n_keys=(2, MAX_KEYS))
        most = MAX_SEQ_LEN if self.with_replacement else self.n_keys
        if self.seq_len is None:
            object.__setattr__(self, "seq_len", self.n_keys * (1 + self.with_replacement))
        if not 1 <= self.seq_len <= most:
            raise ValueError(
                f"seq_len {self.seq_len} with {self.n_keys} keys: use 1 to {most}, or "
                "with_replacement=True"
            )

    def sample(self, batch_size: int, generator: torch.Generator) -> Associations:
        """Draw sequences on the generator's device, each with the key of a random position as its
        one query."""
        keys, values = (self._draw(batch_size, generator) for _ in range(2))
        position = drawn(0, self.seq_len, (batch_size, 1), generator)
        return self.batch(keys, values, keys.gather(1, position))

    def sample_all_queries(
        self, batch_size: int, n_queries: int, generator: torch.Generator
    ) -> Associations:
        """Draw sequences, each asked for the first `n_queries` keys that there are."""
        keys, values = (self._draw(batch_size, generator) for _ in range(2))
        queries = torch.arange(min(n_queries, self.n_keys), device=generator.device)
        return self.batch(keys, values, queries.expand(batch_size, -1))

    def batch(self, keys: Tensor, values: Tensor, queries: Tensor) -> Associations:
        """The task of given keys and values (B, N) and queries (B, L)."""
        position = torch.arange(1, self.seq_len + 1, device=keys.device)
        found = (keys.unsqueeze(1) == queries.unsqueeze(2)) * position  # (B, L, N)
        last = found.amax(-1)  # counted from 1; 0 where the key does not occur
        targets = values.gather(1, (last - 1).clamp(min=0))
        return Associations(keys, values, queries, targets, last > 0)

    def _draw(self, batch_size: int, generator: torch.Generator) -> Tensor:
        if self.with_replacement:
            return drawn(0, self.n_keys, (batch_size, self.seq_len), generator)
        options = {"generator": generator, "device": generator.device}
        orders = [torch.randperm(self.n_keys, **options) for _ in range(batch_size)]
        return torch.stack(orders)[:, : self.seq_len]
