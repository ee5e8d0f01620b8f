"""The 2022 replication's model at its own size, judged on rows of `autopsy_full`: whether its
softmax that does not learn comes back at N = 8, and which difference makes it.

A run is *as written* where it has every difference that can change a loss, but for the batch: the
replication's code and text say 8 for both mechanisms. Losses are nats a token, and times the batch
of 8 as the article prints them.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from replib.claims.autopsy.defects import BATCH_FACTOR, DEFECTS, full_size_defects
from replib.lab.run import config_of
from replib.lab.runs.training import SOLVED_ACCURACY
from replib.lab.store import Row

SEQ_LEN, BATCH, N_STEPS = 8, 8, 3000
END = 1 / 6  # of a run's steps: the median of its evaluations counts, of 32 sequences or more each
MIN_RUNS = 3  # as written, for a verdict
END_MARGIN = 0.1  # nats a token by which two ends may differ and be the same: 0.8 as printed
AS_WRITTEN, MENDED = "as written", "mended"
BUT_FOR = {
    "embedding_scale": "the embedding times √E",
    "leak": "the causal mask",
    "adam": "RAdam at 1e-3",
    "trained_positions": "fixed sinusoids",
    "details": "our other details",
    "batch_32": "batch 8",
}
"""What a run has in place of each difference."""


@dataclass(frozen=True)
class Variant:
    """Runs that differ in their seed alone: what is mended of them, and their rows."""

    attention: str
    mended: tuple[str, ...]
    batch: int
    rows: tuple[Row, ...]

    @property
    def name(self) -> str:
        if not any(config_of(row).defects for row in self.rows):
            return MENDED
        named = " and ".join(BUT_FOR.get(one, DEFECTS[one].title) for one in self.mended)
        batch = "" if self.batch == BATCH else f", batch {self.batch}"
        steps = "" if self.n_steps == N_STEPS else f", {self.n_steps} steps"
        return AS_WRITTEN + batch + steps + (f", but with {named}" if named else "")

    @property
    def n_steps(self) -> int:
        return config_of(self.rows[0]).n_steps

    @property
    def ends(self) -> list[float]:
        """The loss of each run at its end, nats a token."""
        return [end_of(row) for row in self.rows]

    @property
    def accuracy(self) -> float:
        """The median of the runs' last accuracies."""
        return statistics.median(row["summary"]["final_accuracy"] for row in self.rows)

    @property
    def n_solved(self) -> int:
        return sum(row["summary"]["final_accuracy"] >= SOLVED_ACCURACY for row in self.rows)


def end_of(row: Row) -> float:
    """The median loss of a run's last steps (END), which a spike does not move."""
    curve = zip(row["curve"]["step"], row["curve"]["loss"], strict=True)
    first = config_of(row).n_steps * (1 - END)
    return statistics.median(loss for step, loss in curve if step > first)


def variants(rows: Sequence[Row]) -> list[Variant]:
    """Finished runs of the article's size, by what is mended; of each seed the last."""
    found: dict[tuple, dict[int, Row]] = {}
    for row in rows:
        config = config_of(row)
        if row["outcome"] == "ok" and config.task.seq_len == SEQ_LEN:
            attention, defects = config.model.attention, config.defects
            kept = (*defects, "batch_32")
            mended = tuple(one for one in full_size_defects(attention) if one not in kept)
            batch = BATCH_FACTOR * BATCH if "batch_32" in defects else BATCH
            found.setdefault((attention, mended, batch), {})[row["seed"]] = row
    every = [Variant(*key, tuple(by_seed.values())) for key, by_seed in found.items()]
    return sorted(
        every, key=lambda one: (one.attention != "softmax", len(one.mended), one.batch, one.mended)
    )


def written(rows: Sequence[Row], attention: str, *mended: str) -> Variant | None:
    """The runs as written, of batch 8, but for some differences; None where there are none."""
    for one in variants(rows):
        if (one.attention, one.mended, one.batch) == (attention, mended, BATCH):
            return one
    return None


def printed(losses: Sequence[float]) -> str:
    """Losses as the article prints them: their median, and their range where there are several."""
    sums = [BATCH * loss for loss in losses]
    spread = f" ({min(sums):z.1f} to {max(sums):z.1f})" if len(sums) > 1 else ""
    return f"{statistics.median(sums):z.1f}{spread}"


def n_runs(n: int) -> str:
    return f"{n} run" if n == 1 else f"{n} runs"
