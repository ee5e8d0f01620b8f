"""What the published code calls the loss of a memory, measured beside the mean over all its keys.

The published evaluation asks each of 20 sequences for its first 200 keys, always in the same order,
in batches of 32, and averages the means of the batches. With S = 100 the last batch has 4 keys, and
counts as much as one of 32: each of these keys counts 8 times. A memory that holds just R of S keys
then has a loss that depends on which these are, and which may be below the least that a mean over
all keys can be (`memories.least_loss`). Here a training is watched that is otherwise that of
`replib.fast_weights`: three means of the same losses at every evaluation.

P seeds, B sequences, L queries of a sequence, S keys.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from replib.fast_weights import RetrievalConfig, RetrievalTraining, _stacked
from replib.lab.run import register
from replib.tasks import Associations

VERSION = 1  # raised when a mean is taken otherwise


@dataclass(frozen=True, kw_only=True)
class MeansConfig(RetrievalConfig):
    """A run of `RetrievalConfig` of which the means of `Means` are kept."""

    kind: ClassVar[str] = "evaluation"

    @property
    def versions(self) -> dict[str, int]:
        return super().versions | {"evaluation": VERSION}

    def training(self, *, seeds: Sequence[int], device: str | None = None) -> "MeansTraining":
        return MeansTraining(self, seeds=seeds, device=device)


register(MeansConfig)


@dataclass(frozen=True)
class Means:
    """Means of an evaluation's losses, each (P,): over all S keys, over those that are asked, and
    of those as the published code averages them."""

    all_keys: Tensor
    asked: Tensor
    batches: Tensor


def query_losses(reads: Tensor, batch: Associations) -> Tensor:
    """0.5·|read - unit vector of the target|² of each query, (P, B, L, S) -> (P, B, L)."""
    right = reads.gather(-1, batch.targets.unsqueeze(-1)).squeeze(-1)
    return (reads.square().sum(-1) - 2 * right + 1) / 2


def mean_of_batches(losses: Tensor, asked: Tensor, batch_size: int) -> Tensor:
    """The mean of the means of batches, as published: each sequence's queries that count, in their
    order, `batch_size` at a time; the last batch of a sequence may be smaller. Losses and asked
    (P, B, L) -> (P,)."""
    means = []
    for of_seed, counts in zip(losses, asked, strict=True):
        batches = [
            batch.mean()
            for one, count in zip(of_seed, counts, strict=True)
            for batch in one[count].split(batch_size)
            if len(batch)
        ]
        means.append(torch.stack(batches).mean())
    return torch.stack(means)


def means_of(losses: Tensor, asked: Tensor, n_queries: int, batch_size: int) -> Means:
    """The means of the losses of all keys (P, B, S), of which an evaluation asks the first
    `n_queries`."""

    def mean(n: int) -> Tensor:
        some, counts = losses[..., :n], asked[..., :n]
        return (some * counts).sum((1, 2)) / counts.sum((1, 2))

    first = losses[..., :n_queries], asked[..., :n_queries]
    return Means(mean(losses.shape[-1]), mean(n_queries), mean_of_batches(*first, batch_size))


class MeansTraining(RetrievalTraining):
    """A run as `RetrievalTraining` computes it, that keeps the means of every evaluation."""

    def __init__(
        self, config: RetrievalConfig, *, seeds: Sequence[int] = (0,), device: str | None = None
    ):
        super().__init__(config, seeds=seeds, device=device)
        self.means: dict[int, list[tuple[float, float, float]]] = {seed: [] for seed in seeds}
        """Of each seed and evaluation: over all keys, over those asked, of batches."""

    @torch.no_grad()
    def evaluate(self) -> Tensor:
        """The loss of each running seed on fresh sequences, over what is asked."""
        config, task = self.config, self.config.eval_task
        asked_for = [
            task.sample_all_queries(config.eval_sequences, config.eval_queries, self._evaluation[i])
            for i in self.active
        ]
        everything = torch.arange(task.n_keys, device=self.device).expand(config.eval_sequences, -1)
        batch = _stacked([task.batch(one.keys, one.values, everything) for one in asked_for])
        reads = self.model(batch, self._directions(config.eval_sequences))
        losses, n_queries = query_losses(reads, batch), asked_for[0].queries.shape[1]
        means = means_of(losses, batch.asked, n_queries, config.batch_size)
        found = torch.stack([means.all_keys, means.asked, means.batches], dim=1).tolist()
        for i, of_seed in zip(self.active, found, strict=True):
            self.means[self.seeds[i].seed].append(tuple(of_seed))
        return means.asked

    def summary(self, seed: int) -> dict[str, Any]:
        """With the least of each mean over a seed's evaluations; without before the first."""
        names = ("best_all_keys_loss", "best_asked_loss", "best_batches_loss")
        least = map(min, zip(*self.means[seed], strict=True))
        return super().summary(seed) | dict(zip(names, least, strict=False))

    def _restore(self, state: dict[str, Any]) -> None:
        super()._restore(state)
        self.means = {seed: list(map(tuple, state["means"][seed])) for seed in self.means}

    def _state(self) -> dict[str, Any]:
        return super()._state() | {"means": self.means}
