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

from replib.fast_weights import RetrievalConfig, RetrievalTraining, query_losses, stacked
from replib.lab.run import register

VERSION = 1  # raised when a mean is taken otherwise
MEANS = ("best_all_keys_loss", "best_asked_loss", "best_batches_loss")


@dataclass(frozen=True, kw_only=True)
class MeansConfig(RetrievalConfig):
    """A run of `RetrievalConfig` of which the MEANS of losses are kept: over all S keys, over those
    that are asked, and of those as the published code averages them."""

    kind: ClassVar[str] = "evaluation"

    def __post_init__(self):
        super().__post_init__()
        if self.task.with_replacement:
            raise ValueError("means where keys come back: use with_replacement=False")

    @property
    def versions(self) -> dict[str, int]:
        return super().versions | {"evaluation": VERSION}

    def training(self, *, seeds: Sequence[int], device: str | None = None) -> "MeansTraining":
        return MeansTraining(self, seeds=seeds, device=device)


register(MeansConfig)


def means_of(losses: Tensor, n_queries: int, batch_size: int) -> Tensor:
    """MEANS (P, 3) of the losses of all keys (P, B, S), of which an evaluation asks the first
    `n_queries`, in batches of which the last of a sequence may be smaller."""
    asked = losses[..., :n_queries]
    batches = torch.stack([some.mean(2) for some in asked.split(batch_size, dim=2)])
    return torch.stack([losses.mean((1, 2)), asked.mean((1, 2)), batches.mean((0, 2))], dim=1)


class MeansTraining(RetrievalTraining):
    """A run as `RetrievalTraining` computes it, that keeps the means of every evaluation."""

    def __init__(
        self, config: RetrievalConfig, *, seeds: Sequence[int] = (0,), device: str | None = None
    ):
        super().__init__(config, seeds=seeds, device=device)
        self.means: dict[int, list[tuple[float, float, float]]] = {seed: [] for seed in seeds}
        """Of each seed and evaluation, in the order of MEANS."""

    @torch.no_grad()
    def evaluate(self) -> Tensor:
        """The loss of each running seed on fresh sequences, over what is asked."""
        config, task = self.config, self.config.eval_task
        asked_for = [
            task.sample_all_queries(config.eval_sequences, config.eval_queries, self._evaluation[i])
            for i in self.active
        ]
        everything = torch.arange(task.n_keys, device=self.device).expand(config.eval_sequences, -1)
        batch = stacked([task.batch(one.keys, one.values, everything) for one in asked_for])
        losses = query_losses(self.model(batch, self._directions(config.eval_sequences)), batch)
        n_queries = asked_for[0].queries.shape[1]
        means = means_of(losses, n_queries, config.batch_size)
        for i, of_seed in zip(self.active, means.tolist(), strict=True):
            self.means[self.seeds[i].seed].append(tuple(of_seed))
        return means[:, 1]

    def summary(self, seed: int) -> dict[str, Any]:
        """With the least of each mean over a seed's evaluations; without before the first."""
        least = map(min, zip(*self.means[seed], strict=True))
        return super().summary(seed) | dict(zip(MEANS, least, strict=False))

    def _restore(self, state: dict[str, Any]) -> None:
        super()._restore(state)
        self.means = {seed: list(map(tuple, state["means"][seed])) for seed in self.means}

    def _state(self) -> dict[str, Any]:
        return super()._state() | {"means": self.means}
